"""Makes golden/fp8_activations.safetensors: what models answer whose Linear
layers have FP8 inputs too (V3 3.3.2).

    ids (T,)  logits (T, vocab)  model.layers.L (T, d)

By forward.py in float64 with its own quantiser, in the naive form. An input
that lies near the middle between two codes may go to either, and then the
rest differs: a prompt is taken whose logits noise of 5e-7 of a row's size (a
float32 engine errs by 2e-7) moves by less than the tests allow, NMSE 1e-9.
Each mistake of `mistakes` moves them by more than 1e-6.

    python make_fp8.py [--check PROGRAM]     with it: also compares a program's
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

import forward

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, '..', 'data', 'models')
CASES = ('fp8-ragged', 'fp8-ue8m0', 'fp8-sharded')
TOKENS, NOISE, DRAWS, SEEN, AGREE = 24, 5e-7, 16, 1e-6, 1e-9


def nmse(want, got):
    got = got.astype(np.float64)
    return float(((want - got) ** 2).mean() / (want ** 2).mean())


def run(c, w, ids, activations):
    return forward.forward(dict(c, fp8_activations=activations), w, ids,
                           forward.naive)


def noisy(seed):
    rng = np.random.default_rng(seed)

    def operand(x, c):
        size = np.sqrt((x * x).mean(axis=1, keepdims=True))
        noise = NOISE * size * rng.standard_normal(x.shape)
        return forward.paper_tiles(x + noise, c)
    return operand


def steady(c, w, ids, want):
    return all(nmse(want, run(c, w, ids, noisy(i))['logits']) < AGREE
               for i in range(DRAWS))


def prompt(c, w):
    """Random ids that are far enough from every boundary."""
    for seed in range(200):
        ids = np.random.default_rng(seed).integers(
            0, c['vocab_size'], size=TOKENS).astype(np.int32)
        trace = run(c, w, ids, forward.paper_tiles)
        if steady(c, w, ids, trace['logits']):
            return seed, ids, trace
    raise SystemExit('no prompt')


def one_scale(x, c):
    """Of the whole tensor."""
    tile = forward.quantise_tile(x.reshape(1, -1),
                                 'scale_fmt' in c['quantization_config'])
    return tile.reshape(x.shape)


def blocks(x, c):
    """Of 128 x 128: all tokens of these prompts."""
    return np.concatenate([one_scale(x[:, k:k + 128], c)
                           for k in range(0, x.shape[1], 128)], axis=1)


def other_scales(x, c):
    q = dict(c['quantization_config'])
    if 'scale_fmt' in q:
        del q['scale_fmt']
    else:
        q['scale_fmt'] = 'ue8m0'
    return forward.paper_tiles(x, dict(c, quantization_config=q))


def all_but(width):
    return lambda x, c: (x if x.shape[1] == width
                         else forward.paper_tiles(x, c))


def quantised_too(c, name):
    """forward.linear that quantises where the paper does not."""
    plain = forward.linear

    def linear(x, w):
        rows = c['vocab_size'] if name == 'lm_head' else c['n_routed_experts']
        wrong = w.shape == (rows, c['hidden_size'])
        return plain(forward.paper_tiles(x, c) if wrong else x, w)
    return linear


def mistakes(c, w, ids, want):
    """name -> NMSE of the logits. A power of two more or less in a scale
    changes nothing but codes near zero."""
    tried = dict(none=None, scales=other_scales)
    if 'scale_fmt' not in c['quantization_config']:
        tried.update(tensor=one_scale, blocks=blocks)
    widths = (c['hidden_size'], c['q_lora_rank'], c['kv_lora_rank'],
              c['num_attention_heads'] * c['v_head_dim'],
              c['intermediate_size'], c['moe_intermediate_size'])
    tried.update((f'but {n}', all_but(n)) for n in widths)
    out = {k: nmse(want, run(c, w, ids, f)['logits'])
           for k, f in tried.items()}
    plain = forward.linear
    for name in ('lm_head', 'gate'):
        forward.linear = quantised_too(c, name)
        out[name] = nmse(want, run(c, w, ids, forward.paper_tiles)['logits'])
        forward.linear = plain
    return out


def ask(program, path, ids):
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, 'trace.safetensors')
        subprocess.run([program, 'trace', path, '--ids',
                        ','.join(map(str, ids)), '-o', out, '--fp8',
                        'activations'], check=True)
        return load_file(out)


def make(name, program):
    path = os.path.join(MODELS, name)
    c, w = forward.load(path)
    seed, ids, trace = prompt(c, w)
    effects = mistakes(c, w, ids, trace['logits'])
    least = min(effects, key=effects.get)
    assert effects[least] > SEEN, effects
    names = ['logits'] + [f'model.layers.{i}'
                          for i in range(c['num_hidden_layers'])]
    info = dict(case=name, prompt=seed, noise=NOISE, least_mistake=least,
                least_effect=float(f'{effects[least]:.3g}'))
    note = ''
    if program:
        got = ask(program, path, ids)
        worst = max(nmse(trace[k], got[k]) for k in names)
        assert worst < AGREE, (name, worst)
        note = f'the program: NMSE {worst:.0e}'
    save_file(dict({k: trace[k].astype(np.float32) for k in names}, ids=ids),
              os.path.join(path, 'golden', 'fp8_activations.safetensors'),
              {'info': json.dumps(info, sort_keys=True)})
    print(f'{name:12} prompt {seed:3}  least mistake "{least}" '
          f'{effects[least]:.0e}  {note}', flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--check', metavar='PROGRAM')
    args = parser.parse_args()
    for name in CASES:
        make(name, args.check and os.path.abspath(args.check))


if __name__ == '__main__':
    sys.exit(main())
