"""Small DeepSeek checkpoints, one for every branch of the forward pass.

A case is a config.json, a seed, and how its tensors are stored. Weights are
designed, not merely drawn, so that leaving a stage out moves the logits: every
norm gain differs, every matrix has a fan-in gain of at least one, gates stay
off saturation, block scales of FP8 differ from block to block. All numbers
come from PCG64 integers by exact arithmetic: the files are the same bytes on
every machine.

    python models.py OUT [NAME ...]      writes OUT/NAME for each case
"""
import json
import os
import sys
import zlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

YARN = dict(type='yarn', factor=40, original_max_position_embeddings=4096,
            beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)
YARN_V2 = dict(YARN, mscale=0.707, mscale_all_dim=0.707)

COMMON = dict(
    attention_bias=False, attention_dropout=0.0, hidden_act='silu',
    initializer_range=0.02, max_position_embeddings=163840,
    moe_layer_freq=1, rms_norm_eps=1e-6, rope_theta=10000,
    tie_word_embeddings=False, use_cache=True, torch_dtype='bfloat16',
    bos_token_id=0, eos_token_id=1,
    vocab_size=64, hidden_size=32, intermediate_size=20,
    moe_intermediate_size=4, num_attention_heads=2, num_key_value_heads=2,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12, kv_lora_rank=20,
    num_hidden_layers=2, first_k_dense_replace=1)

V2 = dict(
    COMMON, architectures=['DeepseekV2ForCausalLM'], model_type='deepseek_v2',
    q_lora_rank=16, n_routed_experts=12, n_shared_experts=2,
    num_experts_per_tok=4, topk_method='group_limited_greedy',
    scoring_func='softmax', n_group=4, topk_group=2, norm_topk_prob=False,
    routed_scaling_factor=16.0, rope_scaling=YARN_V2)

LITE = dict(
    V2, q_lora_rank=None, topk_method='greedy', n_group=1, topk_group=1,
    routed_scaling_factor=1.0)

V3 = dict(
    COMMON, architectures=['DeepseekV3ForCausalLM'], model_type='deepseek_v3',
    q_lora_rank=16, n_routed_experts=12, n_shared_experts=1,
    num_experts_per_tok=4, topk_method='noaux_tc', scoring_func='sigmoid',
    n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
    rope_scaling=YARN)

FP8 = dict(quant_method='fp8', fmt='e4m3', activation_scheme='dynamic',
           weight_block_size=[128, 128])


def spelled_by_transformers_5(config):
    """The same model in the words transformers 5 saves: rope_parameters for
    rope_theta and rope_scaling, dtype for torch_dtype, extra head sizes; what
    its class has no field for (V3: topk_method, scoring_func) is gone."""
    c = dict(config)
    rope = c.pop('rope_scaling') or {}
    c['rope_parameters'] = dict(rope_type='default')
    c['rope_parameters'].update((k, v) for k, v in rope.items() if k != 'type')
    if rope:
        c['rope_parameters'].update(rope_type=rope['type'], type=rope['type'])
    c['rope_parameters']['rope_theta'] = c.pop('rope_theta')
    c['dtype'] = c.pop('torch_dtype')
    c['head_dim'] = c['qk_rope_head_dim']
    c['qk_head_dim'] = c['qk_nope_head_dim'] + c['qk_rope_head_dim']
    c.update(output_router_logits=False, pad_token_id=None, pretraining_tp=1,
             transformers_version='5.23.0')
    del c['moe_layer_freq']
    if c['model_type'] == 'deepseek_v3':
        c.update(rope_interleave=True, num_nextn_predict_layers=1)
        del c['topk_method'], c['scoring_func']
    else:
        c['mlp_bias'] = False
        del c['scoring_func']
    return c


def case(config, seed, why, tokens=32, store='BF16', **more):
    return dict(config=config, seed=seed, why=why, tokens=tokens, store=store,
                **more)


def k4_bias(name, w):
    """Every bias from -1.9 to -1, so that most biased scores are negative:
    experts of dropped groups masked with 0 would win."""
    return w * 1.5 - 1.45 if name.endswith('correction_bias') else w


# The embedding's coordinate 0 of every eighth token: through the routers'
# rows of -10 it brings all scores from 1e-3 down to below 1e-20.
K5_LOW = [1.0, 2.0, 4.0, 8.0, 12.0, 24.0]


def k5_ties(name, w):
    """Coordinate 0 passes through the residual stream untouched and pulls
    every score towards 0, where the biases (4, apart by less than BF16 sees)
    alone choose, where (s + 12) - 12 is 0, and where 1e-20 counts. Experts 4
    and 3, and groups 3 and 2, are the same to the router: exact ties."""
    if name == 'model.embed_tokens.weight':
        w[:, 0] = 0
        w[7::8, 0] = [K5_LOW[i % 6] for i in range(len(w[7::8]))]
    elif name.endswith(('o_proj.weight', 'down_proj.weight')):
        w[0] = 0
    elif name.endswith('post_attention_layernorm.weight'):
        w[0] = 1
    elif name.endswith('gate.weight'):
        w[:, 0] = -10
        w[4], w[9:12] = w[3], w[6:9]
    elif name.endswith('correction_bias'):
        w = 4 + w / 6
        w[2] = w[1] + 1e-4
        w[4], w[9:12] = w[3], w[6:9]
        w[5] = 12 if '.1.' in name else w[5]
    return w


def k8_small(name, w):
    """An embedding of mean square 0.01, as large as eps."""
    return w * 0.1 if 'embed_tokens' in name else w


def mtp_follows(name, w):
    """Modules that often say what the model will: blocks add little to the
    embedding, and eh_proj lets the embedding through."""
    if name.endswith(('o_proj.weight', 'down_proj.weight')):
        return w * 0.15
    if name.endswith('eh_proj.weight'):
        return w * 0.3 + np.eye(*w.shape)
    if name.endswith(('enorm.weight', 'model.norm.weight',
                      'shared_head.norm.weight')):
        return 0.8 + 0.2 * w
    return w


FEW = dict(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2)

CASES = {
    'k1-v2-lite': case(
        dict(LITE, num_hidden_layers=3), 4,
        'K1: no query compression, softmax, greedy, two shared experts'),
    'k2-v2': case(
        dict(V2, num_hidden_layers=3), 2,
        'K2: groups by their maximum, scale 16, no normalisation'),
    'k3-v3': case(
        dict(V3, num_hidden_layers=6, first_k_dense_replace=3), 6,
        'K3: sigmoid, bias, top-2 sums, normalised, three dense layers'),
    'k4-negative-bias': case(
        dict(V3, num_hidden_layers=3), 1,
        'K4: biases below -0.6: dropped groups count as -inf, not as 0',
        design=k4_bias),
    'k5-ties': case(
        dict(V3, first_k_dense_replace=0), 1,
        'K5: FP32 bias, tiny scores, 1e-20, exact ties of experts and groups',
        design=k5_ties, ties=True, tokens=40, always=range(7, 64, 8)),
    'k6-no-yarn': case(
        dict(V3, rope_scaling=None, rope_theta=640), 1,
        'K6: rope_scaling null, another theta'),
    'k7-yarn': case(
        dict(V3, qk_rope_head_dim=16, rope_theta=50,
             max_position_embeddings=1024, rope_scaling=dict(
                 type='yarn', factor=32, original_max_position_embeddings=32,
                 beta_fast=3, beta_slow=0.05, mscale=0.9,
                 mscale_all_dim=0.6)), 1,
        'K7: every YaRN field apart; positions past the original length; '
        'the ramp ends past the last pair', tokens=48),
    'k8-eps': case(
        dict(V3, rms_norm_eps=1e-2), 1,
        'K8: rms_norm_eps 1e-2, small activations; latent norms keep 1e-6',
        design=k8_small, readings=['latent_eps_from_config']),
    'k9-shapes': case(
        dict(V3, num_hidden_layers=5, moe_layer_freq=2, vocab_size=67,
             tie_word_embeddings=True, v_head_dim=20, n_group=3,
             num_experts_per_tok=3), 1,
        'K9: moe_layer_freq 2, tied head, d_v 20 and d_nope 12, 67 tokens, '
        'three experts of two groups'),
    'fp8-ragged': case(
        dict(V3, **FEW, hidden_size=40, q_lora_rank=152, kv_lora_rank=24,
             qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=149,
             intermediate_size=300, quantization_config=FP8), 1,
        'FP8 blocks: 152 rows in 2 (76 divides them, wrongly), 338 in 3 '
        '(nothing divides them), heads across blocks, a block of zeros',
        store='FP8', tokens=24),
    'fp8-ue8m0': case(
        dict(V3, **FEW, v_head_dim=70, intermediate_size=140,
             quantization_config=dict(FP8, scale_fmt='ue8m0')), 1,
        'FP8 with scales that are powers of two, but for o_proj as in V3.1',
        store='FP8', tokens=24),
    'fp8-sharded': case(
        dict(V3, **FEW, quantization_config=FP8), 2,
        'three shards and an index; no scale lies with its weight',
        store='FP8', tokens=24, shards=3),
    'f16': case(dict(LITE, **FEW, torch_dtype='float16'), 2,
                'F16 weights', store='F16', tokens=24),
    'f32-unaligned': case(
        dict(V3, **FEW, torch_dtype='float32'), 3,
        'F32 weights that BF16 cannot hold; data at an odd offset',
        store='F32', tokens=24, pad_header=1),
    'mtp-absent': case(
        dict(V3, **FEW, num_nextn_predict_layers=1), 3,
        'announces an MTP layer and has none', tokens=24),
    'mtp-present': case(
        dict(V3, **FEW, num_nextn_predict_layers=1), 3,
        'has an MTP layer, which the main model does not use',
        tokens=24, mtp_layers=1),
    'mtp-two': case(
        dict(V3, **FEW, num_nextn_predict_layers=2), 1,
        'two MTP modules that share the tables and are often right',
        tokens=24, mtp_layers=2, mtp_tables=False, design=mtp_follows),
    'one-group': case(
        dict(V3, q_lora_rank=None, n_group=1, topk_group=1,
             num_experts_per_tok=3, n_shared_experts=2, rope_scaling=None,
             rope_theta=50000, routed_scaling_factor=2.446), 2,
        'V3 with one group, no query compression, no YaRN (as Moonlight)'),
    'dense-v2': case(
        dict(LITE, n_routed_experts=None, n_shared_experts=None,
             num_experts_per_tok=None, topk_method=None), 1,
        'n_routed_experts null: no experts at all', tokens=24),
    'dense-v3': case(
        dict(V3, first_k_dense_replace=3), 2,
        'first_k_dense_replace past the last layer', tokens=24),
    'norm-topk-v2': case(
        dict(V2, **FEW, norm_topk_prob=True), 3,
        'V2 with norm_topk_prob: divides and does not scale (disputed)',
        tokens=24, readings=['v2_norm_scales']),
    'yarn-absent': case(
        dict(V3, **FEW, rope_scaling=dict(
            type='yarn', factor=8, original_max_position_embeddings=6,
            mscale=0.7)), 2,
        'YaRN without betas and mscale_all_dim; the ramp is a step'),
    'transformers-5-v2': case(
        spelled_by_transformers_5(dict(LITE, **FEW)), 2,
        'V2-Lite in the words of transformers 5', tokens=24),
    'transformers-5-v3': case(
        spelled_by_transformers_5(dict(V3, **FEW)), 3,
        'V3 in the words of transformers 5', tokens=24),
}


# Tensors --------------------------------------------------------------------

def is_moe(c, layer):
    return (c.get('n_routed_experts') is not None
            and layer >= c['first_k_dense_replace']
            and layer % c.get('moe_layer_freq', 1) == 0)


def attention_shapes(c, p):
    d, heads = c['hidden_size'], c['num_attention_heads']
    nope, rope = c['qk_nope_head_dim'], c['qk_rope_head_dim']
    rank, v, q = c['kv_lora_rank'], c['v_head_dim'], c['q_lora_rank']
    if q is None:
        yield p + 'q_proj.weight', (heads * (nope + rope), d)
    else:
        yield p + 'q_a_proj.weight', (q, d)
        yield p + 'q_a_layernorm.weight', (q,)
        yield p + 'q_b_proj.weight', (heads * (nope + rope), q)
    yield p + 'kv_a_proj_with_mqa.weight', (rank + rope, d)
    yield p + 'kv_a_layernorm.weight', (rank,)
    yield p + 'kv_b_proj.weight', (heads * (nope + v), rank)
    yield p + 'o_proj.weight', (d, heads * v)


def ffn_shapes(d, width, p):
    yield p + 'gate_proj.weight', (width, d)
    yield p + 'up_proj.weight', (width, d)
    yield p + 'down_proj.weight', (d, width)


def moe_shapes(c, p):
    d, width = c['hidden_size'], c['moe_intermediate_size']
    yield p + 'gate.weight', (c['n_routed_experts'], d)
    if c['model_type'] == 'deepseek_v3':
        yield p + 'gate.e_score_correction_bias', (c['n_routed_experts'],)
    for e in range(c['n_routed_experts']):
        yield from ffn_shapes(d, width, f'{p}experts.{e}.')
    yield from ffn_shapes(d, width * c['n_shared_experts'],
                          p + 'shared_experts.')


def layer_shapes(c, layer, moe):
    p, d = f'model.layers.{layer}.', c['hidden_size']
    yield p + 'input_layernorm.weight', (d,)
    yield from attention_shapes(c, p + 'self_attn.')
    yield p + 'post_attention_layernorm.weight', (d,)
    if moe:
        yield from moe_shapes(c, p + 'mlp.')
    else:
        yield from ffn_shapes(d, c['intermediate_size'], p + 'mlp.')


def mtp_shapes(c, layer, tables):
    p, d, vocab = f'model.layers.{layer}.', c['hidden_size'], c['vocab_size']
    if tables:
        yield p + 'embed_tokens.weight', (vocab, d)
    yield p + 'enorm.weight', (d,)
    yield p + 'hnorm.weight', (d,)
    yield p + 'eh_proj.weight', (d, 2 * d)
    yield from layer_shapes(c, layer, True)
    yield p + 'shared_head.norm.weight', (d,)
    if tables:
        yield p + 'shared_head.head.weight', (vocab, d)


def shapes(c, mtp_layers=0, mtp_tables=True):
    """(name, shape) of every weight, in the order of the checkpoint."""
    yield 'model.embed_tokens.weight', (c['vocab_size'], c['hidden_size'])
    for layer in range(c['num_hidden_layers']):
        yield from layer_shapes(c, layer, is_moe(c, layer))
    for k in range(mtp_layers):
        yield from mtp_shapes(c, c['num_hidden_layers'] + k, mtp_tables)
    yield 'model.norm.weight', (c['hidden_size'],)
    if not c['tie_word_embeddings']:
        yield 'lm_head.weight', (c['vocab_size'], c['hidden_size'])


# Numbers --------------------------------------------------------------------

def generator(seed, name):
    key = [seed, zlib.crc32(name.encode())]
    return np.random.Generator(np.random.PCG64(key))


def uniform(rng, shape):
    """[0, 1) from 53 random bits, without libm."""
    return rng.integers(0, 1 << 53, size=shape) / float(1 << 53)


def bell(rng, shape):
    """Mean 0, variance 1, |x| <= 3: twice the sum of three centred uniforms."""
    return 2.0 * sum(uniform(rng, shape) - 0.5 for _ in range(3))


GAIN = {'gate.weight': 1.5, 'q_proj': 1.0, 'q_b_proj': 1.0,
        'kv_a_proj_with_mqa': 1.0, 'kv_b_proj': 1.3, 'o_proj': 1.3}


def draw(name, shape, seed):
    rng = generator(seed, name)
    if name.endswith('e_score_correction_bias'):
        return 0.6 * (uniform(rng, shape) - 0.5)
    if len(shape) == 1:
        return 0.5 + uniform(rng, shape)
    if 'embed_tokens' in name:
        return bell(rng, shape)
    gain = next((g for key, g in GAIN.items() if key in name), 1.2)
    return gain / np.sqrt(float(shape[1])) * bell(rng, shape)


def spread_blocks(name, w, seed):
    """A factor of 1/2 to 2 on each 128 x 128 block, so that a wrong scale
    shows; the last block of a matrix of three or more is zero."""
    rows, cols = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
    f = 0.5 + 1.5 * uniform(generator(seed, name + ' blocks'), (rows, cols))
    if rows * cols > 2 and 'down_proj' in name:
        f[-1, -1] = 0.0
    return w * grow(f, w.shape)


def grow(s, shape):
    """Each scale over its block of 128 x 128, ragged edges cut off."""
    s = np.repeat(np.repeat(s, 128, axis=0), 128, axis=1)
    return s[:shape[0], :shape[1]]


def is_fp8(name, shape):
    kept = ('embed_tokens', 'lm_head', 'gate.weight', 'eh_proj', 'head.weight')
    return len(shape) == 2 and not any(k in name for k in kept)


def quantise(w, power_of_two, irregular):
    """E4M3 codes and the scales that multiply them (spec 7.2)."""
    rows, cols = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
    s = np.zeros((rows, cols), np.float32)
    for i in range(rows):
        for j in range(cols):
            block = np.abs(w[128*i:128*i+128, 128*j:128*j+128])
            s[i, j] = np.float32(max(block.max(), 1e-4)) / np.float32(448)
    if power_of_two:
        m, e = np.frexp(s)
        s = np.ldexp(np.float32(1), e - (m == 0.5)).astype(np.float32)
    if irregular:
        s = s * np.float32(1.32287561893)
    q = (w.astype(np.float32) / grow(s, w.shape)).astype(np.float32)
    return q.astype(ml_dtypes.float8_e4m3fn), s


STORE = {'BF16': ml_dtypes.bfloat16, 'FP8': ml_dtypes.bfloat16,
         'F16': np.float16, 'F32': np.float32}


def tensors(spec):
    """name -> array as stored, in checkpoint order."""
    c, seed, out = spec['config'], spec['seed'], {}
    for name, shape in shapes(c, spec.get('mtp_layers', 0),
                              spec.get('mtp_tables', True)):
        w = draw(name, shape, seed)
        if 'design' in spec:
            w = spec['design'](name, w)
        if name.endswith('e_score_correction_bias'):
            out[name] = w.astype(np.float32)
        elif spec['store'] == 'FP8' and is_fp8(name, shape):
            ue8m0 = 'scale_fmt' in c['quantization_config']
            w = spread_blocks(name, w, seed)
            q, s = quantise(w, ue8m0, ue8m0 and 'o_proj' in name)
            out[name], out[name + '_scale_inv'] = q, s
        else:
            out[name] = w.astype(np.float32).astype(STORE[spec['store']])
    return out


def prompt(spec):
    """Random ids; those a case is about at every fifth place."""
    rng, fixed = generator(spec['seed'], 'prompt'), spec.get('always', ())
    ids = rng.integers(0, spec['config']['vocab_size'], size=spec['tokens'])
    ids[1:1 + 5 * len(fixed):5] = list(fixed)
    return ids.astype(np.int32)


# Files ----------------------------------------------------------------------

def write_json(path, value):
    with open(path, 'w', encoding='utf-8', newline='\n') as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write('\n')


def shard_of(name, count):
    """Spreads tensors; a scale never lies with its weight."""
    weight = name.removesuffix('_scale_inv')
    return (zlib.crc32(weight.encode()) + (weight != name)) % count


def write_shards(out, weights, count):
    files = [f'model-{i + 1:05}-of-{count:05}.safetensors'
             for i in range(count)]
    place = {name: files[shard_of(name, count)] for name in weights}
    for file in files:
        part = {n: w for n, w in weights.items() if place[n] == file}
        save_file(part, os.path.join(out, file), {'format': 'pt'})
    total = sum(w.nbytes for w in weights.values())
    write_json(os.path.join(out, 'model.safetensors.index.json'),
               dict(metadata=dict(total_size=total), weight_map=place))


def pad_header(path, blanks):
    """Moves the data by some bytes: blanks may follow the header."""
    with open(path, 'rb') as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], 'little')
    with open(path, 'wb') as f:
        f.write((n + blanks).to_bytes(8, 'little') + raw[8:8 + n]
                + b' ' * blanks + raw[8 + n:])


def write_model(out, spec):
    os.makedirs(out, exist_ok=True)
    write_json(os.path.join(out, 'config.json'), spec['config'])
    weights, file = tensors(spec), os.path.join(out, 'model.safetensors')
    if 'shards' in spec:
        write_shards(out, weights, spec['shards'])
    else:
        save_file(weights, file, {'format': 'pt'})
        pad_header(file, spec.get('pad_header', 0))


if __name__ == '__main__':
    for case_name in sys.argv[2:] or CASES:
        write_model(os.path.join(sys.argv[1], case_name), CASES[case_name])
