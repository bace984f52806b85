/* test_precision.c: the command that measures what FP8 costs a model.
 *
 * Models of every shape in tests/data/models, with random weights and the
 * tokenizer of tests/data/tiny, which has 270 ids. What is held: outliers
 * change no bit of the model as it is stored, and those of tokens none where
 * each token has scales of its own; the order of the variants that V3 §3.3.2
 * and B.2 argue for, on the shipped model; figures, as text, as JSON and as a
 * picture; what is refused. */
#define _XOPEN_SOURCE 700
#include "../base/json.h"

#include "program.h"

#include <stdbool.h>

#define STORIES "data/../../models/stories"

enum { STORED, WEIGHTS, TILES, BLOCKS, TENSOR, VARIANTS };
enum { NONE, TOKENS, FEATURES, KINDS };
enum { MAX_LAYERS = 16 };

typedef struct {
    char name[16], outliers[16];
    double perplexity, change, error[MAX_LAYERS];
} Row;

typedef struct {
    int64_t tokens, window;
    size_t layers;
    Row rows[KINDS][VARIANTS];
} Table;

static const char text[] = "the sand on the land and the band in the hand";

/* A model like tests/data/models/NAME, in a directory of that name. */
static void make_model(const char *name, const char *dtype)
{
    char line[500];
    snprintf(line, sizeof line, "mkdir -p config && sed 's/\"vocab_size\": "
             "[0-9]*/\"vocab_size\": 288/' data/models/%s/config.json "
             ">config/config.json", name);
    assert_int_equal(shell(line), 0);
    snprintf(line, sizeof line, "init config/config.json -o %s --std 0.3 "
             "--dtype %s --force", name, dtype);
    done(line);
}

static int begin(void **state)
{
    if (program_begin(state) != 0
        || shell("mkdir config && cp data/tiny/tokenizer*.json config") != 0)
        return -1;
    done("init data/tiny/config.json -o m --std 0.3");
    temp_write("text", text, strlen(text));
    return 0;
}

static double number(const Json *j, const JsonNode *node, const char *key)
{
    double value;
    assert_true(json_number(j, json_get(j, node, key), &value));
    return value;
}

static void string(const Json *j, const JsonNode *node, const char *key,
                   char to[16])
{
    assert_true(json_string(j, json_get(j, node, key), to, 16) > 0);
}

static size_t read_row(Row *row, const Json *j, const JsonNode *node)
{
    const JsonNode *errors = json_get(j, node, "error"), *e;
    size_t n = 0;
    string(j, node, "name", row->name);
    string(j, node, "outliers", row->outliers);
    row->perplexity = number(j, node, "perplexity");
    row->change = number(j, node, "change");
    for (e = json_first(j, errors); e; e = json_next(j, errors, e)) {
        assert_true(n < MAX_LAYERS && json_number(j, e, &row->error[n]));
        n++;
    }
    return n;
}

static Table measure(const char *words)
{
    char line[500];
    Table t = {0};
    Json j;
    Error err;
    snprintf(line, sizeof line, "precision %s --json", words);
    const char *out = done(line);
    if (json_parse(&j, "precision", out, strlen(out), &err) != 0)
        fail_msg("%s", err.text);
    const JsonNode *all = json_get(&j, j.nodes, "variants");
    assert_int_equal(all->size, KINDS * VARIANTS);
    const JsonNode *node = json_first(&j, all);
    for (size_t i = 0; i < KINDS * VARIANTS; i++) {
        size_t n = read_row(&t.rows[i / VARIANTS][i % VARIANTS], &j, node);
        assert_true(i == 0 || n == t.layers);
        t.layers = n;
        node = json_next(&j, all, node);
    }
    t.tokens = (int64_t)number(&j, j.nodes, "tokens");
    t.window = (int64_t)number(&j, j.nodes, "window");
    json_free(&j);
    return t;
}

static bool same(const Row *a, const Row *b, size_t layers)
{
    for (size_t l = 0; l < layers; l++)
        if (a->error[l] < b->error[l] || a->error[l] > b->error[l])
            return false;
    return !(a->perplexity < b->perplexity)
           && !(a->perplexity > b->perplexity);
}

/* What holds for every model. */
static void check_exact(const Table *t, const char *name)
{
    static const Row exact;
    for (int kind = NONE; kind < KINDS; kind++) {
        Row stored = t->rows[kind][STORED];
        for (size_t l = 0; l < t->layers; l++)
            if (stored.error[l] > 0 || stored.error[l] < 0)
                fail_msg("%s: outliers in %s change layer %zu by %g", name,
                         stored.outliers, l, stored.error[l]);
        assert_true(same(&stored, &t->rows[NONE][STORED], t->layers));
        assert_false(stored.change < 0 || stored.change > 0);
        for (int v = WEIGHTS; v < VARIANTS; v++)
            assert_false(same(&t->rows[kind][v], &exact, t->layers));
    }
    for (int v = STORED; v <= TILES; v++)
        assert_true(same(&t->rows[TOKENS][v], &t->rows[NONE][v], t->layers));
    for (int v = WEIGHTS; v < VARIANTS; v++)
        assert_false(same(&t->rows[FEATURES][v], &t->rows[NONE][v],
                          t->layers));
}

/* Every way attention, the gate and the layers may look; MTP layers are there
 * and are not run. */
static void outliers_change_no_bit(void **state)
{
    static const char *const names[] = {
        "k1-v2-lite", "k2-v2", "k3-v3", "k4-negative-bias", "k5-ties",
        "k6-no-yarn", "k8-eps", "k9-shapes", "dense-v2", "dense-v3",
        "norm-topk-v2", "one-group", "mtp-present", "mtp-two", "fp8-ragged"};
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char words[100];
        make_model(names[i], dtypes[i % 3]);
        snprintf(words, sizeof words, "%s text", names[i]);
        Table t = measure(words);
        check_exact(&t, names[i]);
    }
}

/* FP8 weights stand for numbers: quantised again they are off by rounding
 * alone, if their scales are of the greatest weight. */
static void of_fp8_weights(void **state)
{
    static const char *const names[] = {"fp8-ragged", "fp8-ue8m0"};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char words[100];
        make_model(names[i], "fp8");
        snprintf(words, sizeof words, "%s text", names[i]);
        Table t = measure(words);
        for (size_t l = 0; l < t.layers; l++) {
            assert_true(t.rows[FEATURES][STORED].error[l] <= 0);
            assert_true(t.rows[NONE][WEIGHTS].error[l] < 1e-5);
            assert_true(t.rows[NONE][TILES].error[l] > 1e-3);
        }
    }
}

/* What V3 argues, on a trained model: a scale a tensor loses to tiles and
 * blocks where there are outliers, blocks of activations to tiles where tokens
 * are outliers. */
static void as_the_paper_argues(void **state)
{
    (void)state;
    assert_int_equal(shell("head -c 60 data/fairy_excerpt.txt >tale"), 0);
    Table t = measure(STORIES " tale");
    check_exact(&t, "stories");
    assert_int_equal(t.layers, 6);
    for (size_t l = 0; l < t.layers; l++) {
        double tiles = t.rows[NONE][TILES].error[l];
        assert_true(t.rows[NONE][WEIGHTS].error[l] < tiles && tiles < 0.08);
        assert_true(t.rows[NONE][TENSOR].error[l] < 1.8 * tiles);
        assert_true(t.rows[TOKENS][BLOCKS].error[l] > 1.8 * tiles);
        assert_true(t.rows[TOKENS][TENSOR].error[l]
                    > t.rows[TOKENS][BLOCKS].error[l]);
        assert_true(t.rows[FEATURES][TENSOR].error[l]
                    > 1.3 * t.rows[FEATURES][TILES].error[l]);
    }
    assert_true(t.rows[TOKENS][TENSOR].change > 0.05);
    assert_true(t.rows[NONE][TILES].change < 0.02);
}

/* The table's figures; those of eval where nothing is FP8. */
static void as_a_table(void **state)
{
    char perplexity[64];
    (void)state;
    done("eval m text --mla naive");
    double found = strtod(strchr(last.out, '\n') + 39, NULL);
    snprintf(perplexity, sizeof perplexity, "\n  perplexity   %12.4f ",
             found);
    done("precision m text");
    assert_ptr_equal(strstr(last.out, "24 tokens in windows of 256; |h - h'| "
                            "/ |h| of every layer's output h\noutliers: 1 of "
                            "128 tokens, or 1 of 256 features, of every "
                            "Linear layer's input, times 2^14\n"), last.out);
    assert_non_null(strstr(last.out, perplexity));
    assert_non_null(strstr(last.out, "\nno outliers       as stored      "
                           "weights        1x128      128x128       tensor"));
    assert_non_null(strstr(last.out, "\nin tokens  "));
    assert_non_null(strstr(last.out, "\nin features  "));
    assert_non_null(strstr(last.out, "\n  layer 0          0.000000     "
                           "0.133528     0.165912     0.168858     0.168858"
                           "\n"));
    assert_non_null(strstr(last.out, "\n  layer 1          0.000000     "
                           "0.392886     0.386280     0.426675     0.426675"
                           "\n"));
    assert_non_null(strstr(last.out, "\n  change              0.00%       "
                           "51.98%       39.97%       36.45%       36.45%"
                           "\n"));
}

/* Windows run apart: all tokens are predicted, others come out. */
static void windows(void **state)
{
    (void)state;
    Table whole = measure("m text"), longer = measure("m text --ctx 25");
    Table cut = measure("m text --ctx 8");
    assert_int_equal(whole.window, 256);
    assert_int_equal(longer.window, 25);
    assert_int_equal(cut.window, 8);
    assert_int_equal(whole.tokens, 24);
    assert_int_equal(cut.tokens, 24);
    for (int v = STORED; v < VARIANTS; v++)
        assert_true(same(&whole.rows[NONE][v], &longer.rows[NONE][v], 2));
    assert_false(same(&whole.rows[NONE][STORED], &cut.rows[NONE][STORED], 2));
    check_exact(&cut, "windows");
}

static void from_a_pipe_and_with_a_reading(void **state)
{
    (void)state;
    char *file = done_dup("precision m text");
    assert_string_equal(run_with(text, "precision m -")->out, file);
    free(file);
    make_model("k8-eps", "f32");
    file = done_dup("precision k8-eps text");
    assert_string_not_equal(done("precision k8-eps text --reading "
                                 "latent-eps=rms_norm_eps"), file);
    free(file);
}

static size_t times(const char *in, const char *what)
{
    size_t n = 0;
    while ((in = strstr(in, what)) != NULL) {
        n++;
        in++;
    }
    return n;
}

/* A line for each run that loses something and that outliers can reach. */
static void as_a_picture(void **state)
{
    static char svg[1 << 15], again[1 << 15];
    (void)state;
    char *table = done_dup("precision m text");
    assert_string_equal(done("precision m text -o p.svg"), table);
    free(table);
    read_text("p.svg", svg, sizeof svg);
    assert_ptr_equal(strstr(svg, "<svg xmlns"), svg);
    assert_int_equal(times(svg, "<path fill=\"none\""), 11);
    assert_int_equal(times(svg, "stroke-dasharray=\"2 3\""), 2 * 3);
    assert_int_equal(times(svg, "stroke-dasharray=\"6 4\""), 2 * 4);
    assert_int_equal(times(svg, "<circle"), 11 * 2);
    assert_non_null(strstr(svg, ">activations 128x128, outlier tokens<"));
    assert_null(strstr(svg, "as stored"));
    assert_null(strstr(svg, "FP8 weights, outlier tokens"));
    temp_write("p.svg", "old", 3);
    done("precision m text -o p.svg --force --json");
    read_text("p.svg", again, sizeof again);
    assert_string_equal(again, svg);
}

/* Refused, with nothing printed and nothing written. */
static void refuse(const char *words, int status, const char *message)
{
    int names = temp_count(".");
    run(words);
    complains(words, status, message);
    assert_string_equal(last.out, "");
    assert_int_equal(temp_count("."), names);
}

static void bad_input(void **state)
{
    (void)state;
    done("init data/tiny/config.json -o bare --std 0.3");
    assert_int_equal(shell("rm bare/tokenizer*.json; : >empty; printf '\\377' "
                           ">binary; mkdir -p dir; printf a >one; printf old "
                           ">old; cp -R m nobos; printf '{\"add_bos_token\": "
                           "false}' >nobos/tokenizer_config.json"), 0);
    refuse("precision", 2, "precision wants DIR FILE (deepseek precision "
           "--help says more)");
    refuse("precision m", 2, "precision wants DIR FILE (deepseek precision "
           "--help says more)");
    refuse("precision m text text", 2, "precision takes DIR FILE, and 'text' "
           "is one too many");
    refuse("precision m text --ctx 0", 2, "--ctx wants a whole number from 2 "
           "to 1000000000000000, not '0'");
    refuse("precision m text --fp8 weights", 2, "precision has no option "
           "'--fp8' (deepseek precision --help lists its options)");
    refuse("precision m text --ctx 1000000000000", 1, "context: wanted 1 to "
           "1073741824 tokens, found 1000000000000");
    refuse("precision nothing text", 1,
           "nothing: cannot open: No such file or directory");
    refuse("precision bare text", 1, "bare has no tokenizer.json");
    refuse("precision m nothing", 1,
           "nothing: cannot open: No such file or directory");
    refuse("precision m dir", 1, "dir: cannot read: is a directory");
    refuse("precision m empty", 1, "empty is empty");
    refuse("precision m - ", 1, "- is empty");
    refuse("precision m binary", 1, "binary: text: wanted UTF-8, found byte "
           "0xff at offset 0");
    refuse("precision nobos one", 1,
           "one: wanted 2 tokens or more, found 1");
    done("precision m one");
    refuse("precision m text -o no/p.svg", 1,
           "no/p.svg: cannot create: No such file or directory");
    refuse("precision m text -o dir --force", 1,
           "dir: cannot write: is a directory");
    refuse("precision m text -o old", 1,
           "old: exists already; --force overwrites it");
    refuse("precision m nothing -o old --force", 1,
           "nothing: cannot open: No such file or directory");
    assert_int_equal(shell("test \"$(cat old)\" = old"), 0);
}

/* A number that is none is named, with its file, before anything runs. */
static void not_finite(void **state)
{
    static const char inf[] = {(char)0x80, 0x7f};
    char header[1 << 14];
    (void)state;
    assert_int_equal(shell("cp -R m bad"), 0);
    read_text("bad/model.safetensors", header, sizeof header);
    FILE *f = fopen("bad/model.safetensors", "r+b");
    assert_non_null(f);
    unsigned char length[8];
    assert_int_equal(fread(length, 1, 8, f), 8);
    assert_int_equal(fseek(f, 8 + length[0] + 256 * length[1], SEEK_SET), 0);
    assert_int_equal(fwrite(inf, 1, 2, f), 2);
    assert_int_equal(fclose(f), 0);
    refuse("precision bad text", 1, "bad/model.safetensors: "
           "model.embed_tokens.weight: element (0, 0) is inf, wanted a finite "
           "number");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outliers_change_no_bit),
        cmocka_unit_test(of_fp8_weights),
        cmocka_unit_test(as_the_paper_argues),
        cmocka_unit_test(as_a_table),
        cmocka_unit_test(windows),
        cmocka_unit_test(from_a_pipe_and_with_a_reading),
        cmocka_unit_test(as_a_picture),
        cmocka_unit_test(bad_input),
        cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests(tests, begin, temp_end);
}
