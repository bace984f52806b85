/* tokenizer.c: how fast text becomes ids and ids become text.
 *
 *   tokenizer DIR TEXT...   opening the tokenizer of a directory, then each
 *                           file as one text, both ways
 *   tokenizer DIR           a line of stdin each, for a program that runs a
 *                           peer in turn: "open", or "encode TEXT" or
 *                           "decode TEXT"; answered with seconds and ids
 *
 * Medians; each work runs once before it is timed. */
#include "limits.h"

#include "base/file.h"
#include "deepseek.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 5 };

typedef struct {
    const char *dir;
    Tokenizer *tokenizer;
    char path[4096];      /* of the text at hand */
    File file;
    IdList ids;           /* what it encodes to */
} Bench;

static int time_open(Bench *b, double *seconds, Error *err)
{
    *seconds = cpu_seconds();
    Tokenizer *t = tokenizer_open(b->dir, err);
    *seconds = cpu_seconds() - *seconds;
    if (t == NULL)
        return -1;
    tokenizer_close(t);
    return 0;
}

static int time_encode(Bench *b, double *seconds, Error *err)
{
    *seconds = cpu_seconds();
    b->ids.n = 0;
    if (tokenizer_encode(b->tokenizer, (const char *)b->file.data,
                         b->file.size, &b->ids, err) != 0)
        return -1;
    *seconds = cpu_seconds() - *seconds;
    return 0;
}

/* To a text, as the program does, which has to be the file again. */
static int time_decode(Bench *b, double *seconds, Error *err)
{
    Text out = {0};
    const char *bytes;
    size_t n;
    *seconds = cpu_seconds();
    for (size_t i = 0; i < b->ids.n; i++)
        if (tokenizer_decode(b->tokenizer, b->ids.ids[i], false, &bytes, &n))
            text_add(&out, bytes, n);
    *seconds = cpu_seconds() - *seconds;
    bool same = !out.failed && out.length == b->file.size
                && memcmp(out.text, b->file.data, out.length) == 0;
    text_free(&out);
    return same ? 0 : fail(err, "%s: decodes to another text", b->path);
}

/* Opens a text and encodes it, unless it is the one at hand. */
static int want_text(Bench *b, const char *path, Error *err)
{
    double seconds;
    if (strcmp(path, b->path) == 0)
        return 0;
    file_close(&b->file);
    b->path[0] = '\0';
    if (strlen(path) >= sizeof b->path || file_open(&b->file, path, err) != 0
        || time_encode(b, &seconds, err) != 0)
        return -1;
    strcpy(b->path, path);
    return 0;
}

typedef int Work(Bench *b, double *seconds, Error *err);

static int median_of(Bench *b, Work *work, double *seconds, Error *err)
{
    double sample[SAMPLES];
    for (size_t i = 0; i < SAMPLES; i++)
        if (work(b, &sample[i], err) != 0)
            return -1;
    *seconds = median(sample, SAMPLES);
    return 0;
}

static int measure_text(Bench *b, const char *path, Error *err)
{
    double encode, decode, megabytes;
    if (want_text(b, path, err) != 0
        || median_of(b, time_encode, &encode, err) != 0
        || median_of(b, time_decode, &decode, err) != 0)
        return -1;
    megabytes = (double)b->file.size / 1e6;
    printf("encode %7.1f MB/s  decode %7.1f MB/s  %8zu ids  %s\n",
           megabytes / encode, megabytes / decode, b->ids.n, path);
    return 0;
}

static int measure(Bench *b, char **texts, Error *err)
{
    double seconds;
    if (median_of(b, time_open, &seconds, err) != 0)
        return -1;
    printf("open   %7.1f ms  %s\n", 1e3 * seconds, b->dir);
    for (; *texts != NULL; texts++)
        if (measure_text(b, *texts, err) != 0)
            return -1;
    return 0;
}

static int answer(Bench *b, char *line, Error *err)
{
    double seconds;
    int status;
    line[strcspn(line, "\n")] = '\0';
    if (strcmp(line, "open") == 0)
        status = time_open(b, &seconds, err);
    else if (strlen(line) < 8 || want_text(b, line + 7, err) != 0)
        return -1;
    else
        status = (line[0] == 'e' ? time_encode : time_decode)(b, &seconds,
                                                              err);
    if (status != 0)
        return -1;
    printf("%.9f %zu\n", seconds, b->ids.n);
    fflush(stdout);
    return 0;
}

static int serve(Bench *b, Error *err)
{
    char line[4096 + 8];
    while (fgets(line, sizeof line, stdin) != NULL)
        if (answer(b, line, err) != 0)
            return -1;
    return 0;
}

int main(int argc, char **argv)
{
    Bench b = {.dir = argv[1]};
    Error err = {"usage: tokenizer DIR [TEXT...]"};
    int status = -1;
    b.tokenizer = argc < 2 ? NULL : tokenizer_open(b.dir, &err);
    if (b.tokenizer != NULL)
        status = argc < 3 ? serve(&b, &err) : measure(&b, argv + 2, &err);
    if (status != 0)
        fprintf(stderr, "%s\n", err.text);
    if (b.tokenizer != NULL)
        tokenizer_close(b.tokenizer);
    file_close(&b.file);
    ids_free(&b.ids);
    return status != 0;
}
