/* mtp.c: multi-token prediction, drafting ------------- V3 §2.2, §5.4.3
 *
 * Module k = 1 … D is layer num_hidden_layers + k - 1. Its row i joins the
 * state h_i^(k-1) of the stage before (h^0 is the main model's) with the token
 * t_(i+k), runs a block at position i and predicts t_(i+k+1):
 *
 *   h_i^(k-1), t_(i+k) -> join -> block -> norm -> h_i^k -> head
 *
 * Two uses. mtp_prompt: every token is known, each module runs behind the
 * pass. mtp_generate: the modules draft K tokens, one pass of the main model
 * over them verifies all, and the first that it would not have said, and what
 * follows it, is forgotten.
 *
 * Invariants: n tokens are known, the last one not yet in the main cache. A
 * row of module k is final once t_(i+k) is known, so n-k rows are (row[k-1]);
 * later rows may stand on drafts: they are run again, and written over,
 * before anything final reads them. A module's batch begins at its first row
 * that is not final, and the states for that are those of the stage before in
 * this very step, but for one at most, which is kept. So no state outlives a
 * step but D rows. Drafts beyond D come from module D, fed with its own state.
 *
 * Not here: what a block computes (deepseek.c); the losses V3 (24), (25),
 * which only training has. */
#include "deepseek.h"

#include "base/backward.h"
#include "base/os.h"

#include <stdlib.h>
#include <string.h>

enum { PLAIN_EVERY = 16 };

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Opening ---------------------------------------------------------------- */

int mtp_check(const Model *m, size_t modules, Error *err)
{
    const Config *c = &m->config;
    TensorWalk walk = tensor_walk(c, NULL);
    TensorInfo info;
    if (modules > c->num_nextn_predict_layers)
        return fail(err, "drafts: wanted a model with %zu MTP module%s, found"
                    " num_nextn_predict_layers %zu", modules,
                    modules == 1 ? "" : "s", c->num_nextn_predict_layers);
    while (modules > m->n_mtp && tensor_next(&walk, &info))
        if (info.layer == c->num_hidden_layers + m->n_mtp
            && info.kind != TENSOR_EMBED)
            return fail(err, "drafts: %s is missing: MTP module %zu of the"
                        " %zu announced is not there", info.name,
                        m->n_mtp + 1, c->num_nextn_predict_layers);
    return 0;
}

int mtp_options(SessionOptions *o, const Model *m, size_t drafts, Error *err)
{
    size_t D = least(drafts, m->config.num_nextn_predict_layers);
    if (drafts < 1 || drafts > MAX_DRAFTS)
        return fail(err, "drafts: wanted 1 to %d a step, found %zu",
                    (int)MAX_DRAFTS, drafts);
    if (mtp_check(m, D ? D : 1, err))
        return -1;
    o->modules = D;
    o->logit_rows = drafts + 1;
    if (o->chunk && o->chunk < drafts + D)
        o->chunk = drafts + D;
    return 0;
}

int mtp_open(Mtp *m, Session *s, size_t drafts, bool best, Error *err)
{
    size_t V = s->model->config.vocab_size;
    *m = (Mtp){.session = s, .drafts = drafts, .best = best};
    m->ids = allocate(s->options.ctx + 1, sizeof *m->ids, "tokens", err);
    m->row = allocate(s->options.modules, sizeof *m->row, "modules", err);
    m->order = allocate(V, sizeof *m->order, "sampling", err);
    m->p = allocate(V, sizeof *m->p, "sampling", err);
    m->q = allocate(drafts * V, sizeof *m->q, "drafts", err);
    if (m->ids && m->row && m->order && m->p && m->q)
        return 0;
    mtp_close(m);
    return -1;
}

void mtp_close(Mtp *m)
{
    free(m->ids);
    free(m->row);
    free(m->order);
    free(m->p);
    free(m->q);
    memset(m, 0, sizeof *m);
}

/* The modules ------------------------------------------------------------ */

/* States h of the rows begin … end-1, from the stage before. */
typedef struct {
    const float *h;
    size_t begin, end;
} States;

static size_t layer_of(const Session *s, size_t k)
{
    return s->model->config.num_hidden_layers + k - 1;
}

/* A module's own table if it has one, else the main model's: "shared". */
static const Matrix *table(const Matrix *own, const Matrix *shared)
{
    return own->data ? own : shared;
}

static void embed(Mtp *m, size_t k, size_t row, size_t T)
{
    Session *s = m->session;
    const Model *model = s->model;
    const LayerWeights *w = &model->layers[layer_of(s, k)];
    size_t d = model->config.hidden_size;
    const Matrix *rows = table(&w->embed_tokens, &model->embed_tokens);
    for (size_t t = 0; t < T; t++)
        matrix_row(s->embed + t * d, rows, (size_t)m->ids[row + t + k]);
    if (model->config.mtp_zero_first && row == 0)
        scale(s->embed, s->embed, 0, d);
}

/* RMSNorm(h) of T rows from `row` on. The first may lie before the states at
 * hand: then it is the one kept. */
static void norm_states(float *y, Mtp *m, size_t k, const States *in,
                        size_t row, size_t T)
{
    Session *s = m->session;
    const Config *c = &s->model->config;
    const Matrix *w = &s->model->layers[layer_of(s, k)].hnorm;
    size_t d = c->hidden_size, kept = row < in->begin;
    float eps = (float)c->rms_norm_eps;
    if (kept)
        rmsnorm(y, 2 * d, s->mtp.kept + (k - 1) * d, d, 1, w, eps);
    if (T > kept)
        rmsnorm(y + kept * 2 * d, 2 * d,
                in->h + (row + kept - in->begin) * d, d, T - kept, w, eps);
}

/* h' = M_k [RMSNorm(Emb(t_(i+k))); RMSNorm(h_i^(k-1))], in this order as the
 * released weights have it; the equation has the other    V3 (21) */
static void join(Mtp *m, size_t k, const States *in, size_t row, size_t T)
{
    Session *s = m->session;
    const Config *c = &s->model->config;
    const LayerWeights *w = &s->model->layers[layer_of(s, k)];
    size_t d = c->hidden_size;
    size_t hidden = c->mtp_hidden_first ? 0 : d;
    embed(m, k, row, T);
    rmsnorm(s->mtp.pair + d - hidden, 2 * d, s->embed, d, T, &w->enorm,
            (float)c->rms_norm_eps);
    norm_states(s->mtp.pair + hidden, m, k, in, row, T);
    matmul(s->mtp.h, d, s->mtp.pair, 2 * d, T, &w->eh_proj);
}

/* P_(i+k+1) = OutHead(h_i^k), of n rows from `first` on     V3 (23) */
static int predict(Mtp *m, size_t k, size_t first, size_t n, size_t row,
                   Error *err)
{
    Session *s = m->session;
    const LayerWeights *w = &s->model->layers[layer_of(s, k)];
    return session_head(s,
                        s->mtp.norm + first * s->model->config.hidden_size,
                        table(&w->shared_head_head, &s->model->lm_head), n,
                        row + first, err);
}

/* The block on T rows of h' from `row` on. *out: their states.
 * h^k = RMSNorm(TRM_k(h'))                                  V3 (22) */
static int transform(Mtp *m, size_t k, size_t row, size_t T, States *out,
                     Error *err)
{
    Session *s = m->session;
    const Config *c = &s->model->config;
    size_t layer = layer_of(s, k), d = c->hidden_size;
    *out = (States){c->mtp_carry_raw ? s->acts.h : s->mtp.norm, row,
                    row + T};
    rope_table(s->cos, s->sin, &s->rope, T, row);
    if (session_trace(s, STAGE_PAIR, layer, T, row, err)
        || session_block(s, s->mtp.h, layer, T, row, err))
        return -1;
    rmsnorm(s->mtp.norm, d, s->acts.h, d, T,
            &s->model->layers[layer].shared_head_norm,
            (float)c->rms_norm_eps);
    if (!s->options.trace)
        return 0;
    return session_trace(s, STAGE_MTP_NORM, layer, T, row, err)
                   || predict(m, k, 0, T, row, err)
                   || session_trace(s, STAGE_MTP_LOGITS, layer, T, row, err)
               ? -1 : 0;
}

/* The state that module k begins with next time, unless the stage before is
 * going to make it again. */
static void keep_state(Mtp *m, size_t k, const States *in, size_t row)
{
    Session *s = m->session;
    size_t d = s->model->config.hidden_size;
    if (row >= in->begin && row < in->end)
        scale(s->mtp.kept + (k - 1) * d, in->h + (row - in->begin) * d, 1,
              d);
}

/* Module k from its first row that is not final: to the end of the states *in
 * for a draft, else only rows that are final now. Then *in are its own. */
static int advance(Mtp *m, size_t k, States *in, size_t known, bool draft,
                   Error *err)
{
    size_t row = m->row[k - 1];
    size_t final = least(in->end, known > k ? known - k : 0);
    size_t end = draft ? in->end : final;
    if (end > row)
        join(m, k, in, row, end - row);
    keep_state(m, k, in, final);
    m->row[k - 1] = final;
    *in = (States){NULL, row, row};
    return end > row ? transform(m, k, row, end - row, in, err) : 0;
}

/* The main model's states that no module has seen. */
static States main_states(const Mtp *m)
{
    const Session *s = m->session;
    bool raw = s->model->config.mtp_before_norm;
    return (States){raw ? s->acts.h : s->norm, m->states, s->pos};
}

int mtp_prompt(Mtp *m, const int32_t *ids, size_t n, const char *what,
               Error *err)
{
    Session *s = m->session;
    size_t chunk = session_chunk(s), known = s->pos + n;
    Progress progress;
    if (m->row[s->options.modules - 1] != s->pos)
        return fail(err, "drafts: wanted modules that have seen %zu tokens,"
                    " found %zu", s->pos, m->row[s->options.modules - 1]);
    if (session_check(s, ids, n, err))
        return -1;
    memcpy(m->ids + s->pos, ids, n * sizeof *ids);
    progress_begin(&progress, what);
    int failed = 0;
    for (size_t i = 0; i < n && !failed; i += chunk) {
        m->states = s->pos;
        failed = session_forward(s, ids + i, least(n - i, chunk), NULL, err);
        States in = main_states(m);
        for (size_t k = 1; k <= s->options.modules && !failed; k++)
            failed = advance(m, k, &in, known, false, err);
        progress_show(&progress, (double)s->pos, (double)known);
    }
    progress_end(&progress);
    m->states = s->pos;
    return failed;
}

/* Drafting --------------------------------------------------------------- */

static size_t vocabulary(const Mtp *m)
{
    return m->session->model->config.vocab_size;
}

/* Draft j, from the last row of module k. */
static int choose(Mtp *m, size_t k, size_t j, const States *rows,
                  const GenerateOptions *o, Error *err)
{
    Session *s = m->session;
    Sampler sampler = o->sampler;
    float *q = m->q + (j - 1) * vocabulary(m);
    size_t T = rows->end - rows->begin;
    if (predict(m, k, T - 1, 1, rows->begin, err))
        return -1;
    if (m->best)
        sampler.temperature = 0;
    size_t kept = sample_distribution(&sampler, session_logits(s, 0),
                                      o->vocabulary, m->order, m->p);
    m->ids[s->pos + j] = (int32_t)sample_draw(m->order, m->p, kept,
                                              &m->random);
    memset(q, 0, o->vocabulary * sizeof *q);
    for (size_t i = 0; i < kept; i++)
        q[m->order[i]] = m->p[i];
    return 0;
}

/* Draft j > D: the last module again, on its own last state in place of that
 * of the stage before, and on the draft before. */
static int choose_again(Mtp *m, size_t j, States *rows,
                        const GenerateOptions *o, Error *err)
{
    const Session *s = m->session;
    size_t D = s->options.modules, row = s->pos + j - D - 1;
    size_t last = rows->end - rows->begin - 1;
    States in = {rows->h + last * s->model->config.hidden_size, row, row + 1};
    join(m, D, &in, row, 1);
    return transform(m, D, row, 1, rows, err)
                   || choose(m, D, j, rows, o, err)
               ? -1 : 0;
}

int mtp_draft(Mtp *m, int32_t next, size_t n, const GenerateOptions *o,
              Error *err)
{
    Session *s = m->session;
    size_t D = s->options.modules;
    States rows = main_states(m);
    int failed = 0;
    m->ids[s->pos] = next;
    for (size_t k = 1; k <= D && !failed; k++) {
        failed = advance(m, k, &rows, s->pos + 1, k <= n, err);
        if (!failed && k <= n)
            failed = choose(m, k, k, &rows, o, err);
    }
    for (size_t j = D + 1; j <= n && !failed; j++)
        failed = choose_again(m, j, &rows, o, err);
    m->states = s->pos;
    return failed;
}

/* What is below `pos` and the D tokens before it may not be final in every
 * module, nor are its states at hand. */
size_t mtp_rewind(Mtp *m, size_t pos)
{
    Session *s = m->session;
    size_t D = s->options.modules;
    size_t left = least(pos, s->pos);
    left = least(left > D ? left - D : 0, m->row[D - 1]);
    session_rewind(s, left);
    m->states = left;
    for (size_t k = 0; k < D; k++)
        m->row[k] = left;
    return left;
}

/* Verification ----------------------------------------------------------- */

double draft_acceptance(double p, double q)
{
    return p < q ? p / q : 1;
}

size_t draft_residual(uint32_t *order, float *p, size_t kept, const float *q)
{
    size_t n = 0;
    double total = 0;
    for (size_t i = 0; i < kept; i++) {
        float rest = p[i] - q[order[i]];
        if (!(rest > 0))
            continue;
        order[n] = order[i];
        p[n++] = rest;
        total += (double)rest;
    }
    if (n)
        scale(p, p, (float)(1 / total), n);
    return n;
}

static double uniform(Random *r)
{
    return (double)(random_u64(r) >> 11) * 0x1p-53;
}

/* What the main model says, `back` rows before the last. */
static size_t distribution(Mtp *m, const GenerateOptions *o, size_t back)
{
    return sample_distribution(&o->sampler, session_logits(m->session, back),
                               o->vocabulary, m->order, m->p);
}

static double probability(const Mtp *m, size_t kept, int32_t id)
{
    for (size_t i = 0; i < kept; i++)
        if (m->order[i] == (uint32_t)id)
            return (double)m->p[i];
    return 0;
}

/* Draft j, which the main model's logits `back` rows before the last are
 * about: true, or false and another token. */
static bool judge(Mtp *m, const GenerateOptions *o, size_t j, size_t back,
                  int32_t *id)
{
    const float *q = m->q + (j - 1) * vocabulary(m);
    size_t kept = distribution(m, o, back);
    if (uniform(&m->random) < draft_acceptance(probability(m, kept, *id),
                                               (double)q[*id]))
        return true;
    kept = draft_residual(m->order, m->p, kept, q);
    if (!kept)
        kept = distribution(m, o, back);
    *id = (int32_t)sample_draw(m->order, m->p, kept, &m->random);
    return false;
}

/* What a generation carries. */
typedef struct {
    Mtp *m;
    const GenerateOptions *o;
    GenerateSink *sink;
    void *context;
    GenerateStats *stats;
    MtpStats *drafted;
    Error *err;
} Draft;

/* One token, whose position is `at`; where the text ends, so does the cache. */
static int emit(Draft *g, int32_t id, size_t at)
{
    Session *s = g->m->session;
    int ended = generate_emit(g->o, id, at == s->options.ctx, g->sink,
                              g->context, g->stats, g->err);
    if (ended)
        session_rewind(s, at);
    return ended;
}

/* One pass over the last token and n drafts. *next: what comes after those
 * that are accepted; *accepted of them are. */
static int verify(Draft *g, size_t n, int32_t *next, size_t *accepted)
{
    Mtp *m = g->m;
    Session *s = m->session;
    size_t start = s->pos, *a = accepted;
    m->states = start;
    if (session_forward(s, m->ids + start, n + 1, NULL, g->err))
        return -1;
    for (*a = 0; *a < n; ++*a) {
        *next = m->ids[start + 1 + *a];
        g->drafted->tried[*a]++;
        if (!judge(m, g->o, *a + 1, n - *a, next))
            break;
        g->drafted->accepted[*a]++;
        int ended = emit(g, *next, start + 1 + *a);
        if (ended)
            return ended;
    }
    if (*a == n)
        *next = (int32_t)sample_draw(m->order, m->p, distribution(m, g->o, 0),
                                     &m->random);
    session_rewind(s, start + 1 + *a);
    return 0;
}

/* Drafts n tokens behind *id and verifies them. *id: the token after. */
static int step(Draft *g, size_t n, int32_t *id)
{
    Mtp *m = g->m;
    Session *s = m->session;
    MtpStats *d = g->drafted;
    double start = os_seconds(), drafted;
    size_t accepted = 0;
    if (mtp_draft(m, *id, n, g->o, g->err))
        return -1;
    drafted = os_seconds();
    uint64_t experts = s->experts_read;
    int ended = verify(g, n, id, &accepted);
    d->draft_seconds += drafted - start;
    if (ended)
        return ended;
    if (n == m->drafts) {
        d->steps++;
        d->tokens += accepted + 1;
        d->step_seconds += os_seconds() - start;
        d->step_experts += s->experts_read - experts;
    } else if (!n) {
        d->plain_steps++;
        d->plain_seconds += os_seconds() - drafted;
        d->plain_experts += s->experts_read - experts;
    }
    return 0;
}

/* So many drafts that they and the token after them find room. */
static size_t drafts_now(const Draft *g)
{
    const Session *s = g->m->session;
    size_t room = s->options.ctx - s->pos - 1;
    size_t left = g->o->n - g->stats->new_tokens - 1;
    return least(g->m->drafts, least(room, left));
}

static int draft_loop(Draft *g)
{
    Mtp *m = g->m;
    int32_t id = (int32_t)sample_draw(m->order, m->p,
                                      distribution(m, g->o, 0), &m->random);
    int ended = emit(g, id, m->session->pos);
    for (size_t i = 0; !ended; i++) {
        ended = step(g, i % PLAIN_EVERY == 1 ? 0 : drafts_now(g), &id);
        if (!ended)
            ended = emit(g, id, m->session->pos);
    }
    return ended < 0 ? -1 : 0;
}

int mtp_generate(Mtp *m, const int32_t *prompt, size_t n,
                 const GenerateOptions *o, GenerateSink *sink, void *context,
                 GenerateStats *stats, MtpStats *drafted, Error *err)
{
    Draft g = {m, o, sink, context, stats, drafted, err};
    double start = os_seconds();
    *stats = (GenerateStats){.prompt_tokens = n};
    m->random = random_seeded(o->seed);
    int failed = generate_check(m->session, o, err)
                 || mtp_prompt(m, prompt, n, "reading the prompt", err);
    stats->prompt_seconds = os_seconds() - start;
    if (!failed && o->n)
        failed = draft_loop(&g);
    stats->decode_seconds = os_seconds() - start - stats->prompt_seconds;
    return failed ? -1 : 0;
}

/* Training --------------------------------------------------------------- */

void mtp_join(MtpTape *a, const int32_t *ids, size_t ld,
              const LayerWeights *w, const Matrix *embedding,
              const Config *c, size_t B, size_t T)
{
    size_t d = c->hidden_size, hidden = c->mtp_hidden_first ? 0 : d;
    float eps = (float)c->rms_norm_eps;
    for (size_t row = 0; row < B * T; row++)
        matrix_row(a->embed + row * d, embedding,
                   (size_t)ids[row / T * ld + row % T]);
    for (size_t b = 0; c->mtp_zero_first && b < B; b++)
        memset(a->embed + b * T * d, 0, d * sizeof *a->embed);
    rmsnorm(a->pair + d - hidden, 2 * d, a->embed, d, B * T, &w->enorm, eps);
    rmsnorm(a->pair + hidden, 2 * d, a->state, d, B * T, &w->hnorm, eps);
    matmul(a->h, d, a->pair, 2 * d, B * T, &w->eh_proj);
}

void mtp_join_backward(float *dstate, float *dembed, const float *dh,
                       float *dpair, const MtpTape *a,
                       const LayerWeights *w, const LayerWeights *dw,
                       const Config *c, size_t B, size_t T)
{
    size_t d = c->hidden_size, hidden = c->mtp_hidden_first ? 0 : d;
    float eps = (float)c->rms_norm_eps;
    memset(dpair, 0, B * T * 2 * d * sizeof *dpair);
    linear_backward(dpair, 2 * d, dh, d, a->pair, 2 * d, B * T, &w->eh_proj,
                    &dw->eh_proj);
    rmsnorm_backward(dembed, d, matrix_numbers(&dw->enorm),
                     dpair + d - hidden, 2 * d, a->embed, d, B * T,
                     &w->enorm, eps);
    rmsnorm_backward(dstate, d, matrix_numbers(&dw->hnorm), dpair + hidden,
                     2 * d, a->state, d, B * T, &w->hnorm, eps);
    for (size_t b = 0; c->mtp_zero_first && b < B; b++)
        memset(dembed + b * T * d, 0, d * sizeof *dembed);
}
