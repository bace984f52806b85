/* The program as a user meets it: run as a child, its output, its one line of
 * complaint and its exit status compared. DEEPSEEK names it, else ./deepseek.
 *
 * data/tiny is a V3-style config (2 layers, 8 experts, an MTP layer) with a
 * tokenizer of the 256 bytes and seven merges, made by hand; `init` gives it
 * random weights. The pinned ids follow from those and the fixed order of all
 * sums: another machine has to print the same. */
#define _XOPEN_SOURCE 700
#include "../base/json.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "temp.h"

typedef struct {
    int status;
    char out[1 << 16], err[1 << 12]; /* texts */
} Result;

static Result last;

static void read_text(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    text[fread(text, 1, size - 1, f)] = '\0';
    fclose(f);
}

/* The whole of sh's line; %s of it is never a stranger's. */
static int shell(const char *line)
{
    int status = system(line);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Runs ./deepseek with these words, as the shell reads them. */
static const Result *run(const char *words)
{
    char line[2048];
    snprintf(line, sizeof line, "./deepseek %s >out 2>err </dev/null", words);
    last.status = shell(line);
    read_text("out", last.out, sizeof last.out);
    read_text("err", last.err, sizeof last.err);
    return &last;
}

static const Result *run_with(const char *input, const char *words)
{
    char line[2048];
    temp_write("in", input, strlen(input));
    snprintf(line, sizeof line, "./deepseek %s >out 2>err <in", words);
    last.status = shell(line);
    read_text("out", last.out, sizeof last.out);
    read_text("err", last.err, sizeof last.err);
    return &last;
}

/* As run, where all must be well; returns what was printed. */
static const char *done(const char *words)
{
    run(words);
    if (last.status != 0)
        fail_msg("%s: %s", words, last.err);
    return last.out;
}

/* The same in memory of its own. */
static char *done_dup(const char *words)
{
    char *copy = strdup(done(words));
    assert_non_null(copy);
    return copy;
}

static void complains(const char *words, int status, const char *message)
{
    char line[1024];
    snprintf(line, sizeof line, "deepseek: %s\n", message);
    if (last.status != status || strcmp(last.err, line) != 0)
        fail_msg("%s: wanted %d and %s, found %d and %s", words, status, line,
                 last.status, last.err);
}

/* Enters an empty directory with the program, the data and two models: m, and
 * bare without a tokenizer. */
static int begin(void **state)
{
    const char *program = getenv("DEEPSEEK");
    char *binary = realpath(program != NULL ? program : "deepseek", NULL);
    char *data = realpath("tests/data", NULL);
    if (binary == NULL || data == NULL || temp_begin(state) != 0 ||
        symlink(binary, "deepseek") != 0 || symlink(data, "data") != 0)
        return -1;
    free(binary);
    free(data);
    done("init data/tiny/config.json -o m --std 0.3 --dtype f32");
    done("init data/tiny/config.json -o bare --std 0.3 --dtype bf16");
    return unlink("bare/tokenizer.json") | unlink("bare/tokenizer_config.json");
}

/* Refusals ----------------------------------------------------------------- */

typedef struct {
    const char *words;
    int status;
    const char *message;
} Refusal;

static const Refusal refusals[] = {
    {"", 2, "a command is wanted (deepseek --help lists them)"},
    {"run m", 2, "unknown command 'run' (deepseek --help lists them)"},
    {"--version", 2, "unknown option '--version' (deepseek --help lists what "
     "there is)"},
    {"info", 2, "info wants DIR|config.json (deepseek info --help says more)"},
    {"info a b", 2, "info takes DIR|config.json, and 'b' is one too many"},
    {"info m --seed 1", 2, "info has no option '--seed' (deepseek info "
     "--help lists its options)"},
    {"generate", 2, "generate wants DIR (deepseek generate --help says "
     "more)"},
    {"generate m", 2, "generate wants -p or --ids (deepseek generate --help "
     "says more)"},
    {"generate m -p a --ids 1", 2, "generate wants only one of -p or --ids"},
    {"generate m -p", 2, "-p wants a value: TEXT"},
    {"generate m -p a --frobnicate", 2, "generate has no option "
     "'--frobnicate' (deepseek generate --help lists its options)"},
    {"generate m -p a --temp=-1", 2, "--temp wants a number from 0 to 100, "
     "not '-1'"},
    {"generate m -p a --top-p 2", 2, "--top-p wants a number from 0 to 1, not "
     "'2'"},
    {"generate m -p a -n 0", 2, "-n wants a whole number from 1 to "
     "1000000000000000, not '0'"},
    {"generate m -p a --mla both", 2, "--mla wants one of absorbed|naive, not "
     "'both'"},
    {"generate m --ids 1,,2", 2, "--ids wants whole numbers as in 1,2,3, not "
     "'1,,2'"},
    {"generate m --ids -1", 2, "--ids wants whole numbers as in 1,2,3, not "
     "'-1'"},
    {"chat m --template v4", 2, "--template wants one of "
     "v2|v2.5|v3|r1|v3.1, not 'v4'"},
    {"eval m", 2, "eval wants DIR FILE... (deepseek eval --help says more)"},
    {"tokenize", 2, "tokenize wants DIR [FILE] (deepseek tokenize --help says "
     "more)"},
    {"trace m --ids 1", 2, "trace wants -o (deepseek trace --help says "
     "more)"},
    {"trace m -o x", 2, "trace wants -p or --ids (deepseek trace --help says "
     "more)"},
    {"diff a", 2, "diff wants A.safetensors B.safetensors (deepseek diff "
     "--help says more)"},
    {"init data/tiny/config.json", 2, "init wants -o (deepseek init --help "
     "says more)"},
    {"init data/tiny/config.json -o x --dtype int8", 2, "--dtype wants one of "
     "f32|f16|bf16|fp8, not 'int8'"},
    {"fp8", 2, "fp8 wants accumulation | formats DIR FILE (deepseek fp8 "
     "--help says more)"},

    {"info nothing", 1, "nothing: cannot open: No such file or directory"},
    {"info empty", 1, "empty/config.json: cannot open: No such file or "
     "directory"},
    {"info data", 1, "data/config.json: cannot open: No such file or "
     "directory"},
    {"generate empty -p a", 1, "empty/config.json: cannot open: No such file "
     "or directory"},
    {"generate bare -p a --print-ids", 1, "bare has no tokenizer.json: give "
     "--ids instead of -p"},
    {"generate bare --ids 1", 1, "bare has no tokenizer.json: add "
     "--print-ids"},
    {"chat bare", 1, "bare has no tokenizer.json"},
    {"chat m", 1, "m: tokenizer_config.json has no chat template known here: "
     "choose one with --template"},
    {"eval bare in", 1, "bare has no tokenizer.json"},
    {"eval m nothing", 1, "nothing: cannot open: No such file or directory"},
    {"eval m -", 1, "- is empty"},
    {"generate m --ids 288", 1, "id 0 of the input: wanted 0 to 287 "
     "(vocab_size - 1), found 288"},
    {"generate m --ids 99999999999", 1, "an id is a whole number from 0 to "
     "2147483647, not '99999999999'"},
    {"generate m --ids 1,2,3 --ctx 2", 1, "context: wanted at most 2 tokens, "
     "found 3"},
    {"tokenize m nothing", 1, "nothing: cannot open: No such file or "
     "directory"},
    {"trace m --ids 1 -o m/config.json", 1, "m/config.json: exists already; "
     "--force overwrites it"},
    {"diff m nothing", 1, "nothing: cannot open: No such file or directory"},
    {"init data/tiny/config.json -o m", 1, "m/model.safetensors exists; "
     "--force overwrites it"},
    {"fp8 formats m", 1, "fp8: wanted 'accumulation' or 'formats DIR FILE', "
     "found 'formats' and 1 more"},
    {"fp8 speed m in", 1, "fp8: wanted 'accumulation' or 'formats DIR FILE', "
     "found 'speed' and 2 more"},
    {"fp8 accumulation --ctx 4", 1, "fp8 accumulation has no model and takes "
     "no option of one"},
    {"fp8 formats m in --seed 4", 1, "fp8 formats draws no numbers and takes "
     "no --seed"},
    {"fp8 formats nothing in", 1, "nothing: cannot open: No such file or "
     "directory"},
    {"fp8 formats bare in", 1, "bare has no tokenizer.json"},
    {"fp8 formats m nothing", 1, "nothing: cannot open: No such file or "
     "directory"},
    {"fp8 formats m -", 1, "- is empty"},
};

static void every_refusal_is_one_line(void **state)
{
    (void)state;
    mkdir("empty", 0700);
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const Refusal *r = &refusals[i];
        run(r->words);
        complains(r->words, r->status, r->message);
        assert_string_equal(last.out, "");
    }
}

/* Half-written files have names of their own, so the message has one too. */
static void an_unwritable_target(void **state)
{
    (void)state;
    run("trace m --ids 1 -o no/such");
    assert_int_equal(last.status, 1);
    assert_ptr_equal(strstr(last.err, "deepseek: no/such"), last.err);
    assert_string_equal(strchr(last.err, '\n'), "\n");
}

static void bad_input_is_refused(void **state)
{
    (void)state;
    run_with("the \xff", "tokenize m");
    complains("tokenize", 1, "text: wanted UTF-8, found byte 0xff at offset 4");
    run_with("1 2 3x", "tokenize m --decode");
    complains("ids", 1, "an id is a whole number from 0 to 2147483647, not "
              "'3x'");
    run_with("1 9999", "tokenize m --decode");
    complains("ids", 1, "no token has the id 9999");
    run_with("{\"text\": 1}\n", "tokenize m --jsonl");
    complains("jsonl", 1, "input line 1: wanted an object with a string "
              "\"text\"");
    run_with("{\"ids\": [1]}\n[1]\n", "tokenize m --jsonl --decode");
    complains("jsonl", 1, "input line 2: wanted an object with an array "
              "\"ids\"");
    run_with("{\"ids\": [1.5]}\n", "tokenize m --jsonl --decode");
    complains("jsonl", 1, "input line 1: ids: an id is a whole number from 0 "
              "to 2147483647");
}

static void a_full_stdout_is_an_error(void **state)
{
    static const char *const words[] = {
        "--help", "--man", "info m", "info m --json", "generate m -p a",
        "generate m --ids 1 --print-ids", "tokenize m in", "diff m m",
        "eval m in", "fp8 accumulation", "fp8 formats m in"};
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    temp_write("in", "a", 1);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char line[256];
        snprintf(line, sizeof line, "./deepseek %s >/dev/full 2>err",
                 words[i]);
        last.status = shell(line);
        read_text("err", last.err, sizeof last.err);
        complains(words[i], 1, "cannot write to standard output: No space "
                  "left on device");
    }
}

static void a_closed_pipe_is_an_error(void **state)
{
    (void)state;
    last.status = shell("{ ./deepseek generate m --ids 1 -n 100000 --ctx "
                        "100000 2>err; echo $? >status; } | head -c 1 "
                        ">/dev/null");
    read_text("err", last.err, sizeof last.err);
    complains("generate | head", 0, "cannot write to standard output: Broken "
              "pipe");
    read_text("status", last.out, sizeof last.out);
    assert_string_equal(last.out, "1\n");
}

/* Help --------------------------------------------------------------------- */

static void help_of_each_command(void **state)
{
    static const char *const commands[] = {"info", "generate", "chat", "eval",
                                           "tokenize", "trace", "diff",
                                           "init", "fp8"};
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
        cmocka_unit_test(every_refusal_is_one_line),
        cmocka_unit_test(an_unwritable_target),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(a_full_stdout_is_an_error),
        cmocka_unit_test(a_closed_pipe_is_an_error),
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
        cmocka_unit_test(the_naive_form_is_another),
        cmocka_unit_test(differences_are_told),
        cmocka_unit_test(init_repeats_itself),
        cmocka_unit_test(every_dtype_runs),
        cmocka_unit_test(fp8_accumulation),
        cmocka_unit_test(fp8_formats),
    };
    return cmocka_run_group_tests(tests, begin, temp_end);
}
