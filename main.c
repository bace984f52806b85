/* main.c: the command line, and nothing else.
 *
 * One table of options and one of commands; parsing, help, manual page and
 * completion follow from them (base/options.h). Each command has its file in
 * commands/. Exit status: 0; 1 after an error and 2 after a wrong command
 * line, with exactly one line on stderr. */
#include "commands/commands.h"

#include <stdio.h>

#define AT(field) offsetof(Arguments, field)

#define MANY 1e15 /* a bound for whole numbers, exact in double */

static const Option options[O_COUNT] = {
    [O_PROMPT] = {"-p", OPTION_TEXT, AT(prompt), "TEXT", 0, 0,
        "the prompt; '-' reads it from standard input. The model's BOS goes "
        "before it if its tokenizer asks for that"},
    [O_IDS] = {"--ids", OPTION_INTS, AT(ids), "1,2,3", 0, 0,
        "the prompt as token ids, which nothing is added to"},
    [O_NEW] = {"-n", OPTION_SIZE, AT(n), "N", 1, MANY,
        "at most N new tokens; without it generate stops after 256, chat "
        "where the context ends"},
    [O_TEMP] = {"--temp", OPTION_NUMBER, AT(temperature), "T", 0, 100,
        "sample at temperature T; 0 takes the most probable token. Default: "
        "generation_config.json's if it says do_sample, else 0"},
    [O_TOP_K] = {"--top-k", OPTION_SIZE, AT(top_k), "K", 0, MANY,
        "sample among the K most probable tokens; 0: all. Alone it implies "
        "--temp 1"},
    [O_TOP_P] = {"--top-p", OPTION_NUMBER, AT(top_p), "P", 0, 1,
        "sample among the fewest tokens whose probabilities reach P. Alone "
        "it implies --temp 1"},
    [O_SEED] = {"--seed", OPTION_U64, AT(seed), "S", 0, 0,
        "seed of all random numbers; default 0"},
    [O_DRAFT] = {"--draft", OPTION_SIZE, AT(draft), "K", 1, MAX_DRAFTS,
        "let the model's MTP modules draft K tokens a step, which one pass "
        "verifies: greedy text stays the same, sampled text has the same "
        "probabilities"},
    [O_DRAFT_BEST] = {"--draft-best", OPTION_FLAG, AT(draft_best), NULL, 0, 0,
        "draft the most probable tokens, where without it they are sampled as "
        "the text is"},
    [O_PRINT_IDS] = {"--print-ids", OPTION_FLAG, AT(print_ids), NULL, 0, 0,
        "print the ids that are generated, blanks between, and no text"},
    [O_NO_PROMPT] = {"--no-prompt", OPTION_FLAG, AT(no_prompt), NULL, 0, 0,
        "print the new text alone, without the prompt before it"},
    [O_TEMPLATE] = {"--template", OPTION_CHOICE, AT(chat_template),
        "v2|v2.5|v3|r1|v3.1", 0, 0,
        "the form of the conversation; default: that of "
        "tokenizer_config.json"},
    [O_SYSTEM] = {"--system", OPTION_TEXT, AT(system), "TEXT", 0, 0,
        "a system message that begins the conversation"},
    [O_THINK] = {"--think", OPTION_FLAG, AT(think), NULL, 0, 0,
        "let the answers of R1 and V3.1 begin with thinking"},
    [O_DECODE] = {"--decode", OPTION_FLAG, AT(decode), NULL, 0, 0,
        "from ids to text"},
    [O_JSONL] = {"--jsonl", OPTION_FLAG, AT(jsonl), NULL, 0, 0,
        "read an object a line, with \"text\" (with --decode: \"ids\"), and "
        "print an array (a string) a line"},
    [O_BOS] = {"--bos", OPTION_FLAG, AT(bos), NULL, 0, 0,
        "put BOS before each text"},
    [O_OUTPUT] = {"-o", OPTION_TEXT, AT(output), "PATH", 0, 0,
        "what to write"},
    [O_FORCE] = {"--force", OPTION_FLAG, AT(force), NULL, 0, 0,
        "let -o replace what exists"},
    [O_ONLY] = {"--only", OPTION_TEXT, AT(only), "PATTERN", 0, 0,
        "only the tensors of these names; '*' stands for any characters, '?' "
        "for one, '#' for a number"},
    [O_DTYPE] = {"--dtype", OPTION_CHOICE, AT(dtype), "f32|f16|bf16|fp8", 0,
        0, "how to store the weights; default: as the config says"},
    [O_TO] = {"--to", OPTION_CHOICE, AT(to), "fp8|bf16", 0, 0,
        "how to store the Linear weights; default fp8"},
    [O_SCALE_FMT] = {"--scale-fmt", OPTION_CHOICE, AT(scale_fmt), "ue8m0|f32",
        0, 0,
        "scales that are powers of two, as V3.1's, or any number; default: as "
        "the model has them, else f32"},
    [O_STD] = {"--std", OPTION_NUMBER, AT(std), "X", 0, 1e3,
        "standard deviation of the weights; default 0.006, the papers'"},
    [O_MLA] = {"--mla", OPTION_CHOICE, AT(mla), "absorbed|naive", 0, 0,
        "the form of attention: on the compressed cache, the default, or "
        "with all keys and values expanded"},
    [O_FP8] = {"--fp8", OPTION_CHOICE, AT(fp8), "weights|activations", 0, 0,
        "what is FP8 in a model with FP8 weights: these alone, the default, or "
        "the inputs of its Linear layers too, as in training (implies "
        "--mla naive)"},
    [O_CTX] = {"--ctx", OPTION_SIZE, AT(ctx), "N", 2, MANY,
        "positions of the context; default: 4096, or more if prompt and -n "
        "want more, but max_position_embeddings at most"},
    [O_CHUNK] = {"--chunk", OPTION_SIZE, AT(chunk), "N", 1, MANY,
        "tokens of a prompt that run at once; changes time and memory, no "
        "bit of the result; default 128"},
    [O_READING] = {"--reading", OPTION_LIST, AT(readings), "NAME=VALUE", 0, 0,
        "where the sources disagree, the other reading (docs/disputes.md)"},
    [O_VOCAB] = {"--vocab", OPTION_SIZE, AT(vocab), "N", 264, 4194302,
        "tokens in all, the 256 bytes and 8 special ones included; default "
        "4096"},
    [O_MIN_COUNT] = {"--min-count", OPTION_SIZE, AT(min_count), "N", 1, MANY,
        "a pair has to occur N times to become a token; default 2"},
    [O_SEPARATOR] = {"--separator", OPTION_TEXT, AT(separator), "LINE", 0, 0,
        "the line between two documents of a file, default '<|endoftext|>'; "
        "'': each file is one document"},
    [O_FIM] = {"--fim", OPTION_NUMBER, AT(fim), "RATE", 0, 1,
        "the part of the documents to be written as prefix, suffix, middle; "
        "V3 has 0.1. Default 0"},
    [O_SPLIT] = {"--split", OPTION_NUMBER, AT(split), "RATE", 0, 1,
        "the part of the tokens of punctuation and line breaks to be written "
        "as two. Default 0"},
    [O_HELD_OUT] = {"--held-out", OPTION_LIST, AT(held_out), "[FILE=]N", 0, 0,
        "leave out the last N documents of each file, or of the one that is "
        "named"},
    [O_ONLY_HELD_OUT] = {"--only-held-out", OPTION_FLAG, AT(only_held_out),
        NULL, 0, 0,
        "write what --held-out leaves out, and nothing else"},
    [O_SET] = {"--set", OPTION_LIST, AT(set), "KEY=VALUE", 0, 0,
        "another value for a setting of train.json, as in "
        "--set adamw.beta2=0.99"},
    [O_RESUME] = {"--resume", OPTION_FLAG, AT(resume), NULL, 0, 0,
        "go on with the run from its latest checkpoint"},
    [O_FROM] = {"--from", OPTION_TEXT, AT(from), "DIR", 0, 0,
        "begin with the weights of this model instead of random ones"},
    [O_IDS_FILE] = {"--ids-file", OPTION_TEXT, AT(ids_file), "FILE", 0, 0,
        "sequences of sequence_length + 1 ids, one a line, taken in order, "
        "instead of data"},
    [O_DUMP_GRADS] = {"--dump-grads", OPTION_TEXT, AT(dump_grads), "FILE", 0,
        0, "write what the first step gives, each gradient as NAME.grad, and "
        "end"},
    [O_RULE] = {"--rule", OPTION_CHOICE, AT(rule), "bits|fp32|bf16|fp8", 0, 0,
        "what counts as equal: the same bits, the default, or golden values "
        "within the bounds of an engine that computes in this format "
        "(docs/golden.md)"},
    [O_BUGS] = {"--bugs", OPTION_TEXT, AT(bugs), "FILE", 0, 0,
        "fingerprints of known bugs; default: golden/bugs.txt of the current "
        "directory, else of the program's, else what `make install` left in "
        "share/deepseek"},
    [O_FINGERPRINT] = {"--fingerprint", OPTION_TEXT, AT(fingerprint), "NAME",
        0, 0, "print the lines of such a file for B, which has the bug NAME"},
    [O_JSON] = {"--json", OPTION_FLAG, AT(json), NULL, 0, 0,
        "print JSON"},
};

#define BIT(option) ((uint64_t)1 << (option))
#define MODEL_BITS \
    (BIT(O_MLA) | BIT(O_FP8) | BIT(O_CTX) | BIT(O_CHUNK) | BIT(O_READING))
#define SAMPLE_BITS \
    (BIT(O_NEW) | BIT(O_TEMP) | BIT(O_TOP_K) | BIT(O_TOP_P) | BIT(O_SEED) | \
     BIT(O_DRAFT) | BIT(O_DRAFT_BEST))
#define PROMPT_BITS (BIT(O_PROMPT) | BIT(O_IDS))

static const Command commands[] = {
    {.name = "info", .operands = "DIR|config.json", .least = 1, .most = 1,
     .options = BIT(O_CTX) | BIT(O_CHUNK) | BIT(O_MLA) | BIT(O_DRAFT) |
                BIT(O_JSON),
     .summary = "parameters, bytes, cache and operations of a model",
     .text =
        "Counts what a model consists of and what a token costs, from its "
        "config alone, with the sections of the papers (V2: arXiv 2405.04434, "
        "V3: arXiv 2412.19437). A directory that holds weights has its files, "
        "data types and tokenizer listed too.\n"
        "With --draft it counts the bytes that a step of decoding reads, "
        "plain and with drafts, behind --ctx positions, and what follows for "
        "its speed (V3, section 5.4.3).",
     .run = run_info},
    {.name = "generate", .operands = "DIR", .least = 1, .most = 1,
     .options = PROMPT_BITS | SAMPLE_BITS | MODEL_BITS | BIT(O_PRINT_IDS) |
                BIT(O_NO_PROMPT),
     .wanted = PROMPT_BITS,
     .summary = "continue a text",
     .text =
        "Prints the prompt and what follows it, as it comes. It ends with the "
        "model's end-of-sentence token, after -n tokens or where the context "
        "ends; ^C ends it early, with exit status 1. A line on standard error "
        "tells speed and memory; with --draft more lines tell how often drafts "
        "were accepted and what they brought.\n"
        "Without --temp, --top-k and --top-p, and where generation_config.json "
        "does not say do_sample, the most probable token is taken. The same "
        "seed gives the same text on every machine.",
     .run = run_generate},
    {.name = "chat", .operands = "DIR", .least = 1, .most = 1,
     .options = SAMPLE_BITS | MODEL_BITS | BIT(O_TEMPLATE) | BIT(O_SYSTEM) |
                BIT(O_THINK),
     .summary = "hold a conversation",
     .text =
        "Reads messages from standard input, one a line, and prints an answer "
        "to each, until the input ends. Blank lines are passed over. What the "
        "cache holds of the conversation is not run again. ^C ends an answer; "
        "at the prompt it ends the program.",
     .run = run_chat},
    {.name = "eval", .operands = "DIR FILE...", .least = 2, .most = SIZE_MAX,
     .options = MODEL_BITS | BIT(O_JSON),
     .summary = "measure how well a model predicts files",
     .text =
        "Prints bytes, predicted tokens, nats per token, perplexity and bits "
        "per byte of each file, '-' being standard input, and of all.\n"
        "A file longer than the context (--ctx) is cut into windows that do "
        "not overlap: each is BOS and the next --ctx less one tokens, so that "
        "every token is predicted once, the first of a window from BOS alone. "
        "Where the tokenizer adds no BOS, a window begins with the last token "
        "of the one before, and the file's first token is not predicted.",
     .run = run_eval},
    {.name = "tokenize", .operands = "DIR [FILE]", .least = 1, .most = 2,
     .options = BIT(O_DECODE) | BIT(O_JSONL) | BIT(O_BOS),
     .summary = "text to token ids, and back",
     .text =
        "Reads FILE or standard input, whole, as one text, and prints its ids "
        "on one line, blanks between; with --decode the reverse, byte for "
        "byte, special tokens included. The directory needs no more than "
        "tokenizer.json. No BOS is added unless --bos asks for it.",
     .run = run_tokenize},
    {.name = "trace", .operands = "DIR", .least = 1, .most = 1,
     .options = PROMPT_BITS | MODEL_BITS | BIT(O_OUTPUT) | BIT(O_FORCE) |
                BIT(O_ONLY),
     .wanted = PROMPT_BITS, .also = BIT(O_OUTPUT),
     .summary = "write every intermediate value of a forward pass",
     .text =
        "Runs a prompt once and writes what each stage computes to a "
        "safetensors file, under its module's name: 'logits', "
        "'model.layers.0.self_attn.q_proj' ... (docs/deepseek.md lists them). "
        "A model's MTP modules run too.",
     .run = run_trace},
    {.name = "diff", .operands = "A.safetensors B.safetensors", .least = 2,
     .most = 2, .options = BIT(O_JSON) | BIT(O_RULE) | BIT(O_BUGS) |
                           BIT(O_FINGERPRINT),
     .summary = "compare two files of tensors, or judge an engine's",
     .text =
        "Prints each tensor that does not have the same bits in both, in the "
        "order of A: how many elements differ, the squared error relative to "
        "A's squares (nmse), the greatest difference and its index. With "
        "--json all tensors are printed. Exit status 1 if any differs. B may "
        "be NumPy's .npy or .npz.\n"
        "With --rule, A is golden.safetensors of a pack, or any trace, and B "
        "what another engine computes for the same ids: any of A's tensors, "
        "in any dtype, in the layouts that engines have. Prints the worst of "
        "each layer, what was taken as which layout, how far logits are "
        "apart, what departs first, and which known bug does that. Exit "
        "status 1 if anything departs.",
     .run = run_diff},
    {.name = "golden", .operands = "PACK", .least = 1, .most = 1,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE), .also = BIT(O_OUTPUT),
     .summary = "make a pack that other engines are judged by",
     .text =
        "Writes a small model whose every stage counts, K1 to K13-v3 "
        "(docs/golden.md), and beside it in golden/ what each stage gives for "
        "48 tokens, or of K13 what a step of training gives, and a manifest: "
        "names, axes, SHA-256 and by how much experts were chosen. The same "
        "bytes on every machine.",
     .run = run_golden},
    {.name = "init", .operands = "config.json", .least = 1, .most = 1,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_SEED) | BIT(O_DTYPE) |
                BIT(O_STD),
     .also = BIT(O_OUTPUT),
     .summary = "make a model with random weights",
     .text =
        "Writes a directory with the config and weights drawn from a normal "
        "distribution; norm gains are 1, the gate's bias is 0. Tokenizer "
        "files beside the config go along. The same seed gives the same "
        "files.",
     .run = run_init},
    {.name = "fp8", .operands = "accumulation | formats DIR FILE", .least = 1,
     .most = 3, .options = MODEL_BITS | BIT(O_SEED),
     .summary = "measure what numbers of few bits cost",
     .text =
        "fp8 accumulation prints how far sums of FP8 products are off: summed "
        "as this program does, and as the tensor cores of V3's GPUs do, with "
        "and without promotion to F32 (V3, section 3.3.2). fp8 formats runs "
        "the text in FILE, '-' being standard input, through a model and "
        "prints how far its activations would be off if they were stored or "
        "sent in each of several formats, in tiles of 128 (V3, section "
        "3.3.3). A text longer than the context, 512 tokens without --ctx, "
        "runs window by window.",
     .run = run_fp8},
    {.name = "quantize", .operands = "DIR", .least = 1, .most = 1,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_TO) | BIT(O_SCALE_FMT),
     .also = BIT(O_OUTPUT),
     .summary = "write a model with FP8 weights, or without",
     .text =
        "Writes the model to another directory: Linear weights in FP8 with a "
        "scale for 128 x 128 of them, as DeepSeek publishes V3, the rest in "
        "BF16; with --to bf16 all of it in BF16. FP8 weights stay as they are "
        "unless --scale-fmt asks for other scales. config.json keeps its other "
        "keys; generation_config.json and tokenizer files go along.",
     .run = run_quantize},
    {.name = "precision", .operands = "DIR FILE", .least = 2, .most = 2,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_CTX) | BIT(O_READING) |
                BIT(O_JSON),
     .summary = "measure what FP8 costs a model, layer by layer",
     .text =
        "Runs a text through the model as it is stored, with FP8 weights, with "
        "FP8 activations too, in tiles of 1 x 128 as V3 has them, in blocks of "
        "128 x 128 and with one scale a tensor (V3 3.3.2, B.2); all of it "
        "again with outliers in some tokens, then in some features, put in so "
        "that the model as it is stored keeps every bit. Prints the relative "
        "error of every layer's output and the perplexity; -o draws a picture "
        "of them, an SVG file.\n"
        "The text, '-' being standard input, is cut into windows of --ctx "
        "tokens, 512 by default, each run at once. Memory holds a copy of the "
        "weights in F32 and one in FP8.",
     .run = run_precision},
    {.name = "train-tokenizer", .operands = "FILE...", .least = 1,
     .most = SIZE_MAX,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_VOCAB) |
                BIT(O_MIN_COUNT) | BIT(O_SEPARATOR) | BIT(O_JSON),
     .also = BIT(O_OUTPUT),
     .summary = "learn a vocabulary from text",
     .text =
        "Writes tokenizer.json and tokenizer_config.json to the directory -o: "
        "byte-level BPE behind V3's pre-tokenizer, with its tokens for BOS, "
        "EOS, padding, FIM and the two roles of a conversation. The merges "
        "are those of the Hugging Face library's trainer. A text without "
        "enough pairs gives fewer tokens than --vocab. Memory follows the "
        "distinct words, not the text.",
     .run = run_train_tokenizer},
    {.name = "prepare", .operands = "DIR FILE...", .least = 2,
     .most = SIZE_MAX,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_SEPARATOR) | BIT(O_FIM) |
                BIT(O_SPLIT) | BIT(O_SEED) | BIT(O_HELD_OUT) |
                BIT(O_ONLY_HELD_OUT) | BIT(O_JSON),
     .also = BIT(O_OUTPUT),
     .summary = "tokenise and pack documents for training",
     .text =
        "Writes the ids of all documents, one after another, in the order of "
        "the files, with the tokenizer of DIR: BOS where it adds one, the "
        "text, EOS. The same seed gives the same file on every machine. "
        "docs/data.md describes the file. Memory follows the longest "
        "document.",
     .run = run_prepare},
    {.name = "train", .operands = "config.json train.json", .least = 2,
     .most = 2,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE) | BIT(O_SET) | BIT(O_RESUME) |
                BIT(O_FROM) | BIT(O_IDS_FILE) | BIT(O_DUMP_GRADS),
     .wanted = BIT(O_OUTPUT) | BIT(O_DUMP_GRADS),
     .summary = "train a model",
     .text =
        "Trains a model of this config as train.json says (docs/train.json "
        "has every setting) into a new directory -o: settings, log.jsonl and "
        "checkpoints step-N, which are model directories. ^C writes a "
        "checkpoint and ends, with exit status 1; a second ^C ends at once. "
        "However a run has ended, --resume takes it from its latest "
        "checkpoint to the same bits; config and settings have to be those of "
        "before, except total_tokens, paths, recompute and what counts steps "
        "from one log line, evaluation or checkpoint to the next.\n"
        "With --dump-grads, which wants --from, no run begins: losses and "
        "gradients of the first step, and the weights after it, go to a "
        "safetensors file.",
     .run = run_train},
    {.name = "plot", .operands = "RUN", .least = 1, .most = 1,
     .options = BIT(O_OUTPUT) | BIT(O_FORCE), .also = BIT(O_OUTPUT),
     .summary = "draw how a training run went",
     .text =
        "Draws log.jsonl of a run as an SVG file: losses, the norm of the "
        "gradient, MaxVio, the learning rate and the load of every expert, "
        "over the tokens seen.",
     .run = run_plot},
};

static const Program program = {
    .name = "deepseek",
    .summary = "run DeepSeek-V2, V2-Lite and V3 models from their published "
               "files",
    .commands = commands,
    .n_commands = sizeof commands / sizeof commands[0],
    .options = options,
    .n_options = O_COUNT
};

static int complain(const Error *err, int status)
{
    fprintf(stderr, "deepseek: %s\n", err->text);
    return status;
}

int main(int argc, char **argv)
{
    Arguments a = {.n = 256, .std = 0.006, .vocab = 4096, .min_count = 2,
                   .separator = "<|endoftext|>"};
    Error err;
    int status = 0;
    handle_signals();
    if (options_parse(&a.line, &a, &program, argc, argv, &err) != 0)
        return complain(&err, 2);
    if (a.line.action == LINE_RUN)
        status = a.line.command->run(&a, &err);
    else
        options_print(&program, &a.line, stdout);
    if (status == 0)
        status = flush_stdout(&err);
    return status < 0 ? complain(&err, 1) : status;
}
