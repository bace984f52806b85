/* settings.c: any bytes as train.json, and as a setting on a command line;
 * what is read is written and read again as it was. */
#include "fuzz.h"

/* One line that says something. */
static void must_explain(const Error *err)
{
    MUST(err->text[0] && !strchr(err->text, '\n'));
}

static void check_schedule(const Schedule *s, double low, double high)
{
    for (uint64_t x = 1; s->n > 0 && x < (uint64_t)1 << 60; x *= 5) {
        double value = schedule_value(s, x);
        MUST(value >= low && value <= high);
    }
}

/* Writes s as NAME and returns its bytes. */
static File written(const TrainSettings *s, const char *name)
{
    char path[256];
    Error err;
    File file;
    snprintf(path, sizeof path, "%s/%s", fuzz_dir(), name);
    MUST(settings_write(s, path, true, &err) == 0);
    MUST(file_read(&file, path, &err) == 0);
    return file;
}

static void write_and_read(const TrainSettings *s)
{
    char path[256];
    TrainSettings back;
    Error err;
    File a = written(s, "a.json"), b;
    snprintf(path, sizeof path, "%s/a.json", fuzz_dir());
    MUST(settings_read(&back, path, &err) == 0);
    b = written(&back, "b.json");
    MUST(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    file_close(&a);
    file_close(&b);
    settings_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    TrainSettings s;
    Error err;
    char *text = calloc(size + 1, 1);
    MUST(text);
    memcpy(text, data, size);
    if (settings_read(&s, fuzz_file("train.json", data, size), &err) != 0) {
        must_explain(&err);
        MUST(settings_read(&s, fuzz_file("train.json",
                                         (const uint8_t *)"{}", 2),
                           &err) == 0);
    }
    if (settings_set(&s, text, &err) != 0)
        must_explain(&err);
    check_schedule(&s.learning_rate, 0, 1);
    check_schedule(&s.gamma, 0, 100);
    write_and_read(&s);
    settings_free(&s);
    free(text);
    return 0;
}
