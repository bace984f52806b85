/* json.c: any bytes as JSON; what parses can be walked and decoded. */
#include "fuzz.h"

#include "base/json.h"

static void visit(const Json *json, const JsonNode *node)
{
    char text[64];
    double number;
    int64_t integer;
    long n = json_string(json, node, text, sizeof text);
    MUST(n < (long)sizeof text && n <= (long)node->length);
    if (json_number(json, node, &number))
        MUST(json_type(node) == JSON_NUMBER && number == number);
    if (json_integer(json, node, -100, 100, &integer))
        MUST(integer >= -100 && integer <= 100);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Error err;
    Json json;
    if (json_parse(&json, "input", (const char *)data, size, &err)) {
        MUST(!strchr(err.text, '\n') && err.text[0]);
        return 0;
    }
    for (size_t i = 0; i < json.n_nodes; i++) {
        const JsonNode *node = &json.nodes[i], *child;
        size_t children = 0;
        visit(&json, node);
        MUST(node->next > i && node->next <= json.n_nodes);
        for (child = json_first(&json, node); child;
             child = json_next(&json, node, child))
            children++;
        MUST(children == (json_type(node) == JSON_OBJECT ? 2 : 1)
                             * (size_t)node->size);
    }
    json_free(&json);
    return 0;
}
