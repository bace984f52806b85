/* mla.c: multi-head latent attention ---------------- V2 §2.1, V3 §2.1.1
 *
 * Keys and values of all heads are compressed into one latent c_kv of d_c
 * numbers a token; beside it one RoPE key k_rope of d_r numbers serves every
 * head. These d_c + d_r numbers are all that is cached.
 *
 * Stages: queries and latent of the new tokens (project), into the cache;
 * then attention in one of two forms that are equal in exact arithmetic:
 *   absorbed  W_UK moves to the query and W_UV behind the sum, so scores and
 *             sums run over the cache as it is: the default, for prefill and
 *             decode alike
 *   naive     keys and values of every position and head are expanded: the
 *             paper's equations as they stand, the form of training
 * then the output projection.
 *
 * Invariants: a cache row is [c_kv; k_rope], c_kv after its RMSNorm, k_rope
 * turned and not normalised. A token sees positions 0 … its own. Nothing a
 * token computes depends on what else is in the call, so prefill, chunks and
 * decode agree bit for bit. Scores are kept for blocks of tokens. Inputs of
 * the projections may be FP8 (a->fp8), in the naive form; what happens between
 * them is F32 (V3 §3.3.1).
 *
 * The backward pass is that of the naive form, over whole sequences (pos = 0).
 * Scores and weights are never kept: it computes them again, block by block.
 *
 * Not here: frequencies and the softmax scale (rope.c), residual and block
 * norms (deepseek.c). */
#include "deepseek.h"

#include "base/backward.h"

#include <math.h>
#include <string.h>

/* Tokens of a strip: as many rows as a narrow tile of matmul_t takes. */
enum { STRIP = 12 };

/* The eps of the two latent norms: the released classes are built with their
 * own default whatever rms_norm_eps says (docs/disputes.md). */
static float latent_eps(const Config *c)
{
    return c->latent_eps_from_config ? (float)c->rms_norm_eps : 1e-6f;
}

/* q_C = W_UQ c_Q by head                              V2 (13), (38); V3 (7)
 * with W_QR c_Q, before its RoPE, behind each head's q_C; c_Q is normalised.
 * a->q (T, n_h, d_h+d_r) */
static void expand_query(const MlaWeights *w, const Config *c, size_t T,
                         MlaActs *a)
{
    size_t d_q = c->q_lora_rank;
    rmsnorm(a->c_q, d_q, a->c_q_raw, d_q, T, &w->q_a_layernorm,
            latent_eps(c));
    linear(a->q, w->q_b_proj.rows, a->c_q, d_q, T, &w->q_b_proj, a->fp8);
}

/* c_Q = W_DQ h                                         V2 (12), (37); V3 (6)
 * Without compression (V2-Lite) q = W_Q h             V2 (1), (4) */
static void project_query(const float *h, const MlaWeights *w,
                          const Config *c, size_t T, MlaActs *a)
{
    size_t d = c->hidden_size;
    if (!c->q_lora_rank) {
        linear(a->q, w->q_proj.rows, h, d, T, &w->q_proj, a->fp8);
        return;
    }
    linear(a->c_q_raw, c->q_lora_rank, h, d, T, &w->q_a_proj, a->fp8);
    expand_query(w, c, T, a);
}

/* row (T, d_c+d_r), the new rows of the cache: c_KV, normalised, and
 * k_R = RoPE(W_KR h)                                  V2 (15), (43); V3 (3) */
static void fill_cache(float *row, const MlaWeights *w, const Config *c,
                       size_t T, const float *cos, const float *sin,
                       MlaActs *a)
{
    size_t d_c = c->kv_lora_rank, width = d_c + c->qk_rope_head_dim;
    rmsnorm(row, width, a->kv_raw, width, T, &w->kv_a_layernorm,
            latent_eps(c));
    rope_apply(row + d_c, width, a->kv_raw + d_c, width, cos, sin, T,
               c->qk_rope_head_dim / 2);
}

/* c_KV = W_DKV h, and W_KR h                           V2 (9), (41); V3 (1) */
static void project_latent(float *row, const float *h, const MlaWeights *w,
                           const Config *c, size_t T, const float *cos,
                           const float *sin, MlaActs *a)
{
    linear(a->kv_raw, c->kv_lora_rank + c->qk_rope_head_dim, h,
           c->hidden_size, T, &w->kv_a_proj_with_mqa, a->fp8);
    fill_cache(row, w, c, T, cos, sin, a);
}

/* q_R = RoPE(W_QR c_Q) of every head, behind the first `content` numbers of
 * each query                                          V2 (14), (39); V3 (8) */
static void turn_queries(const Config *c, size_t T, size_t content,
                         const float *cos, const float *sin, MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim;
    for (size_t i = 0; i < n_h; i++)
        rope_apply(a->query + i * (content + d_r) + content,
                   n_h * (content + d_r), a->q + i * (d_h + d_r) + d_h,
                   n_h * (d_h + d_r), cos, sin, T, d_r / 2);
}

/* softmax over positions 0 … pos+t of every head's row; what a token must not
 * see has score -inf and weight 0. scores, probs (nb, n_h, S of span). */
static void softmax_rows(size_t nb, size_t n_h, size_t pos, float scaling,
                         MlaActs *a)
{
    size_t S = pos + nb;
    for (size_t row = 0; row < nb * n_h; row++) {
        float *s = a->scores + row * a->span, *p = a->probs + row * a->span;
        size_t seen = pos + row / n_h + 1;
        scale(s, s, scaling, seen);
        softmax(p, s, seen);
        for (size_t j = seen; j < S; j++) {
            s[j] = -INFINITY;
            p[j] = 0;
        }
    }
}

/* y += Σ_j p_j v_j over the positions that each token of a strip sees,
 * ascending. Those that all of it see are one product; the last few, where
 * the tokens differ, follow token by token. A token has `rows` rows of y and
 * of p, ldy and ldp apart. */
static void sum_strip(float *y, size_t ldy, const float *p, size_t ldp,
                      size_t rows, size_t nb, size_t pos, const Matrix *v)
{
    Matrix common = matrix_rows(v, 0, pos + 1);
    matmul_t(y, ldy, p, ldp, nb * rows, &common);
    for (size_t t = 1; t < nb; t++) {
        Matrix last = matrix_rows(v, pos + 1, t);
        matmul_t(y + t * rows * ldy, ldy, p + t * rows * ldp + pos + 1, ldp,
                 rows, &last);
    }
}

/* The same for a block, STRIP tokens at a time: few follow one by one. */
static void weighted_sum(float *y, size_t ldy, const float *p, size_t ldp,
                         size_t rows, size_t nb, size_t pos, const Matrix *v)
{
    for (size_t t = 0; t < nb; t += STRIP) {
        size_t n = nb - t < STRIP ? nb - t : STRIP;
        sum_strip(y + t * rows * ldy, ldy, p + t * rows * ldp, ldp, rows, n,
                  pos + t, v);
    }
}

/* u = W_O [o_1; …; o_n_h]                       V2 (8), (19), (47); V3 (11) */
static void project_output(float *u, const MlaWeights *w, const Config *c,
                           size_t T, const MlaActs *a)
{
    linear(u, c->hidden_size, a->o, c->num_attention_heads * c->v_head_dim, T,
           &w->o_proj, a->fp8);
}

/* The rows of kv_b_proj of head i: W_UK (d_h), then W_UV (d_v). */
static Matrix w_uk(const MlaWeights *w, const Config *c, size_t i)
{
    size_t width = c->qk_nope_head_dim + c->v_head_dim;
    return matrix_rows(&w->kv_b_proj, i * width, c->qk_nope_head_dim);
}

static Matrix w_uv(const MlaWeights *w, const Config *c, size_t i)
{
    size_t width = c->qk_nope_head_dim + c->v_head_dim;
    return matrix_rows(&w->kv_b_proj, i * width + c->qk_nope_head_dim,
                       c->v_head_dim);
}

/* q_C·(W_UK c) = (W_UKᵀ q_C)·c: the query moves into the latent space, and
 * query and cache row are dotted whole.
 * query_i = [W_UKᵀ q_C; q_R], (T, n_h, d_c+d_r)       V2 (16), (40); V3 (9) */
static void absorb_query(const MlaWeights *w, const Config *c, size_t T,
                         MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_c = c->kv_lora_rank;
    size_t width = d_c + c->qk_rope_head_dim;
    size_t d_q = c->qk_nope_head_dim + c->qk_rope_head_dim;
    memset(a->query, 0, T * n_h * width * sizeof *a->query);
    for (size_t i = 0; i < n_h; i++) {
        Matrix uk = w_uk(w, c, i);
        matmul_t(a->query + i * width, n_h * width, a->q + i * d_q,
                 n_h * d_q, T, &uk);
    }
}

/* One block of nb tokens from token t0 on, over the cache:
 * p = softmax(query·[c_kv; k_R] scale), z = Σ p c_kv
 *                                                     V2 (18), (46); V3 (10) */
static void attend_latent(const Config *c, size_t t0, size_t nb, size_t pos,
                          float scaling, const float *cache, MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_c = c->kv_lora_rank;
    size_t width = d_c + c->qk_rope_head_dim;
    Matrix rows = matrix_f32(cache, pos + nb, width, width);
    Matrix latent = matrix_f32(cache, pos + nb, d_c, width);
    matmul(a->scores, a->span, a->query + t0 * n_h * width, width, nb * n_h,
           &rows);
    softmax_rows(nb, n_h, pos, scaling, a);
    weighted_sum(a->z + t0 * n_h * d_c, d_c, a->probs, a->span, n_h, nb, pos,
                 &latent);
}

void mla_absorbed(float *u, const float *h, const MlaWeights *w,
                  const Config *c, size_t T, size_t pos, const float *cos,
                  const float *sin, float softmax_scale, float *cache,
                  MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_c = c->kv_lora_rank;
    size_t d_v = c->v_head_dim, width = d_c + c->qk_rope_head_dim;
    project_query(h, w, c, T, a);
    project_latent(cache + pos * width, h, w, c, T, cos, sin, a);
    absorb_query(w, c, T, a);
    turn_queries(c, T, d_c, cos, sin, a);
    memset(a->z, 0, T * n_h * d_c * sizeof *a->z);
    for (size_t t = 0; t < T; t += a->block) {
        size_t nb = T - t < a->block ? T - t : a->block;
        attend_latent(c, t, nb, pos + t, softmax_scale, cache, a);
    }
    /* o_i = W_UV z_i, the same sum as of v_C = W_UV c
     *                                             V2 (11), (45); V3 (5) */
    for (size_t i = 0; i < n_h; i++) {
        Matrix uv = w_uv(w, c, i);
        matmul(a->o + i * d_v, n_h * d_v, a->z + i * d_c, n_h * d_c, T, &uv);
    }
    project_output(u, w, c, T, a);
}

/* From here on MLA is the multi-head attention of V2 (1)-(8), its keys and
 * values being projected from c_KV and not from h, V2 (2), (3):
 * k_C = W_UK c_KV by head                             V2 (10), (42); V3 (2)
 * v_C = W_UV c_KV by head                             V2 (11), (45); V3 (5)
 * k_i = [k_C; k_R]                                    V2 (17), (44); V3 (4)
 * for S positions; a head's slice of them is k_i, v_i  V2 (5), (6) */
static void expand_keys_values(const MlaWeights *w, const Config *c, size_t S,
                               const float *cache, MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_c = c->kv_lora_rank;
    size_t d_h = c->qk_nope_head_dim, d_r = c->qk_rope_head_dim;
    size_t width = d_h + c->v_head_dim;
    linear(a->kv, n_h * width, cache, d_c + d_r, S, &w->kv_b_proj, a->fp8);
    for (size_t j = 0; j < S; j++)
        for (size_t i = 0; i < n_h; i++) {
            float *k = a->key + (j * n_h + i) * (d_h + d_r);
            memcpy(k, a->kv + (j * n_h + i) * width, d_h * sizeof *k);
            memcpy(k + d_h, cache + j * (d_c + d_r) + d_c, d_r * sizeof *k);
        }
}

/* q_i = [q_C; q_R]                                    V2 (16), (40); V3 (9) */
static void join_query(const Config *c, size_t T, const float *cos,
                       const float *sin, MlaActs *a)
{
    size_t d_h = c->qk_nope_head_dim, d_q = d_h + c->qk_rope_head_dim;
    memcpy(a->query, a->q,
           T * c->num_attention_heads * d_q * sizeof *a->query);
    turn_queries(c, T, d_h, cos, sin, a);
}

/* One block of nb tokens, head by head:
 * p = softmax_j(q_i·k_j scale)                  V2 (7), (18), (46); V3 (10) */
static void weigh_positions(const Config *c, size_t t0, size_t nb, size_t pos,
                            float scaling, MlaActs *a)
{
    size_t n_h = c->num_attention_heads, S = pos + nb;
    size_t d_q = c->qk_nope_head_dim + c->qk_rope_head_dim;
    for (size_t i = 0; i < n_h; i++) {
        Matrix key = matrix_f32(a->key + i * d_q, S, d_q, n_h * d_q);
        matmul(a->scores + i * a->span, n_h * a->span,
               a->query + (t0 * n_h + i) * d_q, n_h * d_q, nb, &key);
    }
    softmax_rows(nb, n_h, pos, scaling, a);
}

/* v_C of head i, S positions. */
static Matrix values_of(const Config *c, const float *kv, size_t i, size_t S)
{
    size_t width = c->qk_nope_head_dim + c->v_head_dim;
    return matrix_f32(kv + i * width + c->qk_nope_head_dim, S, c->v_head_dim,
                      c->num_attention_heads * width);
}

/* o_i = Σ_j p_j v_j                             V2 (7), (18), (46); V3 (10) */
static void attend_heads(const Config *c, size_t t0, size_t nb, size_t pos,
                         float scaling, MlaActs *a)
{
    size_t n_h = c->num_attention_heads, d_v = c->v_head_dim;
    weigh_positions(c, t0, nb, pos, scaling, a);
    for (size_t i = 0; i < n_h; i++) {
        Matrix value = values_of(c, a->kv, i, pos + nb);
        weighted_sum(a->o + (t0 * n_h + i) * d_v, n_h * d_v,
                     a->probs + i * a->span, n_h * a->span, 1, nb, pos,
                     &value);
    }
}

void mla_naive(float *u, const float *h, const MlaWeights *w,
               const Config *c, size_t T, size_t pos, const float *cos,
               const float *sin, float softmax_scale, float *cache,
               MlaActs *a)
{
    size_t n_h = c->num_attention_heads;
    size_t width = c->kv_lora_rank + c->qk_rope_head_dim;
    project_query(h, w, c, T, a);
    project_latent(cache + pos * width, h, w, c, T, cos, sin, a);
    join_query(c, T, cos, sin, a);
    expand_keys_values(w, c, pos + T, cache, a);
    memset(a->o, 0, T * n_h * c->v_head_dim * sizeof *a->o);
    for (size_t t = 0; t < T; t += a->block) {
        size_t nb = T - t < a->block ? T - t : a->block;
        attend_heads(c, t, nb, pos + t, softmax_scale, a);
    }
    project_output(u, w, c, T, a);
}

/* Training ---------------------------------------------------------------
 * Backward of the naive form, in the reverse order of its stages. dx is the
 * gradient of x; those of weights are added to. */

void mla_rows(MlaActs *a, const Config *c, size_t row)
{
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_v = c->v_head_dim;
    if (c->q_lora_rank) {
        a->c_q_raw += row * c->q_lora_rank;
        a->c_q += row * c->q_lora_rank;
    }
    a->q += row * n_h * (d_h + d_r);
    a->kv_raw += row * (c->kv_lora_rank + d_r);
    a->query += row * n_h * (d_h + d_r);
    a->kv += row * n_h * (d_h + d_v);
    a->key += row * n_h * (d_h + d_r);
    a->o += row * n_h * d_v;
}

void mla_recompute(const MlaWeights *w, const Config *c, size_t T,
                   const float *cos, const float *sin, float *cache,
                   MlaActs *a)
{
    if (c->q_lora_rank)
        expand_query(w, c, T, a);
    fill_cache(cache, w, c, T, cos, sin, a);
    join_query(c, T, cos, sin, a);
    expand_keys_values(w, c, T, cache, a);
}

/* p = softmax(s scale): ds = p (dp - Σ p dp) scale, 0 where nothing is seen.
 * One head of a block: ds, which holds dp, (nb, span); p (nb) rows ldp apart.
 */
static void scores_backward(float *ds, size_t span, const float *p,
                            size_t ldp, size_t nb, size_t pos, float scaling)
{
    for (size_t t = 0; t < nb; t++, ds += span, p += ldp) {
        size_t seen = pos + t + 1;
        softmax_backward(ds, p, ds, seen);
        scale(ds, ds, scaling, seen);
        memset(ds + seen, 0, (nb - t - 1) * sizeof *ds);
    }
}

/* Head i of a block of nb tokens from t0 on. o = Σ_j p_j v_j, s = q·k:
 * dv_j += Σ_t p do, dp = do·v_j, dq = Σ_j ds k_j, dk_j += Σ_t ds q;
 * sums over positions and over tokens ascend. */
static void head_backward(const Config *c, size_t i, size_t t0, size_t nb,
                          float scaling, const MlaActs *a, MlaGrads *g)
{
    size_t n_h = c->num_attention_heads, d_v = c->v_head_dim, S = t0 + nb;
    size_t d_q = c->qk_nope_head_dim + c->qk_rope_head_dim;
    size_t width = c->qk_nope_head_dim + d_v, ldp = n_h * a->span;
    size_t first = (t0 * n_h + i) * d_q;
    const float *p = a->probs + i * a->span;
    const float *d_o = g->o + (t0 * n_h + i) * d_v;
    Matrix value = values_of(c, a->kv, i, S);
    Matrix key = matrix_f32(a->key + i * d_q, S, d_q, n_h * d_q);
    matmul_dw(g->kv + i * width + c->qk_nope_head_dim, n_h * width, p, ldp,
              d_o, n_h * d_v, nb, S, d_v);
    matmul(g->scores, a->span, d_o, n_h * d_v, nb, &value);
    scores_backward(g->scores, a->span, p, ldp, nb, t0, scaling);
    matmul_t(g->query + first, n_h * d_q, g->scores, a->span, nb, &key);
    matmul_dw(g->key + i * d_q, n_h * d_q, g->scores, a->span,
              a->query + first, n_h * d_q, nb, S, d_q);
}

/* do -> dq, dk, dv of all heads. */
static void attention_backward(const Config *c, size_t T, float scaling,
                               MlaActs *a, MlaGrads *g)
{
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_q = d_h + c->qk_rope_head_dim;
    memset(g->query, 0, T * n_h * d_q * sizeof *g->query);
    memset(g->key, 0, T * n_h * d_q * sizeof *g->key);
    memset(g->kv, 0, T * n_h * (d_h + c->v_head_dim) * sizeof *g->kv);
    for (size_t t = 0; t < T; t += a->block) {
        size_t nb = T - t < a->block ? T - t : a->block;
        weigh_positions(c, t, nb, t, scaling, a);
        for (size_t i = 0; i < n_h; i++)
            head_backward(c, i, t, nb, scaling, a, g);
    }
}

/* k = [k_C; k_R], k_C and v_C from c_KV: dk_C joins dv_C, and the shared
 * k_R takes the sum over heads, ascending. -> g->latent (T, d_c+d_r) */
static void keys_backward(const MlaWeights *w, const MlaWeights *dw,
                          const Config *c, size_t T, const float *cache,
                          MlaGrads *g)
{
    size_t n_h = c->num_attention_heads, d_c = c->kv_lora_rank;
    size_t d_h = c->qk_nope_head_dim, d_r = c->qk_rope_head_dim;
    size_t width = d_h + c->v_head_dim;
    memset(g->latent, 0, T * (d_c + d_r) * sizeof *g->latent);
    for (size_t j = 0; j < T; j++)
        for (size_t i = 0; i < n_h; i++) {
            const float *dk = g->key + (j * n_h + i) * (d_h + d_r);
            float *k_r = g->latent + j * (d_c + d_r) + d_c;
            memcpy(g->kv + (j * n_h + i) * width, dk, d_h * sizeof *dk);
            add(k_r, k_r, dk + d_h, d_r);
        }
    linear_backward(g->latent, d_c + d_r, g->kv, n_h * width, cache,
                    d_c + d_r, T, &w->kv_b_proj, &dw->kv_b_proj);
}

/* The RMSNorm of c_KV, the RoPE of k_R, then both projections from h. */
static void latent_backward(float *dh, const float *h, const MlaWeights *w,
                            const MlaWeights *dw, const Config *c, size_t T,
                            const float *cos, const float *sin,
                            const MlaActs *a, MlaGrads *g)
{
    size_t d_c = c->kv_lora_rank, d = c->hidden_size;
    size_t width = d_c + c->qk_rope_head_dim;
    rmsnorm_backward(g->kv_raw, width, matrix_numbers(&dw->kv_a_layernorm),
                     g->latent, width, a->kv_raw, width, T,
                     &w->kv_a_layernorm, latent_eps(c));
    rope_backward(g->kv_raw + d_c, width, g->latent + d_c, width, cos, sin,
                  T, c->qk_rope_head_dim / 2);
    linear_backward(dh, d, g->kv_raw, width, h, d, T, &w->kv_a_proj_with_mqa,
                    &dw->kv_a_proj_with_mqa);
}

/* q_R's RoPE, W_UQ and W_QR, the RMSNorm of c_Q, W_DQ; or W_Q alone. */
static void query_backward(float *dh, const float *h, const MlaWeights *w,
                           const MlaWeights *dw, const Config *c, size_t T,
                           const float *cos, const float *sin,
                           const MlaActs *a, MlaGrads *g)
{
    size_t n_h = c->num_attention_heads, d_h = c->qk_nope_head_dim;
    size_t d_r = c->qk_rope_head_dim, d_q = c->q_lora_rank;
    size_t d = c->hidden_size, width = n_h * (d_h + d_r);
    for (size_t i = 0; i < n_h; i++) {
        float *q_r = g->query + i * (d_h + d_r) + d_h;
        rope_backward(q_r, width, q_r, width, cos, sin, T, d_r / 2);
    }
    if (!d_q) {
        linear_backward(dh, d, g->query, width, h, d, T, &w->q_proj,
                        &dw->q_proj);
        return;
    }
    memset(g->c_q, 0, T * d_q * sizeof *g->c_q);
    linear_backward(g->c_q, d_q, g->query, width, a->c_q, d_q, T,
                    &w->q_b_proj, &dw->q_b_proj);
    rmsnorm_backward(g->c_q_raw, d_q, matrix_numbers(&dw->q_a_layernorm),
                     g->c_q, d_q, a->c_q_raw, d_q, T, &w->q_a_layernorm,
                     latent_eps(c));
    linear_backward(dh, d, g->c_q_raw, d_q, h, d, T, &w->q_a_proj,
                    &dw->q_a_proj);
}

void mla_backward(float *dh, const float *du, const float *h,
                  const MlaWeights *w, const MlaWeights *dw, const Config *c,
                  size_t T, const float *cos, const float *sin,
                  float softmax_scale, const float *cache, MlaActs *a,
                  MlaGrads *g)
{
    size_t n_h = c->num_attention_heads, d_v = c->v_head_dim;
    memset(g->o, 0, T * n_h * d_v * sizeof *g->o);
    linear_backward(g->o, n_h * d_v, du, c->hidden_size, a->o, n_h * d_v, T,
                    &w->o_proj, &dw->o_proj);
    attention_backward(c, T, softmax_scale, a, g);
    keys_backward(w, dw, c, T, cache, g);
    latent_backward(dh, h, w, dw, c, T, cos, sin, a, g);
    query_backward(dh, h, w, dw, c, T, cos, sin, a, g);
}
