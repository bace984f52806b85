/* What is refused with which words, what is accepted, and that what is written
 * is read back bit for bit. */
#define _XOPEN_SOURCE 700
#include "base/random.h"
#include "base/safetensors.h"
#include "tests/temp.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

/* Writes a file of this header, its quotes written as ', and n bytes. */
static void write_file(const char *path, const char *header, size_t n)
{
    static unsigned char bytes[4096];
    size_t length = strlen(header);
    assert_true(8 + length + n <= sizeof bytes);
    for (size_t i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(i < 2 ? length >> 8 * i : 0);
    for (size_t i = 0; i < length; i++)
        bytes[8 + i] = (unsigned char)(header[i] == '\'' ? '"' : header[i]);
    for (size_t i = 0; i < n; i++)
        bytes[8 + length + i] = (unsigned char)i;
    temp_write(path, bytes, 8 + length + n);
}

static void write_text(const char *path, const char *text)
{
    char bytes[4096];
    size_t n = strlen(text);
    assert_true(n < sizeof bytes);
    for (size_t i = 0; i < n; i++)
        bytes[i] = text[i] == '\'' ? '"' : text[i];
    temp_write(path, bytes, n);
}

static void assert_refused(const char *path, const char *message)
{
    Safetensors st;
    Error err;
    if (st_open(&st, path, &err) == 0)
        fail_msg("accepted, wanted: %s", message);
    assert_string_equal(err.text, message);
    assert_null(st.tensors);
    st_close(&st);
}

#define ENTRY(dtype, shape, offsets) \
    "{'dtype':" dtype ",'shape':" shape ",'data_offsets':" offsets "}"
#define ONE(dtype, shape, offsets) "{'a':" ENTRY(dtype, shape, offsets) "}"

static const struct {
    const char *header;
    size_t n; /* bytes of data */
    const char *message; /* without the file's name */
} refused[] = {
    {"{'a':1}", 0,
     "tensor a: wanted an object, found a number"},
    {"{'a':[]}", 0,
     "tensor a: wanted an object, found an array"},
    {"{'a':{}}", 0,
     "tensor a: dtype: wanted a string, found none"},
    {"{'a':{'shape':[1],'data_offsets':[0,4]}}", 4,
     "tensor a: dtype: wanted a string, found none"},
    {ONE("1", "[1]", "[0,4]"), 4,
     "tensor a: dtype: wanted a string, found a number"},
    {ONE("'F31'", "[1]", "[0,4]"), 4,
     "tensor a: unknown dtype \"F31\""},
    {ONE("'f32'", "[1]", "[0,4]"), 4,
     "tensor a: unknown dtype \"f32\""},
    {ONE("''", "[1]", "[0,4]"), 4,
     "tensor a: unknown dtype \"\""},
    {ONE("'F32\\u0000'", "[1]", "[0,4]"), 4,
     "tensor a: unknown dtype \"F32\\u0000\""},
    {ONE("'F32F32F32F32F32F32F32F32F32F32F32F32F32'", "[1]", "[0,4]"), 4,
     "tensor a: unknown dtype \"F32F32F32F32F32F32F32F32F32F32F32F32F32"},
    {"{'a':{'dtype':'F32','data_offsets':[0,4]}}", 4,
     "tensor a: shape: wanted an array, found none"},
    {ONE("'F32'", "1", "[0,4]"), 4,
     "tensor a: shape: wanted an array, found a number"},
    {ONE("'F32'", "{}", "[0,4]"), 4,
     "tensor a: shape: wanted an array, found an object"},
    {ONE("'F32'", "[-1]", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found -1"},
    {ONE("'F32'", "[1.5]", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found 1.5"},
    {ONE("'F32'", "['1']", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found \"1\""},
    {ONE("'F32'", "[1,null]", "[0,4]"), 4,
     "tensor a: shape[1]: wanted a size, found null"},
    {ONE("'F32'", "[[1]]", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found [1]"},
    {ONE("'F32'", "[1e30]", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found 1e30"},
    {ONE("'F32'", "[18446744073709551617]", "[0,4]"), 4,
     "tensor a: shape[0]: wanted a size, found 18446744073709551617"},
    {ONE("'F32'", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4,
     "tensor a: shape: wanted at most 8 numbers, found 9"},
    {ONE("'F32'", "[2147483647,2147483647,2147483647]", "[0,4]"), 4,
     "tensor a: shape: more elements than memory can hold"},
    {ONE("'F64'", "[2147483647,1073741825]", "[0,4]"), 4,
     "tensor a: shape: more elements than memory can hold"},
    {ONE("'U8'", "[65536,65536,65536,65536]", "[0,0]"), 0,
     "tensor a: shape: more elements than memory can hold"},
    {"{'a':{'dtype':'F32','shape':[1]}}", 4,
     "tensor a: data_offsets: wanted an array, found none"},
    {ONE("'F32'", "[1]", "4"), 4,
     "tensor a: data_offsets: wanted an array, found a number"},
    {ONE("'F32'", "[1]", "[]"), 4,
     "tensor a: data_offsets: wanted 2 numbers, found 0"},
    {ONE("'F32'", "[1]", "[0]"), 4,
     "tensor a: data_offsets: wanted 2 numbers, found 1"},
    {ONE("'F32'", "[1]", "[0,4,8]"), 4,
     "tensor a: data_offsets: wanted at most 2 numbers, found 3"},
    {ONE("'F32'", "[1]", "[-4,0]"), 4,
     "tensor a: data_offsets[0]: wanted a size, found -4"},
    {ONE("'F32'", "[1]", "[0,4.5]"), 4,
     "tensor a: data_offsets[1]: wanted a size, found 4.5"},
    {ONE("'F32'", "[1]", "[0,'4']"), 4,
     "tensor a: data_offsets[1]: wanted a size, found \"4\""},
    {ONE("'F32'", "[1]", "[0,18446744073709551620]"), 4,
     "tensor a: data_offsets[1]: wanted a size, found 18446744073709551620"},
    {ONE("'F32'", "[1]", "[4,0]"), 4,
     "tensor a: data_offsets: begin 4 is beyond end 0"},
    {ONE("'F32'", "[1]", "[0,8]"), 4,
     "tensor a: ends at byte 8 of the data, but the file holds only 4"},
    {ONE("'F32'", "[1]", "[4,8]"), 4,
     "tensor a: ends at byte 8 of the data, but the file holds only 4"},
    {ONE("'F32'", "[1]", "[0,3]"), 4,
     "tensor a: its shape wants 4 bytes, data_offsets give 3"},
    {ONE("'BF16'", "[1]", "[0,4]"), 4,
     "tensor a: its shape wants 2 bytes, data_offsets give 4"},
    {ONE("'F32'", "[0]", "[0,4]"), 4,
     "tensor a: its shape wants 0 bytes, data_offsets give 4"},
    {ONE("'F32'", "[]", "[0,0]"), 0,
     "tensor a: its shape wants 4 bytes, data_offsets give 0"},
    {ONE("'F32'", "[1]", "[0,4]"), 5,
     "the tensors end at byte 4 of the data, but the file holds 5"},
    {ONE("'F32'", "[1]", "[4,8]"), 8,
     "tensor a: begins at byte 4 of the data, wanted 0: a gap"},
    {"{}", 1,
     "the tensors end at byte 0 of the data, but the file holds 1"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]},'b':{'dtype':'U8',"
     "'shape':[4],'data_offsets':[2,6]}}", 6,
     "tensor b: begins at byte 2 of the data, wanted 4: an overlap"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]},'b':{'dtype':'U8',"
     "'shape':[4],'data_offsets':[0,4]}}", 4,
     "tensor b: begins at byte 0 of the data, wanted 4: an overlap"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]},'b':{'dtype':'U8',"
     "'shape':[2],'data_offsets':[6,8]}}", 8,
     "tensor b: begins at byte 6 of the data, wanted 4: a gap"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]},'b':{'dtype':'U8',"
     "'shape':[0],'data_offsets':[2,2]}}", 4,
     "tensor b: begins at byte 2 of the data, wanted 4: an overlap"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4]},'a':{'dtype':'U8',"
     "'shape':[4],'data_offsets':[4,8]}}", 8,
     "line 1, column 54: the key \"a\" is there twice"},
    {"{'a':{'dtype':'U8','shape':[4],'data_offsets':[0,4],'dtype':'I8'}}", 4,
     "line 1, column 53: the key \"dtype\" is there twice"},
    {"{'a\\u0000b':{'dtype':'U8','shape':[4],'data_offsets':[0,4]}}", 4,
     "tensor a: a zero byte in its name"},
    {"{'a\\nb':1}", 4,
     "tensor a?b: wanted an object, found a number"},
    {"{'__metadata__':1}", 0,
     "__metadata__: wanted an object, found a number"},
    {"{'__metadata__':['a']}", 0,
     "__metadata__: wanted an object, found an array"},
    {"{'__metadata__':{'a':1}}", 0,
     "__metadata__: wanted strings, found a number"},
    {"{'__metadata__':{'a':'b','c':null}}", 0,
     "__metadata__: wanted strings, found null"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}", 4,
     "line 1, column 54: wanted a comma or }, found the end"},
    {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}} x", 4,
     "line 1, column 56: wanted the end, found x"},
    {ONE("'F32'", "[01]", "[0,4]"), 4,
     "line 1, column 30: a number with a leading zero"},
    {"[]", 0,
     "the header does not begin with {"},
    {" {}", 0,
     "the header does not begin with {"},
    {"", 0,
     "the header does not begin with {"},
    {"null", 0,
     "the header does not begin with {"},
    {"\357\273\277{}", 0,
     "the header does not begin with {"},
    {ONE("'F32'", "[1]", "[0,NaN]"), 4,
     "line 1, column 51: wanted a value, found N"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char message[400];
        write_file("x", refused[i].header, refused[i].n);
        snprintf(message, sizeof message, "x: %s", refused[i].message);
        assert_refused("x", message);
    }
}

/* Files that end, or lie about their length, before there is a header. */
static void test_refused_lengths(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *message;
    } cases[] = {
        {"", 0, "wanted 8 bytes of header length, found 0"},
        {"\2\0\0\0\0\0\0", 7, "wanted 8 bytes of header length, found 7"},
        {"\2\0\0\0\0\0\0\0", 8, "the header wants 2 bytes, but the file "
                                "holds only 0"},
        {"\3\0\0\0\0\0\0\0{}", 10, "the header wants 3 bytes, but the file "
                                   "holds only 2"},
        {"\0\0\0\0\0\0\0\0{}", 10, "the header does not begin with {"},
        {"\1\0\0\0\0\0\0\0{}", 10, "line 1, column 2: wanted a key in "
                                   "quotes, found the end"},
        {"\1\341\365\5\0\0\0\0{}", 10,
         "header length: wanted at most 100000000, found 100000001: "
         "no safetensors file"},
        {"\377\377\377\377\377\377\377\377{}", 10,
         "header length: wanted at most 100000000, found "
         "18446744073709551615: "
         "no safetensors file"},
        {"{\"a\": 1}, no safetensors", 24,
         "header length: wanted at most 100000000, found "
         "9021026962656797307: "
         "no safetensors file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char message[200];
        temp_write("y", cases[i].bytes, cases[i].n);
        snprintf(message, sizeof message, "y: %s", cases[i].message);
        assert_refused("y", message);
    }
    assert_refused("absent", "absent: cannot open: No such file or directory");
}

/* A long name leaves room for the rest of the line. */
static void test_long_name(void **state)
{
    (void)state;
    char header[1200], message[400];
    memset(header, 'n', sizeof header);
    memcpy(header, "{'", 2);
    strcpy(header + 1000, "':1}");
    write_file("x", header, 0);
    sprintf(message, "x: tensor %.200s: wanted an object, found a number",
            header + 2);
    assert_refused("x", message);
}

/* Made by Python's safetensors 0.8.0: save({"b.weight": [[1, -2.5], [3e-8,
 * inf]], "a": [1.5] in BF16, "ids": [7, -8] in I64, 'é"': zeros(0, 3) in F16,
 * "s": True}, {"format": "pt"}). */
static const char python_file[] =
    "H\001\000\000\000\000\000\000{\"__metadata__\":{\"format\":\"pt\"},\"i"
    "ds\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},\"b.wei"
    "ght\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[16,32]},\"a"
    "\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[32,34]},\"\303"
    "\251\\\"\":{\"dtype\":\"F16\",\"shape\":[0,3],\"data_offsets\":[34,34]"
    "},\"s\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[34,35]}}   "
    "  \007\000\000\000\000\000\000\000\370\377\377\377\377\377\377\377\000"
    "\000\200?\000\000 \300Y\331\0003\000\000\200\177\300?\001";

static void assert_tensor(const Safetensors *st, const char *name,
                          DType dtype, int rank, size_t elements)
{
    const StTensor *t = st_find(st, name);
    assert_non_null(t);
    assert_string_equal(t->name, name);
    assert_int_equal(t->dtype, dtype);
    assert_int_equal(t->rank, rank);
    assert_int_equal(t->elements, elements);
    assert_int_equal(t->bytes, elements * dtype_size(dtype));
}

static void test_python_file(void **state)
{
    (void)state;
    Safetensors st;
    Error err;
    float b[4];
    int64_t ids[2];
    temp_write("py", python_file, sizeof python_file - 1);
    assert_int_equal(st_open(&st, "py", &err), 0);
    assert_int_equal(st.n_tensors, 5);
    assert_tensor(&st, "b.weight", DT_F32, 2, 4);
    assert_tensor(&st, "a", DT_BF16, 1, 1);
    assert_tensor(&st, "ids", DT_I64, 1, 2);
    assert_tensor(&st, "s", DT_BOOL, 0, 1);
    assert_tensor(&st, "\303\251\"", DT_F16, 2, 0);
    memcpy(b, st_find(&st, "b.weight")->data, sizeof b);
    memcpy(ids, st_find(&st, "ids")->data, sizeof ids);
    assert_true(b[0] == 1 && b[1] == -2.5f && b[2] == 3e-8f && b[3] > 1e38f);
    assert_true(ids[0] == 7 && ids[1] == -8);
    assert_int_equal(*st_find(&st, "s")->data, 1);
    assert_null(st_find(&st, "b"));
    assert_null(st_find(&st, ""));
    st_close(&st);
}

/* Odd, but legal. */
static void test_accepted(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t n, tensors;
    } cases[] = {
        {"{}", 0, 0}, {"{}        ", 0, 0}, {"{ \n}\n", 0, 0},
        {"{'__metadata__':{}}", 0, 0},
        {"{'__metadata__':{'format':'pt','\\u00e9':''}}", 0, 0},
        {"{'\\u005f_metadata__':{'a':'b'}}", 0, 0},
        {ONE("'F32'", "[1]", "[0,4]") "   ", 4, 1},
        {"{'a':{'data_offsets':[0,4],'shape':[1],'dtype':'F32'}}", 4, 1},
        {"{'a':{'dtype':'F32','shape':[1],'new':[{}],'data_offsets':[0,4]}}",
         4, 1},
        {ONE("'F32'", "[]", "[0,4]"), 4, 1},
        {ONE("'F32'", "[1.0]", "[0.0,4e0]"), 4, 1},
        {ONE("'F32'", "[1e0, 10e-1]", "[-0,40E-1]"), 4, 1},
        {ONE("'\\u004632'", "[1]", "[0,4]"), 4, 1},
        {ONE("'F32'", "[1,1,1,1,1,1,1,1]", "[0,4]"), 4, 1},
        {ONE("'F32'", "[0]", "[0,0]"), 0, 1},
        {ONE("'F32'", "[0,2147483647]", "[0,0]"), 0, 1},
        {"{'':" ENTRY("'U8'", "[1]", "[0,1]") "}", 1, 1},
        {"{'a\\n\\u00e9\\\\':" ENTRY("'U8'", "[1]", "[0,1]") "}", 1, 1},
        /* data in another order than the header, empty tensors between */
        {"{'a':" ENTRY("'U8'", "[2]", "[1,3]")
         ",'b':" ENTRY("'U8'", "[1]", "[0,1]")
         ",'c':" ENTRY("'I64'", "[0]", "[1,1]")
         ",'d':" ENTRY("'U8'", "[3,0]", "[3,3]")
         ",'e':" ENTRY("'U8'", "[0]", "[0,0]") "}", 3, 5},
        /* data at odd addresses */
        {"{'a':" ENTRY("'U8'", "[1]", "[0,1]")
         ",'b':" ENTRY("'F64'", "[1]", "[1,9]") "}", 9, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Safetensors st;
        Error err;
        write_file("x", cases[i].header, cases[i].n);
        if (st_open(&st, "x", &err) != 0)
            fail_msg("%s: %s", cases[i].header, err.text);
        assert_int_equal(st.n_tensors, cases[i].tensors);
        st_close(&st);
    }
}

static void test_order(void **state)
{
    (void)state;
    Safetensors st;
    Error err;
    const StTensor *order[4];
    write_file("x", "{'a':" ENTRY("'U8'", "[2]", "[1,3]")
               ",'b':" ENTRY("'U8'", "[1]", "[0,1]")
               ",'d':" ENTRY("'U8'", "[0]", "[1,1]")
               ",'c':" ENTRY("'U8'", "[0]", "[1,1]") "}", 3);
    assert_int_equal(st_open(&st, "x", &err), 0);
    st_order(&st, order);
    static const char *const names[] = {"b", "c", "d", "a"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(order[i]->name, names[i]);
    assert_int_equal(order[3]->data[0], 1);
    st_close(&st);
    assert_int_equal(st.n_tensors, 0);
    st_order(&st, order);
    assert_null(st_find(&st, "a"));
}

/* m/: p holds x and y, q holds z, o holds zz, r holds x once more, bad is
 * malformed. */
static void make_shards(void)
{
    assert_true(mkdir("m", 0777) == 0 || path_is_dir("m"));
    write_file("m/p.safetensors", "{'x':" ENTRY("'U8'", "[1]", "[0,1]")
               ",'y':" ENTRY("'U8'", "[1]", "[1,2]") "}", 2);
    write_file("m/q.safetensors", "{'z':" ENTRY("'U8'", "[2]", "[0,2]") "}",
               2);
    write_file("m/o.safetensors", "{'zz':" ENTRY("'U8'", "[1]", "[0,1]") "}",
               1);
    write_file("m/r.safetensors", "{'x':" ENTRY("'U8'", "[1]", "[0,1]") "}",
               1);
    write_file("m/bad", "{", 0);
}

#define INDEX "m/model.safetensors.index.json"
#define MAP(pairs) "{'weight_map':{" pairs "}}"

static const struct {
    const char *index, *message;
} refused_indexes[] = {
    {"", INDEX ": line 1, column 1: wanted a value, found the end"},
    {"[]", INDEX ": weight_map: wanted an object, found none"},
    {"{}", INDEX ": weight_map: wanted an object, found none"},
    {"{'weight_map':['p']}",
     INDEX ": weight_map: wanted an object, found an array"},
    {MAP(""), INDEX ": weight_map: wanted tensors, found none"},
    {MAP("'x':1"), INDEX ": weight_map: x: wanted a string, found a number"},
    {MAP("'x':'p.safetensors','x':'p.safetensors'"),
     INDEX ": line 1, column 36: the key \"x\" is there twice"},
    {MAP("'x':''"), INDEX ": weight_map: x: wanted the name of a file beside "
     "the index, found an empty one"},
    {MAP("'x':'.'"), INDEX ": weight_map: x: wanted the name of a file beside "
     "the index, found ."},
    {MAP("'x':'..'"), INDEX ": weight_map: x: wanted the name of a file "
     "beside the index, found .."},
    {MAP("'x':'/etc/passwd'"), INDEX ": weight_map: x: wanted the name of a "
     "file beside the index, found /etc/passwd"},
    {MAP("'x':'../m/p.safetensors'"), INDEX ": weight_map: x: wanted the name "
     "of a file beside the index, found ../m/p.safetensors"},
    {MAP("'x':'./p.safetensors'"), INDEX ": weight_map: x: wanted the name of "
     "a file beside the index, found ./p.safetensors"},
    {MAP("'x':'..\\\\p'"), INDEX ": weight_map: x: wanted the name of a file "
     "beside the index, found ..\\p"},
    {MAP("'x':'\\u002e\\u002E\\u002fp'"), INDEX ": weight_map: x: wanted the "
     "name of a file beside the index, found ../p"},
    {MAP("'x':'C:p'"), INDEX ": weight_map: x: wanted the name of a file "
     "beside the index, found C:p"},
    {MAP("'x':'p.safetensors\\u0000'"), INDEX ": weight_map: x: wanted the "
     "name of a file beside the index, found one with a zero byte"},
    {MAP("'x\\u0000':'p.safetensors'"), INDEX ": weight_map: a tensor with a "
     "zero byte in its name"},
    {MAP("'x':'absent'"),
     "m/absent: cannot open: No such file or directory"},
    {MAP("'x':'bad'"), "m/bad: line 1, column 2: wanted a key in quotes, "
     "found the end"},
    {MAP("'x':'p.safetensors','w':'q.safetensors'"),
     INDEX ": tensor w: wanted in m/q.safetensors, found nowhere"},
    {MAP("'x':'q.safetensors','y':'p.safetensors'"),
     INDEX ": tensor x: wanted in m/q.safetensors, found in "
     "m/p.safetensors"},
    {MAP("'x':'p.safetensors','z':'p.safetensors'"),
     INDEX ": tensor z: wanted in m/p.safetensors, found nowhere"},
    {MAP("'y':'p.safetensors','x':'r.safetensors'"), NULL},
};

static void test_refused_indexes(void **state)
{
    (void)state;
    size_t n = sizeof refused_indexes / sizeof *refused_indexes;
    make_shards();
    for (size_t i = 0; i + 1 < n; i++) {
        write_text(INDEX, refused_indexes[i].index);
        assert_refused("m", refused_indexes[i].message);
    }
    write_text(INDEX, refused_indexes[n - 1].index);
    Safetensors st;
    Error err;
    assert_int_equal(st_open(&st, "m", &err), -1);
    if (strcmp(err.text, "m/p.safetensors: tensor x is also in "
               "m/r.safetensors") != 0)
        assert_string_equal(err.text, "m/r.safetensors: tensor x is also in "
                            "m/p.safetensors");
}

static void test_index(void **state)
{
    (void)state;
    Safetensors st;
    Error err;
    make_shards();
    write_text(INDEX, "{'metadata':{'total_size':4},'weight_map':{"
               "'z':'q.safetensors','y':'p.safetensors','x':'p.safetensors'"
               "}}");
    assert_int_equal(st_open(&st, "m", &err), 0);
    assert_int_equal(st.n_tensors, 3);
    assert_int_equal(st.n_files, 2);
    assert_string_equal(st.paths[st_find(&st, "x")->file], "m/p.safetensors");
    assert_string_equal(st.paths[st_find(&st, "z")->file], "m/q.safetensors");
    st_close(&st);
    /* one shard; a tensor in it that the index does not name is left out */
    write_text(INDEX, MAP("'y':'p.safetensors'"));
    assert_int_equal(st_open(&st, "m/", &err), 0);
    assert_int_equal(st.n_tensors, 1);
    assert_null(st_find(&st, "x"));
    assert_int_equal(*st_find(&st, "y")->data, 1);
    st_close(&st);
    /* names and files in different orders */
    static const char *const names[] = {"zz", "y", "z"};
    const StTensor *order[3];
    write_text(INDEX, MAP("'z':'q.safetensors','y':'p.safetensors',"
                          "'zz':'o.safetensors'"));
    assert_int_equal(st_open(&st, "m", &err), 0);
    assert_int_equal(st.n_tensors, 3);
    assert_null(st_find(&st, "x"));
    st_order(&st, order);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(order[i]->name, names[i]);
        assert_ptr_equal(st_find(&st, names[i]), order[i]);
    }
    st_close(&st);
}

static void test_directory(void **state)
{
    (void)state;
    Safetensors st;
    Error err;
    assert_int_equal(mkdir("d", 0777), 0);
    assert_refused("d", "d: wanted model.safetensors or "
                   "model.safetensors.index.json, found neither");
    write_text("d/model.safetensors.index.json", "not read");
    write_file("d/model.safetensors", ONE("'F32'", "[1]", "[0,4]"), 4);
    assert_int_equal(st_open(&st, "d", &err), 0);
    assert_int_equal(st.n_tensors, 1);
    assert_string_equal(st.paths[0], "d/model.safetensors");
    st_close(&st);
    assert_int_equal(unlink("d/model.safetensors"), 0);
    assert_int_equal(mkdir("d/model.safetensors", 0777), 0);
    assert_refused("d", "d/model.safetensors: cannot read: is a directory");
}

/* One thing to write: specs, and the bytes of each. */
typedef struct {
    StSpec specs[12];
    char names[12][16];
    unsigned char *bytes[12];
    size_t n;
    Random *random; /* how the bytes are cut into pieces; NULL: not */
    size_t wrong;   /* elements more than there are */
} Source;

static size_t elements_of(const StSpec *spec)
{
    size_t n = 1;
    for (int i = 0; i < spec->rank; i++)
        n *= spec->shape[i];
    return n;
}

static int fill(void *context, size_t i, StSink *sink, Error *err)
{
    const Source *source = context;
    size_t n = elements_of(&source->specs[i]) + source->wrong, done = 0;
    size_t size = dtype_size(source->specs[i].dtype);
    while (done < n) {
        size_t part = n - done;
        if (source->random != NULL)
            part = 1 + (size_t)(random_u64(source->random) % part);
        if (st_put(sink, source->bytes[i] + done * size, part, err) != 0)
            return -1;
        done += part;
    }
    return 0;
}

static int write_source(const char *path, Source *source, Error *err)
{
    return st_write(path, true, source->specs, source->n, NULL, fill, source,
                    err);
}

/* Byte for byte what the format says, also on a big-endian host. */
static void test_exact_bytes(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"\\\"\":\"\\n\"},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
        "\"a\":{\"dtype\":\"U16\",\"shape\":[],\"data_offsets\":[8,10]},"
        "\"c\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[10,10]}}";
    static const char *const metadata[] = {"format", "pt", "\"", "\n", NULL};
    float b[2] = {1, -2};
    uint16_t a = 0x1234;
    Source source = {
        .specs = {{"b", DT_F32, 2, {1, 2}}, {"a", DT_U16, 0, {0}},
                  {"c", DT_I64, 1, {0}}},
        .bytes = {(unsigned char *)b, (unsigned char *)&a, NULL}, .n = 3,
    };
    Error err;
    File file;
    assert_int_equal(st_write("w", false, source.specs, 3, metadata, fill,
                              &source, &err), 0);
    assert_int_equal(file_read(&file, "w", &err), 0);
    size_t length = file.data[0] + 256u * file.data[1];
    assert_int_equal((8 + length) % 64, 0);
    assert_int_equal(file.size, 8 + length + 10);
    assert_memory_equal(file.data + 2, "\0\0\0\0\0\0", 6);
    assert_memory_equal(file.data + 8, header, sizeof header - 1);
    for (size_t i = 8 + sizeof header - 1; i < 8 + length; i++)
        assert_int_equal(file.data[i], ' ');
    assert_memory_equal(file.data + 8 + length,
                        "\0\0\200\77\0\0\0\300\64\22", 10);
    file_close(&file);
}

static void random_bytes(Random *r, unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)random_u64(r);
}

static void make_random(Source *source, Random *r)
{
    static const char *const endings[] = {"", ".weight", "\303\251", "\"\\",
                                          "\n", " "};
    source->n = (size_t)(random_u64(r) % 13);
    for (size_t i = 0; i < source->n; i++) {
        StSpec *spec = &source->specs[i];
        sprintf(source->names[i], "%d%s", (int)(i * 7 % 13),
                endings[random_u64(r) % 6]);
        *spec = (StSpec){.name = source->names[i]};
        spec->dtype = (DType)(random_u64(r) % DT_COUNT);
        spec->rank = (int)(random_u64(r) % 5);
        for (int j = 0; j < spec->rank; j++)
            spec->shape[j] = (size_t)(random_u64(r) % 7);
        size_t bytes = elements_of(spec) * dtype_size(spec->dtype);
        source->bytes[i] = malloc(bytes + 1);
        random_bytes(r, source->bytes[i], bytes);
    }
}

static void free_source(Source *source)
{
    for (size_t i = 0; i < source->n; i++)
        free(source->bytes[i]);
}

static void test_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 64;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    for (int i = 0; i < 300; i++) {
        Source source = {.random = &r};
        Safetensors st;
        Error err;
        const StTensor *order[12];
        make_random(&source, &r);
        assert_int_equal(write_source("r", &source, &err), 0);
        assert_int_equal(st_open(&st, "r", &err), 0);
        assert_int_equal(st.n_tensors, source.n);
        st_order(&st, order);
        for (size_t j = 0; j < source.n; j++) {
            const StSpec *spec = &source.specs[j];
            const StTensor *t = st_find(&st, spec->name);
            assert_tensor(&st, spec->name, spec->dtype, spec->rank,
                          elements_of(spec));
            assert_memory_equal(t->shape, spec->shape, sizeof t->shape);
            assert_memory_equal(t->data, source.bytes[j], t->bytes);
            if (t->bytes > 0 && j > 0)
                assert_true(order[j]->data >= order[j - 1]->data);
        }
        st_close(&st);
        free_source(&source);
    }
}

/* Uses all that a reader may use. */
static void use(const Safetensors *st)
{
    const StTensor **order = malloc((st->n_tensors + 1) * sizeof *order);
    size_t sum = 0;
    st_order(st, order);
    for (size_t i = 0; i < st->n_tensors; i++) {
        const StTensor *t = order[i];
        assert_ptr_equal(st_find(st, t->name), t);
        assert_true(t->file < st->n_files && t->rank <= ST_MAX_RANK);
        assert_int_equal(t->bytes, t->elements * dtype_size(t->dtype));
        for (size_t j = 0; j < t->bytes; j++)
            sum += t->data[j];
    }
    assert_true(sum < SIZE_MAX);
    free(order);
}

/* A byte changed, some put in or left out, or the rest cut off: read or
 * refused in one line. */
static void try_damaged(const char *path, const char *opened, const File *file,
                        size_t near, Random *r)
{
    size_t at = (size_t)(random_u64(r) % near), n = file->size;
    unsigned kind = (unsigned)(random_u64(r) % 4);
    unsigned char *bytes = malloc(n + 8);
    memcpy(bytes, file->data, n);
    if (kind == 0) {
        n = at;
    } else if (kind == 1) {
        bytes[at] = (unsigned char)("0129-.eE\"{}[],:\\ x"[random_u64(r) % 18]);
    } else if (kind == 2) {
        bytes[at] ^= (unsigned char)(1u << random_u64(r) % 8);
    } else {
        memmove(bytes + at, bytes + at + 1, n - at - 1);
        n--;
    }
    temp_write(path, bytes, n);
    free(bytes);
    Safetensors st;
    Error err = {""};
    if (st_open(&st, opened, &err) == 0)
        use(&st);
    else
        assert_true(err.text[0] != 0 && strchr(err.text, '\n') == NULL);
    st_close(&st);
}

static void test_damaged(void **state)
{
    (void)state;
    uint64_t seed = 4242;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    Error err;
    File file;
    Source source = {.random = &r};
    while (source.n < 5) {
        free_source(&source);
        make_random(&source, &r);
    }
    assert_int_equal(write_source("s", &source, &err), 0);
    free_source(&source);
    assert_int_equal(file_read(&file, "s", &err), 0);
    size_t header = 8 + file.data[0] + 256u * file.data[1];
    for (int i = 0; i < 2000; i++)
        try_damaged("damaged", "damaged", &file, i % 8 ? header : file.size,
                    &r);
    file_close(&file);
}

static void test_damaged_index(void **state)
{
    (void)state;
    uint64_t seed = 4243;
    Random r = random_seeded(seed);
    print_message("seed %" PRIu64 "\n", seed);
    Error err;
    File file;
    make_shards();
    write_text(INDEX, MAP("'x':'p.safetensors','z':'q.safetensors',"
                          "'y':'p.safetensors'"));
    assert_int_equal(file_read(&file, INDEX, &err), 0);
    for (int i = 0; i < 1000; i++)
        try_damaged(INDEX, "m", &file, file.size, &r);
    file_close(&file);
}

static void assert_not_written(Source *source, const char *message)
{
    Error err;
    int before = temp_count(".");
    assert_int_equal(write_source("n", source, &err), -1);
    assert_string_equal(err.text, message);
    assert_int_equal(temp_count("."), before);
}

static int fill_nothing(void *context, size_t i, StSink *sink, Error *err)
{
    (void)context;
    (void)i;
    return st_put(sink, "", 0, err);
}

static void test_not_written(void **state)
{
    (void)state;
    unsigned char bytes[64] = {0};
    Source source = {.specs = {{"a", DT_F32, 1, {2}}, {"b", DT_F32, 1, {1}}},
                     .bytes = {bytes, bytes}, .n = 2, .wrong = 1};
    Error err;
    assert_not_written(&source,
                       "n: tensor a: wanted 2 more elements, got 3");
    source.wrong = 0;
    assert_int_equal(st_write("n", true, source.specs, 2, NULL, fill_nothing,
                              NULL, &err), -1);
    assert_string_equal(err.text, "n: tensor a: 2 elements were not given");
    source.specs[1].name = "a";
    assert_not_written(&source, "n: tensor a: given twice");
    source.specs[1].name = "b";
    source.specs[1].rank = 9;
    assert_not_written(&source, "n: tensor b: wanted rank 0 to 8, got 9");
    source.specs[1].rank = -1;
    assert_not_written(&source, "n: tensor b: wanted rank 0 to 8, got -1");
    source.specs[1] = (StSpec){"b", DT_F32, 2, {SIZE_MAX / 2, 3}};
    assert_not_written(&source, "n: tensor b: too large");
    source.specs[1] = (StSpec){"b", DT_U8, 1, {PTRDIFF_MAX}};
    assert_not_written(&source, "n: tensor b: too large");
    source.specs[1] = (StSpec){"__metadata__", DT_U8, 1, {1}};
    assert_not_written(&source, "n: tensor __metadata__: a name that the "
                       "format keeps for itself");
    temp_write("n", "old", 3);
    assert_int_equal(st_write("n", false, source.specs, 1, NULL, fill,
                              &source, &err), -1);
    assert_string_equal(err.text, "n: exists already; --force overwrites it");
}

/* A header may have 100,000,000 bytes: eleven names of a tenth of that. */
static void test_long_header(void **state)
{
    enum { NAMES = 11, LENGTH = ST_MAX_HEADER / 10 };
    StSpec specs[NAMES];
    Error err;
    (void)state;
    char *names = malloc(NAMES + LENGTH + 1);
    assert_non_null(names);
    memset(names, 'x', NAMES + LENGTH);
    names[NAMES + LENGTH] = 0;
    for (int i = 0; i < NAMES; i++) {
        names[i] = (char)('a' + i);
        specs[i] = (StSpec){names + i, DT_U8, 1, {1}};
    }
    int before = temp_count(".");
    assert_int_equal(st_write("n", true, specs, NAMES, NULL, fill_nothing,
                              NULL, &err), -1);
    assert_string_equal(err.text,
                        "n: 11 tensors are too many for one file");
    assert_int_equal(temp_count("."), before);
    free(names);
}

static void test_metadata(void **state)
{
    const char *const pairs[] = {"format", "pt", "step", "12", NULL};
    Safetensors st;
    Error err;
    char text[3];
    (void)state;
    assert_int_equal(st_write("meta", false, NULL, 0, pairs, NULL, NULL, &err),
                     0);
    assert_int_equal(st_open(&st, "meta", &err), 0);
    assert_int_equal(st_metadata(&st, "step", text, sizeof text, &err), 0);
    assert_string_equal(text, "12");
    assert_int_equal(st_metadata(&st, "tokens", text, sizeof text, &err), -1);
    assert_string_equal(err.text, "meta: metadata: wanted a short text for "
                        "tokens");
    assert_int_equal(st_metadata(&st, "step", text, 2, &err), -1);
    st_close(&st);
    write_file("meta", "{}", 0);
    assert_int_equal(st_open(&st, "meta", &err), 0);
    assert_int_equal(st_metadata(&st, "step", text, sizeof text, &err), -1);
    st_close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_lengths),
        cmocka_unit_test(test_long_name),
        cmocka_unit_test(test_python_file),
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_refused_indexes),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_directory),
        cmocka_unit_test(test_exact_bytes),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_damaged_index),
        cmocka_unit_test(test_not_written),
        cmocka_unit_test(test_long_header),
        cmocka_unit_test(test_metadata),
    };
    return cmocka_run_group_tests(tests, temp_begin, temp_end);
}
