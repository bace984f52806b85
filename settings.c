/* settings.c: train.json ------------------------------ V2 §3.1.2, V3 §4.2
 *
 * All that a training run needs to know besides the model's config. One table
 * lists the settings with their place in a file, their range and what an
 * absent one means; reading, setting one on the command line and writing walk
 * it. Where the papers give a value, it is the default, but balancing and
 * dropping, which they do in several ways, are off; what has none in the table
 * must be given.
 *
 * A key is a name, or two with a dot where the second is in an object of the
 * first. Keys that begin with two slashes are comments. An unknown key is
 * refused by name. After settings_check all values fit one another and the
 * model. */
#include "deepseek.h"

#include "base/document.h"
#include "base/hash.h"
#include "base/unicode.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    SETTING_PATH,      /* char *: a string; null is none */
    SETTING_SIZE,      /* size_t */
    SETTING_COUNT,     /* uint64_t */
    SETTING_NUMBER,    /* double */
    SETTING_BOOL,
    SETTING_DTYPE,     /* DType: F32 or BF16 */
    SETTING_SCHEDULE   /* Schedule: a number, or an array of segments */
} SettingKind;

typedef struct {
    const char *key;
    SettingKind kind;
    size_t offset;
    double low, high;      /* of its numbers */
    const char *absent;    /* as JSON; NULL: it must be given */
} Setting;

#define AT(field) offsetof(TrainSettings, field)
#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define MANY 9007199254740992.0   /* 2^53: every whole number up to it */
#define BELOW_1 0.9999999999      /* 1 would divide by 0 */

static const Setting settings[] = {
    {"data", SETTING_PATH, AT(data), 0, 0, NULL},
    {"eval_data", SETTING_PATH, AT(eval_data), 0, 0, "null"},
    {"sequence_length", SETTING_SIZE, AT(sequence_length), 1, 1 << 24, NULL},
    {"total_tokens", SETTING_COUNT, AT(total_tokens), 1, MANY, NULL},
    {"batch_size", SETTING_SCHEDULE, AT(batch_size), 1, 1 << 24, NULL},
    {"micro_batch", SETTING_SIZE, AT(micro_batch), 1, 1 << 24, "1"},
    {"learning_rate", SETTING_SCHEDULE, AT(learning_rate), 0, 1, NULL},
    {"warmup_steps", SETTING_COUNT, AT(warmup_steps), 0, MANY, "2000"},
    {"adamw.beta1", SETTING_NUMBER, AT(adamw.beta1), 0, BELOW_1, "0.9"},
    {"adamw.beta2", SETTING_NUMBER, AT(adamw.beta2), 0, BELOW_1, "0.95"},
    {"adamw.eps", SETTING_NUMBER, AT(adamw.eps), 1e-30, 1, "1e-8"},
    {"adamw.weight_decay", SETTING_NUMBER, AT(adamw.weight_decay), 0, 10,
     "0.1"},
    {"adamw.decay_all", SETTING_BOOL, AT(decay_all), 0, 0, "false"},
    {"adamw.clip", SETTING_NUMBER, AT(clip), 1e-30, 1e30, "1"},
    {"adamw.moments", SETTING_DTYPE, AT(moments), 0, 0, "\"F32\""},
    {"ema_decay", SETTING_NUMBER, AT(ema_decay), 0, BELOW_1, "0"},
    {"mtp_lambda", SETTING_SCHEDULE, AT(mtp_lambda), 0, 10, "0.3"},
    {"balance.alpha1", SETTING_SCHEDULE, AT(alpha[BALANCE_EXPERT]), 0, 100,
     "0"},
    {"balance.alpha2", SETTING_SCHEDULE, AT(alpha[BALANCE_DEVICE]), 0, 100,
     "0"},
    {"balance.alpha3", SETTING_SCHEDULE, AT(alpha[BALANCE_COMMUNICATION]), 0,
     100, "0"},
    {"balance.alpha", SETTING_SCHEDULE, AT(alpha[BALANCE_SEQUENCE]), 0, 100,
     "0"},
    {"balance.gamma", SETTING_SCHEDULE, AT(gamma), 0, 100, "0"},
    {"balance.devices", SETTING_SIZE, AT(devices), 1, 1 << 16, "1"},
    {"balance.device_limit", SETTING_SIZE, AT(device_limit), 1, 1 << 16,
     "1"},
    {"balance.batch_wise", SETTING_BOOL, AT(batch_wise), 0, 0, "false"},
    {"balance.count_picks", SETTING_BOOL, AT(count_picks), 0, 0, "false"},
    {"token_dropping.capacity_factor", SETTING_NUMBER, AT(capacity_factor),
     0, 1e6, "0"},
    {"token_dropping.exempt_rate", SETTING_NUMBER, AT(exempt_rate), 0, 1,
     "0.1"},
    {"init_std", SETTING_NUMBER, AT(init_std), 0, 1, "0.006"},
    {"seed", SETTING_COUNT, AT(seed), 0, MANY, "1"},
    {"recompute", SETTING_BOOL, AT(recompute), 0, 0, "false"},
    {"log_every", SETTING_COUNT, AT(log_every), 1, MANY, "1"},
    {"eval_every", SETTING_COUNT, AT(eval_every), 0, MANY, "0"},
    {"eval_sequences", SETTING_COUNT, AT(eval_sequences), 0, MANY, "0"},
    {"checkpoint_every", SETTING_COUNT, AT(checkpoint_every), 0, MANY, "0"},
    {"keep_checkpoints", SETTING_COUNT, AT(keep_checkpoints), 1, MANY, "2"},
};

static const char *const shapes[] = {"constant", "linear", "cosine"};

static const void *field(const TrainSettings *s, const Setting *row)
{
    return (const char *)s + row->offset;
}

/* Reading one value ------------------------------------------------------ */

static int read_whole(const Document *d, const char *key,
                      const JsonNode *node, double low, double high,
                      uint64_t *value)
{
    char wanted[80];
    int64_t whole;
    if (json_integer(&d->json, node, (int64_t)low, (int64_t)high, &whole)) {
        *value = (uint64_t)whole;
        return 0;
    }
    snprintf(wanted, sizeof wanted, "a whole number from %.0f to %.0f", low,
             high);
    return doc_wanted(d, key, wanted, node);
}

static int read_number(const Document *d, const char *key,
                       const JsonNode *node, double low, double high,
                       double *value)
{
    char wanted[80];
    if (json_number(&d->json, node, value) && *value >= low && *value <= high)
        return 0;
    snprintf(wanted, sizeof wanted, "a number from %.10g to %.10g", low,
             high);
    return doc_wanted(d, key, wanted, node);
}

static int read_bool(const Document *d, const char *key, const JsonNode *node,
                     bool *value)
{
    *value = json_type(node) == JSON_TRUE;
    if (*value || json_type(node) == JSON_FALSE)
        return 0;
    return doc_wanted(d, key, "true or false", node);
}

static int read_dtype(const Document *d, const char *key,
                      const JsonNode *node, DType *value)
{
    *value = json_equals(&d->json, node, "BF16") ? DT_BF16 : DT_F32;
    if (*value == DT_BF16 || json_equals(&d->json, node, "F32"))
        return 0;
    return doc_wanted(d, key, "\"F32\" or \"BF16\"", node);
}

static int read_path(const Document *d, const char *key, const JsonNode *node,
                     char **value)
{
    size_t n = 0;
    char *path = NULL;
    if (json_type(node) != JSON_NULL) {
        if (json_type(node) != JSON_STRING)
            return doc_wanted(d, key, "a path", node);
        path = json_string_dup(&d->json, node, key, &n, d->err);
        if (path == NULL)
            return -1;
        if (n == 0 || strlen(path) != n) {
            free(path);
            return doc_wanted(d, key, "a path", node);
        }
    }
    free(*value);
    *value = path;
    return 0;
}

/* Reading a schedule ----------------------------------------------------- */

/* What a segment's object says, NULL where it does not. */
typedef struct {
    const JsonNode *until, *shape, *value, *from, *to;
} SegmentKeys;

/* The child behind a key of an object: *key moves on to the next one, from
 * NULL at first; comments are passed over. NULL at the end. */
static const JsonNode *next_value(const Document *d, const JsonNode *object,
                                  const JsonNode **key)
{
    const JsonNode *value = NULL;
    do {
        *key = *key == NULL ? json_first(&d->json, object)
                            : json_next(&d->json, object,
                                        json_next(&d->json, object, *key));
        if (*key == NULL)
            return NULL;
        value = json_next(&d->json, object, *key);
    } while ((*key)->length >= 2
             && memcmp(d->json.text + (*key)->start, "//", 2) == 0);
    return value;
}

static int unknown(const Document *d, const char *where, const JsonNode *key)
{
    char text[100];
    return fail(d->err, "%s: %s%sno setting is called %s", d->path, where,
                where[0] ? ": " : "", doc_shown(d, key, text, sizeof text));
}

static int find_segment_keys(const Document *d, const char *name,
                             const JsonNode *object, SegmentKeys *found)
{
    const struct {
        const char *key;
        const JsonNode **node;
    } keys[] = {{"until", &found->until}, {"shape", &found->shape},
                {"value", &found->value}, {"from", &found->from},
                {"to", &found->to}};
    const JsonNode *key = NULL, *value;
    if (json_type(object) != JSON_OBJECT)
        return doc_wanted(d, name, "an object", object);
    while ((value = next_value(d, object, &key)) != NULL) {
        size_t i = 0;
        while (i < LENGTH(keys) && !json_equals(&d->json, key, keys[i].key))
            i++;
        if (i == LENGTH(keys))
            return unknown(d, name, key);
        *keys[i].node = value;
    }
    return 0;
}

static int read_shape(const Document *d, const char *name,
                      const SegmentKeys *keys, ScheduleShape *shape)
{
    size_t i = 0;
    if (keys->shape == NULL && keys->value != NULL) {
        *shape = SHAPE_CONSTANT;
        return 0;
    }
    while (i < LENGTH(shapes)
           && !(keys->shape != NULL
                && json_equals(&d->json, keys->shape, shapes[i])))
        i++;
    if (i == LENGTH(shapes))
        return doc_wanted(d, name, "a value, or a shape: \"constant\", "
                          "\"linear\" or \"cosine\"", keys->shape);
    *shape = (ScheduleShape)i;
    return 0;
}

/* A constant has a value, the rest from and to. */
static int read_ends(const Document *d, const char *name,
                     const SegmentKeys *keys, const Setting *row,
                     ScheduleSegment *s)
{
    bool constant = s->shape == SHAPE_CONSTANT;
    const JsonNode *from = constant ? keys->value : keys->from;
    const JsonNode *to = constant ? keys->value : keys->to;
    if ((keys->value != NULL) != constant || (keys->from != NULL) == constant
        || (keys->to != NULL) == constant)
        return fail(d->err, "%s: %s: wanted %s", d->path, name,
                    constant ? "a value, no from, no to"
                             : "from and to, no value");
    if (read_number(d, name, from, row->low, row->high, &s->from) != 0)
        return -1;
    return read_number(d, name, to, row->low, row->high, &s->to);
}

/* The end of a segment that begins at `begin`; the last one may have none. */
static int read_until(const Document *d, const char *name,
                      const JsonNode *until, bool last, uint64_t begin,
                      ScheduleSegment *s)
{
    s->until = UINT64_MAX;
    if (until == NULL && last && s->shape == SHAPE_CONSTANT)
        return 0;
    if (until == NULL)
        return fail(d->err, "%s: %s: until is missing", d->path, name);
    return read_whole(d, name, until, (double)begin + 1, MANY, &s->until);
}

static int read_segment(const Document *d, const Setting *row,
                        const JsonNode *object, bool last, Schedule *s)
{
    char name[80];
    SegmentKeys keys = {NULL, NULL, NULL, NULL, NULL};
    ScheduleSegment *segment = &s->segments[s->n];
    uint64_t begin = s->n == 0 ? 0 : segment[-1].until;
    snprintf(name, sizeof name, "%s[%zu]", row->key, s->n);
    if (find_segment_keys(d, name, object, &keys) != 0
        || read_shape(d, name, &keys, &segment->shape) != 0
        || read_ends(d, name, &keys, row, segment) != 0
        || read_until(d, name, keys.until, last, begin, segment) != 0)
        return -1;
    s->n++;
    return 0;
}

static int read_schedule(const Document *d, const Setting *row,
                         const JsonNode *node, Schedule *value)
{
    Schedule s = {0};
    const JsonNode *object = NULL;
    double number;
    if (json_type(node) == JSON_NUMBER) {
        *value = schedule_constant(0);
        if (read_number(d, row->key, node, row->low, row->high, &number) != 0)
            return -1;
        *value = schedule_constant(number);
        return 0;
    }
    if (json_type(node) != JSON_ARRAY || node->size < 1
        || node->size > MAX_SEGMENTS)
        return doc_wanted(d, row->key, "a number, or an array of 1 to 16 "
                          "segments", node);
    while ((object = doc_each(d, node, object)) != NULL)
        if (read_segment(d, row, object, s.n + 1 == node->size, &s) != 0)
            return -1;
    *value = s;
    return 0;
}

/* Reading ---------------------------------------------------------------- */

static int read_value(const Document *d, const Setting *row,
                      const JsonNode *node, TrainSettings *s)
{
    void *at = (char *)s + row->offset;
    uint64_t whole = 0;
    switch (row->kind) {
    case SETTING_PATH:
        return read_path(d, row->key, node, at);
    case SETTING_SIZE:
        if (read_whole(d, row->key, node, row->low, row->high, &whole) != 0)
            return -1;
        *(size_t *)at = (size_t)whole;
        return 0;
    case SETTING_COUNT:
        return read_whole(d, row->key, node, row->low, row->high, at);
    case SETTING_NUMBER:
        return read_number(d, row->key, node, row->low, row->high, at);
    case SETTING_BOOL:
        return read_bool(d, row->key, node, at);
    case SETTING_DTYPE:
        return read_dtype(d, row->key, node, at);
    case SETTING_SCHEDULE:
        break;
    }
    return read_schedule(d, row, node, at);
}

static const Setting *find_setting(const char *key)
{
    for (size_t i = 0; i < LENGTH(settings); i++)
        if (strcmp(settings[i].key, key) == 0)
            return &settings[i];
    return NULL;
}

/* The length of the group's name and its dot; 0: none. */
static size_t group_of(const char *key)
{
    const char *dot = strchr(key, '.');
    return dot == NULL ? 0 : (size_t)(dot - key) + 1;
}

static bool is_group(const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < LENGTH(settings); i++)
        if (group_of(settings[i].key) == n + 1
            && memcmp(settings[i].key, name, n) == 0)
            return true;
    return false;
}

enum { MAX_KEY = 64 };

/* All keys of an object; group: "" or the name that leads to it. */
static int read_object(const Document *d, const JsonNode *object,
                       const char *group, TrainSettings *s)
{
    const JsonNode *key = NULL, *value;
    while ((value = next_value(d, object, &key)) != NULL) {
        char name[MAX_KEY], path[2 * MAX_KEY + 2];
        long n = json_string(&d->json, key, name, sizeof name);
        if (n < 0 || strlen(name) != (size_t)n || strchr(name, '.') != NULL)
            return unknown(d, group, key);
        snprintf(path, sizeof path, "%s%s%s", group, group[0] ? "." : "",
                 name);
        const Setting *row = find_setting(path);
        bool nested = row == NULL && group[0] == '\0' && is_group(name);
        if (row == NULL && !nested)
            return unknown(d, group, key);
        if (nested && json_type(value) != JSON_OBJECT)
            return doc_wanted(d, name, "an object", value);
        if (nested ? read_object(d, value, name, s) != 0
                   : read_value(d, row, value, s) != 0)
            return -1;
    }
    return 0;
}

/* One value from text that is JSON. */
static int read_text(const char *path, const Setting *row, const char *text,
                     size_t n, TrainSettings *s, Error *err)
{
    Document d = {.err = err};
    char name[2 * MAX_KEY];   /* path is never written to */
    snprintf(name, sizeof name, "%s", path);
    d.path = name;
    if (json_parse(&d.json, name, text, n, err) != 0)
        return fail(err, "%s: %s: wanted JSON, found %.100s", path, row->key,
                    text);
    int status = read_value(&d, row, d.json.nodes, s);
    json_free(&d.json);
    return status;
}

static int set_defaults(TrainSettings *s, Error *err)
{
    memset(s, 0, sizeof *s);
    for (size_t i = 0; i < LENGTH(settings); i++) {
        const char *text = settings[i].absent;
        if (text != NULL
            && read_text("default", &settings[i], text, strlen(text), s, err)
               != 0)
            return -1;
    }
    return 0;
}

int settings_read(TrainSettings *s, const char *path, Error *err)
{
    Document d;
    int status;
    if (set_defaults(s, err) != 0 || doc_open(&d, "", path, err) != 0)
        return -1;
    if (json_type(d.json.nodes) == JSON_OBJECT)
        status = read_object(&d, d.json.nodes, "", s);
    else
        status = fail(err, "%s: wanted an object, found %s", path,
                      json_type_name(d.json.nodes));
    doc_close(&d);
    if (status != 0)
        settings_free(s);
    return status;
}

/* Paths and names need no quotes on a command line. */
static int set_value(TrainSettings *s, const Setting *row, const char *text,
                     Error *err)
{
    size_t n = strlen(text);
    Text quoted = {0};
    if (row->kind != SETTING_PATH && row->kind != SETTING_DTYPE)
        return read_text("command line", row, text, n, s, err);
    if (utf8_valid(text, n) < n)
        return fail(err, "command line: %s: wanted UTF-8", row->key);
    if (row->kind == SETTING_PATH && n == 0)
        text_printf(&quoted, "null");
    else
        text_json_string(&quoted, text, n, false);
    int status = quoted.failed ? fail(err, "out of memory")
               : read_text("command line", row, quoted.text, quoted.length,
                           s, err);
    text_free(&quoted);
    return status;
}

int settings_set(TrainSettings *s, const char *text, Error *err)
{
    const char *equals = strchr(text, '=');
    char key[MAX_KEY];
    size_t n = equals == NULL ? 0 : (size_t)(equals - text);
    if (equals == NULL)
        return fail(err, "command line: wanted KEY=VALUE, found %.100s",
                    text);
    snprintf(key, sizeof key, "%.*s", n < sizeof key ? (int)n : 0, text);
    const Setting *row = find_setting(key);
    if (row == NULL)
        return fail(err, "command line: no setting is called %.*s",
                    n < 100 ? (int)n : 100, text);
    return set_value(s, row, equals + 1, err);
}

void settings_free(TrainSettings *s)
{
    free(s->data);
    free(s->eval_data);
    s->data = s->eval_data = NULL;
}

/* Writing ---------------------------------------------------------------- */

static void add_segment(Text *t, const ScheduleSegment *s)
{
    const char *comma = "";
    text_printf(t, "{");
    if (s->until != UINT64_MAX) {
        text_printf(t, "\"until\": %" PRIu64, s->until);
        comma = ", ";
    }
    if (s->shape == SHAPE_CONSTANT)
        text_printf(t, "%s\"value\": ", comma);
    else
        text_printf(t, "%s\"shape\": \"%s\", \"from\": ", comma,
                    shapes[s->shape]);
    text_number(t, s->from);
    if (s->shape != SHAPE_CONSTANT) {
        text_printf(t, ", \"to\": ");
        text_number(t, s->to);
    }
    text_printf(t, "}");
}

static void add_schedule(Text *t, const Schedule *s)
{
    if (s->n == 1 && s->segments[0].until == UINT64_MAX) {
        text_number(t, s->segments[0].from);
        return;
    }
    text_printf(t, "[");
    for (size_t i = 0; i < s->n; i++) {
        text_printf(t, "%s\n    ", i == 0 ? "" : ",");
        add_segment(t, &s->segments[i]);
    }
    text_printf(t, "]");
}

static void add_path(Text *t, const char *path)
{
    if (path == NULL)
        text_printf(t, "null");
    else
        text_json_string(t, path, strlen(path), false);
}

static void add_value(Text *t, const Setting *row, const TrainSettings *s)
{
    const void *at = field(s, row);
    switch (row->kind) {
    case SETTING_PATH:
        add_path(t, *(char *const *)at);
        return;
    case SETTING_SIZE:
        text_printf(t, "%zu", *(const size_t *)at);
        return;
    case SETTING_COUNT:
        text_printf(t, "%" PRIu64, *(const uint64_t *)at);
        return;
    case SETTING_NUMBER:
        text_number(t, *(const double *)at);
        return;
    case SETTING_BOOL:
        text_printf(t, *(const bool *)at ? "true" : "false");
        return;
    case SETTING_DTYPE:
        text_printf(t, "\"%s\"", dtype_name(*(const DType *)at));
        return;
    case SETTING_SCHEDULE:
        add_schedule(t, at);
    }
}

/* False where a setting without a default has no value yet. */
static bool is_given(const TrainSettings *s, const Setting *row)
{
    const void *at = field(s, row);
    if (row->absent != NULL)
        return true;
    switch (row->kind) {
    case SETTING_PATH:
        return *(char *const *)at != NULL;
    case SETTING_SIZE:
        return *(const size_t *)at > 0;
    case SETTING_COUNT:
        return *(const uint64_t *)at > 0;
    case SETTING_SCHEDULE:
        return ((const Schedule *)at)->n > 0;
    default:
        return true;
    }
}

/* Opens and closes a group's object where the table enters and leaves it. */
static void add_settings(Text *t, const TrainSettings *s)
{
    const char *last = "", *comma = "";
    text_printf(t, "{");
    for (size_t i = 0; i < LENGTH(settings); i++) {
        const char *key = settings[i].key;
        size_t n = group_of(key), before = group_of(last);
        bool same = n == before && memcmp(key, last, n) == 0;
        if (!is_given(s, &settings[i]))
            continue;
        if (!same && before > 0)
            text_printf(t, "\n  }");
        if (!same && n > 0) {
            text_printf(t, "%s\n  \"%.*s\": {", comma, (int)n - 1, key);
            comma = "";
        }
        text_printf(t, "%s\n%s\"%s\": ", comma, n > 0 ? "    " : "  ",
                    key + n);
        add_value(t, &settings[i], s);
        last = key;
        comma = ",";
    }
    text_printf(t, "\n}\n");
}

int settings_write(const TrainSettings *s, const char *path, bool force,
                   Error *err)
{
    Text t = {0};
    add_settings(&t, s);
    int status = t.failed ? fail(err, "%s: out of memory", path)
                          : file_write(path, force, t.text, t.length, err);
    text_free(&t);
    return status;
}

/* Checking --------------------------------------------------------------- */

/* True where any segment is above 0. */
static bool is_on(const Schedule *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->segments[i].from > 0 || s->segments[i].to > 0)
            return true;
    return false;
}

static int check_given(const TrainSettings *s, const char *where, Error *err)
{
    for (size_t i = 0; i < LENGTH(settings); i++)
        if (!is_given(s, &settings[i]))
            return fail(err, "%s: %s is missing", where, settings[i].key);
    if (s->eval_every > 0 && s->eval_data == NULL)
        return fail(err, "%s: eval_data is missing, with eval_every %"
                    PRIu64, where, s->eval_every);
    return 0;
}

static int check_length(const TrainSettings *s, const Config *c,
                        const char *where, Error *err)
{
    size_t low = c->num_nextn_predict_layers + 1;
    size_t high = c->max_position_embeddings;
    if (s->sequence_length < low || s->sequence_length > high)
        return fail(err, "%s: sequence_length: wanted %zu to %zu, as the "
                    "config says, found %zu", where, low, high,
                    s->sequence_length);
    if (s->total_tokens < s->sequence_length)
        return fail(err, "%s: total_tokens: wanted one sequence of %zu, "
                    "found %" PRIu64, where, s->sequence_length,
                    s->total_tokens);
    return 0;
}

static int check_balance(const TrainSettings *s, const Config *c,
                         const char *where, Error *err)
{
    size_t N = c->n_routed_experts, D = s->devices, M = s->device_limit;
    if (N > 0 && N % D != 0)
        return fail(err, "%s: balance.devices: wanted a divisor of %zu "
                    "experts, found %zu", where, N, D);
    if (M > D)
        return fail(err, "%s: balance.device_limit: wanted at most %zu "
                    "devices, found %zu", where, D, M);
    if ((double)s->micro_batch * (double)s->sequence_length
            * (double)c->num_experts_per_tok >= 0x1p31)
        return fail(err, "%s: micro_batch: wanted fewer than 2^31 picks, "
                    "found more", where);
    if (is_on(&s->gamma) && c->topk_method != TOPK_NOAUX_TC)
        return fail(err, "%s: balance.gamma: wanted 0, for only topk_method "
                    "noaux_tc has a bias", where);
    return 0;
}

int settings_check(const TrainSettings *s, const Config *c,
                   const char *where, Error *err)
{
    if (check_given(s, where, err) != 0
        || check_length(s, c, where, err) != 0)
        return -1;
    return check_balance(s, c, where, err);
}

Balance settings_balance(const TrainSettings *s, uint64_t tokens)
{
    Balance b = {.devices = s->devices, .device_limit = s->device_limit,
                 .batch = s->batch_wise, .count_picks = s->count_picks};
    for (int kind = 0; kind < BALANCE_LOSSES; kind++)
        b.alpha[kind] = schedule_value(&s->alpha[kind], tokens);
    return b;
}

/* Going on with a run ----------------------------------------------------- */

/* What changes no number that is learnt before total_tokens are reached. The
 * data may move: what they hold is checked elsewhere. */
static const char *const may_change[] = {
    "data", "eval_data", "total_tokens", "recompute", "log_every",
    "eval_every", "eval_sequences", "checkpoint_every", "keep_checkpoints"};

static bool is_fixed(const Setting *row)
{
    for (size_t i = 0; i < LENGTH(may_change); i++)
        if (strcmp(row->key, may_change[i]) == 0)
            return false;
    return true;
}

int settings_same(const TrainSettings *s, const char *where,
                  const TrainSettings *was, const char *where_was, Error *err)
{
    int status = 0;
    for (size_t i = 0; status == 0 && i < LENGTH(settings); i++) {
        Text a = {0}, b = {0};
        add_value(&a, &settings[i], was);
        add_value(&b, &settings[i], s);
        if (a.failed || b.failed)
            status = fail(err, "%s: out of memory", where);
        else if (is_fixed(&settings[i]) && strcmp(a.text, b.text) != 0)
            status = fail(err, "%s: %s: wanted %.200s, as %s has, found"
                          " %.200s", where, settings[i].key, a.text,
                          where_was, b.text);
        text_free(&a);
        text_free(&b);
    }
    return status;
}

int settings_hash(const TrainSettings *s, uint64_t *hash, Error *err)
{
    Text t = {0};
    for (size_t i = 0; i < LENGTH(settings); i++)
        if (is_fixed(&settings[i])) {
            text_printf(&t, "%s=", settings[i].key);
            add_value(&t, &settings[i], s);
            text_printf(&t, "\n");
        }
    *hash = hash_bytes(HASH_START, t.text, t.length);
    int status = t.failed ? fail(err, "out of memory") : 0;
    text_free(&t);
    return status;
}
