"""Makes tests/data/models: small checkpoints and what they must answer.

For every case of models.py: the directory, the NumPy forward in both forms of
MLA, transformers in float64, agreement of the three, and the values that the
C tests read, in NAME/golden/golden.safetensors:

    ids (T,)  logits (T, vocab)  greedy_ids (16,)  model.norm (T, d)
    model.layers.L (T, d)  ....mlp.gate.topk_ids, topk_weights (T, K)
    logits.READING (T, vocab) where sources disagree

float64 rounded once to float32. `info` in the metadata is JSON: the margins
by which routes and greedy ids are decided, and the agreement found.

    python make_golden.py [OUT] [--only NAME] [--find-seed]
"""
import argparse
import json
import os
import sys

import numpy as np
from safetensors.numpy import save_file

import forward
import hf
import models

GREEDY = 16
ROUTE_MARGIN = 5e-5     # a float32 engine errs by some 1e-6
TOP1_MARGIN = 1e-2
AGREE = 1e-12           # NumPy against transformers, both in float64
STOCK = 2e-5            # against transformers with its float32 islands
HERE = os.path.dirname(os.path.abspath(__file__))


def error(a, b):
    """Largest difference over the largest value; lists of ids: how many."""
    if a.dtype.kind == 'i':
        return float((np.sort(a, 1) != np.sort(b, 1)).sum())
    assert np.isfinite(a).all() and np.isfinite(b).all()
    return float(np.abs(a - b).max() / np.abs(a).max())


def disagreement(ours, theirs):
    """The worst error over the tensors both have, and its name. Engines list
    the chosen experts in any order, so weights are compared sorted."""
    worst = (0.0, '')
    for name in sorted(ours.keys() & theirs.keys()):
        if name.endswith('_gap'):
            continue
        a, b = ours[name], theirs[name]
        if name.endswith('topk_weights'):
            a, b = np.sort(a, 1), np.sort(b, 1)
        worst = max(worst, (error(a, b), name))
    return worst


def continue_greedily(c, w, ids):
    """ids with GREEDY more tokens; the smallest top-1 margin of those."""
    margin = np.inf
    for _ in range(GREEDY):
        row = forward.forward(c, w, ids)['logits'][-1]
        second, first = np.sort(row)[-2:]
        margin = min(margin, float(first - second))
        ids = np.append(ids, row.argmax()).astype(np.int32)
    return ids, margin


def margins(trace, tie_ok):
    """The smallest gap that decides a group, and an expert or its rank."""
    out = {}
    for name in ('group_gap', 'choice_gap'):
        gaps = [v.ravel() for k, v in trace.items() if k.endswith(name)]
        gaps = np.concatenate(gaps + [[np.inf]])
        if tie_ok:
            gaps = gaps[gaps != 0]
        if np.isfinite(gaps.min()):
            out[name] = float(gaps.min())
    return out


def golden_tensors(c, trace, ids, prompt):
    out = dict(ids=ids[:prompt], greedy_ids=ids[prompt:])
    keep = ['logits', 'model.norm']
    for layer in range(c['num_hidden_layers']):
        p = f'model.layers.{layer}'
        keep += [p, p + '.mlp.gate.topk_ids', p + '.mlp.gate.topk_weights']
    for name in keep:
        if name in trace:
            a = trace[name][:prompt]
            kind = np.int32 if a.dtype.kind == 'i' else np.float32
            out[name] = np.ascontiguousarray(a.astype(kind))
    return out


def accept(name, spec):
    """A case's model in memory and its margins, or why the seed will not do."""
    c, w = models_in_memory(spec)
    prompt = models.prompt(spec)
    ids, top1 = continue_greedily(c, w, prompt)
    trace = forward.forward(c, w, ids)
    found = margins(trace, spec.get('ties', False))
    bad = [f'{k} {v:.1e}' for k, v in found.items() if v < ROUTE_MARGIN]
    if top1 < TOP1_MARGIN:
        bad.append(f'top-1 {top1:.1e}')
    if spec['config']['eos_token_id'] in ids[len(prompt):]:
        bad.append('stops early')
    return c, w, ids, trace, dict(found, top1_margin=top1), bad


def models_in_memory(spec):
    """As read from the file, without writing one."""
    c = forward.normalise(spec['config'])
    stored = models.tensors(spec)
    w = {}
    for name, a in stored.items():
        if name + '_scale_inv' in stored:
            w[name] = forward.dequantise(a.astype(np.float64),
                                         stored[name + '_scale_inv'])
        elif not name.endswith('_scale_inv'):
            w[name] = a.astype(np.float64)
    return c, w


def find_seed(name, spec):
    for seed in range(1, 1000):
        bad = accept(name, dict(spec, seed=seed))[-1]
        if not bad:
            return seed
    raise SystemExit(f'{name}: no seed')


def verify(name, path, c, w, ids, trace):
    """Files, both forms and transformers give the same; the errors found."""
    c2, w2 = forward.load(path)
    assert c2 == c and w2.keys() == w.keys(), name
    assert all(np.array_equal(w[k], w2[k]) for k in w), name
    found = {}
    naive = forward.forward(c, w, ids, forward.naive)
    found['naive'], where = disagreement(trace, naive)
    assert found['naive'] < AGREE, (name, 'naive', found, where)
    found['transformers'], where = disagreement(trace, hf.strict(path, ids))
    assert found['transformers'] < AGREE, (name, found, where)
    return found


def verify_stock(name, path, c, ids, trace):
    """How far transformers as it is stands from the float64 logits."""
    spec = models.CASES[name]
    if hf.departures(c, spec['store'] == 'FP8') or 'ties' in spec:
        return None
    e = error(trace['logits'], hf.stock(path, ids)['logits'])
    assert e < STOCK, (name, 'stock', e)
    return e


def make(name, spec, out):
    path = os.path.join(out, name)
    models.write_model(path, spec)
    c, w, ids, trace, info, bad = accept(name, spec)
    assert not bad, f'{name}: seed {spec["seed"]}: {bad}: try --find-seed'
    found = verify(name, path, c, w, ids, trace)
    stock = verify_stock(name, path, c, ids, trace)
    info = {k: float(f'{v:.3g}') for k, v in info.items()}
    info.update(case=name, why=spec['why'], seed=spec['seed'])
    os.makedirs(os.path.join(path, 'golden'), exist_ok=True)
    tensors = golden_tensors(c, trace, ids, len(ids) - GREEDY)
    for reading in spec.get('readings', []):
        other = forward.forward(dict(c, **{reading: True}), w, tensors['ids'])
        tensors['logits.' + reading] = other['logits'].astype(np.float32)
    save_file(tensors, os.path.join(path, 'golden', 'golden.safetensors'),
              {'info': json.dumps(info, sort_keys=True)})
    stock = 'departs' if stock is None else f'{stock:.0e}'
    gaps = min([info.get(k, 9) for k in ('group_gap', 'choice_gap')])
    print(f'{name:16} seed {spec["seed"]:2}  route {gaps:.0e}  '
          f'top-1 {info["top1_margin"]:.0e}  naive {found["naive"]:.0e}  '
          f'float64 {found["transformers"]:.0e}  stock {stock}', flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('out', nargs='?',
                        default=os.path.join(HERE, '..', 'data', 'models'))
    parser.add_argument('--only')
    parser.add_argument('--find-seed', action='store_true')
    args = parser.parse_args()
    for name, spec in models.CASES.items():
        if args.only not in (None, name):
            continue
        if args.find_seed:
            print(name, find_seed(name, spec), flush=True)
        else:
            make(name, spec, args.out)


if __name__ == '__main__':
    sys.exit(main())
