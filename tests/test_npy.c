/* NumPy's files, and what is wrong with them.
 *
 * tests/data/npy: written by NumPy 2.4, bf16.npy with ml_dtypes; the arrays
 * are arange(24).reshape(2, 3, 4) - 5, of unsigned types + 0. */
#include "support.h"

#include "base/diff.h"
#include "base/npy.h"

#define DATA "tests/data/npy/"

static void assert_range(const StTensor *t, DType dtype, double from)
{
    assert_int_equal(t->dtype, dtype);
    assert_int_equal(t->rank, 3);
    assert_true(t->shape[0] == 2 && t->shape[1] == 3 && t->shape[2] == 4);
    assert_int_equal(t->elements, 24);
    assert_int_equal(t->bytes, 24 * dtype_size(dtype));
    for (size_t i = 0; i < 24; i++)
        assert_true(diff_value(t, i) == from + (double)i);
}

static void each_type(void **state)
{
    static const struct {
        const char *path, *name;
        DType dtype;
        double from;
    } cases[] = {
        {DATA "f2.npy", "f2", DT_F16, -5}, {DATA "f4.npy", "f4", DT_F32, -5},
        {DATA "f8.npy", "f8", DT_F64, -5},
        {DATA "bf16.npy", "bf16", DT_BF16, -5},
        {DATA "big.npy", "big", DT_F32, -5}, {DATA "i1.npy", "i1", DT_I8, -5},
        {DATA "i2.npy", "i2", DT_I16, -5}, {DATA "i4.npy", "i4", DT_I32, -5},
        {DATA "i8.npy", "i8", DT_I64, -5}, {DATA "u1.npy", "u1", DT_U8, 0},
        {DATA "u2.npy", "u2", DT_U16, 0}, {DATA "u4.npy", "u4", DT_U32, 0},
        {DATA "u8.npy", "u8", DT_U64, 0},
        {DATA "fortran.npy", "fortran", DT_F32, -5},
        {DATA "version2.npy", "version2", DT_F32, -5},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Safetensors st;
        Error err;
        must(npy_open(&st, cases[i].path, &err), &err);
        assert_int_equal(st.n_tensors, 1);
        assert_string_equal(st.tensors->name, cases[i].name);
        assert_range(st.tensors, cases[i].dtype, cases[i].from);
        st_close(&st);
    }
}

static void few_elements(void **state)
{
    Safetensors st;
    Error err;
    (void)state;
    must(npy_open(&st, DATA "scalar.npy", &err), &err);
    assert_true(st.tensors->rank == 0 && diff_value(st.tensors, 0) == 7);
    st_close(&st);
    must(npy_open(&st, DATA "empty.npy", &err), &err);
    assert_true(st.tensors->rank == 2 && st.tensors->elements == 0);
    st_close(&st);
    must(npy_open(&st, DATA "b1.npy", &err), &err);
    assert_true(st.tensors->dtype == DT_BOOL);
    assert_true(diff_value(st.tensors, 1) == 0);
    assert_true(diff_value(st.tensors, 2) == 1);
    st_close(&st);
    must(npy_open(&st, DATA "none.npz", &err), &err);
    assert_int_equal(st.n_tensors, 0);
    st_close(&st);
}

static void archive(void **state)
{
    Safetensors st;
    Error err;
    (void)state;
    must(npy_open(&st, DATA "stored.npz", &err), &err);
    assert_int_equal(st.n_tensors, 3);
    assert_range(st_find(&st, "model.layers.0"), DT_F32, -5);
    assert_range(st_find(&st, "logits"), DT_F64, -5);
    assert_true(diff_value(st_find(&st, "ids"), 2) == 2);
    assert_null(st_find(&st, "model.layers.0.npy"));
    st_close(&st);
}

static void safetensors_too(void **state)
{
    Safetensors st;
    Error err;
    (void)state;
    must(npy_open(&st, "models/stories", &err), &err);
    assert_non_null(st_find(&st, "model.norm.weight"));
    st_close(&st);
}

static void refused(void **state)
{
    static const char *const cases[][2] = {
        {DATA "object.npy", DATA "object.npy: array object: descr: wanted "
            "numbers, not objects, found ' '|O', 'fortran_order': False,'"},
        {DATA "complex.npy", DATA "complex.npy: array complex: descr: wanted "
            "a type of numbers, found ' '<c8', 'fortran_order': False'"},
        {DATA "record.npy", DATA "record.npy: array record: descr: wanted a "
            "type of numbers, found ' [('a', '<f4')], 'fortran_orde'"},
        {DATA "text.npy", DATA "text.npy: array text: descr: wanted a type "
            "of numbers, found ' '<U2', 'fortran_order': False'"},
        {DATA "compressed.npz", DATA "compressed.npz: array a: wanted it "
            "stored (numpy.savez), found it compressed or encrypted"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Safetensors st;
        Error err;
        must_fail(npy_open(&st, cases[i][0], &err), &err, cases[i][1]);
    }
}

/* A file of this text as the header of an array and so many zeros. */
static int open_header(const char *header, size_t zeros, Error *err)
{
    unsigned char bytes[400] = "\x93NUMPY\1";
    size_t n = strlen(header);
    Safetensors st;
    bytes[8] = (unsigned char)n;
    memcpy(bytes + 10, header, n);
    put_file(scratch("a.npy"), bytes, 10 + n + zeros);
    if (npy_open(&st, scratch("a.npy"), err))
        return -1;
    st_close(&st);
    return 0;
}

static void headers(void **state)
{
    static const struct {
        const char *header, *message; /* NULL: taken */
    } cases[] = {
        {"{'descr':'<f4','fortran_order':False,'shape':(1,2)}", NULL},
        {"{ \"shape\" : ( 2, ) , \"fortran_order\" : True,\n"
         "\"descr\" : \"<f4\" , }", NULL},
        {"{'descr':'|u1','fortran_order':False,'shape':(8)}", NULL},
        {"", "header: wanted '{', found ''"},
        {"{'descr':'<f4','fortran_order':False}",
         "header: wanted descr, fortran_order and shape"},
        {"{'descr':'<f4','descr':'<f4'}", "header: wanted descr, "
         "fortran_order and shape, each once, found ''descr':'<f4'}'"},
        {"{'more':1}", "header: wanted descr, fortran_order and shape, each "
         "once, found ''more':1}'"},
        {"{'descr", "header: wanted descr, fortran_order and shape, each "
         "once, found ''descr'"},
        {"{'descr':'f4'}", "descr: wanted a type of numbers, found ''f4'}'"},
        {"{'descr':''}", "descr: wanted a type of numbers, found '''}'"},
        {"{'descr':'<V1'}", "descr: wanted a type of numbers, found ''<V1'}'"},
        {"{'fortran_order':1}",
         "fortran_order: wanted True or False, found '1}'"},
        {"{'shape':[2]}", "shape: wanted '(', found '[2]}'"},
        {"{'shape':(-2,)}", "shape: wanted a whole number, found '-2,)}'"},
        {"{'shape':(2 2)}", "shape: wanted ',' or ')', found '2)}'"},
        {"{'shape':(2", "shape: wanted ',' or ')', found ''"},
        {"{'shape':(1,1,1,1,1,1,1,1,1)}",
         "shape: wanted at most 8 sides, found '1)}'"},
        {"{'shape':(99999999999999999999,)}", "shape: wanted a size that "
         "memory can hold, found '99999999999999999999,)}'"},
        {"{'descr':'<f4','fortran_order':False,'shape':(999999999999999999,"
         "99999999999)}", "shape: more elements than memory can hold"},
        {"{'descr':'<f4','fortran_order':False,'shape':(3,)}",
         "its shape wants 12 bytes, found 8"},
        {"{'descr':'<f4','fortran_order':False,'shape':()}",
         "its shape wants 4 bytes, found 8"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[600];
        Error err;
        int failed = open_header(cases[i].header, 8, &err);
        if (!cases[i].message) {
            must(failed, &err);
            continue;
        }
        snprintf(text, sizeof text, "%s: array a: %s", scratch("a.npy"),
                 cases[i].message);
        must_fail(failed, &err, text);
    }
}

/* Every file that is a good one's beginning is refused, and every one with one
 * other byte is refused or read. */
static void cut_and_change(const char *from, const char *to)
{
    File whole;
    Error err;
    Safetensors st;
    must(file_open(&whole, from, &err), &err);
    unsigned char *copy = test_alloc(whole.size, 1);
    for (size_t n = 0; n < whole.size; n++) {
        put_file(to, whole.data, n);
        assert_int_equal(npy_open(&st, to, &err), -1);
        assert_null(strchr(err.text, '\n'));
    }
    for (size_t i = 0; i < 8 * whole.size; i++) {
        memcpy(copy, whole.data, whole.size);
        copy[i / 8] = (unsigned char)(copy[i / 8] ^ 1u << i % 8);
        put_file(to, copy, whole.size);
        if (npy_open(&st, to, &err) == 0)
            st_close(&st);
        else
            assert_null(strchr(err.text, '\n'));
    }
    file_close(&whole);
    free(copy);
}

static void cut_and_changed(void **state)
{
    (void)state;
    cut_and_change(DATA "stored.npz", scratch("a.npz"));
    cut_and_change(DATA "f4.npy", scratch("a.npy"));
}

/* stored.npz with its directory's first entry n times, and no other. */
static void put_entry_again(const char *path, size_t n)
{
    File whole;
    Error err;
    unsigned char bytes[4096];
    must(file_open(&whole, DATA "stored.npz", &err), &err);
    const unsigned char *end = whole.data + whole.size - 22;
    size_t start = end[16] | (size_t)end[17] << 8;
    const unsigned char *entry = whole.data + start;
    size_t length = (size_t)(46 + entry[28] + entry[30] + entry[32]);
    size_t at = start;
    assert_true(start + n * length + 22 <= sizeof bytes);
    memcpy(bytes, whole.data, start);
    for (size_t i = 0; i < n; i++, at += length)
        memcpy(bytes + at, entry, length);
    memcpy(bytes + at, end, 22);
    bytes[at + 8] = bytes[at + 10] = (unsigned char)n;
    bytes[at + 12] = (unsigned char)(n * length);
    bytes[at + 13] = (unsigned char)(n * length >> 8);
    put_file(path, bytes, at + 22);
    file_close(&whole);
}

/* More than once, and so often that the file could not hold them all. */
static void one_member_for_many(void **state)
{
    static const char *const wrong[] = {"is there twice", "overlaps others"};
    char message[600];
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        Safetensors st;
        Error err;
        const char *path = scratch("a.npz");
        put_entry_again(path, i == 0 ? 2 : 20);
        snprintf(message, sizeof message, "%s: array model.layers.0: %s",
                 path, wrong[i]);
        must_fail(npy_open(&st, path, &err), &err, message);
    }
}

static void a_checksum_counts(void **state)
{
    File whole;
    Error err;
    Safetensors st;
    (void)state;
    must(file_read(&whole, DATA "stored.npz", &err), &err);
    unsigned char *copy = test_alloc(whole.size, 1);
    memcpy(copy, whole.data, whole.size);
    copy[250] ^= 1; /* inside the first array's elements */
    put_file(scratch("a.npz"), copy, whole.size);
    assert_int_equal(npy_open(&st, scratch("a.npz"), &err), -1);
    assert_non_null(strstr(err.text, "model.layers.0: its checksum is wrong"));
    file_close(&whole);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_type),
        cmocka_unit_test(few_elements),
        cmocka_unit_test(archive),
        cmocka_unit_test(safetensors_too),
        cmocka_unit_test(refused),
        cmocka_unit_test(headers),
        cmocka_unit_test(cut_and_changed),
        cmocka_unit_test(one_member_for_many),
        cmocka_unit_test(a_checksum_counts),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    Error err;
    dir_remove(scratch(""), &err);
    return failed;
}
