/* test_settings.c: what train.json may say, and what each wrong value gets.
 *
 * tests/data/train has the published settings of V2, V2-Lite and V3, whose
 * figures test_schedule.c checks one by one; docs/train.json is the example.
 * Messages are compared whole. */
#include "support.h"

#include "base/json.h"

#define TRAIN "tests/data/train/"
#define MINIMAL "\"data\": \"d.bin\", \"sequence_length\": 8, " \
    "\"total_tokens\": 100, \"batch_size\": 2, \"learning_rate\": 0.5"

static TrainSettings read_settings(const char *path)
{
    TrainSettings s;
    Error err;
    must(settings_read(&s, path, &err), &err);
    return s;
}

/* The text as a file, read. */
static int read_text(TrainSettings *s, const char *text, Error *err)
{
    static char where[40] = "t.json";
    const char *path = scratch(where);
    put_file(path, text, strlen(text));
    return settings_read(s, path, err);
}

/* The message has the file's whole path before `text`. */
static void refused(const char *json, const char *text)
{
    TrainSettings s;
    Error err;
    char wanted[1024];
    int status = read_text(&s, json, &err);
    snprintf(wanted, sizeof wanted, "%s%s", scratch("t.json"), text);
    must_fail(status, &err, wanted);
    settings_free(&s);   /* harmless */
}

static void set(TrainSettings *s, const char *text)
{
    Error err;
    must(settings_set(s, text, &err), &err);
}

static void set_refused(const char *text, const char *message)
{
    TrainSettings s;
    Error err;
    must(read_text(&s, "{}", &err), &err);
    must_fail(settings_set(&s, text, &err), &err, message);
    settings_free(&s);
}

static Config config_of(const char *name)
{
    Config c;
    Error err;
    char path[200];
    snprintf(path, sizeof path, "tests/data/configs/%s", name);
    must(config_read(&c, path, &err), &err);
    return c;
}

static void must_pass(const TrainSettings *s, const Config *c)
{
    Error err;
    must(settings_check(s, c, "x", &err), &err);
}

static void must_not_pass(const TrainSettings *s, const Config *c,
                          const char *message)
{
    Error err;
    must_fail(settings_check(s, c, "x", &err), &err, message);
}

/* ------------------------------------------------------------------------ */

static void test_defaults(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    must(read_text(&s, "{}", &err), &err);
    assert_null(s.data);
    assert_null(s.eval_data);
    assert_int_equal(s.batch_size.n, 0);
    assert_int_equal(s.warmup_steps, 2000);
    assert_true(s.adamw.beta1 == 0.9 && s.adamw.beta2 == 0.95);
    assert_true(s.adamw.eps == 1e-8 && s.adamw.weight_decay == 0.1);
    assert_true(s.clip == 1 && s.init_std == 0.006 && s.ema_decay == 0);
    assert_int_equal(s.moments, DT_F32);
    assert_int_equal(s.seed, 1);
    assert_int_equal(s.micro_batch, 1);
    assert_int_equal(s.keep_checkpoints, 2);
    assert_int_equal(s.log_every, 1);
    assert_true(s.capacity_factor == 0 && s.exempt_rate == 0.1);
    assert_false(s.recompute || s.decay_all || s.batch_wise || s.count_picks);
    assert_true(schedule_value(&s.mtp_lambda, 5) == 0.3);
    for (int kind = 0; kind < BALANCE_LOSSES; kind++)
        assert_true(schedule_value(&s.alpha[kind], 5) == 0);
    assert_true(schedule_value(&s.gamma, 5) == 0);
    assert_int_equal(s.devices, 1);
    settings_free(&s);
}

static void test_v2(void **state)
{
    (void)state;
    TrainSettings s = read_settings(TRAIN "v2.json");
    TrainSettings lite = read_settings(TRAIN "v2-lite.json");
    Config c = config_of("v2.json"), lite_c = config_of("v2-lite.json");
    Balance b = settings_balance(&s, 0);
    must_pass(&s, &c);
    must_pass(&lite, &lite_c);
    assert_string_equal(s.data, "pretrain.bin");
    assert_int_equal(s.sequence_length, 4096);
    assert_true(s.total_tokens == 8100000000000);
    assert_int_equal(schedule_sequences(&s.batch_size, 112500000000), 5760);
    assert_true(schedule_value(&s.learning_rate, 4859999999999) == 2.4e-4);
    assert_true(schedule_value(&s.learning_rate, 4860000000000) == 7.584e-5);
    assert_true(b.alpha[BALANCE_EXPERT] == 0.003);
    assert_true(b.alpha[BALANCE_DEVICE] == 0.05);
    assert_true(b.alpha[BALANCE_COMMUNICATION] == 0.02);
    assert_true(b.alpha[BALANCE_SEQUENCE] == 0);
    assert_int_equal(b.devices, 8);
    assert_int_equal(b.device_limit, 3);
    assert_false(b.batch || b.count_picks);
    assert_true(s.capacity_factor == 1);
    assert_true(schedule_value(&lite.learning_rate, 5700000000000)
                == 4.193952e-5);
    assert_int_equal(schedule_sequences(&lite.batch_size, 0), 4608);
    settings_free(&s);
    settings_free(&lite);
}

static void test_v3(void **state)
{
    (void)state;
    TrainSettings s = read_settings(TRAIN "v3.json");
    Config c = config_of("v3.json");
    must_pass(&s, &c);
    assert_int_equal(s.learning_rate.n, 4);
    assert_true(fabs(schedule_value(&s.learning_rate, 11000000000000)
                     - 1.9473e-4) < 5e-9);
    assert_true(schedule_value(&s.learning_rate, UINT64_MAX) == 7.3e-6);
    assert_true(schedule_value(&s.gamma, 14299999999999) == 0.001);
    assert_true(schedule_value(&s.gamma, 14300000000000) == 0);
    assert_true(schedule_value(&s.mtp_lambda, 10000000000000) == 0.1);
    assert_true(settings_balance(&s, 0).alpha[BALANCE_SEQUENCE] == 1e-4);
    assert_int_equal(s.moments, DT_BF16);
    assert_true(s.recompute);
    settings_free(&s);
}

static void test_balance_of_a_step(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    Balance b;
    must(read_text(&s, "{}", &err), &err);
    set(&s, "balance.batch_wise=true");
    set(&s, "balance.alpha=[{\"until\": 5, \"value\": 2}, {\"value\": 1}]");
    set(&s, "balance.alpha2=3");
    b = settings_balance(&s, 4);
    assert_true(b.batch && !b.count_picks);
    assert_true(b.alpha[BALANCE_SEQUENCE] == 2 && b.alpha[BALANCE_DEVICE] == 3);
    set(&s, "balance.batch_wise=false");
    set(&s, "balance.count_picks=true");
    b = settings_balance(&s, 5);
    assert_true(!b.batch && b.count_picks);
    assert_true(b.alpha[BALANCE_SEQUENCE] == 1 && b.alpha[BALANCE_EXPERT] == 0);
    settings_free(&s);
}

/* Any value at all, one after another, is as it was when it is read again. */
static void write_and_read(const TrainSettings *s)
{
    TrainSettings back;
    File a, b;
    Error err;
    char *first = scratch_dup("first.json"), *second = scratch_dup("2.json");
    must(settings_write(s, first, true, &err), &err);
    back = read_settings(first);
    must(settings_write(&back, second, true, &err), &err);
    must(file_open(&a, first, &err), &err);
    must(file_open(&b, second, &err), &err);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    assert_int_equal(back.data == NULL, s->data == NULL);
    if (s->data)
        assert_string_equal(back.data, s->data);
    settings_free(&back);
    back.data = s->data;
    back.eval_data = s->eval_data;
    assert_int_equal(back.learning_rate.n, s->learning_rate.n);
    assert_memory_equal(&back.adamw, &s->adamw, sizeof s->adamw);
    assert_true(back.seed == s->seed && back.clip == s->clip);
    assert_true(back.recompute == s->recompute);
    assert_true(back.moments == s->moments);
    for (uint64_t x = 1; x < (uint64_t)1 << 60; x *= 3) {
        for (int kind = 0; kind < BALANCE_LOSSES; kind++)
            assert_true(schedule_value(&back.alpha[kind], x)
                        == schedule_value(&s->alpha[kind], x));
        assert_true(schedule_value(&back.gamma, x)
                    == schedule_value(&s->gamma, x));
        if (s->learning_rate.n)
            assert_true(schedule_value(&back.learning_rate, x)
                        == schedule_value(&s->learning_rate, x));
    }
    file_close(&a);
    file_close(&b);
    free(first);
    free(second);
}

static void test_write(void **state)
{
    (void)state;
    static const char *const paths[] = {TRAIN "v2.json", TRAIN "v2-lite.json",
                                        TRAIN "v3.json", "docs/train.json"};
    static const char *const odd[] = {
        "data=a \"b\"\\ü.bin", "eval_data=", "adamw.beta1=0.1234567890123",
        "adamw.eps=1e-30", "seed=9007199254740991", "adamw.moments=BF16",
        "learning_rate=[{\"until\": 7, \"shape\": \"linear\", \"from\": 0, "
        "\"to\": 1e-9}]",
        "balance.gamma=[{\"until\": 4, \"shape\": \"constant\", \"value\": 1}"
        ", {\"until\": 9007199254740992, \"shape\": \"cosine\", \"from\": "
        "0.3, \"to\": 0.1}]",
        "balance.alpha3=0.5", "token_dropping.capacity_factor=1.25",
        "recompute=true"};
    TrainSettings missing;
    Error err;
    must(read_text(&missing, "{}", &err), &err);
    write_and_read(&missing);
    settings_free(&missing);
    for (size_t i = 0; i < 4; i++) {
        TrainSettings s = read_settings(paths[i]);
        write_and_read(&s);
        for (size_t k = 0; k < sizeof odd / sizeof *odd; k++) {
            set(&s, odd[k]);
            write_and_read(&s);
        }
        settings_free(&s);
    }
}

/* A file that is there is kept, and nothing is written where it cannot be. */
static void test_write_keeps(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    char *path = scratch_dup("kept.json");
    must(read_text(&s, "{}", &err), &err);
    must(settings_write(&s, path, false, &err), &err);
    assert_int_equal(settings_write(&s, path, false, &err), -1);
    assert_int_equal(settings_write(&s, scratch("no/dir"), false, &err), -1);
    settings_free(&s);
    free(path);
}

/* Every key of an object, and a comment to each. */
static void must_be_explained(const Json *json, const JsonNode *object,
                              size_t *keys)
{
    const JsonNode *key = json_first(json, object), *value;
    for (; key; key = json_next(json, object, value)) {
        char name[80], comment[84];
        value = json_next(json, object, key);
        assert_true(json_string(json, key, name, sizeof name) >= 0);
        if (strncmp(name, "//", 2) == 0)
            continue;
        snprintf(comment, sizeof comment, "// %s", name);
        if (!json_get(json, object, comment))
            fail_msg("no %s", comment);
        if (json_type(value) == JSON_OBJECT)
            must_be_explained(json, value, keys);
        else
            ++*keys;
    }
}

static size_t count_keys(const Json *json, const JsonNode *object)
{
    size_t n = 0;
    const JsonNode *key = json_first(json, object), *value;
    for (; key; key = json_next(json, object, value)) {
        value = json_next(json, object, key);
        n += json_type(value) == JSON_OBJECT ? count_keys(json, value) : 1;
    }
    return n;
}

/* The example has every key that is written, each with its explanation. */
static void test_example(void **state)
{
    (void)state;
    TrainSettings s = read_settings("docs/train.json");
    Config c = config_of("v3.json");
    File file;
    Json json;
    Error err;
    size_t explained = 0, written;
    char *path = scratch_dup("all.json");
    must_pass(&s, &c);
    must(settings_write(&s, path, true, &err), &err);
    must(file_open(&file, path, &err), &err);
    must(json_parse(&json, path, (const char *)file.data, file.size, &err),
         &err);
    written = count_keys(&json, json.nodes);
    json_free(&json);
    file_close(&file);
    must(file_open(&file, "docs/train.json", &err), &err);
    must(json_parse(&json, "docs", (const char *)file.data, file.size, &err),
         &err);
    must_be_explained(&json, json.nodes, &explained);
    assert_int_equal(explained, written);
    assert_true(written > 30);
    json_free(&json);
    file_close(&file);
    settings_free(&s);
    free(path);
}

static void test_set(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    must(read_text(&s, "{" MINIMAL "}", &err), &err);
    set(&s, "adamw.beta2=0.99");
    set(&s, "adamw.moments=BF16");
    set(&s, "data=other=1.bin");
    set(&s, "eval_data=null");   /* a path needs no quotes, so this is one */
    set(&s, "seed=18");
    set(&s, "total_tokens=14.8e12");
    set(&s, "balance.gamma=0.25");
    set(&s, "learning_rate=[{\"value\": 0.125}]");
    set(&s, "recompute=true");
    assert_true(s.adamw.beta2 == 0.99 && s.adamw.beta1 == 0.9);
    assert_int_equal(s.moments, DT_BF16);
    assert_string_equal(s.data, "other=1.bin");
    assert_string_equal(s.eval_data, "null");
    assert_int_equal(s.seed, 18);
    assert_true(s.total_tokens == 14800000000000);
    assert_true(schedule_value(&s.gamma, 3) == 0.25);
    assert_true(schedule_value(&s.learning_rate, 3) == 0.125);
    assert_true(s.recompute);
    set(&s, "eval_data=");
    assert_null(s.eval_data);
    settings_free(&s);
    set_refused("seed", "command line: wanted KEY=VALUE, found seed");
    set_refused("sead=1", "command line: no setting is called sead");
    set_refused("=1", "command line: no setting is called ");
    set_refused("balance=1", "command line: no setting is called balance");
    set_refused("beta1=1", "command line: no setting is called beta1");
    set_refused("seed=-1", "command line: seed: wanted a whole number from "
                "0 to 9007199254740992, found -1");
    set_refused("seed=1 2", "command line: seed: wanted JSON, found 1 2");
    set_refused("adamw.moments=F16", "command line: adamw.moments: wanted "
                "\"F32\" or \"BF16\", found \"F16\"");
    set_refused("data=\xff", "command line: data: wanted UTF-8");
}

static void test_unknown(void **state)
{
    (void)state;
    char long_key[300] = "{\"";
    refused("{\"sead\": 1}", ": no setting is called \"sead\"");
    refused("{\"balance\": {\"gama\": 1}}",
            ": balance: no setting is called \"gama\"");
    refused("{\"balance\": {\"balance\": {}}}",
            ": balance: no setting is called \"balance\"");
    refused("{\"adamw.beta1\": 0.9}",
            ": no setting is called \"adamw.beta1\"");
    refused("{\"bala\": {}}", ": no setting is called \"bala\"");
    refused("{\"seed\\u0000\": 1}", ": no setting is called \"seed\\u0000\"");
    refused("{\"/ x\": 1}", ": no setting is called \"/ x\"");
    memset(long_key + 2, 'k', 200);
    strcat(long_key, "\": 1}");
    refused(long_key, ": no setting is called \"kkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
            "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
            "kkkk\"");
}

static void test_comments(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    must(read_text(&s, "{\"//\": 1, \"// seed\": {\"x\": []}, \"seed\": 3, "
                   "\"balance\": {\"//\": null, \"gamma\": [{\"//\": 1, "
                   "\"value\": 2}]}}", &err), &err);
    assert_int_equal(s.seed, 3);
    assert_true(schedule_value(&s.gamma, 0) == 2);
    settings_free(&s);
}

static void test_wrong_values(void **state)
{
    (void)state;
    refused("[]", ": wanted an object, found an array");
    refused("{\"balance\": 1}", ": balance: wanted an object, found 1");
    refused("{\"seed\": 1.5}", ": seed: wanted a whole number from 0 to "
            "9007199254740992, found 1.5");
    refused("{\"seed\": null}", ": seed: wanted a whole number from 0 to "
            "9007199254740992, found null");
    refused("{\"sequence_length\": 0}", ": sequence_length: wanted a whole "
            "number from 1 to 16777216, found 0");
    refused("{\"micro_batch\": \"1\"}", ": micro_batch: wanted a whole "
            "number from 1 to 16777216, found \"1\"");
    refused("{\"adamw\": {\"beta1\": 1}}", ": adamw.beta1: wanted a number "
            "from 0 to 0.9999999999, found 1");
    refused("{\"adamw\": {\"eps\": 0}}", ": adamw.eps: wanted a number from "
            "1e-30 to 1, found 0");
    refused("{\"adamw\": {\"clip\": -1}}", ": adamw.clip: wanted a number "
            "from 1e-30 to 1e+30, found -1");
    refused("{\"adamw\": {\"clip\": []}}", ": adamw.clip: wanted a number "
            "from 1e-30 to 1e+30, found an array");
    refused("{\"recompute\": 1}",
            ": recompute: wanted true or false, found 1");
    refused("{\"data\": 1}", ": data: wanted a path, found 1");
    refused("{\"data\": \"\"}", ": data: wanted a path, found \"\"");
    refused("{\"data\": \"a\\u0000b\"}",
            ": data: wanted a path, found \"a\\u0000b\"");
    refused("{\"learning_rate\": 2}", ": learning_rate: wanted a number from "
            "0 to 1, found 2");
    refused("{\"batch_size\": 0}", ": batch_size: wanted a number from 1 to "
            "16777216, found 0");
}

#define LR(x) "{\"learning_rate\": " x "}"

static void test_wrong_schedules(void **state)
{
    (void)state;
    refused(LR("[]"), ": learning_rate: wanted a number, or an array of 1 to "
            "16 segments, found an array");
    refused(LR("\"x\""), ": learning_rate: wanted a number, or an array of 1 "
            "to 16 segments, found \"x\"");
    refused(LR("[1]"), ": learning_rate[0]: wanted an object, found 1");
    refused(LR("[{}]"), ": learning_rate[0]: wanted a value, or a shape: "
            "\"constant\", \"linear\" or \"cosine\", found nothing");
    refused(LR("[{\"shape\": \"step\", \"value\": 1}]"), ": learning_rate[0]:"
            " wanted a value, or a shape: \"constant\", \"linear\" or "
            "\"cosine\", found \"step\"");
    refused(LR("[{\"shape\": \"linear\", \"value\": 1, \"until\": 3}]"),
            ": learning_rate[0]: wanted from and to, no value");
    refused(LR("[{\"shape\": \"linear\", \"from\": 1, \"until\": 3}]"),
            ": learning_rate[0]: wanted from and to, no value");
    refused(LR("[{\"shape\": \"cosine\", \"to\": 1, \"until\": 3}]"),
            ": learning_rate[0]: wanted from and to, no value");
    refused(LR("[{\"value\": 1, \"to\": 1}]"),
            ": learning_rate[0]: wanted a value, no from, no to");
    refused(LR("[{\"value\": 1, \"from\": 1}]"),
            ": learning_rate[0]: wanted a value, no from, no to");
    refused(LR("[{\"shape\": \"constant\"}]"),
            ": learning_rate[0]: wanted a value, no from, no to");
    refused(LR("[{\"shape\": \"linear\", \"from\": 1, \"to\": 0}]"),
            ": learning_rate[0]: until is missing");
    refused(LR("[{\"value\": 1}, {\"value\": 1}]"),
            ": learning_rate[0]: until is missing");
    refused(LR("[{\"value\": 1, \"until\": 5}, {\"value\": 1, \"until\": 5}]"),
            ": learning_rate[1]: wanted a whole number from 6 to "
            "9007199254740992, found 5");
    refused(LR("[{\"value\": 1, \"until\": 0}]"), ": learning_rate[0]: "
            "wanted a whole number from 1 to 9007199254740992, found 0");
    refused(LR("[{\"value\": 7, \"until\": 5}]"), ": learning_rate[0]: "
            "wanted a number from 0 to 1, found 7");
    refused(LR("[{\"shape\": \"linear\", \"from\": 1, \"to\": -1, \"until\": "
            "5}]"), ": learning_rate[0]: wanted a number from 0 to 1, found "
            "-1");
    refused(LR("[{\"value\": 1, \"untill\": 0}]"),
            ": learning_rate[0]: no setting is called \"untill\"");
}

/* Sixteen segments fit, one more does not. */
static void test_many_segments(void **state)
{
    (void)state;
    for (int n = 16; n <= 17; n++) {
        TrainSettings s;
        Error err;
        Text t = {0};
        text_printf(&t, "{\"learning_rate\": [");
        for (int i = 1; i <= n; i++)
            text_printf(&t, "%s{\"until\": %d, \"value\": 0.5}",
                        i > 1 ? ", " : "", i);
        text_printf(&t, "]}");
        if (n == 16) {
            must(read_text(&s, t.text, &err), &err);
            assert_int_equal(s.learning_rate.n, 16);
            settings_free(&s);
        } else {
            refused(t.text, ": learning_rate: wanted a number, or an array "
                    "of 1 to 16 segments, found an array");
        }
        text_free(&t);
    }
}

static void test_missing(void **state)
{
    (void)state;
    static const char *const keys[] = {"data", "sequence_length",
                                       "total_tokens", "batch_size",
                                       "learning_rate"};
    static const char *const values[] = {"data=x", "sequence_length=8",
                                         "total_tokens=8", "batch_size=1",
                                         "learning_rate=0"};
    TrainSettings s;
    Error err;
    Config c = config_of("v3.json");
    must(read_text(&s, "{}", &err), &err);
    for (size_t i = 0; i < 5; i++) {
        char message[80];
        snprintf(message, sizeof message, "x: %s is missing", keys[i]);
        must_not_pass(&s, &c, message);
        set(&s, values[i]);
    }
    must_pass(&s, &c);
    set(&s, "eval_every=5");
    must_not_pass(&s, &c, "x: eval_data is missing, with eval_every 5");
    set(&s, "eval_data=e");
    must_pass(&s, &c);
    settings_free(&s);
}

static void test_fit(void **state)
{
    (void)state;
    TrainSettings s;
    Error err;
    Config c = config_of("v3.json"), lite = config_of("v2-lite.json");
    must(read_text(&s, "{" MINIMAL "}", &err), &err);
    must_pass(&s, &c);
    set(&s, "sequence_length=1");
    must_not_pass(&s, &c, "x: sequence_length: wanted 2 to 163840, as the "
                  "config says, found 1");
    set(&s, "sequence_length=163841");
    must_not_pass(&s, &c, "x: sequence_length: wanted 2 to 163840, as the "
                  "config says, found 163841");
    set(&s, "sequence_length=101");
    must_not_pass(&s, &c, "x: total_tokens: wanted one sequence of 101, "
                  "found 100");
    set(&s, "sequence_length=100");
    set(&s, "balance.devices=5");
    must_not_pass(&s, &c, "x: balance.devices: wanted a divisor of 256 "
                  "experts, found 5");
    set(&s, "balance.devices=4");
    set(&s, "balance.device_limit=5");
    must_not_pass(&s, &c, "x: balance.device_limit: wanted at most 4 devices,"
                  " found 5");
    set(&s, "balance.device_limit=4");
    set(&s, "balance.gamma=0.001");
    must_pass(&s, &c);
    must_not_pass(&s, &lite, "x: balance.gamma: wanted 0, for only "
                  "topk_method noaux_tc has a bias");
    set(&s, "micro_batch=16000000");
    must_not_pass(&s, &c, "x: micro_batch: wanted fewer than 2^31 picks, "
                  "found more");
    settings_free(&s);
}

/* With a byte changed or cut off, the example is read or refused in one line.
 */
static void test_changed_bytes(void **state)
{
    (void)state;
    Random r = test_random();
    File file;
    Error err;
    must(file_open(&file, TRAIN "v3.json", &err), &err);
    char *text = test_alloc(file.size + 1, 1);
    for (int i = 0; i < 3000; i++) {
        TrainSettings s;
        memcpy(text, file.data, file.size);
        text[file.size] = '\0';
        text[random_between(&r, 0, file.size - 1)] =
            i % 8 == 0 ? '\0' : (char)random_between(&r, 32, 126);
        if (read_text(&s, text, &err) == 0)
            settings_free(&s);
        else
            assert_null(strchr(err.text, '\n'));
    }
    free(text);
    file_close(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_balance_of_a_step),
        cmocka_unit_test(test_write),
        cmocka_unit_test(test_write_keeps),
        cmocka_unit_test(test_example),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_comments),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_wrong_schedules),
        cmocka_unit_test(test_many_segments),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_fit),
        cmocka_unit_test(test_changed_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
