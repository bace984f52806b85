/* The program as a user meets it: run as a child, its output, its one line of
 * complaint and its exit status compared. What it refuses is in
 * test_malformed.c.
 *
 * data/tiny is a V3-style config (2 layers, 8 experts, an MTP layer) with a
 * tokenizer of the 256 bytes and seven merges, made by hand; `init` gives it
 * random weights. The pinned ids follow from those and the fixed order of all
 * sums: another machine has to print the same. */
#define _XOPEN_SOURCE 700
#include "../base/json.h"

#include "program.h"

#include <signal.h>

/* Two models: m, and bare without a tokenizer. */
static int begin(void **state)
{
    if (program_begin(state) != 0)
        return -1;
    done("init data/tiny/config.json -o m --std 0.3 --dtype f32");
    done("init data/tiny/config.json -o bare --std 0.3 --dtype bf16");
    return unlink("bare/tokenizer.json") | unlink("bare/tokenizer_config.json");
}

/* Help --------------------------------------------------------------------- */

static void help_of_each_command(void **state)
{
    static const char *const commands[] = {"info", "generate", "chat", "eval",
                                           "tokenize", "trace", "diff",
                                           "golden", "init", "fp8"};
    (void)state;
    char *general = done_dup("--help");
    assert_ptr_equal(strstr(general, "usage: deepseek COMMAND"), general);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        char words[64], usage[64];
        snprintf(usage, sizeof usage, "\n  %s ", commands[i]);
        assert_non_null(strstr(general, usage));
        snprintf(words, sizeof words, "%s --help", commands[i]);
        snprintf(usage, sizeof usage, "usage: deepseek %s ", commands[i]);
        assert_ptr_equal(strstr(done(words), usage), last.out);
        assert_string_equal(last.err, "");
    }
    free(general);
}

static void manual_page_and_completion(void **state)
{
    (void)state;
    assert_non_null(strstr(done("--man"), ".SS tokenize DIR [FILE]\n"));
    assert_non_null(strstr(done("--completion bash"),
                           "complete -o default -F _deepseek deepseek\n"));
}

/* info --------------------------------------------------------------------- */

static void info_of_a_config(void **state)
{
    (void)state;
    assert_non_null(strstr(done("info data/configs/v3.json"),
                           " 91,991  V3 §3.3.2\n"));
    assert_non_null(strstr(last.out, " 688,574,839,360  V3 §3.3.2\n"));
    assert_non_null(strstr(last.out, " 671,026,419,200  "));
    assert_null(strstr(last.out, "tokenizer"));
}

static void info_of_a_model(void **state)
{
    (void)state;
    assert_non_null(strstr(done("info m"), "\nweights: 97 tensors in 1 file, "
                           "MTP layers 1 of 1\n"));
    assert_non_null(strstr(last.out, "\ntokenizer: 270 ids, BOS 0 (added), "
                           "EOS 1, "));
}

static int64_t json_path(const Json *j, const char *a, const char *b)
{
    int64_t value = -1;
    const JsonNode *node = json_get(j, j->nodes, a);
    if (b != NULL)
        node = json_get(j, node, b);
    assert_true(node != NULL && json_integer(j, node, 0, INT64_MAX, &value));
    return value;
}

static void info_as_json(void **state)
{
    Json j;
    Error err;
    (void)state;
    const char *text = done("info m --json --ctx 100");
    if (json_parse(&j, "info", text, strlen(text), &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(json_path(&j, "config", "hidden_size"), 32);
    assert_int_equal(json_path(&j, "costs", "tensors"), 97);
    assert_int_equal(json_path(&j, "costs", "cache_mla"), 40);
    assert_int_equal(json_path(&j, "context", NULL), 100);
    assert_int_equal(json_path(&j, "weights", "tensors"), 97);
    assert_int_equal(json_path(&j, "tokenizer", "ids"), 270);
    json_free(&j);
}

/* generate ----------------------------------------------------------------- */

static void ids_in_ids_out(void **state)
{
    (void)state;
    assert_string_equal(done("generate m --ids 1,2,3 --print-ids -n 6"),
                        "213 184 179 172 88 179\n");
    assert_string_equal(done("generate m --ids '1 2 3' --print-ids -n 6 "
                             "--chunk 1"), "213 184 179 172 88 179\n");
    done("generate bare --ids 1,2,3 --print-ids -n 4");
    assert_int_equal(strspn(last.out, "0123456789 "), strlen(last.out) - 1);
}

/* The line on stderr, whose other numbers vary: tokens run, tokens made. */
static size_t tokens_run_and_made(const char *remark, size_t *new)
{
    size_t prompt;
    double a, b, c;
    char rest[64];
    int n = sscanf(last.err, "prompt: %zu tokens, %lf tok/s; new: %zu tokens, "
                   "%lf tok/s; peak memory %lf MB%63[^\n]", &prompt, &a, new,
                   &b, &c, rest);
    if (n < 5 || (remark == NULL) != (n == 5) ||
        (remark != NULL && strcmp(rest, remark) != 0) ||
        strchr(last.err, '\n')[1] != '\0')
        fail_msg("%s", last.err);
    return prompt;
}

static size_t tokens_run(const char *remark)
{
    size_t new;
    return tokens_run_and_made(remark, &new);
}

static size_t tokens_made(const char *remark)
{
    size_t new;
    tokens_run_and_made(remark, &new);
    return new;
}

static void the_prompt_comes_first(void **state)
{
    (void)state;
    done("generate m -p 'the sand' -n 3");
    assert_ptr_equal(strstr(last.out, "the sand"), last.out);
    assert_int_equal(tokens_run(NULL), 5); /* BOS the ' ' s and */
    done("generate m -p 'the sand' -n 3 --no-prompt");
    assert_null(strstr(last.out, "the sand"));
}

static void a_prompt_from_stdin(void **state)
{
    (void)state;
    char *whole = done_dup("generate m -p 'the sand' -n 9");
    assert_string_equal(run_with("the sand", "generate m -p - -n 9")->out,
                        whole);
    free(whole);
}

static void the_context_ends(void **state)
{
    (void)state;
    done("generate m --ids 1,2,3 --print-ids --ctx 5");
    /* The last one need not be in the cache. */
    assert_int_equal(tokens_made("; the context is full"), 3);
}

static void seeds(void **state)
{
    (void)state;
    char *one = done_dup("generate m --ids 1 --print-ids -n 20 --temp 1 "
                         "--seed 7");
    char *greedy = done_dup("generate m --ids 1 --print-ids -n 20");
    assert_string_equal(done("generate m --ids 1 --print-ids -n 20 --top-p 1 "
                             "--seed 7"), one);
    assert_string_not_equal(done("generate m --ids 1 --print-ids -n 20 "
                                 "--temp 1 --seed 8"), one);
    assert_string_equal(done("generate m --ids 1 --print-ids -n 20 --temp 1 "
                             "--top-k 1"), greedy);
    assert_string_not_equal(greedy, one);
    free(one);
    free(greedy);
}

/* No id beyond the tokenizer's 270 of the 288 rows, whatever its logit. */
static void no_padding_ids(void **state)
{
    const char *s;
    (void)state;
    done("generate m --ids 1 --print-ids -n 250 --temp 100");
    for (s = last.out; *s != '\n'; s += strcspn(s, " \n"))
        assert_in_range(strtol(s, (char **)&s, 10), 0, 269);
}

static void generation_config(void **state)
{
    static const char sampled[] = "{\"do_sample\": true, \"temperature\": 1.0,"
        " \"eos_token_id\": [1, 2]}";
    static const char wrong[] = "{\"do_sample\": true, \"top_p\": 1.5}";
    (void)state;
    done("init data/tiny/config.json -o g --std 0.3 --dtype f32");
    char *sample = done_dup("generate m --ids 1 --print-ids -n 20 --temp 1");
    temp_write("g/generation_config.json", sampled, strlen(sampled));
    assert_string_equal(done("generate g --ids 1 --print-ids -n 20"), sample);
    assert_string_not_equal(done("generate g --ids 1 --print-ids -n 20 "
                                 "--temp 0"), sample);
    free(sample);
    temp_write("g/generation_config.json", wrong, strlen(wrong));
    run("generate g --ids 1 --print-ids");
    complains("top_p", 1, "g/generation_config.json: top_p: wanted a number "
              "from 0 to 1, found 1.5");
}

static void a_stop_id_ends_it(void **state)
{
    char config[64];
    (void)state;
    done("generate m --ids 5 --print-ids -n 1");
    snprintf(config, sizeof config, "{\"eos_token_id\": %d}", atoi(last.out));
    done("init data/tiny/config.json -o s --std 0.3 --dtype f32");
    temp_write("s/generation_config.json", config, strlen(config));
    assert_string_equal(done("generate s --ids 5 --print-ids -n 9"), "\n");
    assert_int_equal(tokens_made(NULL), 0);
}

static void readings(void **state)
{
    (void)state;
    done("generate m --ids 1 --print-ids -n 2 --reading latent-eps=1e-6");
    run("generate m --ids 1 --reading sideways=1");
    assert_int_equal(last.status, 1);
    assert_non_null(strstr(last.err, "sideways=1"));
}

/* The first byte has come: then ^C, and the text ends. After id 2 greedy
 * decoding of this model does not end for tens of thousands of tokens. */
static void interrupted(void **state)
{
    int fd[2], status;
    char byte;
    (void)state;
    assert_int_equal(pipe(fd), 0);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGINT, SIG_DFL);
        dup2(fd[1], 1);
        if (freopen("err", "wb", stderr) != NULL)
            execl("./deepseek", "deepseek", "generate", "m", "--ids", "2",
                  "--print-ids", "-n", "1000000", "--ctx", "1000000",
                  (char *)NULL);
        _exit(99);
    }
    close(fd[1]);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    kill(child, SIGINT);
    while (read(fd[0], &byte, 1) == 1)
        continue;
    close(fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_int_equal(byte, '\n');
    read_text("err", last.err, sizeof last.err);
    assert_in_range(tokens_made("; interrupted"), 1, 9999);
}

/* Drafts ------------------------------------------------------------------- */

#define MTP_TWO "data/models/mtp-two --ids 1,2,3 --print-ids -n 40 "

/* Greedy text, and what is sampled among one token, is the same with drafts
 * as without; what two are drawn from is another draw. */
static void drafts_change_no_greedy_text(void **state)
{
    static const char *const same[] = {
        "--draft 1", "--draft 2", "--draft 5 --chunk 1",
        "--draft 16 --mla naive", "--draft 3 --draft-best",
        "--draft 2 --temp 1 --top-k 1",
        "--draft 2 --temp 1 --top-k 1 --draft-best",
        "--draft 2 --reading mtp-order=hidden-first",
        "--draft 2 --reading mtp-state=before-norm"
    };
    char words[160];
    char *plain = done_dup("generate " MTP_TWO);
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        snprintf(words, sizeof words, "generate " MTP_TWO "%s", same[i]);
        assert_string_equal(done(words), plain);
    }
    char *text = done_dup("generate m -p 'the sand' -n 30");
    assert_string_equal(done("generate m -p 'the sand' -n 30 --draft 1"),
                        text);
    assert_string_equal(done("generate m -p 'the sand' -n 30 --draft 4"),
                        text);
    char *sampled = done_dup("generate " MTP_TWO "--temp 2 --draft 2");
    assert_string_equal(done("generate " MTP_TWO "--temp 2 --draft 2"),
                        sampled);
    assert_string_not_equal(done("generate " MTP_TWO "--temp 2 --draft 2 "
                                 "--draft-best"), sampled);
    assert_string_not_equal(done("generate " MTP_TWO "--temp 2 --draft 2 "
                                 "--seed 1"), sampled);
    free(plain);
    free(text);
    free(sampled);
}

/* What stands after this text on stderr, as a number. */
static double told(const char *before)
{
    const char *at = strstr(last.err, before);
    double x = 0;
    if (at == NULL || sscanf(at + strlen(before), "%lf", &x) != 1)
        fail_msg("no number behind '%s': %s", before, last.err);
    return x;
}

/* Tokens of a step follow from what was accepted. */
static void drafts_are_told(void **state)
{
    (void)state;
    done("generate data/models/mtp-two --ids 1 --print-ids -n 60 --draft 1 "
         "--temp 8 --seed 2");
    assert_true(told("\ndrafts: ") == 1);
    double a = told(" accepted by position: ") / 100;
    double steps = told(" 1 a step, "), tokens = told("\ntokens a step: ");
    assert_true(a > 0 && a < 1);
    assert_true(steps >= 28 && steps <= 57);
    assert_true(tokens > 1 && tokens < 2);
    double formula = told("(1-a^2)/(1-a) = ");
    assert_true(formula > 0.99 + a && formula < 1.01 + a);
    assert_true(told(" at a = ") > 100 * a - 0.01);
    double share = told("\ntime: ");
    assert_true(share > 0 && share < 100);
    assert_true(told("; speed-up ") > 0);
    assert_true(told(" against ") >= 1);
    assert_true(told(" plain steps, ") > 0);
    double experts = told("; a layer's experts ");
    assert_true(experts >= 2 && experts <= 4);
    assert_non_null(strstr(last.err, " for 2.00\n"));
    done("generate data/models/mtp-two --ids 1 --print-ids -n 1 "
         "--draft 3");
    assert_non_null(strstr(last.err, "\ndrafts: 3 a step, 0 steps; accepted "
                           "by position: - - -\ntime: "));
    assert_null(strstr(last.err, "speed-up"));
}

static void a_conversation_with_drafts(void **state)
{
    static const char said[] = "the\nand the sand\nand\n";
    (void)state;
    run_with(said, "chat m --template v3 -n 12");
    char *plain = strdup(last.out);
    for (int i = 0; i < 3; i++) {
        static const char *const words[] = {
            "chat m --template v3 -n 12 --draft 1",
            "chat m --template v3 -n 12 --draft 2",
            "chat m --template v3 -n 12 --draft 7 --chunk 3"
        };
        run_with(said, words[i]);
        if (last.status != 0)
            fail_msg("%s", last.err);
        assert_string_equal(last.out, plain);
        assert_non_null(strstr(last.err, "\ndrafts: "));
    }
    free(plain);
}

static void info_of_drafts(void **state)
{
    Json j;
    Error err;
    double speed;
    (void)state;
    done("info data/configs/v3.json --draft 1 --ctx 4096");
    assert_non_null(strstr(last.out, "  all                               "
                           "38,244,143,456    60,990,900,922\n"));
    assert_non_null(strstr(last.out, "\n     1                    "));
    assert_null(strstr(done("info m"), "bytes that a step reads"));
    const char *text = done("info data/configs/v3.json --draft 1 --json");
    if (json_parse(&j, "info", text, strlen(text), &err) != 0)
        fail_msg("%s", err.text);
    const JsonNode *step = json_get(&j, j.nodes, "step");
    const JsonNode *rows = json_get(&j, step, "speed_ups");
    assert_true(json_number(&j, json_get(&j, json_first(&j, rows),
                                         "speed_up"), &speed));
    assert_true(speed > 0.93 && speed < 0.95);
    json_free(&j);
}

/* The modules' stages are in a trace, T - k rows of module k. */
static void modules_are_traced(void **state)
{
    (void)state;
    done("trace data/models/mtp-two --ids 9,8,7,6 -o t.st --only 'mtp.*'");
    done("trace data/models/mtp-two --ids 9,8,7,6 -o u.st --only 'mtp.*' "
         "--chunk 1");
    done("diff t.st u.st --json");
    assert_non_null(strstr(last.out, "\"mtp.1.logits\", \"same\": true, "
                           "\"elements\": 192,"));
    assert_non_null(strstr(last.out, "\"mtp.2.logits\", \"same\": true, "
                           "\"elements\": 128,"));
    done("trace data/models/mtp-two --ids 9 -o one.st");
    done("trace data/models/mtp-absent --ids 9,8,7,6 -o none.st");
}

/* chat --------------------------------------------------------------------- */

static void a_conversation_through_a_pipe(void **state)
{
    static const char first[] = "the the the the the the the the the the the "
        "the the the the the the the the the\n";
    char both[256];
    (void)state;
    assert_int_equal(run_with(first, "chat m --template v3 -n 1")->status, 0);
    size_t alone = tokens_run(NULL);
    snprintf(both, sizeof both, "\n%s\r\nand\n", first);
    assert_int_equal(run_with(both, "chat m --template v3 -n 1")->status, 0);
    /* The second answer needs the first one and the new message alone. */
    assert_in_range(tokens_run(NULL), alone + 4, alone + 8);
}

/* An answer is what generate says to the same text, whatever the cache held
 * and however the bytes of the first answer came apart. */
static void an_answer_depends_on_the_text_alone(void **state)
{
    char text[1024];
    (void)state;
    run_with("and\nthe\n", "chat m --template v3 -n 5");
    char *answers = strdup(last.out), *second = strchr(answers, '\n');
    assert_non_null(second);
    *second++ = '\0';
    assert_non_null(strstr(answers, "\xef\xbf\xbd"));
    assert_ptr_equal(strchr(second, '\n'), second + strlen(second) - 1);
    snprintf(text, sizeof text, "<｜User｜>and<｜Assistant｜>%s"
             "<｜end▁of▁sentence｜><｜User｜>the<｜Assistant｜>", answers);
    run_with(text, "generate m -p - -n 5 --no-prompt");
    assert_string_equal(last.out, second);
    free(answers);
}

static void a_system_message(void **state)
{
    (void)state;
    run_with("the\n", "chat m --template v3 -n 1");
    size_t alone = tokens_run(NULL);
    run_with("the\n", "chat m --template v3 -n 1 --system 'the the'");
    assert_int_equal(tokens_run(NULL), alone + 2);
}

static void each_template(void **state)
{
    static const char *const names[] = {"v2", "v2.5", "v3", "r1", "v3.1"};
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char words[64];
        snprintf(words, sizeof words, "chat m -n 3 --template %s", names[i]);
        assert_int_equal(run_with("the\nand", words)->status, 0);
        tokens_run(NULL);
    }
}

/* eval --------------------------------------------------------------------- */

/* The number of tokens predicted in the first file, and another number. */
static int64_t eval_tokens(const char *words, const char *key, double *value)
{
    Json j;
    Error err;
    const char *text = done(words);
    if (json_parse(&j, "eval", text, strlen(text), &err) != 0)
        fail_msg("%s", err.text);
    const JsonNode *file = json_first(&j, j.nodes);
    int64_t n = -1;
    assert_true(json_integer(&j, json_get(&j, file, "tokens"), 0, 1 << 20,
                             &n));
    assert_true(json_number(&j, json_get(&j, file, key), value));
    json_free(&j);
    return n;
}

/* Windows predict every token once, however long they are; one window that
 * holds all is the same as a longer one. */
static void windows(void **state)
{
    static const char text[] = "the sand on the land and the band";
    double whole, longer, cut, naive;
    (void)state;
    temp_write("text", text, strlen(text));
    int64_t n = eval_tokens("eval m text --json", "bits_per_byte", &whole);
    assert_int_equal(n, 17);
    assert_int_equal(eval_tokens("eval m text --json --ctx 18",
                                 "bits_per_byte", &longer), n);
    assert_true(whole == longer);
    assert_int_equal(eval_tokens("eval m text --json --ctx 5",
                                 "bits_per_byte", &cut), n);
    assert_true(cut != whole);
    assert_int_equal(eval_tokens("eval m text --json --mla naive",
                                 "bits_per_byte", &naive), n);
    assert_true(naive - whole < 1e-4 && whole - naive < 1e-4);
}

/* Without a BOS of its own, a model is given one in the text. */
static void windows_without_bos(void **state)
{
    static const char none[] = "{\"add_bos_token\": false}";
    static const char bos[] = "<｜begin▁of▁sentence｜>the and the";
    double with, without, cut;
    (void)state;
    done("init data/tiny/config.json -o n --std 0.3 --dtype f32");
    temp_write("n/tokenizer_config.json", none, strlen(none));
    temp_write("plain", "the and the", 11);
    temp_write("begun", bos, strlen(bos));
    assert_int_equal(eval_tokens("eval m plain --json", "nats_per_token",
                                 &with), 5);
    assert_int_equal(eval_tokens("eval n begun --json", "nats_per_token",
                                 &without), 5);
    assert_true(with == without);
    assert_int_equal(eval_tokens("eval n begun --json --ctx 2",
                                 "nats_per_token", &cut), 5);
    assert_true(cut != without);
}

static void eval_as_a_table(void **state)
{
    (void)state;
    temp_write("one", "the", 3);
    done("eval m one one");
    assert_non_null(strstr(last.out, "  one\n"));
    assert_non_null(strstr(last.out, "  total\n"));
    assert_non_null(strstr(last.out, "perplexity    bits/byte\n"));
}

/* tokenize ----------------------------------------------------------------- */

static void text_to_ids_and_back(void **state)
{
    (void)state;
    run_with("the sand", "tokenize m");
    assert_string_equal(last.out, "260 35 118 264\n");
    run_with("the sand", "tokenize m - --bos");
    assert_string_equal(last.out, "0 260 35 118 264\n");
    run_with("[260, 35,118 264]\n", "tokenize m --decode");
    assert_string_equal(last.out, "the sand");
    run_with("", "tokenize m");
    assert_string_equal(last.out, "\n");
}

static void objects_a_line(void **state)
{
    (void)state;
    run_with("{\"text\": \"the \\\"\\u00e9\\\"\"}\n\n{\"text\": \"\"}",
             "tokenize data/tiny --jsonl");
    assert_string_equal(last.out, "[260, 35, 37, 198, 172, 37]\n[]\n");
    run_with("{\"ids\": [260, 198, 172, 1]}\n", "tokenize m --jsonl --decode");
    assert_string_equal(last.out,
                        "\"the\xc3\xa9<｜end▁of▁sentence｜>\"\n");
}

/* trace, diff, init -------------------------------------------------------- */

static void chunks_change_no_bit(void **state)
{
    (void)state;
    done("trace m --ids 9,8,7,6,5 -o a.st");
    done("trace m --ids 9,8,7,6,5 -o b.st --chunk 2");
    assert_non_null(strstr(done("diff a.st b.st"),
                           " tensors, all with the same bits\n"));
}

/* Peak memory of a prompt of a thousand tokens; *planned: what info says that
 * the run's memory is, of which nothing stays untouched. */
static double peak_memory(const char *chunk, int64_t *planned)
{
    Json j;
    Error err;
    char words[80], prompt[1001];
    snprintf(words, sizeof words, "info m --json --ctx 1024 --chunk %s",
             chunk);
    const char *text = done(words);
    assert_int_equal(json_parse(&j, "info", text, strlen(text), &err), 0);
    *planned = json_path(&j, "session_bytes", NULL);
    json_free(&j);
    memset(prompt, 'a', 1000);
    prompt[1000] = '\0';
    snprintf(words, sizeof words, "generate m -p - -n 1 --ctx 1024 --chunk %s",
             chunk);
    run_with(prompt, words);
    const char *at = strstr(last.err, "peak memory ");
    assert_non_null(at);
    return strtod(at + strlen("peak memory "), NULL) * 1e6;
}

static void chunks_cost_the_memory_that_info_says(void **state)
{
    int64_t planned, least;
    (void)state;
    double peak = peak_memory("1", &least);
    char *text = strdup(last.out);
    assert_non_null(text);
    double grown = peak_memory("1000", &planned) - peak;
    assert_string_equal(last.out, text);
    free(text);
    assert_true(planned - least > 4000000);
    if (grown < 0.8 * (double)(planned - least))
        fail_msg("wanted %.0f bytes more, found %.0f",
                 (double)(planned - least), grown);
}

static void the_naive_form_is_another(void **state)
{
    (void)state;
    done("trace m --ids 9,8,7,6,5 -o a.st --force");
    done("trace m --ids 9,8,7,6,5 -o b.st --force --mla naive");
    run("diff a.st b.st");
    assert_non_null(strstr(last.out, "in one file only  "
                           "model.layers.0.self_attn.z\n"));
    assert_null(strstr(last.out, "model.layers.0.self_attn.q_b_proj\n"));
}

/* A pack is a model like any other. */
static void a_golden_pack(void **state)
{
    (void)state;
    assert_string_equal(done("golden K5 -o k5/"), "");
    done("golden K5 -o k5 --force");
    done("trace k5 --ids 1,7,2 -o a.st --force --only 'model.embed*'");
    run("golden K5 -o k5");
    assert_string_equal(last.err,
                        "deepseek: k5 exists; --force overwrites it\n");
}

static void differences_are_told(void **state)
{
    (void)state;
    done("trace m --ids 9,8,7 -o a.st --force --only logits");
    done("trace m --ids 9,8,6 -o b.st --force --only '*'");
    run("diff a.st b.st --json");
    assert_non_null(strstr(last.out, "[{\"name\": \"logits\", \"same\": false,"
                           " \"elements\": 864, \"differing\": "));
    assert_non_null(strstr(last.out, "{\"name\": \"model.norm\", \"error\": "
                           "\"in one file only\"}"));
    run("diff a.st b.st");
    assert_int_equal(last.status, 1);
    assert_non_null(strstr(last.err, "deepseek: a.st and b.st differ in "));
    done("trace m --ids 9,8,7 -o b.st --force --only 'l?git*'");
    assert_string_equal(done("diff a.st b.st"),
                        "1 tensors, all with the same bits\n");
}

static void parses(const char *text)
{
    Json j;
    Error err;
    if (json_parse(&j, "stdout", text, strlen(text), &err) != 0)
        fail_msg("%s", err.text);
    json_free(&j);
}

static void a_dump_is_judged(void **state)
{
    (void)state;
    done("trace m --ids 9,8,7,6,5 -o a.st --force");
    done("trace m --ids 9,8,7,6,5 -o b.st --force --mla naive");
    done("trace m --ids 9,8,7,6,4 -o c.st --force");
    assert_non_null(strstr(done("diff a.st b.st --rule fp32"),
                           "\nright by fp32: "));
    assert_non_null(strstr(done("diff a.st b.st --rule bf16 --json"),
                           "{\"rule\": \"bf16\", \"right\": true, "));
    parses(last.out);
    run("diff a.st c.st --rule fp8");
    assert_int_equal(last.status, 1);
    assert_non_null(strstr(last.out, "\nfirst to depart: model.embed_tokens, "
                           "nmse "));
    assert_non_null(strstr(last.err, "deepseek: c.st departs by fp8 in "));
    assert_non_null(strstr(last.err, "tensors, first in model.embed_tokens"));
    run("diff a.st c.st --rule fp32 --json");
    parses(last.out);
    assert_non_null(strstr(last.out, "\"first\": \"model.embed_tokens\""));
}

static void a_bug_is_named(void **state)
{
    (void)state;
    done("trace m --ids 9,8,7,6,5 -o a.st --force");
    done("trace m --ids 9,8,7,6,4 -o c.st --force");
    assert_string_equal(done("diff a.st a.st --fingerprint none"), "");
    run("diff a.st c.st --fingerprint 'two words'");
    complains("--fingerprint", 1, "--fingerprint wants a word of at most 63 "
              "bytes, not 'two words'");
    FILE *bugs = fopen("bugs.txt", "w");
    assert_non_null(bugs);
    fputs(done("diff a.st c.st --fingerprint other-id"), bugs);
    assert_int_equal(fclose(bugs), 0);
    run("diff a.st c.st --rule fp32 --bugs bugs.txt");
    assert_non_null(strstr(last.out, "\nlikely bug: other-id (agreement "));
    run("diff a.st c.st --rule fp32 --bugs bugs.txt --json");
    assert_non_null(strstr(last.out, "\"bugs\": [{\"name\": \"other-id\""));
    parses(last.out);
    done("trace m --ids 9,8,7,1,5 -o c.st --force");
    run("diff a.st c.st --rule fp32 --bugs bugs.txt");
    assert_non_null(strstr(last.out, "\nit is none of the known bugs\n"));
    run("diff c.st a.st --rule fp32 --bugs bugs.txt");
    assert_non_null(strstr(last.out, "\nno bug is named: bugs.txt has no "
                           "fingerprints of this pack\n"));
    run("diff c.st a.st --rule fp32 --bugs a.st");
    assert_non_null(strstr(last.err, "a.st: line 1: wanted 'bug NAME HASH'"));
}

/* A copy of the program, so that there is nothing beside it but what a step
 * puts there; without --bugs nothing is said of a file that is nowhere. */
static void known_bugs_are_found(void **state)
{
    static const struct {
        const char *put, *told;
    } steps[] = {
        {"mkdir -p p/bin p/share/deepseek golden p/bin/golden && "
         "cp deepseek p/bin", "no bug is named: no golden/bugs.txt is found"},
        {"cp installed p/share/deepseek/bugs.txt", "likely bug: installed "},
        {"cp beside p/bin/golden/bugs.txt", "likely bug: beside "},
        {"cp here golden/bugs.txt", "likely bug: here "},
    };
    static const char *const names[] = {"installed", "beside", "here", "told"};
    (void)state;
    done("trace m --ids 9,8,7,6,5 -o a.st --force");
    done("trace m --ids 9,8,7,6,4 -o c.st --force");
    for (size_t i = 0; i < 4; i++) {
        char words[64];
        snprintf(words, sizeof words, "diff a.st c.st --fingerprint %s",
                 names[i]);
        done(words);
        temp_write(names[i], last.out, strlen(last.out));
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(shell(steps[i].put), 0);
        shell("p/bin/deepseek diff a.st c.st --rule fp32 >out");
        read_text("out", last.out, sizeof last.out);
        assert_non_null(strstr(last.out, steps[i].told));
    }
    run("diff a.st c.st --rule fp32 --bugs told");
    assert_non_null(strstr(last.out, "\nlikely bug: told "));
    assert_int_equal(shell("rm -r golden"), 0);
}

static void init_repeats_itself(void **state)
{
    (void)state;
    done("init data/tiny/config.json -o i --seed 3 --dtype fp8");
    done("init data/tiny/config.json -o j --seed 3 --dtype fp8");
    assert_int_equal(shell("cmp i/model.safetensors j/model.safetensors"), 0);
    done("init data/tiny/config.json -o j --seed 4 --dtype fp8 --force");
    run("diff i/model.safetensors j/model.safetensors");
    assert_int_equal(last.status, 1);
    done("generate i -p the -n 3");
}

static void every_dtype_runs(void **state)
{
    static const char *const names[] = {"f32", "f16", "bf16", "fp8"};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        char words[128];
        snprintf(words, sizeof words, "init data/tiny/config.json -o d-%s "
                 "--dtype %s", names[i], names[i]);
        done(words);
        snprintf(words, sizeof words, "generate d-%s -p the -n 2", names[i]);
        done(words);
    }
}

/* fp8 ---------------------------------------------------------------------- */

/* Sums of doubles in one order: the same figures everywhere. */
static void fp8_accumulation(void **state)
{
    (void)state;
    assert_non_null(strstr(done("fp8 accumulation"),
        "\nuniform in [-1, 1)\n"));
    assert_non_null(strstr(last.out, "\n  register apart, toward 0     0.0191"
        "   0.0357   0.0681   0.1343   0.2662   -0.2657   0.3054\n"));
    assert_non_null(strstr(last.out, "\n  register aligned, shifted    0.0685"
        "   0.1894   0.4247   1.2732   3.0180   -2.2318  11.4132\n"));
    assert_null(strstr(done("fp8 accumulation --seed 1"), "11.4132"));
}

/* Every activation is met, in one window or in several. */
static void fp8_formats(void **state)
{
    static const char text[] = "hello world, some text with a few words in it";
    static const char numbers[] = "\n          numbers           2816        "
        "   5632           2816           1408           1408\n";
    (void)state;
    run_with(text, "fp8 formats m -");
    assert_int_equal(last.status, 0);
    assert_string_equal(last.err, "");
    assert_non_null(strstr(last.out, numbers));
    assert_non_null(strstr(last.out, "\nE4M3         8.25   2.340 -0.014   "
        "2.397 -0.038   2.017 -0.115   2.446 -0.161   2.474 -0.034\n"));
    assert_non_null(strstr(last.out, "\nLogFMT-10   10.50   0.256 -0.005   "
        "0.259  0.001   0.357 -0.023   0.245  0.007   0.234  0.014\n"));
    char *whole = done_dup("fp8 formats m in --ctx 64");
    assert_string_equal(done("fp8 formats m in --ctx 64 --chunk 5"), whole);
    assert_non_null(strstr(done("fp8 formats m in --ctx 8"), numbers));
    assert_null(strstr(last.out, " 2.340 "));
    free(whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_of_each_command),
        cmocka_unit_test(manual_page_and_completion),
        cmocka_unit_test(info_of_a_config),
        cmocka_unit_test(info_of_a_model),
        cmocka_unit_test(info_as_json),
        cmocka_unit_test(ids_in_ids_out),
        cmocka_unit_test(the_prompt_comes_first),
        cmocka_unit_test(a_prompt_from_stdin),
        cmocka_unit_test(the_context_ends),
        cmocka_unit_test(seeds),
        cmocka_unit_test(no_padding_ids),
        cmocka_unit_test(generation_config),
        cmocka_unit_test(a_stop_id_ends_it),
        cmocka_unit_test(readings),
        cmocka_unit_test(interrupted),
        cmocka_unit_test(drafts_change_no_greedy_text),
        cmocka_unit_test(drafts_are_told),
        cmocka_unit_test(a_conversation_with_drafts),
        cmocka_unit_test(info_of_drafts),
        cmocka_unit_test(modules_are_traced),
        cmocka_unit_test(a_conversation_through_a_pipe),
        cmocka_unit_test(an_answer_depends_on_the_text_alone),
        cmocka_unit_test(a_system_message),
        cmocka_unit_test(each_template),
        cmocka_unit_test(windows),
        cmocka_unit_test(windows_without_bos),
        cmocka_unit_test(eval_as_a_table),
        cmocka_unit_test(text_to_ids_and_back),
        cmocka_unit_test(objects_a_line),
        cmocka_unit_test(chunks_change_no_bit),
        cmocka_unit_test(chunks_cost_the_memory_that_info_says),
        cmocka_unit_test(the_naive_form_is_another),
        cmocka_unit_test(a_golden_pack),
        cmocka_unit_test(differences_are_told),
        cmocka_unit_test(a_dump_is_judged),
        cmocka_unit_test(a_bug_is_named),
        cmocka_unit_test(known_bugs_are_found),
        cmocka_unit_test(init_repeats_itself),
        cmocka_unit_test(every_dtype_runs),
        cmocka_unit_test(fp8_accumulation),
        cmocka_unit_test(fp8_formats),
    };
    return cmocka_run_group_tests(tests, begin, temp_end);
}
