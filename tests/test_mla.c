/* test_mla.c: both forms of MLA against the equations and each other.
 *
 * Everything here is a property over random shapes: with and without query
 * compression, d_v other than d_h, odd sizes, weights in F32, BF16 and FP8
 * (whose blocks of 128 rows then cut through heads). The equations stand
 * below in double, once as V2 (37)-(47) has them and once absorbed. */
#include "support.h"

/* One layer's attention over S positions, all to be freed. */
typedef struct {
    Config c;
    MlaWeights w;
    Rope rope;
    MlaActs a;
    size_t S;
    float *cache, *h;
} Layer;

static Config random_config(Random *r)
{
    return (Config){
        .hidden_size = random_between(r, 1, 50),
        .num_attention_heads = random_between(r, 1, 5),
        .q_lora_rank = random_between(r, 0, 1) * random_between(r, 1, 40),
        .kv_lora_rank = random_between(r, 1, 50),
        .qk_nope_head_dim = random_between(r, 1, 24),
        .qk_rope_head_dim = 2 * random_between(r, 1, 6),
        .v_head_dim = random_between(r, 1, 24),
        .rms_norm_eps = 0.01, .latent_eps_from_config = random_between(r, 0, 1),
        .rope_theta = 100,
        .rope_scaling = {.yarn = random_between(r, 0, 1), .factor = 4,
                         .original_max_position_embeddings = 16,
                         .beta_fast = 4, .beta_slow = 0.5, .mscale = 0.9,
                         .mscale_all_dim = 0.7}};
}

/* Of a size at which chance does not make every head the same. */
static Config sizeable_config(Random *r)
{
    Config c = random_config(r);
    c.hidden_size = 30;
    c.kv_lora_rank = 12;
    c.qk_nope_head_dim = 9;
    return c;
}

static MlaActs mla_acts(const Config *c, size_t T, size_t S, size_t block)
{
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_c = c->kv_lora_rank, f = sizeof(float);
    size_t d_v = c->v_head_dim, widest = d_c > d_h ? d_c : d_h;
    MlaActs a = {.block = block, .span = S};
    a.c_q_raw = test_alloc(T * c->q_lora_rank, f);
    a.c_q = test_alloc(T * c->q_lora_rank, f);
    a.q = test_alloc(T * n_h * (d_h + d_r), f);
    a.kv_raw = test_alloc(T * (d_c + d_r), f);
    a.query = test_alloc(T * n_h * (widest + d_r), f);
    a.kv = test_alloc(S * n_h * (d_h + d_v), f);
    a.key = test_alloc(S * n_h * (d_h + d_r), f);
    a.scores = test_alloc(block * n_h * S, f);
    a.probs = test_alloc(block * n_h * S, f);
    a.z = test_alloc(T * n_h * d_c, f);
    a.o = test_alloc(T * n_h * d_v, f);
    return a;
}

static void mla_acts_free(MlaActs *a)
{
    free(a->c_q_raw);
    free(a->c_q);
    free(a->q);
    free(a->kv_raw);
    free(a->query);
    free(a->kv);
    free(a->key);
    free(a->scores);
    free(a->probs);
    free(a->z);
    free(a->o);
}

/* Gains of 0.5 to 1.5. */
static Matrix random_norm(Random *r, size_t n)
{
    Matrix m = random_matrix(r, 1, n, DT_F32, 1);
    float *gain = (float *)(uintptr_t)m.data;
    for (size_t i = 0; i < n; i++)
        gain[i] = 0.5f + random_uniform(r);
    return m;
}

static Matrix random_linear(Random *r, size_t rows, size_t cols, DType dtype)
{
    return random_matrix(r, rows, cols, dtype, 1.3f / sqrtf((float)cols));
}

static Layer random_layer(Random *r, Config c, size_t S, DType dtype)
{
    size_t d = c.hidden_size, n_h = c.num_attention_heads;
    size_t d_h = c.qk_nope_head_dim, d_r = c.qk_rope_head_dim;
    size_t d_c = c.kv_lora_rank, d_q = c.q_lora_rank, d_v = c.v_head_dim;
    Layer l = {.c = c, .S = S};
    Error err;
    if (d_q) {
        l.w.q_a_proj = random_linear(r, d_q, d, dtype);
        l.w.q_a_layernorm = random_norm(r, d_q);
        l.w.q_b_proj = random_linear(r, n_h * (d_h + d_r), d_q, dtype);
    } else
        l.w.q_proj = random_linear(r, n_h * (d_h + d_r), d, dtype);
    l.w.kv_a_proj_with_mqa = random_linear(r, d_c + d_r, d, dtype);
    l.w.kv_a_layernorm = random_norm(r, d_c);
    l.w.kv_b_proj = random_linear(r, n_h * (d_h + d_v), d_c, dtype);
    l.w.o_proj = random_linear(r, d, n_h * d_v, dtype);
    must(rope_open(&l.rope, &l.c, &err), &err);
    l.a = mla_acts(&c, S, S, S);
    l.cache = test_alloc(S * (d_c + d_r), sizeof *l.cache);
    l.h = test_alloc(S * d, sizeof *l.h);
    random_normal(r, l.h, S * d, 1);
    return l;
}

static void layer_free(Layer *l)
{
    matrix_free(&l->w.q_proj);
    matrix_free(&l->w.q_a_proj);
    matrix_free(&l->w.q_a_layernorm);
    matrix_free(&l->w.q_b_proj);
    matrix_free(&l->w.kv_a_proj_with_mqa);
    matrix_free(&l->w.kv_a_layernorm);
    matrix_free(&l->w.kv_b_proj);
    matrix_free(&l->w.o_proj);
    rope_close(&l->rope);
    mla_acts_free(&l->a);
    free(l->cache);
    free(l->h);
}

static DType nth_dtype(int run)
{
    static const DType dtypes[] = {DT_F32, DT_BF16, DT_F8_E4M3};
    return dtypes[run % 3];
}

/* u of T tokens from position pos on. */
static void run_mla(Layer *l, bool naive, float *u, size_t T, size_t pos)
{
    size_t pairs = l->rope.pairs, d = l->c.hidden_size;
    float *cos_t = test_alloc(T * pairs, sizeof *cos_t);
    float *sin_t = test_alloc(T * pairs, sizeof *sin_t);
    rope_table(cos_t, sin_t, &l->rope, T, pos);
    (naive ? mla_naive : mla_absorbed)(u, l->h + pos * d, &l->w, &l->c, T,
                                       pos, cos_t, sin_t,
                                       l->rope.softmax_scale, l->cache,
                                       &l->a);
    free(cos_t);
    free(sin_t);
}

static float *run_all(Layer *l, bool naive)
{
    float *u = test_alloc(l->S * l->c.hidden_size, sizeof *u);
    run_mla(l, naive, u, l->S, 0);
    return u;
}

/* The equations in double ------------------------------------------------ */

typedef struct {
    double *q;       /* (S, n_h, d_h+d_r) after RoPE */
    double *c_kv;    /* (S, d_c) */
    double *k_rope;  /* (S, d_r) */
    double *o;       /* (S, n_h, d_v) */
    double *u;       /* (S, d) */
    double *bound;   /* (S, d) on |naive - absorbed| of a float engine */
} Plain;

static void times(double *y, const Matrix *w, const double *x)
{
    for (size_t r = 0; r < w->rows; r++) {
        y[r] = 0;
        for (size_t k = 0; k < w->cols; k++)
            y[r] += weight(w, r, k) * x[k];
    }
}

static void normalise(double *x, const Matrix *gain, const Config *c)
{
    double square = 0, eps = c->latent_eps_from_config ? c->rms_norm_eps
                                                       : 1e-6;
    for (size_t i = 0; i < gain->cols; i++)
        square += x[i] * x[i] / (double)gain->cols;
    for (size_t i = 0; i < gain->cols; i++)
        x[i] *= weight(gain, 0, i) / sqrt(square + eps);
}

static void turn(double *x, const Rope *r, size_t pos)
{
    for (size_t i = 0; i < r->pairs; i++) {
        double angle = (double)pos * r->freq[i], a = x[2 * i];
        double b = x[2 * i + 1];
        x[2 * i] = r->magnitude * (a * cos(angle) - b * sin(angle));
        x[2 * i + 1] = r->magnitude * (a * sin(angle) + b * cos(angle));
    }
}

/* V2 (37)-(41), (43), with the norms of the released code. */
static void plain_project(Plain *p, const Layer *l, size_t t)
{
    const Config *c = &l->c;
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_c = c->kv_lora_rank;
    double *q = p->q + t * n_h * (d_h + d_r), h[64], c_q[64], kv[128];
    for (size_t k = 0; k < c->hidden_size; k++)
        h[k] = (double)l->h[t * c->hidden_size + k];
    if (c->q_lora_rank) {
        times(c_q, &l->w.q_a_proj, h);
        normalise(c_q, &l->w.q_a_layernorm, c);
        times(q, &l->w.q_b_proj, c_q);
    } else
        times(q, &l->w.q_proj, h);
    for (size_t i = 0; i < n_h; i++)
        turn(q + i * (d_h + d_r) + d_h, &l->rope, t);
    times(kv, &l->w.kv_a_proj_with_mqa, h);
    normalise(kv, &l->w.kv_a_layernorm, c);
    turn(kv + d_c, &l->rope, t);
    memcpy(p->c_kv + t * d_c, kv, d_c * sizeof *kv);
    memcpy(p->k_rope + t * d_r, kv + d_c, d_r * sizeof *kv);
}

/* Row i of head n's W_UK (value: W_UV) against the latent of position j; with
 * absolute values where asked. */
static double up(const Plain *p, const Layer *l, size_t n, bool value,
                 size_t i, size_t j, bool absolute)
{
    size_t d_h = l->c.qk_nope_head_dim, d_c = l->c.kv_lora_rank;
    size_t row = n * (d_h + l->c.v_head_dim) + (value ? d_h : 0) + i;
    double y = 0;
    for (size_t k = 0; k < d_c; k++) {
        double term = weight(&l->w.kv_b_proj, row, k) * p->c_kv[j * d_c + k];
        y += absolute ? fabs(term) : term;
    }
    return y;
}

/* q_n·k_n before the scale, V2 (42), (44), (46); absolute: every product by
 * its absolute value. */
static double dot_of(const Plain *p, const Layer *l, size_t n, size_t t,
                     size_t j, bool absolute)
{
    size_t d_h = l->c.qk_nope_head_dim, d_r = l->c.qk_rope_head_dim;
    const double *q = p->q + (t * l->c.num_attention_heads + n) * (d_h + d_r);
    double s = 0;
    for (size_t i = 0; i < d_h; i++)
        s += absolute ? fabs(q[i]) * up(p, l, n, false, i, j, true)
                      : q[i] * up(p, l, n, false, i, j, false);
    for (size_t i = 0; i < d_r; i++) {
        double term = q[d_h + i] * p->k_rope[j * d_r + i];
        s += absolute ? fabs(term) : term;
    }
    return s;
}

static void plain_softmax(double *s, size_t n)
{
    double total = 0, most = s[0];
    for (size_t j = 1; j < n; j++)
        most = fmax(most, s[j]);
    for (size_t j = 0; j < n; j++)
        total += s[j] = exp(s[j] - most);
    for (size_t j = 0; j < n; j++)
        s[j] /= total;
}

/* p of head n over what token t sees. */
static void plain_probs(double *s, const Plain *p, const Layer *l, size_t n,
                        size_t t)
{
    for (size_t j = 0; j <= t; j++)
        s[j] = (double)l->rope.softmax_scale * dot_of(p, l, n, t, j, false);
    plain_softmax(s, t + 1);
}

/* The same by q̂ = W_UKᵀ q and z = Σ p c: the absorbed form. */
static void plain_absorbed(double *o, const Plain *p, const Layer *l,
                           size_t n, size_t t)
{
    size_t d_h = l->c.qk_nope_head_dim, d_r = l->c.qk_rope_head_dim;
    size_t d_c = l->c.kv_lora_rank, d_v = l->c.v_head_dim;
    const double *q = p->q + (t * l->c.num_attention_heads + n) * (d_h + d_r);
    double moved[64] = {0}, z[64] = {0}, s[64];
    for (size_t k = 0; k < d_c; k++)
        for (size_t i = 0; i < d_h; i++)
            moved[k] += q[i] * weight(&l->w.kv_b_proj,
                                      n * (d_h + d_v) + i, k);
    for (size_t j = 0; j <= t; j++) {
        s[j] = 0;
        for (size_t k = 0; k < d_c; k++)
            s[j] += moved[k] * p->c_kv[j * d_c + k];
        for (size_t i = 0; i < d_r; i++)
            s[j] += q[d_h + i] * p->k_rope[j * d_r + i];
        s[j] *= (double)l->rope.softmax_scale;
    }
    plain_softmax(s, t + 1);
    for (size_t j = 0; j <= t; j++)
        for (size_t k = 0; k < d_c; k++)
            z[k] += s[j] * p->c_kv[j * d_c + k];
    for (size_t i = 0; i < d_v; i++) {
        o[i] = 0;
        for (size_t k = 0; k < d_c; k++)
            o[i] += z[k] * weight(&l->w.kv_b_proj,
                                  n * (d_h + d_v) + d_h + i, k);
    }
}

/* How far the two forms may lie apart in F32, u = 2^-24, to first order. Both
 * start from the same bits of q, c_kv and k_rope. A product of n numbers sums
 * its terms with at most n + 4 roundings, plus 2 for an FP8 scale.
 *  Scores: W_UK c, then q·k, or W_UKᵀ q, then q̂·c: the same terms
 *  q_i W_ik c_k, each rounded at most g = d_h + d_c + d_r + 14 times, then
 *  once by the scale. With A = Σ |q_i W_ik c_k| + Σ |q_i k_i|, the largest
 *  over positions, a scaled score is off by E = scale·A·(g + 1)u.
 *  Softmax: s - max is rounded, off by 2 scale·A·u more; exp is right to
 *  2^-22; sum and product add (S + 6)u. Scores off by E change p by a factor
 *  e^(2E). So p is right to a factor e^H,
 *  H = 2E + 2·(2 scale·A·u + 2^-22 + (S + 6)u).
 *  Values: terms p_j W_ik c_jk, rounded at most S + d_c + 14 times: o is off
 *  by (e^H - 1 + (S + d_c + 14)u)·B, B = Σ p_j |W_ik c_jk|.
 *  Output: terms W_O o, at most n_h d_v + 6 roundings more.
 * Two forms: twice that. */
static double off_by(const Plain *p, const Layer *l, size_t n, size_t t,
                     const double *probs, size_t i)
{
    const double u = 0x1p-24;
    double d = (double)(l->c.qk_nope_head_dim + l->c.kv_lora_rank);
    double S = (double)(t + 1), A = 0, B = 0, H, E;
    for (size_t j = 0; j <= t; j++) {
        A = fmax(A, dot_of(p, l, n, t, j, true));
        B += probs[j] * up(p, l, n, true, i, j, true);
    }
    A *= (double)l->rope.softmax_scale;
    E = A * (d + (double)l->c.qk_rope_head_dim + 15) * u;
    H = 2 * E + 2 * (2 * A * u + 0x1p-22 + (S + 6) * u);
    return (expm1(H) + (S + (double)l->c.kv_lora_rank + 14) * u) * B;
}

/* V2 (45)-(47) of token t, its bound, and that the absorbed form is equal. */
static void plain_attend(Plain *p, const Layer *l, size_t t)
{
    const Config *c = &l->c;
    size_t n_h = c->num_attention_heads, d_v = c->v_head_dim;
    double *o = p->o + t * n_h * d_v, off[128], s[64], z[64];
    for (size_t n = 0; n < n_h; n++) {
        plain_probs(s, p, l, n, t);
        plain_absorbed(z, p, l, n, t);
        for (size_t i = 0; i < d_v; i++) {
            o[n * d_v + i] = 0;
            for (size_t j = 0; j <= t; j++)
                o[n * d_v + i] += s[j] * up(p, l, n, true, i, j, false);
            assert_true(fabs(z[i] - o[n * d_v + i]) <= 1e-12
                                                       * (1 + fabs(z[i])));
            off[n * d_v + i] = off_by(p, l, n, t, s, i);
        }
    }
    times(p->u + t * c->hidden_size, &l->w.o_proj, o);
    for (size_t k = 0; k < c->hidden_size; k++) {
        double bound = 0;
        for (size_t i = 0; i < n_h * d_v; i++)
            bound += fabs(weight(&l->w.o_proj, k, i))
                     * (off[i] + ((double)(n_h * d_v) + 6) * 0x1p-24
                                 * fabs(o[i]));
        p->bound[t * c->hidden_size + k] = 2 * bound;
    }
}

static Plain plain_run(const Layer *l)
{
    const Config *c = &l->c;
    size_t n_h = c->num_attention_heads, d = sizeof(double), S = l->S;
    size_t d_q = c->qk_nope_head_dim + c->qk_rope_head_dim;
    Plain p = {.q = test_alloc(S * n_h * d_q, d),
               .c_kv = test_alloc(S * c->kv_lora_rank, d),
               .k_rope = test_alloc(S * c->qk_rope_head_dim, d),
               .o = test_alloc(S * n_h * c->v_head_dim, d),
               .u = test_alloc(S * c->hidden_size, d),
               .bound = test_alloc(S * c->hidden_size, d)};
    for (size_t t = 0; t < S; t++) {
        plain_project(&p, l, t);
        plain_attend(&p, l, t);
    }
    return p;
}

static void plain_free(Plain *p)
{
    free(p->q);
    free(p->c_kv);
    free(p->k_rope);
    free(p->o);
    free(p->u);
    free(p->bound);
}

/* NMSE. */
static double distance(const float *found, const double *wanted, size_t n)
{
    double power = 1e-30, error = 0;
    for (size_t i = 0; i < n; i++) {
        double e = (double)found[i] - wanted[i];
        power += wanted[i] * wanted[i];
        error += e * e;
    }
    return error / power;
}

static bool right_cache(const Layer *l, const Plain *p)
{
    size_t d_c = l->c.kv_lora_rank, d_r = l->c.qk_rope_head_dim;
    bool right = true;
    for (size_t t = 0; t < l->S; t++) {
        const float *row = l->cache + t * (d_c + d_r);
        right = right && distance(row, p->c_kv + t * d_c, d_c) < 1e-10
                && distance(row + d_c, p->k_rope + t * d_r, d_r) < 1e-10;
    }
    return right;
}

/* True where the bound says something: it is far below what is bounded. */
static bool check_forms(const float *naive, const float *absorbed,
                        const Plain *p, size_t n)
{
    double size = 0, bound = 0;
    for (size_t i = 0; i < n; i++) {
        double apart = fabs((double)naive[i] - (double)absorbed[i]);
        if (!(apart <= p->bound[i]))
            fail_msg("element %zu: %g apart, bound %g", i, apart,
                     p->bound[i]);
        size = fmax(size, fabs(p->u[i]));
        bound = fmax(bound, p->bound[i]);
    }
    return bound < 0.01 * size;
}

/* Where a shape is tiny its one sum may cancel, and then few digits are left;
 * in nearly all runs they are. */
static void test_equations(void **state)
{
    Random random = test_random();
    int tight = 0, near = 0, cached = 0;
    (void)state;
    for (int run = 0; run < 90; run++) {
        Layer l = random_layer(&random, random_config(&random),
                               random_between(&random, 1, 12),
                               nth_dtype(run));
        size_t n = l.S * l.c.hidden_size;
        Plain p = plain_run(&l);
        float *absorbed = run_all(&l, false);
        cached += right_cache(&l, &p);
        memset(l.cache, 0, l.S * sizeof *l.cache);
        float *naive = run_all(&l, true);
        cached += right_cache(&l, &p);
        double a = distance(absorbed, p.u, n), b = distance(naive, p.u, n);
        if (!(a < 1e-6 && b < 1e-6))
            fail_msg("run %d: NMSE absorbed %g, naive %g", run, a, b);
        near += a < 1e-11 && b < 1e-11;
        tight += check_forms(naive, absorbed, &p, n);
        plain_free(&p);
        free(absorbed);
        free(naive);
        layer_free(&l);
    }
    assert_true(near >= 80);
    assert_true(tight >= 80);
    assert_true(cached >= 170);
}

/* The same bits ---------------------------------------------------------- */

/* Runs of random lengths, down to single tokens, against all at once. */
static void test_chunks(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 60; run++) {
        Layer l = random_layer(&random, random_config(&random), 23,
                               nth_dtype(run / 2));
        size_t d = l.c.hidden_size, most = run < 30 ? 9 : 1;
        size_t width = l.c.kv_lora_rank + l.c.qk_rope_head_dim;
        bool naive = run % 2;
        float *whole = run_all(&l, naive);
        float *cache = l.cache, *parts = test_alloc(l.S * d, sizeof *parts);
        l.cache = test_alloc(l.S * width, sizeof *cache);
        for (size_t pos = 0, n; pos < l.S; pos += n) {
            n = random_between(&random, 1, most);
            n = n < l.S - pos ? n : l.S - pos;
            run_mla(&l, naive, parts + pos * d, n, pos);
        }
        must_equal_bits(parts, whole, l.S * d, "u in parts");
        must_equal_bits(l.cache, cache, l.S * width, "cache in parts");
        free(whole);
        free(parts);
        free(cache);
        layer_free(&l);
    }
}

static void test_blocks_of_scores(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 40; run++) {
        Layer l = random_layer(&random, random_config(&random), 23,
                               nth_dtype(run / 2));
        float *want = run_all(&l, run % 2);
        for (size_t block = 1; block < l.S; block += 3) {
            l.a.block = block;
            float *got = run_all(&l, run % 2);
            must_equal_bits(got, want, l.S * l.c.hidden_size, "blocks");
            free(got);
        }
        free(want);
        layer_free(&l);
    }
}

/* What comes later changes nothing, be it tokens of the same call or what
 * lies in the cache behind. */
static void test_no_token_sees_the_future(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 40; run++) {
        enum { S = 19 };
        Layer l = random_layer(&random, random_config(&random), S,
                               nth_dtype(run / 2));
        size_t d = l.c.hidden_size, seen = random_between(&random, 1, S - 1);
        size_t width = l.c.kv_lora_rank + l.c.qk_rope_head_dim;
        float *before = run_all(&l, run % 2);
        random_fill(&random, l.h + seen * d, (S - seen) * d);
        float *after = run_all(&l, run % 2);
        must_equal_bits(after, before, seen * d, "other tokens behind");
        for (size_t i = seen * width; i < S * width; i++)
            l.cache[i] = NAN;
        run_mla(&l, run % 2, after, seen, 0);
        must_equal_bits(after, before, seen * d, "no numbers behind");
        free(before);
        free(after);
        layer_free(&l);
    }
}

/* scores and probs of a block: -inf and 0 where a token must not see. */
static void test_mask(void **state)
{
    Random random = test_random();
    (void)state;
    for (int naive = 0; naive < 2; naive++) {
        Layer l = random_layer(&random, random_config(&random), 9, DT_F32);
        size_t n_h = l.c.num_attention_heads;
        free(run_all(&l, naive));
        for (size_t row = 0; row < l.S * n_h; row++) {
            const float *s = l.a.scores + row * l.S;
            const float *p = l.a.probs + row * l.S;
            for (size_t j = 0; j < l.S; j++) {
                bool seen = j <= row / n_h;
                assert_true(seen ? isfinite(s[j]) && p[j] > 0
                                 : isinf(s[j]) && s[j] < 0 && p[j] == 0);
            }
        }
        layer_free(&l);
    }
}

/* Layout ----------------------------------------------------------------- */

/* At position 0 nothing turns: the key is what its rows of the projection
 * give, not normalised, while the latent has its gain's mean square. */
static void test_key_is_not_normalised(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 20; run++) {
        Config c = sizeable_config(&random);
        c.rope_scaling.yarn = false;
        Layer l = random_layer(&random, c, 1, nth_dtype(run));
        size_t d_c = c.kv_lora_rank;
        double square = 0;
        for (size_t k = 0; k < c.hidden_size; k++)
            l.h[k] *= 100;
        free(run_all(&l, run % 2));
        for (size_t i = 0; i < c.qk_rope_head_dim; i++)
            assert_true(l.cache[d_c + i] == l.a.kv_raw[d_c + i]);
        for (size_t k = 0; k < d_c; k++) {
            double y = (double)l.cache[k] / weight(&l.w.kv_a_layernorm, 0, k);
            square += y * y / (double)d_c;
        }
        assert_true(fabs(square - 1) < 1e-2);
        layer_free(&l);
    }
}

/* kv_b_proj has, head by head, key rows and then value rows: without the
 * value rows of head n that head alone has no output, without its key rows
 * and RoPE it alone attends evenly. */
static void zero_rows(Matrix *m, size_t first, size_t n)
{
    memset((float *)(uintptr_t)m->data + first * m->cols, 0,
           n * m->cols * sizeof(float));
}

static void check_head(Layer *l, bool naive, size_t n, bool evenly)
{
    size_t n_h = l->c.num_attention_heads, d_v = l->c.v_head_dim;
    size_t t = l->S - 1;
    free(run_all(l, naive));
    for (size_t i = 0; i < n_h; i++) {
        const float *p = l->a.probs + (t * n_h + i) * l->S;
        const float *o = l->a.o + (t * n_h + i) * d_v;
        bool even = true, zero = true;
        for (size_t j = 0; j < l->S; j++)
            even = even && fabsf(p[j] * (float)l->S - 1) < 1e-5f;
        for (size_t k = 0; k < d_v; k++)
            zero = zero && o[k] == 0;
        assert_int_equal(even, evenly && i == n);
        assert_int_equal(zero, !evenly && i == n);
    }
}

static void test_heads_alternate_in_kv_b(void **state)
{
    Random random = test_random();
    (void)state;
    for (size_t run = 0; run < 24; run++) {
        Config c = sizeable_config(&random);
        c.num_attention_heads = 4;
        size_t d_h = c.qk_nope_head_dim, d_v = c.v_head_dim, n = run / 6;
        size_t width = c.kv_lora_rank + c.qk_rope_head_dim;
        Layer l = random_layer(&random, c, 5, DT_F32);
        bool evenly = run % 2;
        zero_rows(&l.w.kv_b_proj, n * (d_h + d_v) + (evenly ? 0 : d_h),
                  evenly ? d_h : d_v);
        zero_rows(&l.w.kv_a_proj_with_mqa, c.kv_lora_rank,
                  evenly ? width - c.kv_lora_rank : 0);
        check_head(&l, run % 3 == 0, n, evenly);
        layer_free(&l);
    }
}

/* Both readings of the latent norms' eps; they differ where rms_norm_eps is
 * large beside the mean square. */
static void test_latent_eps(void **state)
{
    Random random = test_random();
    (void)state;
    for (int run = 0; run < 20; run++) {
        Layer l = random_layer(&random, sizeable_config(&random), 4, DT_F32);
        size_t n = l.S * l.c.hidden_size;
        float *u[2];
        for (size_t i = 0; i < n; i++)
            l.h[i] *= 0.03f;
        for (int from_config = 0; from_config < 2; from_config++) {
            l.c.latent_eps_from_config = from_config;
            u[from_config] = run_all(&l, run % 2);
            Plain p = plain_run(&l);
            assert_true(distance(u[from_config], p.u, n) < 1e-10);
            plain_free(&p);
        }
        assert_true(nmse(u[0], u[1], n) > 1e-2);
        free(u[0]);
        free(u[1]);
        layer_free(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equations), cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_blocks_of_scores),
        cmocka_unit_test(test_no_token_sees_the_future),
        cmocka_unit_test(test_mask),
        cmocka_unit_test(test_key_is_not_normalised),
        cmocka_unit_test(test_heads_alternate_in_kv_b),
        cmocka_unit_test(test_latent_eps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
