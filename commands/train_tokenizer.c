/* train_tokenizer.c: the command that learns a vocabulary.
 *
 * The files it writes have the form and the spacing of the Hugging Face
 * library's own, so that equal tokenizers are equal bytes. */
#include "commands.h"

#include "../base/bpe_train.h"
#include "../base/os.h"
#include "../base/pretoken.h"
#include "../base/unicode.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* V3's names and flags: the first three open the vocabulary, the others
 * follow its end, in the order of their ids there. */
static const struct {
    const char *text;
    bool first, special;
} named_tokens[] = {
    {"<｜begin▁of▁sentence｜>", true, true},
    {"<｜end▁of▁sentence｜>", true, true},
    {"<｜▁pad▁｜>", true, true},
    {"<｜fim▁hole｜>", false, false},
    {"<｜fim▁begin｜>", false, false},
    {"<｜fim▁end｜>", false, false},
    {"<｜User｜>", false, false},
    {"<｜Assistant｜>", false, false},
};

enum {
    N_NAMED = sizeof named_tokens / sizeof *named_tokens,
    N_FIRST = 3
};

/* From text to words ------------------------------------------------------ */

static int count_word(void *words, const char *piece, size_t n, Error *err)
{
    return words_add(words, piece, n, 1, err);
}

typedef struct {
    Words words;
    uint64_t bytes, documents;
} Count;

static int count_documents(Count *c, const Pretokenizer *p, Documents d,
                           const char *path, Error *err)
{
    Progress progress;
    const char *start = d.at, *text;
    size_t n;
    int status = 0;
    progress_begin(&progress, path);
    while (status == 0 && documents_next(&d, &text, &n)) {
        size_t valid = utf8_valid(text, n);
        if (valid < n)
            status = fail(err, "%s: wanted UTF-8, found byte 0x%02x at offset"
                          " %zu", path, (unsigned)(unsigned char)text[valid],
                          (size_t)(text - start) + valid);
        else
            status = pretoken_run(p, text, n, count_word, &c->words, err);
        c->bytes += n;
        c->documents++;
        progress_show(&progress, (double)(d.at - start),
                      (double)(d.end - start));
    }
    progress_end(&progress);
    return status;
}

static int count_files(Count *c, const Arguments *a, Error *err)
{
    Pretokenizer p = {.n = 0};
    int status = 0;
    for (int i = 0; status == 0 && i < PRETOKEN_V3_RULES; i++)
        status = pretoken_add_regex(&p, pretoken_v3[i],
                                    strlen(pretoken_v3[i]), err);
    for (size_t i = 0; status == 0 && i < a->line.n_operands; i++) {
        const char *path = a->line.operands[i];
        File file;
        status = file_open(&file, path, err);
        if (status != 0)
            break;
        const char *text = (const char *)file.data;
        Documents d = {text, text + file.size, a->separator};
        status = count_documents(c, &p, d, path, err);
        file_close(&file);
    }
    pretoken_free(&p);
    if (status == 0 && c->documents == 0)
        return fail(err, "%s: no text to learn from", a->line.operands[0]);
    return status;
}

/* tokenizer.json ---------------------------------------------------------- */

typedef struct {
    Text text;
    char symbol[256][4];     /* of a byte, in UTF-8 */
    size_t symbol_n[256];
    const Learnt *learnt;
} Writer;

static void find_symbols(Writer *w)
{
    for (uint32_t code = 0; code < SYMBOLS_END; code++) {
        int byte = symbol_byte(code);
        if (byte >= 0)
            w->symbol_n[byte] = utf8_encode(code, w->symbol[byte]);
    }
}

/* The token of an id of Learnt, spelled in symbols, as a JSON string. */
static void add_token(Writer *w, size_t id)
{
    char spelling[TOKEN_LONGEST];
    size_t used = 0;
    for (size_t i = w->learnt->at[id]; i < w->learnt->at[id + 1]; i++) {
        size_t byte = (unsigned char)w->learnt->bytes[i];
        memcpy(spelling + used, w->symbol[byte], w->symbol_n[byte]);
        used += w->symbol_n[byte];
    }
    text_json_string(&w->text, spelling, used, false);
}

static const char *word_of(bool value)
{
    return value ? "true" : "false";
}

static void add_named(Writer *w)
{
    text_printf(&w->text, "  \"added_tokens\": [\n");
    for (size_t i = 0; i < N_NAMED; i++) {
        bool first = named_tokens[i].first;
        size_t id = i + (first ? 0 : w->learnt->n_tokens);
        text_printf(&w->text, "    {\n      \"id\": %zu,\n"
                    "      \"content\": \"%s\",\n"
                    "      \"single_word\": false,\n"
                    "      \"lstrip\": false,\n      \"rstrip\": false,\n"
                    "      \"normalized\": %s,\n      \"special\": %s\n"
                    "    }%s\n", id, named_tokens[i].text, word_of(!first),
                    word_of(named_tokens[i].special),
                    i + 1 < N_NAMED ? "," : "");
    }
    text_printf(&w->text, "  ],\n");
}

/* A ByteLevel step, its braces at the given depth of blanks. */
static void add_byte_level(Writer *w, int indent, bool prefix, bool trim,
                           bool regex)
{
    text_printf(&w->text, "{\n%*s  \"type\": \"ByteLevel\",\n"
                "%*s  \"add_prefix_space\": %s,\n%*s  \"trim_offsets\": %s,\n"
                "%*s  \"use_regex\": %s\n%*s}", indent, "", indent, "",
                word_of(prefix), indent, "", word_of(trim), indent, "",
                word_of(regex), indent, "");
}

static void add_pipeline(Writer *w)
{
    text_printf(&w->text,
                "  \"normalizer\": {\n    \"type\": \"Sequence\",\n"
                "    \"normalizers\": []\n  },\n"
                "  \"pre_tokenizer\": {\n    \"type\": \"Sequence\",\n"
                "    \"pretokenizers\": [\n");
    for (int i = 0; i < PRETOKEN_V3_RULES; i++) {
        text_printf(&w->text, "      {\n        \"type\": \"Split\",\n"
                    "        \"pattern\": {\n          \"Regex\": ");
        text_json_string(&w->text, pretoken_v3[i], strlen(pretoken_v3[i]),
                         false);
        text_printf(&w->text, "\n        },\n"
                    "        \"behavior\": \"Isolated\",\n"
                    "        \"invert\": false\n      },\n");
    }
    text_printf(&w->text, "      ");
    add_byte_level(w, 6, false, true, false);
    text_printf(&w->text, "\n    ]\n  },\n  \"post_processor\": ");
    add_byte_level(w, 2, true, false, true);
    text_printf(&w->text, ",\n  \"decoder\": ");
    add_byte_level(w, 2, true, true, true);
    text_printf(&w->text, ",\n");
}

static void add_vocabulary(Writer *w)
{
    text_printf(&w->text, "    \"vocab\": {\n");
    for (size_t i = 0; i < N_FIRST; i++)
        text_printf(&w->text, "      \"%s\": %zu,\n", named_tokens[i].text, i);
    for (size_t id = 0; id < w->learnt->n_tokens; id++) {
        text_printf(&w->text, "      ");
        add_token(w, id);
        text_printf(&w->text, ": %zu%s\n", N_FIRST + id,
                    id + 1 < w->learnt->n_tokens ? "," : "");
    }
    text_printf(&w->text, "    },\n");
}

static void add_merges(Writer *w)
{
    size_t n = w->learnt->n_merges;
    text_printf(&w->text, n > 0 ? "    \"merges\": [\n" : "    \"merges\": [");
    for (size_t i = 0; i < n; i++) {
        text_printf(&w->text, "      [\n        ");
        add_token(w, w->learnt->merges[i].left);
        text_printf(&w->text, ",\n        ");
        add_token(w, w->learnt->merges[i].right);
        text_printf(&w->text, "\n      ]%s\n", i + 1 < n ? "," : "");
    }
    text_printf(&w->text, n > 0 ? "    ]\n" : "]\n");
}

static void add_tokenizer(Writer *w)
{
    find_symbols(w);
    text_printf(&w->text, "{\n  \"version\": \"1.0\",\n"
                "  \"truncation\": null,\n  \"padding\": null,\n");
    add_named(w);
    add_pipeline(w);
    text_printf(&w->text, "  \"model\": {\n    \"type\": \"BPE\",\n"
                "    \"dropout\": null,\n    \"unk_token\": null,\n"
                "    \"continuing_subword_prefix\": null,\n"
                "    \"end_of_word_suffix\": null,\n"
                "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n"
                "    \"ignore_merges\": false,\n");
    add_vocabulary(w);
    add_merges(w);
    text_printf(&w->text, "  }\n}");
}

/* The directory ----------------------------------------------------------- */

static const char tokenizer_config[] =
    "{\n  \"add_bos_token\": true,\n  \"add_eos_token\": false,\n"
    "  \"bos_token\": \"<｜begin▁of▁sentence｜>\",\n"
    "  \"eos_token\": \"<｜end▁of▁sentence｜>\",\n"
    "  \"pad_token\": \"<｜end▁of▁sentence｜>\",\n"
    "  \"unk_token\": null,\n"
    "  \"clean_up_tokenization_spaces\": false,\n"
    "  \"model_max_length\": 131072,\n"
    "  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n";

static int refuse_existing(const char *path, bool force, Error *err)
{
    if (!force && path_exists(path))
        return fail(err, "%s: exists already; --force overwrites it", path);
    return 0;
}

/* Both files or, where there was no such directory, nothing. */
static int write_files(const char *dir, const char *tokenizer,
                       const char *config, bool force, const Text *text,
                       Error *err)
{
    bool existed = path_is_dir(dir), had = path_exists(tokenizer);
    if (refuse_existing(tokenizer, force, err) != 0
        || refuse_existing(config, force, err) != 0
        || make_dir(dir, err) != 0)
        return -1;
    int status = file_write(tokenizer, force, text->text, text->length, err);
    if (status == 0
        && file_write(config, force, tokenizer_config,
                      sizeof tokenizer_config - 1, err) != 0) {
        status = -1;
        if (!had)
            remove(tokenizer);
    }
    if (status != 0 && !existed)
        remove(dir);
    return status;
}

static int write_dir(const Arguments *a, const Text *text, Error *err)
{
    char *tokenizer = path_join(a->output, "tokenizer.json", err);
    char *config = path_join(a->output, "tokenizer_config.json", err);
    int status = -1;
    if (text->failed)
        fail(err, "not enough memory for %s", a->output);
    else if (tokenizer != NULL && config != NULL)
        status = write_files(a->output, tokenizer, config, a->force, text,
                             err);
    free(tokenizer);
    free(config);
    return status;
}

static int print_result(const Arguments *a, const Count *c, const Learnt *l,
                        Error *err)
{
    Text t = {0};
    const char *form = a->json
        ? "{\"documents\": %" PRIu64 ", \"bytes\": %" PRIu64
          ", \"words\": %" PRIu64 ", \"distinct_words\": %zu, "
          "\"merges\": %zu, \"tokens\": %zu}\n"
        : "documents       %12" PRIu64 "\nbytes           %12" PRIu64
          "\nwords           %12" PRIu64 "\ndistinct words  %12zu\n"
          "merges          %12zu\ntokens          %12zu\n";
    text_printf(&t, form, c->documents, c->bytes, c->words.total, c->words.n,
                l->n_merges, l->n_tokens + N_NAMED);
    int status = print_text(&t, err);
    text_free(&t);
    return status;
}

static int learn(const Arguments *a, const Count *c, Error *err)
{
    Learnt learnt;
    if (bpe_train(&learnt, &c->words, a->vocab - N_NAMED, a->min_count,
                  "merges", err) != 0)
        return -1;
    Writer w = {.learnt = &learnt};
    add_tokenizer(&w);
    int status = write_dir(a, &w.text, err);
    if (status == 0)
        status = print_result(a, c, &learnt, err);
    text_free(&w.text);
    learnt_free(&learnt);
    return status;
}

int run_train_tokenizer(const Arguments *a, Error *err)
{
    Count count = {.bytes = 0};
    int status = count_files(&count, a, err);
    if (status == 0)
        status = learn(a, &count, err);
    words_free(&count.words);
    return status;
}
