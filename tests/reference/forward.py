"""The forward pass of DeepSeek-V2 and V3 in NumPy float64, from the papers.

Independent of deepseek.c and of every engine: it reads a Hugging Face
directory with its own decoders and keeps every named intermediate. Slow and
plain on purpose; a product is a sum over one axis in one fixed shape, so two
equal router rows give equal scores, bit for bit. Equations are quoted by
their numbers in the papers: V2 = arXiv 2405.04434, V3 = arXiv 2412.19437.

    python forward.py DIR ID ID ...      prints the best next token of each row
"""
import json
import os
import sys

import numpy as np
from safetensors import deserialize


# Files ----------------------------------------------------------------------

def e4m3_table():
    """All 256 codes: bias 7, no infinity, 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    e, m = code >> 3 & 15, code & 7
    value = np.where(e > 0, 2.0 ** (e - 7) * (1 + m / 8), 2.0 ** -6 * (m / 8))
    value[(e == 15) & (m == 7)] = np.nan
    return np.where(code < 128, value, -value)


def decode(dtype, shape, data):
    if dtype == 'BF16':
        bits = np.frombuffer(data, '<u2').astype(np.uint32) << 16
        a = bits.view(np.float32)
    elif dtype == 'F8_E4M3':
        a = e4m3_table()[np.frombuffer(data, np.uint8)]
    else:
        kinds = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I32': '<i4'}
        a = np.frombuffer(data, kinds[dtype])
    return a.reshape(shape)


def read_safetensors(path):
    with open(path, 'rb') as f:
        parts = deserialize(f.read())
    return {name: (t['dtype'], decode(t['dtype'], t['shape'], t['data']))
            for name, t in parts}


def weight_files(path):
    index = os.path.join(path, 'model.safetensors.index.json')
    if not os.path.exists(index):
        return ['model.safetensors']
    with open(index, encoding='utf-8') as f:
        return sorted(set(json.load(f)['weight_map'].values()))


def dequantise(q, scale):
    """value(r, c) = code * scale(r / 128, c / 128), exact in float64."""
    r, c = np.arange(q.shape[0]) // 128, np.arange(q.shape[1]) // 128
    return q * scale.astype(np.float64)[r][:, c]


def read_weights(path):
    raw = {}
    for file in weight_files(path):
        raw.update(read_safetensors(os.path.join(path, file)))
    out = {}
    for name, (dtype, a) in raw.items():
        if dtype == 'F8_E4M3':
            out[name] = dequantise(a, raw[name + '_scale_inv'][1])
        elif not name.endswith('_scale_inv'):
            out[name] = a.astype(np.float64)
    return out


DEFAULTS = {
    'deepseek_v2': dict(topk_method='greedy', scoring_func='softmax',
                        norm_topk_prob=False, routed_scaling_factor=1.0),
    'deepseek_v3': dict(topk_method='noaux_tc', scoring_func='sigmoid',
                        norm_topk_prob=True, routed_scaling_factor=2.5)}


# Where sources disagree; False is this project's default.
# latent_eps_from_config: q_a_layernorm and kv_a_layernorm use rms_norm_eps
#   (some engines), not 1e-6 whatever it says (the released code).
# v2_norm_scales: V2 with norm_topk_prob divides and scales (V3-era code), not
#   divides only (the V2 remote code).
# mtp_hidden_first, mtp_before_norm, mtp_carry_raw, mtp_zero_first: mtp.py.
READINGS = dict(latent_eps_from_config=False, v2_norm_scales=False,
                mtp_hidden_first=False, mtp_before_norm=False,
                mtp_carry_raw=False, mtp_zero_first=False)


def paper_tiles(x, c):
    """What the input of a Linear layer becomes, V3 3.3.2: tiles of 1 x 128,
    each by its own scale to E4M3, and back."""
    ue8m0 = 'scale_fmt' in c['quantization_config']
    return np.concatenate([quantise_tile(x[:, k:k + 128], ue8m0)
                           for k in range(0, x.shape[1], 128)], axis=1)


# fp8_activations: None, or a function of x and the config, such as
#   paper_tiles, that every input of a Linear layer goes through.
OPTIONS = dict(fp8_activations=None)


def normalise(config):
    """One spelling: rope_scaling and rope_theta, whoever wrote the file."""
    c = dict(moe_layer_freq=1, rms_norm_eps=1e-6, tie_word_embeddings=False,
             rope_scaling=None, **DEFAULTS[config['model_type']], **READINGS,
             **OPTIONS)
    c.update(config)
    rope = c.pop('rope_parameters', None)
    if rope is not None:
        kind = rope.get('rope_type', rope.get('type', 'default'))
        if kind not in ('default', 'yarn'):
            raise ValueError(f'rope_type {kind}')
        c['rope_theta'] = rope['rope_theta']
        c['rope_scaling'] = dict(rope) if kind == 'yarn' else None
    c['n_group'] = c.get('n_group') or 1
    c['topk_group'] = c.get('topk_group') or c['n_group']
    return c


def read_config(path):
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
        return normalise(json.load(f))


# FP8 activations ------------------------------------------------------------

E4M3 = np.sort(e4m3_table()[:127])      # the magnitudes, in the order of codes


def nearest_e4m3(x):
    """By search in the table: nearest, ties to the even code; else 448."""
    a = np.minimum(np.abs(x), 448)
    high = np.clip(np.searchsorted(E4M3, a), 1, 126)
    low = high - 1
    up, down = E4M3[high] - a, a - E4M3[low]
    code = np.where((up < down) | ((up == down) & (high % 2 == 0)), high, low)
    return np.copysign(E4M3[code], x)


def quantise_tile(x, ue8m0):
    """One scale for each row of x: float32, as it would be stored."""
    x = x.astype(np.float32)
    amax = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(1e-4))
    s = (amax / np.float32(448)).astype(np.float64)
    if ue8m0:
        m, e = np.frexp(s)
        s = np.ldexp(1.0, e - (m == 0.5))
    return nearest_e4m3((x / s.astype(np.float32)).astype(np.float64)) * s


def operand(x, c):
    """x as a Linear layer sees it."""
    return c['fp8_activations'](x, c) if c['fp8_activations'] else x


# Pieces ---------------------------------------------------------------------

def linear(x, w):
    """y = W x for every row of x; the same order of summation everywhere."""
    y = np.empty((x.shape[0], w.shape[0]))
    for t in range(x.shape[0]):
        y[t] = (w * x[t]).sum(axis=1)
    return y


def rms_norm(x, w, eps):
    return w * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def swiglu(x, w, p, c):
    x = operand(x, c)
    gate = silu(linear(x, w[p + 'gate_proj.weight']))
    h = operand(gate * linear(x, w[p + 'up_proj.weight']), c)
    return linear(h, w[p + 'down_proj.weight'])


# RoPE, YaRN -----------------------------------------------------------------

def yarn_mscale(factor, m):
    return 1.0 if factor <= 1 else 0.1 * m * np.log(factor) + 1.0


def frequencies(c):
    """Of each pair (2i, 2i+1): base^(-2i/dim), and YaRN's ramp over i as the
    released code has it: linear in i, not in the number of rotations."""
    dim, base = c['qk_rope_head_dim'], float(c['rope_theta'])
    i = np.arange(dim // 2)
    f, y = base ** (-2.0 * i / dim), c['rope_scaling']
    if y is None:
        return f
    length = y['original_max_position_embeddings']

    def corr(n):
        return dim * np.log(length / (n * 2 * np.pi)) / (2 * np.log(base))
    low = max(np.floor(corr(y.get('beta_fast', 32))), 0)
    high = min(np.ceil(corr(y.get('beta_slow', 1))), dim - 1)
    ramp = np.clip((i - low) / (high - low + 0.001 * (low == high)), 0, 1)
    return f / y['factor'] * ramp + f * (1 - ramp)


def magnitude(c):
    """What cos and sin are multiplied by: 1 in every released model."""
    y = c['rope_scaling']
    if y is None:
        return 1.0
    return (yarn_mscale(y['factor'], y.get('mscale', 1))
            / yarn_mscale(y['factor'], y.get('mscale_all_dim', 0)))


def softmax_scale(c):
    """1/sqrt(d_h + d_h^R), times YaRN's mscale squared."""
    scale = (c['qk_nope_head_dim'] + c['qk_rope_head_dim']) ** -0.5
    y = c['rope_scaling']
    if y is None:
        return scale
    return scale * yarn_mscale(y['factor'], y.get('mscale_all_dim', 0)) ** 2


def rotate(x, freq, mult):
    """x (T, ..., dim): row t turned by the angles t * freq."""
    angle = np.arange(x.shape[0])[:, None] * freq
    angle = angle.reshape(x.shape[0], *[1] * (x.ndim - 2), -1)
    cos, sin = np.cos(angle) * mult, np.sin(angle) * mult
    y, a, b = np.empty_like(x), x[..., 0::2], x[..., 1::2]
    y[..., 0::2], y[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return y


# Attention: V2 (37)-(47), V3 (1)-(11) ---------------------------------------

def attend(scores):
    """Softmax over positions j <= t of scores (T, heads, T)."""
    t = np.arange(scores.shape[0])
    hidden = t[None, None, :] > t[:, None, None]
    return softmax(np.where(hidden, -np.inf, scores))


def naive(q_c, q_r, c_kv, k_r, w_uk, w_uv, scale):
    """Keys and values of every head, then ordinary attention."""
    k_c = np.einsum('hnc,tc->thn', w_uk, c_kv)
    v = np.einsum('hvc,tc->thv', w_uv, c_kv)
    scores = scale * (np.einsum('thn,jhn->thj', q_c, k_c)
                      + np.einsum('thr,jr->thj', q_r, k_r))
    return scores, np.einsum('thj,jhv->thv', attend(scores), v)


def absorbed(q_c, q_r, c_kv, k_r, w_uk, w_uv, scale):
    """Queries and outputs in the latent space; no key or value is formed."""
    q_hat = np.einsum('hnc,thn->thc', w_uk, q_c)
    scores = scale * (np.einsum('thc,jc->thj', q_hat, c_kv)
                      + np.einsum('thr,jr->thj', q_r, k_r))
    z = np.einsum('thj,jc->thc', attend(scores), c_kv)
    return scores, np.einsum('hvc,thc->thv', w_uv, z)


def latent_eps(c):
    return c['rms_norm_eps'] if c['latent_eps_from_config'] else 1e-6


def query(x, w, c, p, keep):
    if c['q_lora_rank'] is None:
        return keep('q_proj', linear(x, w[p + 'q_proj.weight']))
    c_q = keep('q_a_proj', linear(x, w[p + 'q_a_proj.weight']))
    c_q = keep('q_a_layernorm',
               rms_norm(c_q, w[p + 'q_a_layernorm.weight'], latent_eps(c)))
    return keep('q_b_proj', linear(operand(c_q, c), w[p + 'q_b_proj.weight']))


def mla(x, w, c, p, trace, form):
    """One layer of latent attention on the whole sequence x (T, d)."""
    tokens, heads = x.shape[0], c['num_attention_heads']
    nope, rank = c['qk_nope_head_dim'], c['kv_lora_rank']

    def keep(name, value):
        trace[p + name] = value
        return value
    freq, mult = frequencies(c), magnitude(c)
    x = operand(x, c)
    q = query(x, w, c, p, keep).reshape(tokens, heads, -1)
    q_r = keep('q_pe', rotate(q[:, :, nope:], freq, mult))
    kv = keep('kv_a_proj_with_mqa',
              linear(x, w[p + 'kv_a_proj_with_mqa.weight']))
    c_kv = keep('kv_a_layernorm', rms_norm(
        kv[:, :rank], w[p + 'kv_a_layernorm.weight'], latent_eps(c)))
    k_r = keep('k_pe', rotate(kv[:, rank:], freq, mult))
    up = w[p + 'kv_b_proj.weight'].reshape(heads, -1, rank)
    assert form is naive or not c['fp8_activations']    # else no kv_b_proj
    scores, o = form(q[:, :, :nope], q_r, operand(c_kv, c), k_r,
                     up[:, :nope], up[:, nope:], softmax_scale(c))
    keep('scores', scores)
    return keep('o_proj', linear(operand(o.reshape(tokens, -1), c),
                                 w[p + 'o_proj.weight']))


# Mixture of experts: V2 (20)-(22), V3 (12)-(16) -----------------------------

def best(values, k):
    """Indices of the k largest, best first; ties go to the lowest index."""
    return np.argsort(-values, axis=-1, kind='stable')[..., :k]


def gap(values, k):
    """By how much the order of the k best and the first loser is decided."""
    top = -np.sort(-values, axis=-1)[..., :k + 1]
    step = top[..., :-1] - top[..., 1:]
    return np.where(np.isnan(step), np.inf, step)


def group_choice(c, choice, keep):
    """choice with the experts of dropped groups at -inf."""
    method, groups = c['topk_method'], c['n_group']
    if method == 'greedy':
        return choice
    by_group = choice.reshape(choice.shape[0], groups, -1)
    if method == 'group_limited_greedy':
        score = by_group.max(axis=2)
    else:
        score = -np.sort(-by_group, axis=2)[:, :, :2].sum(axis=2)
    keep('group_scores', score)
    keep('group_gap', gap(score, c['topk_group'])[:, -1:])
    mask = np.zeros_like(score, bool)
    np.put_along_axis(mask, best(score, c['topk_group']), True, axis=1)
    return np.where(mask[:, :, None], by_group, -np.inf).reshape(choice.shape)


def route(x, w, c, p, keep):
    """The chosen experts of each token, best first, and their weights."""
    k = c['num_experts_per_tok']
    logits = keep('logits', linear(x, w[p + 'gate.weight']))
    sigmoid = c['scoring_func'] == 'sigmoid'
    s = keep('scores', 1 / (1 + np.exp(-logits)) if sigmoid
             else softmax(logits))
    bias = c['topk_method'] == 'noaux_tc'
    choice = s + w[p + 'gate.e_score_correction_bias'] if bias else s
    choice = group_choice(c, choice, keep)
    keep('choice_gap', gap(choice, k))
    ids = keep('topk_ids', best(choice, k).astype(np.int32))
    weights = np.take_along_axis(s, ids, axis=1)
    norm = c['norm_topk_prob'] and k > 1
    if norm:
        weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
    if not norm or c['model_type'] == 'deepseek_v3' or c['v2_norm_scales']:
        weights = weights * c['routed_scaling_factor']
    return ids, keep('topk_weights', weights)


def moe(x, w, c, p, trace):
    def keep(name, value):
        trace[p + 'gate.' + name] = value
        return value
    ids, weights = route(x, w, c, p, keep)
    y = np.zeros_like(x)
    for e in range(c['n_routed_experts']):
        t, k = np.nonzero(ids == e)
        if len(t):
            y[t] += weights[t, k, None] * swiglu(x[t], w,
                                                 f'{p}experts.{e}.', c)
    trace[p + 'routed_out'] = y
    trace[p + 'shared_out'] = swiglu(x, w, p + 'shared_experts.', c)
    return y + trace[p + 'shared_out']


# The model ------------------------------------------------------------------

def has_experts(c, layer):
    """MTP layers, from num_hidden_layers on, always."""
    return (c.get('n_routed_experts') is not None
            and (layer >= c['num_hidden_layers']
                 or (layer >= c['first_k_dense_replace']
                     and layer % c['moe_layer_freq'] == 0)))


def block(h, w, c, layer, trace, form):
    p, eps = f'model.layers.{layer}.', c['rms_norm_eps']
    x = rms_norm(h, w[p + 'input_layernorm.weight'], eps)
    trace[p + 'input_layernorm'] = x
    h = h + mla(x, w, c, p + 'self_attn.', trace, form)
    x = rms_norm(h, w[p + 'post_attention_layernorm.weight'], eps)
    trace[p + 'post_attention_layernorm'] = x
    if has_experts(c, layer):
        y = moe(x, w, c, p + 'mlp.', trace)
    else:
        y = swiglu(x, w, p + 'mlp.', c)
    trace[p + 'mlp'] = y
    trace[f'model.layers.{layer}'] = h + y
    return h + y


def forward(c, w, ids, form=absorbed):
    """name -> every intermediate for the tokens ids, `logits` among them."""
    trace = {}
    h = trace['model.embed_tokens'] = w['model.embed_tokens.weight'][ids]
    for layer in range(c['num_hidden_layers']):
        h = block(h, w, c, layer, trace, form)
    h = rms_norm(h, w['model.norm.weight'], c['rms_norm_eps'])
    trace['model.norm'] = h
    tied = c['tie_word_embeddings']
    head = 'model.embed_tokens.weight' if tied else 'lm_head.weight'
    trace['logits'] = linear(h, w[head])
    return trace


def load(path):
    return read_config(path), read_weights(path)


if __name__ == '__main__':
    result = forward(*load(sys.argv[1]), np.array(sys.argv[2:], np.int64))
    print(*result['logits'].argmax(axis=1))
