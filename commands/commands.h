/* commands.h: what the command line's parts share.
 *
 *   main.c -> commands/X.c, one for each command -> run.c, stream.c
 *
 * Results go to stdout, everything about the run to stderr. A command returns
 * 0; -1 with a message that main() prints as one line; or an exit status whose
 * reason it has told itself. */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "../deepseek.h"

#include "../base/file.h"
#include "../base/json.h"
#include "../base/options.h"

struct Arguments {
    CommandLine line;
    const char *prompt, *ids, *output, *only, *system;
    const char *separator;
    const char *from, *ids_file, *dump_grads, *bugs, *fingerprint;
    OptionList readings, held_out, set;
    size_t n, top_k, ctx, chunk, draft; /* the last three: 0 by default */
    size_t vocab, min_count;
    uint64_t seed;
    double temperature, top_p, std, fim, split;
    int mla, fp8, chat_template, dtype, to, scale_fmt, rule; /* which word */
    bool force, json, print_ids, no_prompt, decode, jsonl, bos, think;
    bool only_held_out, draft_best, resume;
};

/* The places of the options in main.c's table. */
enum {
    O_PROMPT, O_IDS, O_NEW, O_TEMP, O_TOP_K, O_TOP_P, O_SEED, O_DRAFT,
    O_DRAFT_BEST, O_PRINT_IDS, O_NO_PROMPT, O_TEMPLATE, O_SYSTEM, O_THINK,
    O_DECODE, O_JSONL, O_BOS, O_OUTPUT, O_FORCE, O_ONLY, O_DTYPE, O_TO,
    O_SCALE_FMT, O_STD, O_MLA, O_FP8, O_CTX, O_CHUNK, O_READING, O_VOCAB,
    O_MIN_COUNT, O_SEPARATOR, O_FIM, O_SPLIT, O_HELD_OUT, O_ONLY_HELD_OUT,
    O_SET, O_RESUME, O_FROM, O_IDS_FILE, O_DUMP_GRADS, O_RULE, O_BUGS,
    O_FINGERPRINT, O_JSON, O_COUNT
};

int run_info(const Arguments *a, Error *err);
int run_generate(const Arguments *a, Error *err);
int run_chat(const Arguments *a, Error *err);
int run_eval(const Arguments *a, Error *err);
int run_tokenize(const Arguments *a, Error *err);
int run_trace(const Arguments *a, Error *err);
int run_diff(const Arguments *a, Error *err);
int run_golden(const Arguments *a, Error *err);
int run_init(const Arguments *a, Error *err);
int run_fp8(const Arguments *a, Error *err);
int run_quantize(const Arguments *a, Error *err);
int run_precision(const Arguments *a, Error *err);
int run_train_tokenizer(const Arguments *a, Error *err);
int run_prepare(const Arguments *a, Error *err);
int run_train(const Arguments *a, Error *err);
int run_plot(const Arguments *a, Error *err);

/* run.c ------------------------------------------------------------------ */

/* True where the option was on the command line. */
bool given(const Arguments *a, size_t option);

enum { DEFAULT_CTX = 4096, MAX_STOP = 2 * MAX_EOS + 1 };

/* A model directory and what a command does with it. Zeroed at first. */
typedef struct {
    const char *dir;
    Model model;
    Tokenizer *tokenizer;   /* NULL: the directory has none */
    Session session;
    Mtp mtp;                /* where the session has modules */
    MtpStats drafted;
    IdList prompt;
    GenerateOptions generate;
    int32_t stop[MAX_STOP];
    bool has_model, has_session;
} Run;

/* Opens the directory that is the first operand, the tokenizer if it has one,
 * and applies --reading. run_close is due even after an error. */
int run_open(Run *r, const Arguments *a, Error *err);
void run_close(Run *r);
/* An error where there is no tokenizer; instead: what to do, or "". */
int want_tokenizer(const Run *r, const char *instead, Error *err);
/* The ids of --ids as they are, or of -p with BOS where the model wants it. */
int read_prompt(Run *r, const Arguments *a, Error *err);
/* With the modules that --draft asks for; a trace of all logits has all.
 * tokens: what the context should hold if --ctx does not say. A trace shows
 * scores of as many positions, so it gets no more. */
int open_session(Run *r, const Arguments *a, size_t tokens, bool all_logits,
                 Trace *trace, Error *err);
/* Forgets all but the first `pos` tokens, or a few more where modules have to
 * see them again; how many are left. */
size_t run_rewind(Run *r, size_t pos);
/* The context where --ctx says nothing: enough for `tokens`, at least `least`,
 * at most what the model was made for. */
size_t context(const Config *c, const Arguments *a, size_t tokens,
               size_t least);
/* The BOS that begins every text of this model, -1: none. */
int32_t first_id(const Tokenizer *t);
/* What a config announces its weights to be stored as. */
DType checkpoint_dtype(const Config *c);

/* 1: the directory has the file, 0: it has not, -1: error. */
int dir_has(const char *dir, const char *name, Error *err);
/* The whole of a file, or of stdin where path is "-" or NULL. */
int read_input(Text *t, const char *path, Error *err);
/* Adds the ids of all of a file, or of stdin; refuses an empty one. */
int read_text(const Run *r, const char *path, IdList *ids, size_t *bytes,
              Error *err);
/* Adds the ids of a text like "1,2,3" or "[1, 2, 3]". */
int parse_ids(IdList *list, const char *text, Error *err);
/* Writes and empties t; an error where stdout is closed or full. */
int print_text(Text *t, Error *err);
int flush_stdout(Error *err);
/* 1234567 as "1,234,567", right-aligned in the width. */
void add_count(Text *t, uint64_t n, int width);

/* judge.c ---------------------------------------------------------------- */

/* diff with --rule: prints what judge_dump finds, or with --fingerprint the
 * lines for a file of known bugs. */
int diff_judged(const Arguments *a, const Safetensors *golden,
                const Safetensors *theirs, Error *err);

/* eval.c ----------------------------------------------------------------- */

typedef struct {
    size_t bytes, tokens; /* tokens: those predicted */
    double nats;
} Score;

/* How well the model of r->session, which has all_logits, predicts a text: in
 * disjoint windows of its context. path: what messages call it. */
int score_ids(Run *r, const IdList *ids, const char *path, Score *s,
              Error *err);

/* stream.c --------------------------------------------------------------- */

/* ^C ends a text that is coming, and any other time the program; a mapped
 * file that was cut ends it with a message. */
void handle_signals(void);
/* From now on, until told otherwise, the first ^C does nothing but let
 * was_interrupted tell of it. */
void note_interrupts(bool note);
/* True once ^C has ended a text, or was noted. */
bool was_interrupted(void);

/* Greedy, or as generation_config.json says, or as the options say. A top-k or
 * top-p alone samples at temperature 1. */
int set_sampling(Run *r, const Arguments *a, Error *err);

typedef struct {
    const Tokenizer *tokenizer; /* NULL: ids, blanks between */
    bool begun;
    Utf8Stream stream;
    Text text;      /* what was not written yet */
    Text all;       /* what was, where `keep` */
    IdList ids;     /* likewise */
    bool keep;
} Printer;

int print_id(Printer *p, int32_t id, Error *err);
void printer_close(Printer *p);
/* Generates from n ids after those in the cache, `most` at most, and ends the
 * line. */
int print_generated(Run *r, const int32_t *ids, size_t n, size_t most,
                    Printer *p, GenerateStats *stats, Error *err);
/* The one line about the run on stderr; of one with drafts a few more. */
void print_stats(const Run *r, const GenerateStats *s, const char *remark);

/* drafts.c --------------------------------------------------------------- */

/* What drafts brought, s having been generated. */
void print_drafts(const Run *r, const GenerateStats *s);
/* What a step with K drafts reads and the speed that follows, as a table or as
 * members of a JSON object. */
void text_drafts(Text *t, const Config *c, size_t drafts, size_t ctx);
void json_drafts(Text *t, const Config *c, size_t drafts, size_t ctx);

/* train_log.c ------------------------------------------------------------ */

/* RUN/log.jsonl: an object a line, of a step or of an evaluation. */
typedef struct {
    char *path;
    FILE *stream;
} TrainLog;

/* Opens it to go on behind a step: what was written of later ones goes. */
int log_open(TrainLog *l, const char *run, uint64_t step, Error *err);
void log_close(TrainLog *l);
int log_step(TrainLog *l, const Trainer *t, const StepReport *r,
             double seconds, Error *err);
/* bytes: of text a token, 0 if that is not known. */
int log_eval(TrainLog *l, const Trainer *t, const LossSums *losses,
             uint64_t sequences, double bytes, double seconds, Error *err);
/* All that was logged is on the disk. */
int log_sync(const TrainLog *l, Error *err);
/* L_MTP^k's mean over the modules; 0 without any. */
double mean_mtp_loss(const Config *c, const LossSums *losses);
/* How many tenths of the mean load a character stands for; -1: none. */
int load_tenths(char c);

#endif
