/* test_backward.c: gradients of single functions: dW to the bits of its
 * definition, the rest against central differences of the function itself in
 * double. Bits recorded once (2026-11-22, equal on every build) hold the
 * order of sums. */
#include "support.h"

#include "base/backward.h"
#include "base/maths.h"

/* dw[n][k] = fmaf(dy[t][n], x[t][k], dw[n][k]), t ascending. */
static void plain_dw(float *dw, size_t lddw, const float *dy, size_t lddy,
                     const float *x, size_t ldx, size_t T, size_t N,
                     size_t K)
{
    for (size_t t = 0; t < T; t++)
        for (size_t n = 0; n < N; n++)
            for (size_t k = 0; k < K; k++)
                dw[n * lddw + k] = fma32(dy[t * lddy + n], x[t * ldx + k],
                                         dw[n * lddw + k]);
}

static void check_dw(Random *r, size_t T, size_t N, size_t K, size_t pad)
{
    size_t lddw = K + pad, lddy = N + 2 * pad, ldx = K + 3 * pad;
    float *dw = test_alloc(N * lddw, sizeof *dw);
    float *want = test_alloc(N * lddw, sizeof *want);
    float *dy = test_alloc(T * lddy, sizeof *dy);
    float *x = test_alloc(T * ldx, sizeof *x);
    random_fill(r, dw, N * lddw);
    random_fill(r, dy, T * lddy);
    random_fill(r, x, T * ldx);
    memcpy(want, dw, N * lddw * sizeof *dw);
    plain_dw(want, lddw, dy, lddy, x, ldx, T, N, K);
    matmul_dw(dw, lddw, dy, lddy, x, ldx, T, N, K);
    must_equal_bits(dw, want, N * lddw, "dW and what lies between its rows");
    free(dw);
    free(want);
    free(dy);
    free(x);
}

/* Sizes around those of tiles and panels: 128 tokens, 504 rows, spans. */
static void test_dw(void **state)
{
    static const size_t sizes[] = {1, 2, 3, 11, 12, 13, 16, 31, 32, 33, 48,
                                   64, 127, 128, 129, 160, 300, 511};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    Random r = test_random();
    (void)state;
    for (size_t i = 0; i < SIZES; i++) {
        check_dw(&r, sizes[i], 5, 37, i % 2);
        check_dw(&r, 9, sizes[i], 21, i % 3);
        check_dw(&r, 14, 3, sizes[i], i % 2);
        for (size_t j = 0; j < 4; j++)
            check_dw(&r, sizes[i], sizes[random_between(&r, 0, SIZES - 1)],
                     sizes[random_between(&r, 0, SIZES - 1)], j);
    }
}

static void must_be_near(double found, double wanted, double off,
                         const char *what)
{
    if (!(fabs(found - wanted) <= off))
        fail_msg("%s: wanted %.9g, found %.9g", what, wanted, found);
}

/* RMSNorm(x)·dy, in double. */
static double norm_sum(const double *x, const float *w, const float *dy,
                       size_t n, double eps)
{
    double squares = 0, total = 0;
    for (size_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        total += x[i] / sqrt(squares / (double)n + eps) * (double)w[i]
                 * (double)dy[i];
    return total;
}

static void check_norm(Random *r, size_t n, float eps)
{
    enum { T = 3 };
    float *x = test_alloc(T * n, sizeof *x), *w = test_alloc(n, sizeof *w);
    float *dy = test_alloc(T * n, sizeof *dy);
    float *dx = test_alloc(T * n, sizeof *dx);
    float *dw = test_alloc(n, sizeof *dw);
    double *at = test_alloc(n, sizeof *at), h = 1e-5;
    Matrix gain = matrix_f32(w, 1, n, n);
    random_fill(r, x, T * n);
    random_fill(r, dy, T * n);
    random_fill(r, w, n);
    for (size_t i = 0; i < n; i++)
        dw[i] = 0.5f;
    rmsnorm_backward(dx, n, dw, dy, n, x, n, T, &gain, eps);
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < n; i++) {
            for (size_t k = 0; k < n; k++)
                at[k] = (double)x[t * n + k];
            at[i] += h;
            double up = norm_sum(at, w, dy + t * n, n, (double)eps);
            at[i] -= 2 * h;
            double down = norm_sum(at, w, dy + t * n, n, (double)eps);
            must_be_near((double)dx[t * n + i], (up - down) / (2 * h), 2e-4,
                         "dx of RMSNorm");
        }
    for (size_t i = 0; i < n; i++) {
        double want = 0.5;
        for (size_t t = 0; t < T; t++) {
            double squares = 0;
            for (size_t k = 0; k < n; k++)
                squares += (double)x[t * n + k] * (double)x[t * n + k];
            want += (double)dy[t * n + i] * (double)x[t * n + i]
                    / sqrt(squares / (double)n + (double)eps);
        }
        must_be_near((double)dw[i], want, 1e-5, "dw of RMSNorm");
    }
    free(x);
    free(w);
    free(dy);
    free(dx);
    free(dw);
    free(at);
}

static void test_rmsnorm(void **state)
{
    Random r = test_random();
    (void)state;
    check_norm(&r, 1, 0.1f);
    check_norm(&r, 17, 1e-6f);
    check_norm(&r, 64, 1e-2f);
}

/* Σ softmax(s)·dp */
static double softmax_sum(const double *s, const float *dp, size_t n)
{
    double total = 0, weight = 0;
    for (size_t i = 0; i < n; i++) {
        weight += exp(s[i]);
        total += exp(s[i]) * (double)dp[i];
    }
    return total / weight;
}

static void test_softmax(void **state)
{
    enum { N = 35 };
    Random r = test_random();
    float s[N], p[N], dp[N], ds[N];
    double at[N], h = 1e-5;
    (void)state;
    random_fill(&r, s, N);
    random_fill(&r, dp, N);
    softmax(p, s, N);
    softmax_backward(ds, p, dp, N);
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < N; k++)
            at[k] = (double)s[k];
        at[i] += h;
        double up = softmax_sum(at, dp, N);
        at[i] -= 2 * h;
        must_be_near((double)ds[i], (up - softmax_sum(at, dp, N)) / (2 * h),
                     1e-6, "ds of softmax");
    }
    softmax_backward(dp, p, dp, N);
    must_equal_bits(dp, ds, N, "in place");
}

static double sigmoid_of(double x)
{
    return 1 / (1 + exp(-x));
}

static void test_functions(void **state)
{
    enum { N = 50 };
    Random r = test_random();
    float g[N], u[N], dh[N], dg[N], du[N], y[N], dx[N];
    double h = 1e-5;
    (void)state;
    random_fill(&r, g, N);
    random_fill(&r, u, N);
    random_fill(&r, dh, N);
    scale(g, g, 6, N);
    silu_mul_backward(dg, du, dh, g, u, N);
    sigmoid(y, g, N);
    sigmoid_backward(dx, y, dh, N);
    for (size_t i = 0; i < N; i++) {
        double x = (double)g[i], d = (double)dh[i], b = (double)u[i];
        double slope = (sigmoid_of(x + h) - sigmoid_of(x - h)) / (2 * h);
        must_be_near((double)dx[i], d * slope, 1e-6, "sigmoid");
        must_be_near((double)du[i], d * x * sigmoid_of(x), 1e-5, "du");
        must_be_near((double)dg[i],
                     d * b * (sigmoid_of(x) + x * slope), 1e-5, "dg");
    }
}

/* logits - ln Σ e^logits, and p - onehot; none too far apart for a float. */
static void test_cross_entropy(void **state)
{
    enum { N = 40 };
    Random r = test_random();
    (void)state;
    for (size_t target = 0; target < N; target += 13) {
        float z[N], was[N];
        double total = 0;
        random_fill(&r, z, N);
        scale(z, z, 5, N);
        memcpy(was, z, sizeof z);
        for (size_t i = 0; i < N; i++)
            total += exp((double)z[i]);
        double loss = cross_entropy(z, N, target, 0.25f);
        must_be_near(loss, log(total) - (double)was[target], 1e-6, "loss");
        for (size_t i = 0; i < N; i++)
            must_be_near((double)z[i],
                         0.25 * (exp((double)was[i]) / total - (i == target)),
                         1e-7, "gradient");
    }
    float far[3] = {500, -500, 0};
    must_be_near(cross_entropy(far, 3, 1, 1), 1000, 1e-9, "far apart");
}

static uint64_t hash(uint64_t h, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ f32_bits(x[i])) * 1099511628211u;
    return h;
}

static void test_golden(void **state)
{
    enum { T = 37, N = 45, K = 70 };
    Random r = random_seeded(1);
    float *x = test_alloc(T * K, sizeof *x), *dy = test_alloc(T * N, 4);
    float *dw = test_alloc(N * K, sizeof *dw), *dx = test_alloc(T * K, 4);
    float *u = test_alloc(T * K, sizeof *u), *dg = test_alloc(T * K, 4);
    uint64_t h = 14695981039346656037u;
    Matrix gain = matrix_f32(u, 1, K, K);
    (void)state;
    random_fill(&r, x, T * K);
    random_fill(&r, dy, T * N);
    random_fill(&r, u, T * K);
    matmul_dw(dw, K, dy, N, x, K, T, N, K);
    h = hash(h, dw, N * K);
    rmsnorm_backward(dx, K, dw, u, K, x, K, T, &gain, 1e-6f);
    h = hash(hash(h, dx, T * K), dw, K);
    silu_mul_backward(dg, dx, u, x, dw, N * K < T * K ? N * K : T * K);
    h = hash(hash(h, dx, T * K), dg, T * K);
    softmax(u, x, K);
    softmax_backward(dx, u, x, K);
    h = hash(h, dx, K);
    double loss = cross_entropy(x, K, 3, 0.5f);
    h = hash(h, x, K) ^ (uint64_t)(loss * 0x1p40);
    print_message("%016llx\n", (unsigned long long)h);
    assert_true(h == 0xa5411cc10b97df1d);
    free(x);
    free(dy);
    free(dw);
    free(dx);
    free(u);
    free(dg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dw),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_functions),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
