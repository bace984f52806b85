/* scan_json.c: the stages of base/json.c that look at bytes, on any twelve
 * bytes, from any place among them, with room for one node. */
#include "eva.h"

#include "base/json.c"

enum { BYTES = 12 };

static char text[BYTES];
static JsonNode nodes[2];

static void read_one(Parser *p)
{
    switch (Frama_C_interval(0, 4)) {
    case 0:
        if (*p->at == '"')
            read_string(p);
        break;
    case 1:
        if (*p->at == '-' || is_digit(p->at, p->end))
            read_number(p);
        break;
    case 2: read_word(p, "true", JSON_TRUE); break;
    case 3: read_word(p, "null", JSON_NULL); break;
    default: wanted(p, p->at, "a value");
    }
}

int main(void)
{
    Error err;
    Json json = {"input", text, BYTES, nodes, 0};
    Parser p = {.json = &json, .end = text + BYTES, .capacity = 2,
                .err = &err};
    for (int i = 0; i < BYTES; i++)
        text[i] = (char)Frama_C_interval(-128, 127);
    p.at = text + Frama_C_interval(0, BYTES);
    skip_blanks(&p);
    if (p.at < p.end)
        read_one(&p);
    return 0;
}
