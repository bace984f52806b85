/* test_sha256.c: the examples of FIPS 180-4 (NIST's "SHA256.pdf" and
 * SHAVS): "", "abc", two messages of 448 and 896 bits, a million 'a'; then
 * that the pieces a message comes in do not matter. */
#include "support.h"

#include "base/sha256.h"

static void must_be(const char *text, size_t n, const char *wanted)
{
    char hex[65];
    Sha256 s = sha256_begin();
    sha256_add(&s, text, n);
    sha256_end(&s, hex);
    assert_string_equal(hex, wanted);
}

static void published(void **state)
{
    static const char *const vectors[][2] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb924"
             "27ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223"
                "b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
         "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        must_be(vectors[i][0], strlen(vectors[i][0]), vectors[i][1]);
}

static void a_million(void **state)
{
    char *text = test_alloc(1000000, 1);
    (void)state;
    memset(text, 'a', 1000000);
    must_be(text, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67"
                           "f1809a48a497200e046d39ccc7112cd0");
    free(text);
}

/* Of every length up to three blocks, cut at random. */
static void pieces(void **state)
{
    Random r = test_random();
    unsigned char text[192];
    char whole[65], cut[65];
    (void)state;
    for (size_t n = 0; n < sizeof text; n++) {
        Sha256 a = sha256_begin(), b = sha256_begin();
        text[n] = (unsigned char)random_u64(&r);
        sha256_add(&a, text, n);
        sha256_end(&a, whole);
        for (size_t i = 0, part; i < n; i += part) {
            part = random_between(&r, 1, n - i);
            sha256_add(&b, text + i, part);
        }
        sha256_end(&b, cut);
        assert_string_equal(whole, cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published),
        cmocka_unit_test(a_million),
        cmocka_unit_test(pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
