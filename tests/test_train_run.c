/* A training run as a user meets it: `train` and `plot` as a child, what lies
 * in RUN, what is refused, and that nothing but the time it took tells a run
 * that was stopped, killed or resumed from one that went straight on.
 *
 * The model is data/tiny; the corpus is this project's excerpt of a fairy
 * tale, five times. KILLS in the environment says how often a run is killed,
 * SEED when. */
#define _XOPEN_SOURCE 700
#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <time.h>

#include "../base/os.h"
#include "../base/random.h"

#define TRAIN "train data/tiny/config.json t.json -o "

static const char settings[] =
    "{\"data\": \"t.bin\", \"eval_data\": \"e.bin\", \"sequence_length\": 16,"
    " \"total_tokens\": 768, \"batch_size\": 4, \"micro_batch\": 2,"
    " \"learning_rate\": 0.01, \"warmup_steps\": 3, \"init_std\": 0.1,"
    " \"balance\": {\"gamma\": 0.01, \"alpha\": 0.001}, \"eval_every\": 3,"
    " \"checkpoint_every\": 3, \"ema_decay\": 0.9}";

static int begin(void **state)
{
    if (program_begin(state) != 0)
        return -1;
    temp_write("t.json", settings, strlen(settings));
    if (shell("for i in 1 2 3 4 5; do cat data/fairy_excerpt.txt; echo "
              "'<|endoftext|>'; done >corpus; head -c 400 corpus >part; "
              "sed 's/bfloat16/float32/' data/tiny/config.json >f32.json; "
              "sed 's/\"first_k_dense_replace\": 1/\"first_k_dense_replace\": "
              "0/' data/tiny/config.json >other.json") != 0)
        return -1;
    done("prepare data/tiny corpus -o t.bin");
    done("prepare data/tiny part -o e.bin");
    if (shell("mkdir spaced && cp data/tiny/*.json spaced && echo "
              ">>spaced/tokenizer.json") != 0)
        return -1;
    done("prepare spaced corpus -o s.bin");
    return 0;
}

/* The same files; of the logs all but the seconds. */
static void same_runs(const char *a, const char *b)
{
    char line[600];
    snprintf(line, sizeof line, "diff -r -x log.jsonl %s %s >out 2>&1 && "
             "sed 's/, \"seconds.*//' %s/log.jsonl >log.a && "
             "sed 's/, \"seconds.*//' %s/log.jsonl >log.b && "
             "cmp log.a log.b >out 2>&1",
             a, b, a, b);
    if (shell(line) != 0) {
        read_text("out", last.out, sizeof last.out);
        fail_msg("%s and %s: %s", a, b, last.out);
    }
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Straight on ------------------------------------------------------------- */

static void what_a_run_leaves(void **state)
{
    static const char *const files[] = {
        "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "train.json", "log.jsonl",
        "step-00000009/model.safetensors", "step-00000012/model.safetensors",
        "step-00000012/training.safetensors", "step-00000012/config.json",
        "step-00000012/generation_config.json",
        "step-00000012/tokenizer.json"};
    (void)state;
    done(TRAIN "r");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[100];
        snprintf(path, sizeof path, "r/%s", files[i]);
        if (!exists(path))
            fail_msg("no %s", path);
    }
    assert_int_equal(temp_count("r"), 8);
    assert_int_equal(temp_count("r/step-00000012"), 6);
    assert_string_equal(last.out, "");
    assert_ptr_equal(strstr(last.err, "r/step-00000012: 768 tokens, loss "),
                     last.err);
    assert_ptr_equal(strchr(last.err, '\n')[1], NULL);
    done("generate r/step-00000012 -p the -n 4");
    assert_non_null(strstr(done("info r/step-00000012"),
                           "weights: 97 tensors in 1 file, MTP layers 1 of 1"));
}

/* A line of text behind another, which has to be there. */
static const char *line_of(const char *text, const char *start)
{
    const char *at = strstr(text, start);
    if (at == NULL)
        fail_msg("no %s in %s", start, text);
    return at;
}

static void what_the_log_holds(void **state)
{
    static char log[1 << 16];
    (void)state;
    read_text("r/log.jsonl", log, sizeof log);
    size_t lines = 0;
    for (const char *at = log; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    assert_int_equal(lines, 12 + 4);
    const char *first = line_of(log, "{\"step\": 1, \"tokens\": 64, "
                                "\"sequences\": 4, \"loss\": 5.");
    const char *load = line_of(first, "\"dropped\": 0, \"load\": [\"");
    assert_int_equal(strcspn(load + 24, "\""), 8);
    assert_true(load < line_of(first, "\"seconds\": "));
    line_of(log, "{\"step\": 3, \"tokens\": 192, \"eval_sequences\": ");
    line_of(log, ", \"bits_per_byte\": ");
}

/* Stopped and gone on ----------------------------------------------------- */

static void resumed_is_straight(void **state)
{
    static const char *const options[] = {
        "", "--set adamw.moments=BF16 --set ema_decay=0",
        "--set token_dropping.capacity_factor=1 --set recompute=true"};
    char words[300];
    (void)state;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        shell("rm -rf a b");
        snprintf(words, sizeof words, TRAIN "a %s", options[i]);
        done(words);
        snprintf(words, sizeof words, TRAIN "b --set total_tokens=384 %s",
                 options[i]);
        done(words);
        assert_true(exists("b/step-00000006"));
        snprintf(words, sizeof words, TRAIN "b --resume %s", options[i]);
        done(words);
        same_runs("a", "b");
    }
}

/* F32 weights have no second copy; a run may be gone on with in another
 * storage, and with what counts no numbers. */
static void storage_may_change(void **state)
{
    (void)state;
    shell("rm -rf a b");
    done("train f32.json t.json -o a");
    done(TRAIN "b --set total_tokens=100 --set log_every=5");
    done("train f32.json t.json -o b --resume --set recompute=true");
    assert_int_equal(shell("for f in model training; do cmp "
                           "a/step-00000012/$f.safetensors "
                           "b/step-00000012/$f.safetensors || exit 1; done"),
                     0);
    assert_int_equal(shell("grep -q .f32 a/step-00000012/*.safetensors"), 1);
    assert_int_equal(shell("grep -q .f32 r/step-00000012/*.safetensors"), 0);
}

/* Begun where another run stands: its weights, no moments. */
static void from_a_model(void **state)
{
    (void)state;
    shell("rm -rf a");
    done(TRAIN "a --from r/step-00000012 --set total_tokens=16 "
         "--set keep_checkpoints=9");
    assert_int_equal(shell("cmp a/step-00000000/model.safetensors "
                           "r/step-00000012/model.safetensors"), 0);
    run(TRAIN "b2 --from data/models/k3-v3");
    assert_int_equal(last.status, 1);
    assert_ptr_equal(strstr(last.err, "deepseek: data/tiny/config.json: wanted"
                            " \"vocab_size\": 64, as data/models/k3-v3 has, "
                            "found \"vocab_size\": 288\n"), last.err);
    assert_false(exists("b2"));
}

static pid_t start(char *const *words)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    signal(SIGINT, SIG_DFL);
    if (freopen("err", "wb", stderr) != NULL)
        execv("./deepseek", words);
    _exit(99);
}

static char *const straight[] = {
    "deepseek", "train", "data/tiny/config.json", "t.json", "-o", "k", NULL};
static char *const resumed[] = {
    "deepseek", "train", "data/tiny/config.json", "t.json", "-o", "k",
    "--resume", NULL};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void pause_for(double time)
{
    struct timespec t = {(time_t)time,
                         (long)((time - (double)(time_t)time) * 1e9)};
    nanosleep(&t, NULL);
}

/* One life of the run in k; true where it came to its end. */
static bool killed_after(double time)
{
    int status;
    pid_t child = start(exists("k") ? resumed : straight);
    pause_for(time);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status))
        return false;
    read_text("err", last.err, sizeof last.err);
    if (WEXITSTATUS(status) != 0)
        fail_msg("%s", last.err);
    return true;
}

/* What was written when is another matter each time; what comes of it is not.
 */
static void killed_at_random(void **state)
{
    const char *kills = getenv("KILLS"), *text = getenv("SEED");
    long wanted = kills ? strtol(kills, NULL, 10) : 100, done_runs = 0, n = 0;
    uint64_t seed = text ? strtoull(text, NULL, 0) : 1;
    Random r = random_seeded(seed);
    (void)state;
    print_message("seed %llu\n", (unsigned long long)seed);
    double begin = seconds();
    shell("rm -rf a k");
    done(TRAIN "a");
    double whole = seconds() - begin, most = whole < 0.2 ? whole : 0.2;
    while (n < wanted || !exists("k/step-00000012")) {
        double time = n < wanted ? most * (double)random_uniform(&r) : 100;
        bool ended = n < wanted ? killed_after(time)
                                : (run(TRAIN "k --resume"), true);
        n += !ended;
        if (ended && last.status == 0 && exists("k/step-00000012")) {
            same_runs("a", "k");
            shell(n < wanted ? "rm -rf k" : "true");
            done_runs++;
        }
    }
    print_message("killed %ld times, %ld runs came to their end\n", n,
                  done_runs);
}

/* ^C ----------------------------------------------------------------------*/

static void wait_for(const char *path)
{
    for (int i = 0; i < 20000 && !exists(path); i++)
        pause_for(0.001);
    assert_true(exists(path));
}

static void interrupted(void **state)
{
    static char *const words[] = {
        "deepseek", "train", "data/tiny/config.json", "t.json", "-o", "i",
        "--set", "total_tokens=100000000", "--set", "checkpoint_every=0",
        "--set", "eval_every=0", NULL};
    unsigned long step = 0, tokens = 0;
    char line[200];
    int status;
    (void)state;
    pid_t child = start(words);
    wait_for("i/log.jsonl");
    pause_for(0.02);
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    read_text("err", last.err, sizeof last.err);
    if (sscanf(last.err, "interrupted; --resume goes on from i/step-%lu: %lu "
               "tokens", &step, &tokens) != 2 || strchr(last.err, '\n')[1])
        fail_msg("%s", last.err);
    assert_int_equal(tokens, 64 * step);
    snprintf(line, sizeof line, TRAIN "i --resume --set eval_every=0 --set "
             "checkpoint_every=0 --set total_tokens=%lu", tokens + 192);
    done(line);
    shell("rm -rf a");
    snprintf(line, sizeof line, TRAIN "a --set eval_every=0 --set "
             "checkpoint_every=0 --set total_tokens=%lu", tokens + 192);
    done(line);
    snprintf(line, sizeof line, "rm -rf i/step-%08lu a/step-00000000 "
             "i/step-00000000", step);
    shell(line);
    same_runs("a", "i");
}

/* A step of seconds: the second ^C does not wait for it. */
static void interrupted_twice(void **state)
{
    static char *const words[] = {
        "deepseek", "train", "data/tiny/config.json", "t.json", "-o", "j",
        "--set", "batch_size=1000000", "--set", "total_tokens=16000000",
        NULL};
    int status;
    (void)state;
    pid_t child = start(words);
    wait_for("j/log.jsonl");
    pause_for(0.1);
    kill(child, SIGINT);
    pause_for(0.1);
    assert_int_equal(waitpid(child, &status, WNOHANG), 0);
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    assert_true(exists("j/step-00000000"));
    assert_int_equal(temp_count("j"), 8); /* with the lock */
}

/* Refused ------------------------------------------------------------------ */

typedef struct {
    const char *before;      /* what the shell does to b, a copy of r */
    const char *words, *message;
} Case;

/* Changes the last digit of a number in the state's metadata. */
#define NUMBER(key, end) "s/\\(\"" key "\":\"[0-9]*\\)" end
#define ANOTHER(key) "LC_ALL=C sed -i '" NUMBER(key, "0\"/\\1x\"/;") \
    NUMBER(key, "[1-9]\"/\\10\"/;") NUMBER(key, "x\"/\\11\"/' ") STATE

#define STATE "b/step-00000012/training.safetensors"
#define GO_ON TRAIN "b --resume --set total_tokens=960"

static const Case cases[] = {
    {"", TRAIN "b", "b: exists already; --resume goes on with a run"},
    {"rm -r b", TRAIN "b --resume",
     "b: wanted the directory of a run, found none"},
    {"rm -r b/*; echo x >b/notes", TRAIN "b --resume", "b: wanted the "
     "directory of a run, found notes and no checkpoint"},
    {"rm -r b/*; cp t.json b/train.json", TRAIN "b --resume", "b: wanted the "
     "directory of a run, found train.json and no checkpoint"},
    {"", TRAIN "b --force", "--force: no run is overwritten; give another -o,"
     " or --resume"},
    {"", TRAIN "b --resume --set adamw.beta2=0.9", "t.json with --set: "
     "adamw.beta2: wanted 0.95, as b/train.json has, found 0.9"},
    {"", TRAIN "b --resume --set batch_size=8", "t.json with --set: "
     "batch_size: wanted 4, as b/train.json has, found 8"},
    {"", TRAIN "b --resume --set data=e.bin", STATE ": was trained on other "
     "data than e.bin"},
    {"", TRAIN "c --set data=s.bin", "s.bin: wanted ids by c/tokenizer.json, "
     "found another tokenizer's"},
    {"", TRAIN "c --set eval_data=s.bin", "s.bin: wanted ids by "
     "c/tokenizer.json, found another tokenizer's"},
    {"mkdir bare && cp data/tiny/config.json bare", "train bare/config.json "
     "t.json -o c --set eval_data=s.bin", "s.bin: wanted ids by the tokenizer "
     "of t.bin, found another's"},
    {"", TRAIN "b --resume --set eval_data=s.bin", "s.bin: wanted ids by "
     "b/tokenizer.json, found another tokenizer's"},
    {"", "train data/tiny/config.json t.json --dump-grads g --set data=s.bin "
     "--from b/step-00000012", "s.bin: wanted ids by b/step-00000012/"
     "tokenizer.json, found another tokenizer's"},
    {"", "train other.json t.json -o b --resume", "other.json: wanted "
     "\"first_k_dense_replace\": 1, as b has, found "
     "\"first_k_dense_replace\": 0"},
    {"sed -i 's/\"first_k_dense_replace\": 1/\"first_k_dense_replace\": 0/' "
     "b/step-00000012/config.json", GO_ON, "b/step-00000012/model.safetensors:"
     " model.layers.0.mlp.gate.weight is missing"},
    {"sed -i 's/\"n_group\": 4/\"n_group\": 2/' b/step-00000012/config.json",
     GO_ON, "this config: wanted \"n_group\": 2, as b/step-00000012 has, "
     "found \"n_group\": 4"},
    {"rm -r a; ./deepseek " TRAIN "a --set seed=2 2>err; rm -r "
     "b/step-00000012; cp -R a/step-00000012 b", GO_ON, STATE ": is from a "
     "run with other settings"},
    {"rm " STATE, GO_ON, STATE ": cannot open: No such file or directory"},
    {"head -c 9000 " STATE " >x; mv x " STATE, GO_ON, STATE ": the header "
     "wants 42296 bytes, but the file holds only 8992"},
    {"head -c 100000 " STATE " >x; mv x " STATE, GO_ON, STATE},
    {"sed -i 's/\"step\":\"12\"/\"step\":\"1x\"/' " STATE, GO_ON, STATE
     ": metadata: step: wanted a whole number, found 1x"},
    {ANOTHER("step"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("tokens"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("epoch"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("index"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("data"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("settings"), GO_ON, STATE ": metadata: hash"},
    {ANOTHER("hash"), GO_ON, STATE ": metadata: hash"},
    {"sed -i 's/\"epoch\"/\"epuch\"/' " STATE, GO_ON, STATE
     ": metadata: wanted a short text for epoch"},
    {"sed -i 's/training 1/training 2/' " STATE, GO_ON, STATE ": wanted the "
     "format deepseek.c training 1, found deepseek.c training 2"},
    {"sed -i 's/model.norm.weight.ema/model.norm.weight.emo/' " STATE, GO_ON,
     STATE ": wanted a tensor model.norm.weight.ema, found none"},
    {"head -c 20000 b/step-00000012/model.safetensors >x; mv x "
     "b/step-00000012/model.safetensors", GO_ON,
     "b/step-00000012/model.safetensors"},
    {"rm b/step-00000012/config.json", GO_ON, "b/step-00000012/config.json: "
     "cannot open: No such file or directory"},
    {"echo hello >b/log.jsonl", GO_ON, "b/log.jsonl: wanted a run's log, an "
     "object a line that begins with its step"},
    {"", "train data/tiny/config.json e.bin -o c", "e.bin"},
    {"", TRAIN "c --set colour=red", "command line: no setting is called "
     "colour"},
    {"", TRAIN "c --set data=absent", "absent: cannot open: No such file or "
     "directory"},
    {"", TRAIN "c --set data=corpus", "corpus: wanted a data file, which "
     "`deepseek prepare` writes, found something else"},
    {"", TRAIN "c --set sequence_length=256 --set eval_every=0 --set "
     "data=e.bin --set total_tokens=1000 --set eval_data=x --resume",
     "c: wanted the directory of a run, found none"},
    {"", "train data/models/k3-v3/config.json t.json -o c", "t.bin: wanted a "
     "vocabulary of at most 64, as the config says, found 270"},
    {"", TRAIN "absent/c", "absent/c: cannot make this directory: No such "
     "file or directory"},
    {"", TRAIN "c --ids-file ids", "ids: cannot open: No such file or "
     "directory"},
    {"echo 1,2,3 >ids", TRAIN "c --ids-file ids", "step 1: ids: line 1: "
     "wanted 17 ids (sequence_length + 1), found 3"},
    {"echo 1,2,x >ids", TRAIN "c2 --ids-file ids", "step 1: ids: line 1: an "
     "id is a whole number from 0 to 2147483647, not 'x'"},
    {"seq -s, 1 17 >ids", TRAIN "c3 --ids-file ids", "step 1: ids: wanted more "
     "than 1 lines of ids"},
    {"(seq -s, 1 17; seq -s, 300 316) >ids", TRAIN "c4 --ids-file ids",
     "step 1: id 17 of a batch: wanted 0 to 287 (vocab_size - 1), found 300"},
    {"", "train data/tiny/config.json t.json --dump-grads g", "--dump-grads: "
     "wanted --from too, whose gradients they are"},
    {"", "train data/tiny/config.json t.json --dump-grads t.json --from b/"
     "step-00000012", "t.json: exists already; --force overwrites it"},
    {"", "plot absent -o x.svg", "absent/log.jsonl: cannot open: No such file "
     "or directory"},
    {": >b/log.jsonl", "plot b -o x.svg", "b/log.jsonl: wanted lines of "
     "steps, found none"},
    {"echo '{\"step\": 1}' >b/log.jsonl", "plot b -o x.svg",
     "b/log.jsonl: line 1: tokens: wanted a number from 1 on"},
    {"sed -i '3s/\"load\": \\[\"./\"load\": [\"/' b/log.jsonl",
     "plot b -o x.svg", "b/log.jsonl: line 3: load: wanted strings of tenths,"
     " as many and as long as in the first line"},
    {"sed -i '2s/\"loss\": /\"loss\": x/' b/log.jsonl", "plot b -o x.svg",
     "b/log.jsonl: line 2"},
    {"", "plot r -o t.json", "t.json: exists already; --force overwrites it"},
};

/* One line that begins with the message, or is it; b stays as it is. */
static void is_refused(const Case *c)
{
    char line[700];
    shell("rm -rf b before && cp -R r b");
    if (c->before[0] != '\0')
        assert_int_equal(shell(c->before), 0);
    shell("if [ -e b ]; then cp -R b before; fi");
    run(c->words);
    snprintf(line, sizeof line, "deepseek: %s", c->message);
    size_t n = strlen(line);
    if (last.status != 1 || strncmp(last.err, line, n) != 0
        || (last.err[n] != '\n' && last.err[n] != ':')
        || strchr(last.err, '\n')[1] != '\0')
        fail_msg("%s: wanted %s, found %d and %s", c->words, line,
                 last.status, last.err);
    if (exists("before") && shell("diff -r b before >out") != 0)
        fail_msg("%s: changed the run", c->words);
}

static void bad_input(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        is_refused(&cases[i]);
    run(TRAIN "c5 --dump-grads g");
    assert_int_equal(last.status, 2);
    assert_false(exists("c5"));
}

/* Where the last checkpoint is no good, removing it goes back to the one
 * before. */
static void back_to_the_one_before(void **state)
{
    (void)state;
    shell("rm -rf b && cp -R r b && rm -r b/step-00000012");
    done(TRAIN "b --resume");
    same_runs("r", "b");
}

/* Killed before there was a checkpoint: it begins, and ends the same. */
static void killed_at_the_start(void **state)
{
    static const char *const left[] = {
        "mkdir b", "mkdir b; echo x >b/begun.tmp.12-0.tmp",
        "mkdir b; : >b/begun.tmp; cp r/train.json r/config.json b",
        "mkdir -p b/init.tmp; : >b/begun.tmp; cp r/*.json b; "
        "cp r/config.json b/init.tmp",
        "mkdir b; : >b/begun.tmp; cp r/*.json b; "
        "cp -R r/step-00000009 b/step-00000000.tmp"};
    (void)state;
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        shell("rm -rf b");
        assert_int_equal(shell(left[i]), 0);
        done(TRAIN "b --resume");
        same_runs("r", "b");
    }
}

/* What a killed run left behind goes; what nobody knows stays. */
static void what_lies_about(void **state)
{
    (void)state;
    shell("rm -rf b && cp -R r b && cp -R b/step-00000009 b/step-00000007.tmp "
          "&& cp -R b/step-00000009 b/init.tmp && echo x >b/log.jsonl.9-0.tmp "
          "&& mkdir b/notes b/step-1 && printf '{\"step\": 13, \"to' "
          ">>b/log.jsonl");
    done(TRAIN "b --resume");
    assert_true(exists("b/notes") && exists("b/step-1"));
    shell("rmdir b/notes b/step-1");
    same_runs("r", "b");
}

/* One process a run. What a killed one has left locks nothing. */
static void another_process(void **state)
{
    (void)state;
    shell("rm -rf b && cp -R r b && : >b/lock");
    FILE *f = fopen("b/lock", "r+b");
    assert_non_null(f);
    assert_true(os_lock(f));
    run(TRAIN "b --resume");
    complains("train", 1, "b: wanted a run that nobody trains, "
              "found another process at it");
    assert_true(exists("b/lock"));
    fclose(f);
    done(TRAIN "b --resume");
    same_runs("r", "b");
}

/* A weight that is no number, in the state alone. */
static void not_finite(void **state)
{
    (void)state;
    shell("rm -rf b && cp -R r b && rm -rf before");
    FILE *f = fopen(STATE, "r+b");
    assert_non_null(f);
    fseek(f, -4, SEEK_END);
    assert_int_equal(fwrite("\0\0\xc0\x7f", 1, 4, f), 4);
    fclose(f);
    shell("cp -R b before");
    run(GO_ON);
    assert_int_equal(last.status, 1);
    if (strstr(last.err, "deepseek: step 13: ") != last.err
        || strstr(last.err, "model.layers.2.") == NULL
        || strchr(last.err, '\n')[1] != '\0')
        fail_msg("%s", last.err);
    assert_int_equal(shell("diff -r -x train.json b before >out"), 0);
}

/* A disk with room for some checkpoints: the last whole one stays. */
static void a_full_disk(void **state)
{
    (void)state;
    if (shell("mkdir empty; unshare -rm mount -t tmpfs none empty 2>err") != 0)
        skip();
    int status = shell(
        "unshare -rm sh -c 'mount -t tmpfs -o size=5000k none empty || exit 9;"
        " ./deepseek " TRAIN "empty/r --set keep_checkpoints=99 --set "
        "checkpoint_every=1 2>err; echo $? >status; ls empty/r >names; "
        "./deepseek " TRAIN "empty/r --resume --set keep_checkpoints=1 2>err2 "
        "&& ls empty/r >names2'");
    read_text("err", last.err, sizeof last.err);
    if (strstr(last.err, ": cannot write: No space left on device\n") == NULL
        || strchr(last.err, '\n')[1] != '\0')
        fail_msg("%s", last.err);
    assert_int_equal(status, 0);
    read_text("status", last.out, sizeof last.out);
    assert_string_equal(last.out, "1\n");
    assert_int_equal(shell("grep -q tmp names"), 1);
    assert_int_equal(shell("grep -q step-00000012 names2"), 0);
}

/* A new run that there is no room for leaves nothing. */
static void no_room_at_all(void **state)
{
    (void)state;
    last.status = shell("ulimit -f 64; ./deepseek " TRAIN "full 2>err");
    read_text("err", last.err, sizeof last.err);
    complains("train", 1, "full/init.tmp/model.safetensors: cannot write: File "
              "too large");
    assert_false(exists("full"));
}

/* Gradients and ids -------------------------------------------------------*/

#define DUMP "train data/tiny/config.json t.json --from r/step-00000012 "

static void gradients(void **state)
{
    (void)state;
    shell("{ seq -s' ' 20 36; seq -s, 2 18; seq -s, 7 23; seq -s, 99 115; } "
          ">ids");
    done(DUMP "--dump-grads g1 --ids-file ids");
    done(DUMP "--dump-grads g2 --ids-file ids --set micro_batch=4");
    assert_string_equal(done("diff g1 g2"),
                        "196 tensors, all with the same bits\n");
    assert_int_equal(shell("grep -q model.layers.2.eh_proj.weight.grad g1"),
                     0);
    done(DUMP "--dump-grads g1 --force");
    run("diff g1 g2");
    assert_int_equal(last.status, 1);
}

/* From its files, a pack's step comes out as in its golden ones, which have ids
 * and so another header. */
static void golden_step_again(void **state)
{
    (void)state;
    done("golden K13-v3 -o k13");
    done("train k13 k13/golden/train.json --from k13 --ids-file "
         "k13/golden/ids.txt --dump-grads step");
    shell("tail -c 300000 k13/golden/golden.safetensors >golden");
    assert_int_equal(shell("tail -c 300000 step | cmp - golden"), 0);
}

static void ids_in_order(void **state)
{
    (void)state;
    shell("for i in $(seq 1 48); do seq -s, $i $((i + 16)); done >ids; "
          "rm -rf a b");
    done(TRAIN "a --ids-file ids");
    done(TRAIN "b --ids-file ids --set total_tokens=384");
    done(TRAIN "b --ids-file ids --resume");
    same_runs("a", "b");
}

/* plot --------------------------------------------------------------------*/

static void pictures(void **state)
{
    static char svg[1 << 16];
    (void)state;
    done("plot r -o r.svg");
    read_text("r.svg", svg, sizeof svg);
    assert_memory_equal(svg, "<svg xmlns", 10);
    line_of(svg, ">held-out MTP loss</text>");
    line_of(svg, ">learning rate</text>");
    line_of(svg, ">MaxVio</text>");
    line_of(svg, ">load of each expert over the mean");
    assert_null(strstr(svg, "nan"));
    shell("rm -rf b && cp -R r b && printf '{\"step\": 13, \"to' "
          ">>b/log.jsonl");
    done("plot b -o b.svg");
    assert_int_equal(shell("cmp r.svg b.svg"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_run_leaves),
        cmocka_unit_test(what_the_log_holds),
        cmocka_unit_test(resumed_is_straight),
        cmocka_unit_test(storage_may_change),
        cmocka_unit_test(from_a_model),
        cmocka_unit_test(killed_at_random),
        cmocka_unit_test(interrupted),
        cmocka_unit_test(interrupted_twice),
        cmocka_unit_test(bad_input),
        cmocka_unit_test(back_to_the_one_before),
        cmocka_unit_test(killed_at_the_start),
        cmocka_unit_test(what_lies_about),
        cmocka_unit_test(another_process),
        cmocka_unit_test(not_finite),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(no_room_at_all),
        cmocka_unit_test(gradients),
        cmocka_unit_test(golden_step_again),
        cmocka_unit_test(ids_in_order),
        cmocka_unit_test(pictures),
    };
    return cmocka_run_group_tests(tests, begin, temp_end);
}
