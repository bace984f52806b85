/* What is malformed is refused: models, tokenizers, arguments, prompts, places
 * to write; and what is odd and legal is accepted.
 *
 * Each case changes one thing of a good directory, runs the program on it and
 * wants one line, word for word, status 1 (2 for a wrong command line), nothing
 * on stdout, no file more or less than before, within 2 seconds of a processor
 * and 500 MB. At the end stands how many cases there were.
 *
 * The good directories: `tiny`, what init makes of data/tiny; `fp8`, the same
 * with FP8 weights; `sharded`, data/models/fp8-sharded, which has an index and
 * no tokenizer. */
#define _XOPEN_SOURCE 700
#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <time.h>

typedef enum { NOTHING, REPLACE, WHOLE, NEST, CUT, POKE, GONE, DIRECTORY }
    Change;

typedef struct {
    const char *message;   /* "" where the words must be done as before */
    const char *model;     /* which directory becomes `bad`; or NULL */
    Change change;
    const char *file, *from, *to;
    long at;
    const char *words;     /* NULL: two ids in, one out */
    const char *input;     /* or NULL */
    int status;            /* 0: 1 */
    size_t n;              /* of bytes with zeros; 0: those of a text */
} Case;

/* What a change means: text in the place of text, once; another text for all; a
 * hundred thousand brackets; so many bytes kept, or dropped if negative; bytes
 * in a tensor's data, from a byte of it on; no such file; a directory. Lengths
 * and places of a safetensors file are those of its header's text; its length
 * is mended. */
#define SWAP(m, f, a, b) .model = m, .change = REPLACE, .file = f, .from = a, \
    .to = b
#define CONFIG(key, old, new) SWAP("tiny", "config.json", \
    "\"" key "\": " old, "\"" key "\": " new)
#define HEADER(a, b) SWAP("tiny", "model.safetensors", a, b)
#define SHARD(n, a, b) \
    SWAP("sharded", "model-0000" #n "-of-00003.safetensors", a, b)
#define INDEX(a, b) SWAP("sharded", "model.safetensors.index.json", a, b)
#define TOKENIZER(a, b) SWAP("tiny", "tokenizer.json", a, b), \
    .words = "tokenize bad data/tiny/config.json"
#define TEXTS(a, b) SWAP("tiny", "tokenizer_config.json", a, b), \
    .words = "tokenize bad data/tiny/config.json"
#define FILE_IS(m, f, text) .model = m, .change = WHOLE, .file = f, .to = text
#define NESTED(m, f) .model = m, .change = NEST, .file = f
#define CUT_TO(m, f, n) .model = m, .change = CUT, .file = f, .at = n
#define BYTES(m, tensor, n, bytes) .model = m, .change = POKE, \
    .file = "model.safetensors", .from = tensor, .at = n, .to = bytes
#define NO_FILE(m, f) .model = m, .change = GONE, .file = f
#define NO_DIR(m, f) .model = m, .change = DIRECTORY, .file = f
#define LINE(text) .status = 2, .words = text
#define RUN(text) .words = text
#define READ(text, bytes) .words = text, .input = bytes

#define EMBED "\"model.embed_tokens.weight\":{\"dtype\":\"BF16\","
#define NORM "\"model.layers.0.input_layernorm.weight\":{\"dtype\":\"BF16\","

/* Cases -------------------------------------------------------------------- */

static const Case safetensors[] = {
    {"bad/model.safetensors: wanted 8 bytes of header length, found 0",
     CUT_TO("tiny", "model.safetensors", 0)},
    {"bad/model.safetensors: wanted 8 bytes of header length, found 7",
     CUT_TO("tiny", "model.safetensors", 7)},
    {"bad/model.safetensors: the header wants 10488 bytes, but the file "
     "holds only 0", CUT_TO("tiny", "model.safetensors", 8)},
    {"bad/model.safetensors: the header wants 10488 bytes, but the file "
     "holds only 4992", CUT_TO("tiny", "model.safetensors", 5000)},
    {"bad/model.safetensors: tensor model.layers.2.shared_head.head.weight: "
     "ends at byte 168064 of the data, but the file holds only 168063",
     CUT_TO("tiny", "model.safetensors", -1)},
    {"bad/model.safetensors: tensor "
     "model.layers.2.mlp.experts.2.gate_proj.weight: ends at byte 129088 of "
     "the data, but the file holds only 128064",
     CUT_TO("tiny", "model.safetensors", -40000)},
    {"bad/model.safetensors: wanted 8 bytes of header length, found 2",
     FILE_IS("tiny", "model.safetensors", "{}")},
    {"bad/model.safetensors: header length: wanted at most 100000000, found "
     "18446744073709551615: "
     "no safetensors file",
     FILE_IS("tiny", "model.safetensors", "\xff\xff\xff\xff\xff\xff\xff"
     "\xff{}")},
    {"bad/model.safetensors: header length: wanted at most 100000000, found "
     "5789751444030890300: "
     "no safetensors file",
     FILE_IS("tiny", "model.safetensors", "<!DOCTYPE html><p>Not found")},
    {"bad/model.safetensors: header length: wanted at most 100000000, found "
     "2336927755350992246: "
     "no safetensors file",
     FILE_IS("tiny", "model.safetensors", "version https://git-lfs.github."
     "com/spec/v1")},
    {"bad: wanted model.safetensors or model.safetensors.index.json, found "
     "neither", NO_FILE("tiny", "model.safetensors")},
    {"bad/model.safetensors: cannot read: is a directory",
     NO_DIR("tiny", "model.safetensors")},
    {"bad/model.safetensors: line 1, column 69: nested too deeply",
     NESTED("tiny", "model.safetensors")},
    {"bad/model.safetensors: the header does not begin with {",
     HEADER("{\"__metadata__\"", "[\"__metadata__\"")},
    {"bad/model.safetensors: line 1, column 29: invalid UTF-8",
     HEADER("\"pt\"", "\"p\xff\"")},
    {"bad/model.safetensors: __metadata__: wanted strings, found a number",
     HEADER("\"pt\"", "7")},
    {"bad/model.safetensors: __metadata__: wanted an object, found an array",
     HEADER("{\"format\":\"pt\"}", "[]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: its shape "
     "wants 18432 bytes, data_offsets give 18433",
     HEADER("[0,18432]", "[0,18433]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: its shape "
     "wants 18432 bytes, data_offsets give 18430",
     HEADER("[0,18432]", "[0,18430]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: data_offsets: "
     "begin 18432 is beyond end 0", HEADER("[0,18432]", "[18432,0]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[0]: wanted a size, found -18432",
     HEADER("[0,18432]", "[-18432,0]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[0]: wanted a size, found 0.5",
     HEADER("[0,18432]", "[0.5,18432.5]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[1]: wanted a size, found 1e400",
     HEADER("[0,18432]", "[0,1e400]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[1]: wanted a size, found 18446744073709551615",
     HEADER("[0,18432]", "[0,18446744073709551615]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[0]: wanted a size, found 18446744073709533184",
     HEADER("[0,18432]", "[18446744073709533184,0]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: ends at byte "
     "9223372036854775807 of the data, but the file holds only 168064",
     HEADER("[0,18432]", "[9223372036854775807,9223372036854775807]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: "
     "data_offsets[0]: wanted a size, found \"0\"",
     HEADER("[0,18432]", "[\"0\",\"18432\"]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: data_offsets: "
     "wanted 2 numbers, found 1", HEADER("[0,18432]", "[0]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: data_offsets: "
     "wanted at most 2 numbers, found 3", HEADER("[0,18432]", "[0,18432,0]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: data_offsets: "
     "wanted an array, found null", HEADER("[0,18432]", "null")},
    {"bad/model.safetensors: tensor model.layers.0.input_layernorm.weight: "
     "begins at byte 18430 of the data, wanted 18432: an overlap",
     HEADER("[18432,18496]", "[18430,18494]")},
    {"bad/model.safetensors: tensor model.layers.0.input_layernorm.weight: "
     "begins at byte 18434 of the data, wanted 18432: a gap",
     HEADER("[18432,18496]", "[18434,18498]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: its shape "
     "wants 19008 bytes, data_offsets give 18432",
     HEADER("[288,32]", "[288,33]")},
    {"bad/model.safetensors: model.embed_tokens.weight: wanted shape [288, "
     "32], found shape [32, 288]", HEADER("[288,32]", "[32,288]")},
    {"bad/model.safetensors: model.embed_tokens.weight: wanted shape [288, "
     "32], found shape [9216]", HEADER("[288,32]", "[9216]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape[0]: "
     "wanted a size, found 288.5", HEADER("[288,32]", "[288.5,32]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape[0]: "
     "wanted a size, found -288", HEADER("[288,32]", "[-288,-32]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape: more "
     "elements than memory can hold",
     HEADER("[288,32]", "[4294967296,4294967296]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape: more "
     "elements than memory can hold",
     HEADER("[288,32]", "[4611686018427387904,2]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape: more "
     "elements than memory can hold",
     HEADER("[288,32]", "[9223372036854775807,1]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape: wanted "
     "at most 8 numbers, found 9",
     HEADER("[288,32]", "[1,1,1,1,1,1,1,288,32]")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: shape: wanted "
     "an array, found a string", HEADER("[288,32]", "\"288x32\"")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: unknown dtype "
     "\"BF17\"",
     HEADER(EMBED, "\"model.embed_tokens.weight\":{\"dtype\":\"BF17\",")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: dtype: wanted "
     "a string, found a number",
     HEADER(EMBED, "\"model.embed_tokens.weight\":{\"dtype\":16,")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: dtype: wanted "
     "a string, found none", HEADER(EMBED, "\"model.embed_tokens.weight\":{")},
    {"bad/model.safetensors: model.embed_tokens.weight: wanted dtype F32, "
     "F16 or BF16, found I16",
     HEADER(EMBED, "\"model.embed_tokens.weight\":{\"dtype\":\"I16\",")},
    {"bad/model.safetensors: tensor model.embed_tokens.weight: its shape "
     "wants 36864 bytes, data_offsets give 18432",
     HEADER(EMBED, "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",")},
    {"bad/model.safetensors: model.embed_tokens.weight is missing",
     HEADER(EMBED, "\"model.embed_tokens.weights\":{\"dtype\":\"BF16\",")},
    {"bad/model.safetensors: line 1, column 120: the key "
     "\"model.embed_tokens.weight\" is there twice", HEADER(NORM, EMBED)},
    {"bad/model.safetensors: line 1, column 120: the key "
     "\"model.embed_tokens\\u002eweight\" is there twice",
     HEADER(NORM, "\"model.embed_tokens\\u002eweight\":{\"dtype\":"
     "\"BF16\",")},
    {"bad/model.safetensors: tensor model.layers.0.x: a zero byte in its name",
     HEADER(NORM, "\"model.layers.0.x\\u0000\":{\"dtype\":\"BF16\",")},
    {"bad/model.safetensors: model.layers.0.input_layernorm.weight is missing",
     HEADER(NORM, "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":"
     "\"BF16\",")},
    {"bad/model.safetensors: model.norm.weight is missing",
     HEADER("\"model.norm.weight\":{", "\"model.layers.1.mlp.experts.8."
     "up_proj.weight\":{")},
};

static const Case indexes[] = {
    {"bad/model.safetensors.index.json: line 16, column 38: wanted the end "
     "of the string, found the end",
     CUT_TO("sharded", "model.safetensors.index.json", 900)},
    {"bad/model.safetensors.index.json: weight_map: wanted an object, found "
     "none", FILE_IS("sharded", "model.safetensors.index.json", "[]")},
    {"bad/model.safetensors.index.json: weight_map: wanted tensors, found "
     "none", FILE_IS("sharded", "model.safetensors.index.json",
     "{\"weight_map\": {}}")},
    {"bad/model.safetensors.index.json: line 1, column 69: nested too deeply",
     NESTED("sharded", "model.safetensors.index.json")},
    {"bad/model.safetensors.index.json: cannot read: is a directory",
     NO_DIR("sharded", "model.safetensors.index.json")},
    {"bad/model.safetensors.index.json: weight_map: wanted an object, found "
     "none", INDEX("\"weight_map\"", "\"weightmap\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found "
     "../sharded/model-00001-of-00003.safetensors",
     INDEX("\"model-00001-of-00003.safetensors\"",
     "\"../sharded/model-00001-of-00003.safetensors\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found /etc/passwd",
     INDEX("\"model-00001-of-00003.safetensors\"", "\"/etc/passwd\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found ..",
     INDEX("\"model-00001-of-00003.safetensors\"", "\"..\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found an empty one",
     INDEX("\"model-00001-of-00003.safetensors\"", "\"\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found C:\\model.safetensors",
     INDEX("\"model-00001-of-00003.safetensors\"",
     "\"C:\\\\model.safetensors\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found ../x",
     INDEX("\"model-00001-of-00003.safetensors\"",
     "\"\\u002e\\u002e\\u002fx\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted "
     "the name of a file beside the index, found one with a zero byte",
     INDEX("\"model-00001-of-00003.safetensors\"", "\"a\\u0000b\"")},
    {"bad/model.safetensors.index.json: weight_map: lm_head.weight: wanted a "
     "string, found a number",
     INDEX("\"model-00001-of-00003.safetensors\"", "1")},
    {"bad/model-00004-of-00003.safetensors: cannot open: No such file or "
     "directory", INDEX("\"model-00001-of-00003.safetensors\"",
     "\"model-00004-of-00003.safetensors\"")},
    {"bad/model.safetensors.index.json: tensor lm_head.weight: wanted in "
     "bad/model-00002-of-00003.safetensors, found in "
     "bad/model-00001-of-00003.safetensors",
     INDEX("\"model-00001-of-00003.safetensors\"",
     "\"model-00002-of-00003.safetensors\"")},
    {"bad/model.safetensors.index.json: tensor lm_head.bias: wanted in "
     "bad/model-00001-of-00003.safetensors, found nowhere",
     INDEX("\"lm_head.weight\"", "\"lm_head.bias\"")},
    {"bad/model.safetensors.index.json: weight_map: a tensor with a zero "
     "byte in its name", INDEX("\"lm_head.weight\"", "\"lm\\u0000head\"")},
    {"bad: lm_head.weight is missing",
     INDEX("    \"lm_head.weight\": \"model-00001-of-00003.safetensors\","
     "\n", "")},
    {"bad/model-00002-of-00003.safetensors: cannot open: No such file or "
     "directory", NO_FILE("sharded", "model-00002-of-00003.safetensors")},
    {"bad/model-00002-of-00003.safetensors: cannot read: is a directory",
     NO_DIR("sharded", "model-00002-of-00003.safetensors")},
    {"bad/model-00003-of-00003.safetensors: tensor "
     "model.layers.1.mlp.shared_experts.up_proj.weight: ends at byte 3764 of "
     "the data, but the file holds only 3704",
     CUT_TO("sharded", "model-00003-of-00003.safetensors", 7000)},
    {"bad/model-00002-of-00003.safetensors: tensor model.embed_tokens.weight "
     "is also in bad/model-00001-of-00003.safetensors",
     SHARD(1, "\"lm_head.weight\"", "\"model.embed_tokens.weight\"")},
};

static const Case weights[] = {
    {"bad/model.safetensors: model.embed_tokens.weight: element (1, 0) is "
     "nan, wanted a finite number",
     BYTES("tiny", "model.embed_tokens.weight", 64, "\xc0\x7f")},
    {"bad/model.safetensors: model.embed_tokens.weight: element (1, 1) is "
     "inf, wanted a finite number",
     BYTES("tiny", "model.embed_tokens.weight", 66, "\x80\x7f")},
    {"bad/model.safetensors: model.layers.1.self_attn.kv_b_proj.weight: "
     "element (0, 1) is -inf, wanted a finite number",
     BYTES("tiny", "model.layers.1.self_attn.kv_b_proj.weight", 2,
     "\x80\xff")},
    {"bad/model.safetensors: model.layers.0.self_attn.kv_a_layernorm.weight: "
     "element (0, 0) is nan, wanted a finite number",
     BYTES("tiny", "model.layers.0.self_attn.kv_a_layernorm.weight", 0,
     "\xff\x7f")},
    {"bad/model.safetensors: "
     "model.layers.1.mlp.gate.e_score_correction_bias: element (0, 0) is "
     "nan, wanted a finite number",
     BYTES("tiny", "model.layers.1.mlp.gate.e_score_correction_bias", 2,
     "\xc0\x7f")},
    {"bad/model.safetensors: model.layers.1.mlp.gate.weight: element (0, 0) "
     "is nan, wanted a finite number",
     BYTES("tiny", "model.layers.1.mlp.gate.weight", 0, "\xc0\x7f")},
    {"bad/model.safetensors: model.layers.1.mlp.gate.weight: element (7, 31) "
     "is -inf, wanted a finite number",
     BYTES("tiny", "model.layers.1.mlp.gate.weight", 510, "\x80\xff")},
    {"bad/model.safetensors: model.norm.weight: element (0, 31) is nan, "
     "wanted a finite number",
     BYTES("tiny", "model.norm.weight", 62, "\xff\x7f")},
    {"bad/model.safetensors: lm_head.weight: element (287, 31) is nan, "
     "wanted a finite number",
     BYTES("tiny", "lm_head.weight", 18430, "\x81\x7f")},
    {"bad/model.safetensors: model.layers.0.self_attn.q_a_proj.weight: "
     "element (0, 7) is the E4M3 code 0x7f, not a number",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight", 7, "\x7f")},
    {"bad/model.safetensors: "
     "model.layers.1.mlp.shared_experts.up_proj.weight: element (0, 0) is "
     "the E4M3 code 0xff, not a number",
     BYTES("fp8", "model.layers.1.mlp.shared_experts.up_proj.weight", 0,
     "\xff")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "nan, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 0,
     "\xff\xff\xff\x7f")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "nan, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 2,
     "\x80\x7f")},
    {"bad/model.safetensors: "
     "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv: element (0, "
     "0) is -0.00924668, wanted a finite positive scale",
     BYTES("fp8", "model.layers.1.mlp.experts.7.down_proj."
     "weight_scale_inv", 3, "\xbc")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv is missing, which "
     "the FP8 tensor needs",
     SWAP("fp8", "model.safetensors", "q_a_proj.weight_scale_inv",
     "q_a_proj.weight_scale")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: wanted shape [1, "
     "1], found shape [1]",
     SWAP("fp8", "model.safetensors", "\"F32\",\"shape\":[1,1]",
     "\"F32\",\"shape\":[1]")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "0, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 0,
     "\0\0\0"), .n = 4},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "-0, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 0,
     "\0\0\0\x80"), .n = 4},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "inf, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 0,
     "\0\0\x80\x7f"), .n = 4},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: wanted shape [1, "
     "1], found shape [1, 1, 1]",
     SWAP("fp8", "model.safetensors", "\"F32\",\"shape\":[1,1]",
     "\"F32\",\"shape\":[1,1,1]")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: wanted dtype F32, "
     "found I32", SWAP("fp8", "model.safetensors", "\"F32\",\"shape\":[1,1]",
     "\"I32\",\"shape\":[1,1]")},
};

/* The same where FP8 is written and where it is measured; a number that BF16
 * cannot hold. */
static const Case weights_to_write[] = {
    {"bad/model.safetensors: model.layers.0.self_attn.q_a_proj.weight: "
     "element (0, 7) is nan, wanted a finite BF16 number",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight", 7, "\x7f"),
     RUN("quantize bad -o x")},
    {"bad/model.safetensors: model.layers.0.self_attn.q_a_proj.weight: "
     "element (0, 7) is nan, wanted a finite BF16 number",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight", 7, "\xff"),
     RUN("quantize bad -o x --to bf16")},
    {"bad/model.safetensors: model.layers.0.self_attn.q_a_proj.weight: "
     "element (0, 7) is the E4M3 code 0x7f, not a number",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight", 7, "\x7f"),
     RUN("precision bad in")},
    {"bad/model.safetensors: model.norm.weight: element (0, 31) is inf, "
     "wanted a finite BF16 number",
     BYTES("tiny", "model.norm.weight", 62, "\x80\x7f"),
     RUN("quantize bad -o x")},
    {"bad/model.safetensors: model.layers.2.eh_proj.weight: element (0, 1) is "
     "-inf, wanted a finite BF16 number",
     BYTES("tiny", "model.layers.2.eh_proj.weight", 2, "\x80\xff"),
     RUN("quantize bad -o x --to bf16")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv: element (0, 0) is "
     "inf, wanted a finite positive scale",
     BYTES("fp8", "model.layers.0.self_attn.q_a_proj.weight_scale_inv", 0,
     "\0\0\x80\x7f"), .n = 4, RUN("quantize bad -o x --to bf16")},
    {"bad/model.safetensors: "
     "model.layers.0.self_attn.q_a_proj.weight_scale_inv is missing, which "
     "the FP8 tensor needs",
     SWAP("fp8", "model.safetensors", "q_a_proj.weight_scale_inv",
     "q_a_proj.weight_scale"), RUN("quantize bad -o x")},
    {"bad/model.safetensors: model.layers.2.eh_proj.weight is missing",
     SWAP("tiny", "model.safetensors", "model.layers.2.eh_proj.weight",
     "model.layers.2.eh_project.weight"), RUN("quantize bad -o x")},
    {"bad/tokenizer.json: cannot read: is a directory",
     NO_DIR("tiny", "tokenizer.json"), RUN("quantize bad -o x")},
    {"bad/chat_template.jinja: cannot read: is a directory",
     NO_DIR("tiny", "chat_template.jinja"), RUN("quantize bad -o x")},
};

static const Case configs[] = {
    {"bad/config.json: cannot open: No such file or directory",
     NO_FILE("tiny", "config.json")},
    {"bad/config.json: cannot read: is a directory",
     NO_DIR("tiny", "config.json")},
    {"bad/config.json: line 1, column 1: wanted a value, found the end",
     FILE_IS("tiny", "config.json", "")},
    {"bad/config.json: wanted an object, found an array",
     FILE_IS("tiny", "config.json", "[1]")},
    {"bad/config.json: model_type is missing; wanted deepseek_v2 or "
     "deepseek_v3", FILE_IS("tiny", "config.json", "{}")},
    {"bad/config.json: line 12, column 15: wanted the end of the string, "
     "found the end", CUT_TO("tiny", "config.json", 300)},
    {"bad/config.json: line 1, column 69: nested too deeply",
     NESTED("tiny", "config.json")},
    {"bad/config.json: line 4, column 3: wanted a key in quotes, found v",
     SWAP("tiny", "config.json", "\"vocab_size\"", "vocab_size")},
    {"bad/config.json: line 5, column 3: the key \"hidden_size\" is there "
     "twice",
     SWAP("tiny", "config.json", "\"vocab_size\"", "\"hidden_size\"")},
    {"bad/config.json: model_type: wanted deepseek_v2 or deepseek_v3, found "
     "deepseek_v4",
     SWAP("tiny", "config.json", "\"deepseek_v3\"", "\"deepseek_v4\"")},
    {"bad/config.json: model_type: wanted deepseek_v2 or deepseek_v3, found "
     "llama", SWAP("tiny", "config.json", "\"deepseek_v3\"", "\"llama\"")},
    {"bad/config.json: hidden_act: wanted silu, found gelu",
     SWAP("tiny", "config.json", "\"silu\"", "\"gelu\"")},
    {"bad/config.json: line 53, column 21: invalid UTF-8",
     SWAP("tiny", "config.json", "\"silu\"", "\"sil\xc0\xaf\"")},
    {"bad/config.json: vocab_size: wanted a whole number from 1 to 16777216, "
     "found 0", CONFIG("vocab_size", "288", "0")},
    {"bad/config.json: vocab_size: wanted a whole number from 1 to 16777216, "
     "found -288", CONFIG("vocab_size", "288", "-288")},
    {"bad/config.json: vocab_size: wanted a whole number from 1 to 16777216, "
     "found 288.5", CONFIG("vocab_size", "288", "288.5")},
    {"bad/config.json: vocab_size: wanted a whole number from 1 to 16777216, "
     "found 1e300", CONFIG("vocab_size", "288", "1e300")},
    {"bad/config.json: vocab_size: wanted a whole number from 1 to 16777216, "
     "found \"288\"", CONFIG("vocab_size", "288", "\"288\"")},
    {"bad/config.json: vocab_size is missing",
     CONFIG("vocab_size", "288", "null")},
    {"bad/config.json: line 4, column 17: wanted a value, found N",
     CONFIG("vocab_size", "288", "NaN")},
    {"bad/config.json: line 4, column 17: a number with a leading zero",
     CONFIG("vocab_size", "288", "0288")},
    {"bad/model.safetensors: model.embed_tokens.weight: wanted shape [287, "
     "32], found shape [288, 32]", CONFIG("vocab_size", "288", "287")},
    {"bad/config.json: hidden_size: wanted a whole number from 1 to "
     "16777216, found 18446744073709551648",
     CONFIG("hidden_size", "32", "18446744073709551648")},
    {"bad/model.safetensors: model.embed_tokens.weight: wanted shape [288, "
     "16777216], found shape [288, 32]",
     CONFIG("hidden_size", "32", "16777216")},
    {"bad/model.safetensors: model.layers.2.eh_proj.weight: no tensor that "
     "this config has", CONFIG("num_hidden_layers", "2", "3")},
    {"bad/model.safetensors: model.layers.1.enorm.weight is missing",
     CONFIG("num_hidden_layers", "2", "1")},
    {"bad/config.json: num_hidden_layers: wanted a whole number from 1 to "
     "4096, found 4097", CONFIG("num_hidden_layers", "2", "4097")},
    {"bad/config.json: num_attention_heads: wanted a whole number from 1 to "
     "65536, found 65537", CONFIG("num_attention_heads", "4", "65537")},
    {"bad/model.safetensors: model.layers.0.self_attn.q_b_proj.weight: "
     "wanted shape [786432, 16], found shape [48, 16]",
     CONFIG("num_attention_heads", "4", "65536")},
    {"bad/config.json: qk_rope_head_dim: wanted an even number, found 5",
     CONFIG("qk_rope_head_dim", "4", "5")},
    {"bad/model.safetensors: model.layers.0.self_attn.q_proj.weight is "
     "missing", CONFIG("q_lora_rank", "16", "null")},
    {"bad/config.json: kv_lora_rank: wanted a whole number from 1 to "
     "16777216, found [16]", CONFIG("kv_lora_rank", "16", "[16]")},
    {"bad/config.json: n_routed_experts: wanted a multiple of n_group (3), "
     "found 8", CONFIG("n_group", "4", "3")},
    {"bad/config.json: n_group: wanted groups of 2 experts or more, found 8 "
     "groups of 8", CONFIG("n_group", "4", "8")},
    {"bad/config.json: topk_group: wanted at most n_group (4), found 5",
     CONFIG("topk_group", "2", "5")},
    {"bad/config.json: topk_group: wanted a whole number from 1 to 65536, "
     "found 0", CONFIG("topk_group", "2", "0")},
    {"bad/config.json: num_experts_per_tok: wanted at most the 4 experts of "
     "topk_group groups, found 5", CONFIG("num_experts_per_tok", "2", "5")},
    {"bad/config.json: num_experts_per_tok: wanted 1 to n_routed_experts "
     "(8), found 9", CONFIG("num_experts_per_tok", "2", "9")},
    {"bad/model.safetensors: model.layers.1.mlp.gate.weight: wanted shape "
     "[16, 32], found shape [8, 32]", CONFIG("n_routed_experts", "8", "16")},
    {"bad/model.safetensors: model.layers.1.mlp.gate.weight: wanted shape "
     "[65536, 32], found shape [8, 32]",
     CONFIG("n_routed_experts", "8", "65536")},
    {"bad/config.json: topk_method: wanted greedy or group_limited_greedy or "
     "noaux_tc, found noaux",
     CONFIG("topk_method", "\"noaux_tc\"", "\"noaux\"")},
    {"bad/config.json: scoring_func: wanted softmax or sigmoid, found relu",
     CONFIG("scoring_func", "\"sigmoid\"", "\"relu\"")},
    {"bad/config.json: norm_topk_prob: wanted true or false, found 1",
     CONFIG("norm_topk_prob", "true", "1")},
    {"bad/config.json: routed_scaling_factor: wanted a number from 0 to "
     "1e+06, found 1e999", CONFIG("routed_scaling_factor", "2.5", "1e999")},
    {"bad/config.json: rms_norm_eps: wanted a number from 0 to 1, found "
     "-1e-06", CONFIG("rms_norm_eps", "1e-06", "-1e-06")},
    {"bad/config.json: rope_theta: wanted a number from 1.001 to 1e+12, "
     "found 0", CONFIG("rope_theta", "10000.0", "0")},
    {"bad/config.json: factor: wanted a number from 1 to 1e+06, found 0.5",
     CONFIG("factor", "4.0", "0.5")},
    {"bad/config.json: rope_scaling and rope_parameters disagree",
     CONFIG("factor", "4.0", "2.0")},
    {"bad/config.json: type: wanted default or yarn, found linear",
     CONFIG("type", "\"yarn\"", "\"linear\"")},
    {"bad/config.json: bos_token_id: wanted an id of the vocabulary, found "
     "288", CONFIG("bos_token_id", "0", "288")},
    {"bad/config.json: eos_token_id: wanted an id of the vocabulary, found -1",
     CONFIG("eos_token_id", "1", "-1")},
    {"bad/config.json: eos_token_id: wanted at most 8 ids, found [1, 2, 3, "
     "4, 5, 6, 7, 8, 9]",
     CONFIG("eos_token_id", "1", "[1, 2, 3, 4, 5, 6, 7, 8, 9]")},
    {"bad/config.json: torch_dtype: wanted float32 or float16 or bfloat16 or "
     "float8_e4m3fn, found int8",
     CONFIG("torch_dtype", "\"bfloat16\"", "\"int8\"")},
    {"bad/config.json: weight_block_size: wanted [128, 128], found [64, 64]",
     SWAP("fp8", "config.json", "[128, 128]", "[64, 64]")},
    {"bad/config.json: quant_method: wanted fp8, found awq",
     SWAP("fp8", "config.json", "\"fp8\"", "\"awq\"")},
    {"bad/generation_config.json: eos_token_id: wanted ids, found a number",
     FILE_IS("tiny", "generation_config.json", "{\"eos_token_id\": 1.5}")},
    {"bad/generation_config.json: temperature: wanted a number from 0 to "
     "100, found -1",
     FILE_IS("tiny", "generation_config.json", "{\"do_sample\": true, "
     "\"temperature\": -1}")},
    {"bad/generation_config.json: top_k: wanted a number from 0 to 1e+09, "
     "found all",
     FILE_IS("tiny", "generation_config.json", "{\"do_sample\": true, "
     "\"top_k\": \"all\"}")},
    {"bad/generation_config.json: line 1, column 69: nested too deeply",
     NESTED("tiny", "generation_config.json")},
    {"bad/generation_config.json: cannot read: is a directory",
     NO_DIR("tiny", "generation_config.json")},
};

static const Case tokenizers[] = {
    {"bad/tokenizer.json: line 217, column 4: wanted a colon, found the end",
     CUT_TO("tiny", "tokenizer.json", 3000), RUN("tokenize bad in")},
    {"bad/tokenizer.json: cannot read: is a directory",
     NO_DIR("tiny", "tokenizer.json"), RUN("tokenize bad in")},
    {"bad/tokenizer.json: cannot open: No such file or directory",
     NO_FILE("tiny", "tokenizer.json"), RUN("tokenize bad in")},
    {"bad/tokenizer.json: line 1, column 69: nested too deeply",
     NESTED("tiny", "tokenizer.json"), RUN("tokenize bad in")},
    {"bad/tokenizer.json: vocab: token th: its id 3 belongs to another",
     TOKENIZER("\"th\": 259", "\"th\": 3")},
    {"bad/tokenizer.json: \"th\": wanted an id from 0 to 4194302, found -1",
     TOKENIZER("\"th\": 259", "\"th\": -1")},
    {"bad/tokenizer.json: \"th\": wanted an id from 0 to 4194302, found 259.5",
     TOKENIZER("\"th\": 259", "\"th\": 259.5")},
    {"bad/tokenizer.json: \"th\": wanted an id from 0 to 4194302, found "
     "4294967296", TOKENIZER("\"th\": 259", "\"th\": 4294967296")},
    {"bad/tokenizer.json: \"th\": wanted an id from 0 to 4194302, found "
     "\"259\"", TOKENIZER("\"th\": 259", "\"th\": \"259\"")},
    {"bad/tokenizer.json: line 395, column 1: the key \"on\" is there twice",
     TOKENIZER("\"th\": 259", "\"on\": 259")},
    {"bad/tokenizer.json: line 389, column 3: half of a surrogate pair",
     TOKENIZER("\"th\": 259", "\"t\\ud800\": 259")},
    {"bad/tokenizer.json: merges: wanted tokens of the vocabulary, found t "
     "and hh", TOKENIZER("\"t h\"", "\"t hh\"")},
    {"bad/tokenizer.json: merges: wanted two tokens, found \"th\"",
     TOKENIZER("\"t h\"", "\"th\"")},
    {"bad/tokenizer.json: merges: wanted two tokens, found \"t h e\"",
     TOKENIZER("\"t h\"", "\"t h e\"")},
    {"bad/tokenizer.json: merges: wanted two tokens, found an array",
     TOKENIZER("\"t h\"", "[\"t\"]")},
    {"bad/tokenizer.json: merges: wanted two tokens, found an array",
     TOKENIZER("\"t h\"", "[\"t\", 104]")},
    {"bad/tokenizer.json: merges: wanted tokens of the vocabulary, found h "
     "and t", TOKENIZER("\"t h\"", "\"h t\"")},
    {"bad/tokenizer.json: merges: merge 1 is that of merge 0",
     TOKENIZER("\"th e\"", "\"t h\"")},
    {"bad/tokenizer.json: added_tokens.id: wanted 0 for "
     "\"<｜begin▁of▁sentence｜>\", found 5",
     TOKENIZER("\"id\": 0,", "\"id\": 5,")},
    {"bad/tokenizer.json: added_tokens.id: wanted 266 for \"<｜User｜>\", "
     "found 1000000000", TOKENIZER("\"id\": 266,", "\"id\": 1000000000,")},
    {"bad/tokenizer.json: added_tokens.id: wanted 266 for \"<｜User｜>\", "
     "found -1", TOKENIZER("\"id\": 266,", "\"id\": -1,")},
    {"bad/tokenizer.json: added_tokens.id: wanted 268 for \"</think>\", "
     "found 269",
     TOKENIZER("\"content\": \"<think>\"", "\"content\": \"</think>\"")},
    {"bad/tokenizer.json: added_tokens.content: wanted a string, found \"\"",
     TOKENIZER("\"content\": \"<think>\"", "\"content\": \"\"")},
    {"bad/tokenizer.json: model.type: wanted \"BPE\", found \"WordPiece\"",
     TOKENIZER("\"type\": \"BPE\"", "\"type\": \"WordPiece\"")},
    {"bad/tokenizer.json: Split.pattern: wanted a regular expression that "
     "DeepSeek's tokenizers use, found \\p{N}{1,4}",
     TOKENIZER("\\\\p{N}{1,3}", "\\\\p{N}{1,4}")},
    {"bad/tokenizer.json: Split.behavior: wanted \"Isolated\", found "
     "\"Removed\"", TOKENIZER("\"Isolated\"", "\"Removed\"")},
    {"bad/tokenizer_config.json: bos_token: wanted a token, for "
     "add_bos_token is true, found nothing",
     TEXTS("\"bos_token\"", "\"box_token\"")},
    {"bad/tokenizer_config.json: eos_token: wanted a token of "
     "tokenizer.json, found \"</s>\"",
     FILE_IS("tiny", "tokenizer_config.json", "{\"eos_token\": \"</s>\"}"),
     RUN("tokenize bad in")},
    {"bad/tokenizer_config.json: line 1, column 1: wanted a value, found n",
     FILE_IS("tiny", "tokenizer_config.json", "nothing"),
     RUN("tokenize bad in")},
    {"bad/tokenizer_config.json: line 1, column 69: nested too deeply",
     NESTED("tiny", "tokenizer_config.json"), RUN("tokenize bad in")},
    {"bad/tokenizer_config.json: cannot read: is a directory",
     NO_DIR("tiny", "tokenizer_config.json"), RUN("tokenize bad in")},
    {"bad/chat_template.jinja: cannot read: is a directory",
     NO_DIR("tiny", "chat_template.jinja"), RUN("tokenize bad in")},
};

static const Case arguments[] = {
    {"a command is wanted (deepseek --help lists them)", LINE("")},
    {"unknown command 'run' (deepseek --help lists them)", LINE("run m")},
    {"unknown option '--version' (deepseek --help lists what there is)",
     LINE("--version")},
    {"info wants DIR|config.json (deepseek info --help says more)",
     LINE("info")},
    {"info takes DIR|config.json, and 'b' is one too many", LINE("info a b")},
    {"info has no option '--seed' (deepseek info --help lists its options)",
     LINE("info tiny --seed 1")},
    {"generate wants DIR (deepseek generate --help says more)",
     LINE("generate")},
    {"generate wants -p or --ids (deepseek generate --help says more)",
     LINE("generate tiny")},
    {"generate wants only one of -p or --ids",
     LINE("generate tiny -p a --ids 1")},
    {"-p wants a value: TEXT", LINE("generate tiny -p")},
    {"generate has no option '--frobnicate' (deepseek generate --help lists "
     "its options)", LINE("generate tiny -p a --frobnicate")},
    {"--temp wants a number from 0 to 100, not '-1'",
     LINE("generate tiny -p a --temp=-1")},
    {"--top-p wants a number from 0 to 1, not '2'",
     LINE("generate tiny -p a --top-p 2")},
    {"-n wants a whole number from 1 to 1000000000000000, not '0'",
     LINE("generate tiny -p a -n 0")},
    {"--mla wants one of absorbed|naive, not 'both'",
     LINE("generate tiny -p a --mla both")},
    {"--ids wants whole numbers as in 1,2,3, not '1,,2'",
     LINE("generate tiny --ids 1,,2")},
    {"--ids wants whole numbers as in 1,2,3, not '-1'",
     LINE("generate tiny --ids -1")},
    {"--template wants one of v2|v2.5|v3|r1|v3.1, not 'v4'",
     LINE("chat tiny --template v4")},
    {"eval wants DIR FILE... (deepseek eval --help says more)",
     LINE("eval tiny")},
    {"tokenize wants DIR [FILE] (deepseek tokenize --help says more)",
     LINE("tokenize")},
    {"trace wants -o (deepseek trace --help says more)",
     LINE("trace tiny --ids 1")},
    {"trace wants -p or --ids (deepseek trace --help says more)",
     LINE("trace tiny -o x")},
    {"diff wants A.safetensors B.safetensors (deepseek diff --help says more)",
     LINE("diff a")},
    {"golden wants PACK (deepseek golden --help says more)",
     LINE("golden -o x")},
    {"golden wants -o (deepseek golden --help says more)", LINE("golden K3")},
    {"golden: wanted one of K1, K2, K3, K4, K5, K5-ties, K6, K7, K8, K9, K10, "
     "K11, K11-ue8m0, K12, K13-v2, K13-v3, found 'k3'", RUN("golden k3 -o x")},
    {"init wants -o (deepseek init --help says more)",
     LINE("init data/tiny/config.json")},
    {"--dtype wants one of f32|f16|bf16|fp8, not 'int8'",
     LINE("init data/tiny/config.json -o x --dtype int8")},
    {"quantize wants DIR (deepseek quantize --help says more)",
     LINE("quantize")},
    {"quantize wants -o (deepseek quantize --help says more)",
     LINE("quantize tiny")},
    {"quantize takes DIR, and 'x' is one too many",
     LINE("quantize tiny x -o y")},
    {"--to wants one of fp8|bf16, not 'int8'",
     LINE("quantize tiny -o x --to int8")},
    {"--scale-fmt wants one of ue8m0|f32, not 'e8m0'",
     LINE("quantize tiny -o x --scale-fmt e8m0")},
    {"quantize has no option '--seed' (deepseek quantize --help lists its "
     "options)", LINE("quantize tiny -o x --seed 1")},
    {"--scale-fmt: BF16 weights have no scales",
     RUN("quantize tiny -o x --to bf16 --scale-fmt ue8m0")},
    {"nothing: cannot open: No such file or directory",
     RUN("quantize nothing -o x")},
    {"empty/config.json: cannot open: No such file or directory",
     RUN("quantize empty -o x")},
    {"nothing: cannot open: No such file or directory", RUN("info nothing")},
    {"empty/config.json: cannot open: No such file or directory",
     RUN("info empty")},
    {"data/config.json: cannot open: No such file or directory",
     RUN("info data")},
    {"empty/config.json: cannot open: No such file or directory",
     RUN("generate empty -p a")},
    {"bare has no tokenizer.json: give --ids instead of -p",
     RUN("generate bare -p a --print-ids")},
    {"bare has no tokenizer.json: add --print-ids",
     RUN("generate bare --ids 1")},
    {"bare has no tokenizer.json", RUN("chat bare")},
    {"tiny: tokenizer_config.json has no chat template known here: choose "
     "one with --template", RUN("chat tiny")},
    {"bare has no tokenizer.json", RUN("eval bare in")},
    {"nothing: cannot open: No such file or directory",
     RUN("eval tiny nothing")},
    {"- is empty", RUN("eval tiny -")},
    {"id 0 of the input: wanted 0 to 287 (vocab_size - 1), found 288",
     RUN("generate tiny --ids 288")},
    {"an id is a whole number from 0 to 2147483647, not '99999999999'",
     RUN("generate tiny --ids 99999999999")},
    {"context: wanted at most 2 tokens, found 3",
     RUN("generate tiny --ids 1,2,3 --ctx 2")},
    {"nothing: cannot open: No such file or directory",
     RUN("tokenize tiny nothing")},
    {"tiny/config.json: exists already; --force overwrites it",
     RUN("trace tiny --ids 1 -o tiny/config.json")},
    {"nothing: cannot open: No such file or directory",
     RUN("diff tiny nothing")},
    {"tiny/model.safetensors exists; --force overwrites it",
     RUN("init data/tiny/config.json -o tiny")},
    {"fp8 wants accumulation | formats DIR FILE (deepseek fp8 --help says "
     "more)", LINE("fp8")},
    {"fp8: wanted 'accumulation' or 'formats DIR FILE', found 'formats' and 1 "
     "more", RUN("fp8 formats tiny")},
    {"fp8: wanted 'accumulation' or 'formats DIR FILE', found 'speed' and 2 "
     "more", RUN("fp8 speed tiny in")},
    {"fp8 accumulation has no model and takes no option of one",
     RUN("fp8 accumulation --ctx 4")},
    {"fp8 formats draws no numbers and takes no --seed",
     RUN("fp8 formats tiny in --seed 4")},
    {"nothing: cannot open: No such file or directory",
     RUN("fp8 formats nothing in")},
    {"bare has no tokenizer.json", RUN("fp8 formats bare in")},
    {"nothing: cannot open: No such file or directory",
     RUN("fp8 formats tiny nothing")},
    {"- is empty", RUN("fp8 formats tiny -")},
    {"--ctx wants a whole number from 2 to 1000000000000000, not '1'",
     LINE("generate tiny --ids 1 --ctx 1")},
    {"--ctx wants a whole number from 2 to 1000000000000000, not '1.5'",
     LINE("generate tiny --ids 1 --ctx 1.5")},
    {"--ctx wants a whole number from 2 to 1000000000000000, not '1e99'",
     LINE("generate tiny --ids 1 --ctx 1e99")},
    {"--chunk wants a whole number from 1 to 1000000000000000, not '0'",
     LINE("generate tiny --ids 1 --chunk 0")},
    {"--draft wants a whole number from 1 to 16, not '0'",
     LINE("generate tiny --ids 1 --draft 0")},
    {"--draft wants a whole number from 1 to 16, not '17'",
     LINE("chat tiny --draft 17")},
    {"eval has no option '--draft' (deepseek eval --help lists its options)",
     LINE("eval tiny in --draft 1")},
    {"--draft-best: wanted --draft too",
     RUN("generate tiny --ids 1 --draft-best")},
    {"drafts: wanted a model with 1 MTP module, found "
     "num_nextn_predict_layers 0",
     RUN("generate data/models/k3-v3 --ids 1 --print-ids --draft 2")},
    {"drafts: wanted a model with 1 MTP module, found "
     "num_nextn_predict_layers 0",
     RUN("info data/configs/v2.json --draft 1")},
    {"drafts: model.layers.2.enorm.weight is missing: MTP module 1 of the 1 "
     "announced is not there",
     RUN("generate data/models/mtp-absent --ids 1 --print-ids --draft 1")},
    {"--temp wants a number from 0 to 100, not 'nan'",
     LINE("generate tiny --ids 1 --temp nan")},
    {"--seed wants a whole number of at most 64 bits, not '-1'",
     LINE("generate tiny --ids 1 --seed -1")},
    {"--seed wants a whole number of at most 64 bits, not "
     "'18446744073709551616'",
     LINE("generate tiny --ids 1 --seed 18446744073709551616")},
    {"--ids is given twice", LINE("generate tiny --ids 1 --ids 2")},
    {"--ids wants whole numbers as in 1,2,3, not ''",
     LINE("generate tiny --ids ''")},
    {"context: wanted 1 to 1073741824 tokens, found 1000000000000000",
     RUN("generate tiny --ids 1 --ctx 1000000000000000")},
    {"data/tiny/tokenizer.json: model_type is missing; wanted deepseek_v2 or "
     "deepseek_v3", RUN("info data/tiny/tokenizer.json")},
    {"data/models/k3-v3/model.safetensors: line 1, column 1: wanted a value, "
     "found byte 0x08", RUN("info data/models/k3-v3/model.safetensors")},
    {"data/tiny/config.json: header length: wanted at most 100000000, found "
     "7310596055662332539: "
     "no safetensors file",
     RUN("diff data/tiny/config.json data/tiny/config.json")},
    {"empty: wanted model.safetensors or model.safetensors.index.json, found "
     "neither", RUN("diff tiny empty")},
    {"data: cannot read: is a directory", RUN("eval tiny data")},
    {"data/models/k3-v3/tokenizer.json: cannot open: No such file or "
     "directory", RUN("tokenize data/models/k3-v3 in")},
};

static const Case prompts[] = {
    {"text: wanted UTF-8, found byte 0xff at offset 4",
     READ("generate tiny -p - -n 1", "the \xff")},
    {"text: wanted UTF-8, found byte 0xc0 at offset 0",
     READ("generate tiny -p - -n 1", "\xc0\x80")},
    {"text: wanted UTF-8, found byte 0xed at offset 1",
     READ("generate tiny -p - -n 1", "a\xed\xa0\x80")},
    {"text: wanted UTF-8, found byte 0xf4 at offset 1",
     READ("generate tiny -p - -n 1", "a\xf4\x90\x80\x80")},
    {"text: wanted UTF-8, found byte 0xe2 at offset 0",
     READ("generate tiny -p - -n 1", "\xe2\x82")},
    {"text: wanted UTF-8, found byte 0xff at offset 0",
     RUN("generate tiny -p \"$(printf '\\377')\" -n 1")},
    {"context: wanted at most 4 tokens, found 5",
     READ("generate tiny -p - --no-prompt --ctx 4", "the the the the")},
    {"text: wanted UTF-8, found byte 0x80 at offset 41",
     READ("chat tiny --template v3 -n 1", "\x80\n")},
    {"-: text: wanted UTF-8, found byte 0xfe at offset 4",
     READ("eval tiny -", "the \xfe")},
    {"text: wanted UTF-8, found byte 0xff at offset 4",
     READ("tokenize tiny", "the \xff")},
    {"an id is a whole number from 0 to 2147483647, not '3x'",
     READ("tokenize tiny --decode", "1 2 3x")},
    {"an id is a whole number from 0 to 2147483647, not '-2'",
     READ("tokenize tiny --decode", "1 -2")},
    {"no token has the id 9999", READ("tokenize tiny --decode", "1 9999")},
    {"an id is a whole number from 0 to 2147483647, not '4294967296'",
     READ("tokenize tiny --decode", "4294967296")},
    {"input line 1: wanted an object with a string \"text\"",
     READ("tokenize tiny --jsonl", "{\"text\": 1}\n")},
    {"input line 1: line 1, column 11: half of a surrogate pair",
     READ("tokenize tiny --jsonl", "{\"text\": \"\\ud83d\"}\n")},
    {"input line 1: line 1, column 13: wanted a comma or }, found the end",
     READ("tokenize tiny --jsonl", "{\"text\": \"a\"")},
    {"input line 1: wanted an object with an array \"ids\"",
     READ("tokenize tiny --jsonl --decode", "{\"ids\": 7}\n")},
    {"input line 1: wanted an object with an array \"ids\"",
     READ("tokenize tiny --jsonl --decode", "[1]\n")},
    {"input line 1: ids: an id is a whole number from 0 to 2147483647",
     READ("tokenize tiny --jsonl --decode", "{\"ids\": [1.5]}\n")},
    {"input line 1: ids: an id is a whole number from 0 to 2147483647",
     READ("tokenize tiny --jsonl --decode", "{\"ids\": [-1]}\n")},
    {"input line 1: line 1, column 69: nested too deeply",
     NESTED("tiny", "lines"), RUN("tokenize bad bad/lines --jsonl")},
};

static const Case targets[] = {
    {"no/such: cannot create: No such file or directory",
     RUN("trace tiny --ids 1 -o no/such")},
    {"in/such: cannot create: Not a directory",
     RUN("trace tiny --ids 1 -o in/such")},
    {"tiny: cannot write: is a directory",
     RUN("trace tiny --ids 1 -o tiny --force")},
    {"/dev/null: cannot write: is not a regular file",
     RUN("trace tiny --ids 1 -o /dev/null --force")},
    {"x: no stage has a name like nothing",
     RUN("trace tiny --ids 1 -o x --only nothing")},
    {"id 0 of the input: wanted 0 to 287 (vocab_size - 1), found 288",
     RUN("trace tiny --ids 288 -o x")},
    {"in: cannot make this directory: File exists",
     RUN("init data/tiny/config.json -o in")},
    {"in/such: cannot make this directory: Not a directory",
     RUN("init data/tiny/config.json -o in/such")},
    {"no/such: cannot make this directory: No such file or directory",
     RUN("init data/tiny/config.json -o no/such")},
    {"bad/model.safetensors: cannot write: is a directory",
     NO_DIR("tiny", "model.safetensors"),
     RUN("init data/tiny/config.json -o bad --force")},
    {"in exists; --force overwrites it", RUN("golden K5 -o in")},
    {"tiny exists; --force overwrites it", RUN("golden K5 -o tiny/")},
    {"in: wanted a golden pack to overwrite, found no golden/manifest.json in "
     "it", RUN("golden K5 -o in --force")},
    {"tiny: wanted a golden pack to overwrite, found no golden/manifest.json "
     "in it", RUN("golden K5 -o tiny --force")},
    {"no/such.tmp: cannot make this directory: No such file or directory",
     RUN("golden K5 -o no/such")},
    {"in/such.tmp: cannot make this directory: Not a directory",
     RUN("golden K5 -o in/such")},
    {": cannot rename to this: No such file or directory",
     RUN("golden K5 -o ''")},
    {"in: cannot make this directory: File exists", RUN("quantize tiny -o in")},
    {"in/such: cannot make this directory: Not a directory",
     RUN("quantize tiny -o in/such")},
    {"no/such: cannot make this directory: No such file or directory",
     RUN("quantize tiny -o no/such")},
    {": cannot make this directory: No such file or directory",
     RUN("quantize tiny -o ''")},
    {"/dev/null: cannot make this directory: File exists",
     RUN("quantize tiny -o /dev/null --force")},
    {"fp8/model.safetensors exists; --force overwrites it",
     RUN("quantize tiny -o fp8")},
    {"tiny/model.safetensors exists; --force overwrites it",
     RUN("quantize tiny -o tiny")},
    {"./tiny/./model.safetensors exists; --force overwrites it",
     RUN("quantize tiny -o ./tiny/.")},
    {"bad/config.json exists; --force overwrites it",
     NO_FILE("tiny", "model.safetensors"), RUN("quantize tiny -o bad")},
};

/* Legal, if odd: the words do what they did before. */
static const Case legal[] = {
    {"", HEADER("]}}", "]}} \t\r\n                                      ")},
    {"", HEADER("{\"__metadata__\":{\"format\":\"pt\"},", "{")},
    {"", HEADER("{\"format\":\"pt\"}",
     "{\"a\":\"\\ud83d\\ude00\",\"b\":\"\"}")},
    {"", HEADER("\"dtype\":\"BF16\",\"shape\":[288,32],",
     " \"shape\" : [ 288 , 32 ] ,\n\"dtype\":\"BF16\", ")},
    {"", HEADER("\"shape\":[288,32],\"data_offsets\":[0,18432]}",
     "\"data_offsets\":[0,18432],\"x\":[{}],\"shape\":[288,32]}")},
    {"", HEADER("[0,18432]", "[0.0,18432e0]")},
    {"", HEADER("[288,32]", "[2.88e2,320e-1]")},
    {"", HEADER("model.embed_tokens", "\\u006dodel.embed\\u005Ftokens")},
    {"", HEADER("\"model.layers.2.embed_tokens.weight\"", "\"unknown\"")},
    {"", SWAP("sharded", "model.safetensors.index.json", "\"total_size\": ",
     "\"total_size\": 0.5, \"x\": ")},
    {"", INDEX("\"metadata\"", "\"x\": [], \"metadata\"")},
    {"", INDEX("\"model-00001-of-00003.safetensors\"",
     "\"model\\u002d00001-of-00003.safetensors\"")},
    {"", CONFIG("vocab_size", "288", "288.0")},
    {"", CONFIG("vocab_size", "288", "28.8e1")},
    {"", CONFIG("bos_token_id", "0", "-0")},
    {"", CONFIG("routed_scaling_factor", "2.5", "25e-1")},
    {"", CONFIG("factor", "4.0", "4")},
    {"", SWAP("tiny", "config.json", "{\n", "\r\n {\t\"use_cache\": [null],\r\n"
     " \"auto_map\": {\"a\": {}},")},
    {"", SWAP("tiny", "config.json", "\"vocab_size\"",
     "\"\\u0076ocab\\u005fsize\"")},
    {"", TOKENIZER("\"t h\"", "[\"t\", \"h\"]")},
    {"", TOKENIZER("\"t h\"", "\"\\u0074 h\"")},
    {"", TOKENIZER("\"th\": 259", "\"\\u0074h\": 259.0")},
    {"", TOKENIZER("\"version\": \"1.0\"", "\"unknown\": [[{}]]")},
    {"", TEXTS("\"tokenizer_class\"", "\"model_input_names\": [], \"x\"")},
    {"", NO_FILE("tiny", "generation_config.json")},
    {"", NO_FILE("tiny", "tokenizer_config.json"),
     RUN("tokenize bad data/tiny/config.json")},
};

/* The good directories ----------------------------------------------------- */

static int begin(void **state)
{
    if (program_begin(state) != 0 || mkdir("empty", 0777) != 0)
        return -1;
    done("init data/tiny/config.json -o tiny --std 0.3");
    done("init data/tiny/config.json -o fp8 --std 0.3 --dtype fp8");
    temp_write("in", "a", 1);
    temp_write("input", "", 0);
    return shell("cp -R tiny bare && rm bare/tokenizer*.json && mkdir sharded"
                 " && cp data/models/fp8-sharded/*.* sharded");
}

/* Changes ------------------------------------------------------------------ */

typedef struct {
    char *bytes;
    size_t n;
} Bytes;

static Bytes read_bytes(const char *path)
{
    struct stat s;
    FILE *f = fopen(path, "rb");
    if (f == NULL || fstat(fileno(f), &s) != 0)
        fail_msg("%s: not there", path);
    Bytes b = {malloc((size_t)s.st_size + 1), (size_t)s.st_size};
    assert_non_null(b.bytes);
    assert_int_equal(fread(b.bytes, 1, b.n, f), b.n);
    b.bytes[b.n] = '\0';
    fclose(f);
    return b;
}

/* Where a text stands in the header of a safetensors file, or in another
 * file. */
static char *find(const Bytes *b, const char *text)
{
    size_t n = strlen(text);
    for (char *s = b->bytes; s + n <= b->bytes + b->n; s++)
        if (memcmp(s, text, n) == 0)
            return s;
    fail_msg("there is no %s", text);
    return NULL;
}

static bool is_tensors(const char *path)
{
    return strstr(path, ".safetensors") != NULL
           && strstr(path, ".json") == NULL;
}

static uint64_t header_length(const Bytes *b)
{
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | (unsigned char)b->bytes[i];
    return n;
}

static void set_header_length(Bytes *b, uint64_t n)
{
    for (int i = 0; i < 8; i++)
        b->bytes[i] = (char)(n >> 8 * i);
}

/* Writes the file again with other bytes where `n` stood at `at`. */
static void splice(const char *path, Bytes *b, size_t at, size_t n,
                   const char *to, size_t to_n)
{
    if (is_tensors(path) && n != to_n)
        set_header_length(b, header_length(b) + to_n - n);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fwrite(b->bytes, 1, at, f);
    fwrite(to, 1, to_n, f);
    fwrite(b->bytes + at + n, 1, b->n - at - n, f);
    assert_int_equal(fclose(f), 0);
}

static void replace(const char *path, const Case *c)
{
    Bytes b = read_bytes(path);
    size_t at = (size_t)(find(&b, c->from) - b.bytes);
    splice(path, &b, at, strlen(c->from), c->to, strlen(c->to));
    free(b.bytes);
}

static void poke(const char *path, const Case *c)
{
    Bytes b = read_bytes(path);
    char key[200];
    snprintf(key, sizeof key, "\"%s\":", c->from);
    const char *offset = strstr(find(&b, key), "\"data_offsets\":[");
    assert_non_null(offset);
    size_t at = 8 + header_length(&b) + (size_t)c->at
                + strtoul(offset + strlen("\"data_offsets\":["), NULL, 10);
    size_t n = c->n > 0 ? c->n : strlen(c->to);
    splice(path, &b, at, n, c->to, n);
    free(b.bytes);
}

static void cut(const char *path, const Case *c)
{
    struct stat s;
    assert_int_equal(stat(path, &s), 0);
    assert_int_equal(truncate(path, c->at < 0 ? s.st_size + c->at : c->at), 0);
}

static void nest(const char *path)
{
    enum { DEPTH = 100000, N = 5 + 2 * DEPTH + 1 };
    char *text = malloc(8 + N);
    assert_non_null(text);
    memcpy(text + 8, "{\"a\":", 5);
    memset(text + 8 + 5, '[', DEPTH);
    memset(text + 8 + 5 + DEPTH, ']', DEPTH);
    text[8 + N - 1] = '}';
    Bytes b = {text, 8 + N};
    set_header_length(&b, N);
    temp_write(path, is_tensors(path) ? text : text + 8,
               is_tensors(path) ? 8 + N : N);
    free(text);
}

/* Makes `bad` of the case's directory. */
static void change(const Case *c)
{
    char path[200];
    snprintf(path, sizeof path, "rm -rf bad && cp -R %s bad", c->model);
    assert_int_equal(shell(path), 0);
    snprintf(path, sizeof path, "bad/%s", c->file);
    switch (c->change) {
    case NOTHING: break;
    case REPLACE: replace(path, c); break;
    case WHOLE: temp_write(path, c->to, strlen(c->to)); break;
    case NEST: nest(path); break;
    case CUT: cut(path, c); break;
    case POKE: poke(path, c); break;
    case GONE: assert_int_equal(remove(path), 0); break;
    case DIRECTORY:
        remove(path);
        assert_int_equal(mkdir(path, 0777), 0);
    }
}

/* Verdicts ----------------------------------------------------------------- */

static size_t refused_cases, accepted_cases;

/* Processor seconds of all children so far; *megabytes: of the largest. */
static double used(double *megabytes)
{
    struct rusage u;
    getrusage(RUSAGE_CHILDREN, &u);
#ifdef __APPLE__
    *megabytes = (double)u.ru_maxrss / 1e6;
#else
    *megabytes = (double)u.ru_maxrss / 1e3;
#endif
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec)
           + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static const char *words_of(const Case *c)
{
    return c->words != NULL ? c->words
                            : "generate bad --ids 1,2 --print-ids -n 1";
}

static void run_case(const Case *c)
{
    double megabytes, before = used(&megabytes);
    int names = temp_count("."), inside = c->model ? temp_count("bad") : 0;
    if (c->input != NULL)
        temp_write("input", c->input, strlen(c->input));
    run_from(c->input != NULL ? "input" : "/dev/null", words_of(c));
    double seconds = used(&megabytes) - before;
    if (seconds > 2 || megabytes > 500)
        fail_msg("%s: %.1f s, %.0f MB", words_of(c), seconds, megabytes);
    assert_int_equal(temp_count("."), names);
    assert_int_equal(c->model ? temp_count("bad") : 0, inside);
}

static void refuse(const Case *c)
{
    if (c->model != NULL)
        change(c);
    run_case(c);
    complains(words_of(c), c->status ? c->status : 1, c->message);
    assert_string_equal(last.out, "");
    refused_cases++;
}

static void accept(const Case *c)
{
    static char wanted[sizeof last.out];
    Case same = *c;
    same.change = NOTHING;
    change(&same);
    strcpy(wanted, done(words_of(c)));
    change(c);
    run_case(c);
    if (last.status != 0 || strcmp(last.out, wanted) != 0)
        fail_msg("%s to %s: %s%s", c->from, c->to, last.out, last.err);
    accepted_cases++;
}

#define ALL(verdict, cases) \
    do { \
        (void)state; \
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) \
            verdict(&cases[i]); \
    } while (0)

static void wrong_safetensors(void **state) { ALL(refuse, safetensors); }
static void wrong_indexes(void **state) { ALL(refuse, indexes); }
static void wrong_weights(void **state) { ALL(refuse, weights); }
static void wrong_weights_to_write(void **state)
{
    ALL(refuse, weights_to_write);
}
static void wrong_configs(void **state) { ALL(refuse, configs); }
static void wrong_tokenizers(void **state) { ALL(refuse, tokenizers); }
static void wrong_arguments(void **state) { ALL(refuse, arguments); }
static void wrong_prompts(void **state) { ALL(refuse, prompts); }
static void wrong_targets(void **state) { ALL(refuse, targets); }
static void odd_and_legal(void **state) { ALL(accept, legal); }

/* One shard and its index are one file without. */
static void one_shard(void **state)
{
    Case c = {.model = "tiny"};
    (void)state;
    c.file = "";
    change(&c);
    char *wanted = done_dup(words_of(&c));
    Bytes b = read_bytes("bad/model.safetensors");
    FILE *f = fopen("bad/model.safetensors.index.json", "wb");
    assert_non_null(f);
    fprintf(f, "{\"weight_map\": {");
    /* Names stand before {"dtype": all but __metadata__. */
    const char *header = b.bytes + 8, *between = "";
    size_t n = (size_t)header_length(&b);
    for (const char *s = header; s + 10 < header + n; s++)
        if (memcmp(s, ":{\"dtype\":", 10) == 0) {
            const char *name = s - 2;
            while (*name != '"')
                name--;
            fprintf(f, "%s%.*s: \"one.st\"", between, (int)(s - name), name);
            between = ", ";
        }
    fprintf(f, "}}");
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename("bad/model.safetensors", "bad/one.st"), 0);
    assert_string_equal(done(words_of(&c)), wanted);
    free(b.bytes);
    free(wanted);
    accepted_cases++;
}

/* Standard output ---------------------------------------------------------- */

static const char *const printing[] = {
    "--help", "--man", "info tiny", "info tiny --json", "generate tiny -p a",
    "generate tiny --ids 1 --print-ids", "tokenize tiny in", "diff tiny tiny",
    "eval tiny in", "chat tiny --template v3 -n 1", "fp8 accumulation",
    "fp8 formats tiny in", "precision tiny in"};

static void stdout_to(const char *where, const char *reason)
{
    char line[256], message[100];
    temp_write("input", "the\n", 4);
    snprintf(message, sizeof message, "cannot write to standard output: %s",
             reason);
    for (size_t i = 0; i < sizeof printing / sizeof printing[0]; i++) {
        snprintf(line, sizeof line, "./deepseek %s %s 2>err <input",
                 printing[i], where);
        last.status = shell(line);
        read_text("err", last.err, sizeof last.err);
        complains(printing[i], 1, message);
        refused_cases++;
    }
}

static void a_full_stdout(void **state)
{
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    stdout_to(">/dev/full", "No space left on device");
}

static void no_stdout(void **state)
{
    (void)state;
    stdout_to(">&-", "Bad file descriptor");
}

static void a_closed_pipe(void **state)
{
    (void)state;
    last.status = shell("{ ./deepseek generate tiny --ids 1 -n 100000 --ctx "
                        "100000 2>err; echo $? >status; } | head -c 1 "
                        ">/dev/null");
    read_text("err", last.err, sizeof last.err);
    complains("generate | head", 0, "cannot write to standard output: Broken "
              "pipe");
    read_text("status", last.out, sizeof last.out);
    assert_string_equal(last.out, "1\n");
    refused_cases++;
}

/* Disks -------------------------------------------------------------------- */

/* What writing says in a shell that allows files of 32 KiB or 64, and what is
 * there afterwards. */
static void no_room_for(const char *words, const char *message,
                        const char *then)
{
    char line[300];
    snprintf(line, sizeof line, "ulimit -f 64; ./deepseek %s >out 2>err",
             words);
    int names = temp_count(".");
    last.status = shell(line);
    read_text("err", last.err, sizeof last.err);
    complains(words, 1, message);
    assert_int_equal(temp_count("."), names);
    assert_int_equal(shell(then), 0);
    refused_cases++;
}

static void a_file_that_may_not_grow(void **state)
{
    (void)state;
    no_room_for("init data/tiny/config.json -o full",
                "full/model.safetensors: cannot write: File too large",
                "test ! -e full");
    assert_int_equal(shell("cp -R fp8 old"), 0);
    no_room_for("init data/tiny/config.json -o old --force",
                "old/model.safetensors: cannot write: File too large",
                "diff -r old fp8");
    no_room_for("quantize tiny -o full",
                "full/model.safetensors: cannot write: File too large",
                "test ! -e full");
    no_room_for("quantize tiny -o old --force",
                "old/model.safetensors: cannot write: File too large",
                "diff -r old fp8");
    no_room_for("trace tiny --ids 1,2,3,4,5,6,7,8,9 -o full",
                "full: cannot write: File too large", "test ! -e full");
    temp_write("spool", "old", 3);
    no_room_for("trace tiny --ids 1,2,3,4,5,6,7,8,9 -o spool --force",
                "spool: cannot write: File too large",
                "test \"$(cat spool)\" = old");
}

/* A disk of 96 KiB, in a name space of its own. */
static void a_full_disk(void **state)
{
    static const char *const writing[] = {
        "init data/tiny/config.json", "quantize tiny"};
    (void)state;
    if (shell("unshare -rm mount -t tmpfs none empty 2>err") != 0)
        skip();
    for (size_t i = 0; i < 2; i++) {
        char line[300];
        snprintf(line, sizeof line, "unshare -rm sh -c 'mount -t tmpfs -o "
                 "size=96k none empty && { ./deepseek %s -o empty/m 2>err; "
                 "echo $? $(ls empty); }' >out", writing[i]);
        last.status = shell(line);
        read_text("err", last.err, sizeof last.err);
        complains(writing[i], 0, "empty/m/model.safetensors: cannot write: No "
                  "space left on device");
        read_text("out", last.out, sizeof last.out);
        assert_string_equal(last.out, "1\n");
        refused_cases++;
    }
}

/* With --force too, what is in the way of the last file is seen before the
 * first is replaced. */
static void a_directory_in_the_way(void **state)
{
    static const char *const names[] = {
        "model.safetensors", "config.json", "generation_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    (void)state;
    for (size_t i = 0; i < 6; i++) {
        char line[200], message[100];
        snprintf(line, sizeof line, "rm -rf old was && cp -R fp8 old && rm -f "
                 "old/%s && mkdir old/%s && cp -R old was", names[i],
                 names[i]);
        assert_int_equal(shell(line), 0);
        snprintf(message, sizeof message, "old/%s: cannot write: is a "
                 "directory", names[i]);
        run("quantize tiny -o old --force");
        complains("quantize", 1, message);
        assert_int_equal(shell("diff -r old was"), 0);
        refused_cases++;
    }
}

/* Files that change -------------------------------------------------------- */

static pid_t start(const char *words, int out)
{
    char line[300];
    snprintf(line, sizeof line, "exec ./deepseek %s 2>err </dev/null", words);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGINT, SIG_DFL);   /* a shell and nohup may ignore them */
        signal(SIGTERM, SIG_DFL);
        signal(SIGHUP, SIG_DFL);
        if (dup2(out, 1) == 1)
            execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(99);
    }
    return child;
}

static int status_of(pid_t child)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static int create(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    assert_true(fd >= 0);
    return fd;
}

/* The model is open when eval opens the text: then it changes. */
static void eval_while(const char *what, const char *line)
{
    Case c = {.model = "tiny"};
    c.file = "";
    change(&c);
    unlink("text");
    assert_int_equal(mkfifo("text", 0600), 0);
    int out = create("out");
    pid_t child = start("eval bad text", out);
    int text = open("text", O_WRONLY);
    assert_int_equal(shell(what), 0);
    assert_int_equal(write(text, "the sand", 8), 8);
    close(text);
    close(out);
    assert_int_equal(status_of(child), 1 << 8);
    read_text("err", last.err, sizeof last.err);
    assert_string_equal(last.err, line);
    read_text("out", last.out, sizeof last.out);
    assert_string_equal(last.out, "");
    refused_cases++;
}

static void a_file_that_changes(void **state)
{
    (void)state;
    eval_while("dd if=/dev/null of=bad/model.safetensors bs=4096 seek=3 "
               "2>/dev/null",
               "bad/model.safetensors: was cut short or became unreadable "
               "while in use\n");
    eval_while("printf x >>bad/model.safetensors",
               "deepseek: bad/model.safetensors: was changed while in use\n");
    /* The last page is still there, and holds zeros. */
    eval_while("dd if=/dev/null of=bad/model.safetensors bs=178559 seek=1 "
               "2>/dev/null",
               "deepseek: bad/model.safetensors: was changed while in use\n");
}

static void a_file_that_changes_behind_a_text(void **state)
{
    Case c = {.model = "tiny"};
    int fd[2];
    char byte;
    (void)state;
    c.file = "";
    change(&c);
    assert_int_equal(pipe(fd), 0);
    pid_t child = start("generate bad --ids 2 --print-ids -n 2000 --ctx 2001",
                        fd[1]);
    close(fd[1]);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    assert_int_equal(shell("printf x >>bad/model.safetensors"), 0);
    while (read(fd[0], &byte, 1) == 1)
        continue;
    close(fd[0]);
    assert_int_equal(status_of(child), 1 << 8);
    read_text("err", last.err, sizeof last.err);
    complains("generate", last.status, "bad/model.safetensors: was changed "
              "while in use");
    refused_cases++;
}

/* Interrupts --------------------------------------------------------------- */

/* True once the directory holds a file that is being written. */
static bool has_temp(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    bool found = false;
    while (d != NULL && (e = readdir(d)) != NULL)
        found = found || strstr(e->d_name, ".tmp") != NULL;
    if (d != NULL)
        closedir(d);
    return found;
}

enum { TRIES = 100 };

/* The program, as soon as that is so; -1 if it has ended before anyone
 * looked. */
static pid_t start_writing(const char *words, const char *dir, int out)
{
    const struct timespec pause = {0, 100000};
    pid_t child = start(words, out);
    int status;
    while (!has_temp(dir)) {
        if (waitpid(child, &status, WNOHANG) == child)
            return -1;
        nanosleep(&pause, NULL);
    }
    return child;
}

/* Sends a signal then; it ends the program. Whoever was too late begins again,
 * behind `restore`. */
static void interrupt(const char *words, const char *dir, int number,
                      const char *restore)
{
    int status = 0, names = 0;
    for (int i = 0; i < TRIES && !WIFSIGNALED(status); i++) {
        assert_int_equal(shell(restore), 0);
        int out = create("out");
        names = temp_count(".");
        pid_t child = start_writing(words, dir, out);
        if (child > 0) {
            kill(child, number);
            status = status_of(child);
        }
        close(out);
    }
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), number);
    assert_int_equal(temp_count("."), names);
    refused_cases++;
}

static void interrupted_while_writing(void **state)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    const char *none = "rm -rf big", *old = "rm -rf old && cp -R fp8 old";
    (void)state;
    assert_int_equal(shell("sed 's/288/99999/' data/tiny/config.json "
                           ">big.json"), 0);
    for (size_t i = 0; i < 3; i++) {
        interrupt("init big.json -o big", "big", numbers[i], none);
        interrupt("init big.json -o old --force", "old", numbers[i], old);
        assert_int_equal(shell("diff -r old fp8"), 0);
        interrupt("quantize data/../../models/stories -o big", "big",
                  numbers[i], none);
        interrupt("trace data/../../models/stories --ids $(seq -s, 1 250) -o "
                  "big", ".", numbers[i], none);
    }
    unlink("big.json");
}

/* What is written of a file that changes meanwhile is worth nothing, and
 * replaces nothing. */
static void change_while(const char *words, const char *dir)
{
    int status = 0, names = 0;
    for (int i = 0; i < TRIES && status != 1 << 8; i++) {
        assert_int_equal(shell("rm -rf big old source && cp -R fp8 old && "
                               "cp -R data/../../models/stories source"), 0);
        int out = create("out");
        names = temp_count(".");
        pid_t child = start_writing(words, dir, out);
        if (child > 0) {
            assert_int_equal(shell("printf x >>source/model.safetensors"),
                             0);
            status = status_of(child);
        }
        close(out);
    }
    read_text("err", last.err, sizeof last.err);
    assert_string_equal(last.err, "deepseek: source/model.safetensors: "
                        "was changed while in use\n");
    assert_int_equal(temp_count("."), names);
    assert_int_equal(shell("diff -r old fp8 && ! test -e big"), 0);
    refused_cases++;
}

static void a_model_that_changes_while_written(void **state)
{
    (void)state;
    change_while("quantize source -o big", "big");
    change_while("quantize source -o old --force", "old");
}

static long nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long)(t.tv_sec % 1000000) * 1000000000 + t.tv_nsec;
}

/* At any moment: all of the model is there, or nothing. */
static void interrupted_at_random(void **state)
{
    const char *seed = getenv("SEED");
    size_t whole = 0;
    (void)state;
    long span = -nanoseconds();
    done("init data/tiny/config.json -o sudden --force");
    span += nanoseconds();
    assert_int_equal(shell("rm -r sudden"), 0);
    srand(seed != NULL ? (unsigned)strtoul(seed, NULL, 0) : 1);
    for (int i = 0; i < 60; i++) {
        struct timespec pause = {0, rand() % 1000 * (span / 800) % 999999999};
        int out = create("out");
        pid_t child = start("init data/tiny/config.json -o sudden", out);
        nanosleep(&pause, NULL);
        kill(child, SIGINT);
        int status = status_of(child);
        close(out);
        assert_true(WIFSIGNALED(status) || status == 0);
        if (access("sudden", F_OK) != 0)
            continue;
        assert_int_equal(temp_count("sudden"), 5);
        assert_int_equal(shell("rm -rf sudden"), 0);
        whole++;
    }
    print_message("seed %s: %zu of 60 models were finished\n",
                  seed != NULL ? seed : "1", whole);
}

static void how_many(void **state)
{
    (void)state;
    print_message("%zu malformed cases refused, %zu odd ones accepted\n",
                  refused_cases, accepted_cases);
    assert_true(refused_cases > 350); /* docs/robustness.md says so */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_safetensors),
        cmocka_unit_test(wrong_indexes),
        cmocka_unit_test(wrong_weights),
        cmocka_unit_test(wrong_weights_to_write),
        cmocka_unit_test(wrong_configs),
        cmocka_unit_test(wrong_tokenizers),
        cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(wrong_prompts),
        cmocka_unit_test(wrong_targets),
        cmocka_unit_test(odd_and_legal),
        cmocka_unit_test(one_shard),
        cmocka_unit_test(a_full_stdout),
        cmocka_unit_test(no_stdout),
        cmocka_unit_test(a_closed_pipe),
        cmocka_unit_test(a_file_that_may_not_grow),
        cmocka_unit_test(a_full_disk),
        cmocka_unit_test(a_directory_in_the_way),
        cmocka_unit_test(a_file_that_changes),
        cmocka_unit_test(a_file_that_changes_behind_a_text),
        cmocka_unit_test(interrupted_while_writing),
        cmocka_unit_test(a_model_that_changes_while_written),
        cmocka_unit_test(interrupted_at_random),
        cmocka_unit_test(how_many),
    };
    return cmocka_run_group_tests(tests, begin, temp_end);
}
