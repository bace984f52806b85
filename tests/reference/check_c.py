"""Asks the C program, and compares every number it gives.

Forwards: on each directory of tests/data/models, `deepseek trace` in both
forms of MLA against forward.py, tensor by tensor (NMSE <= 1e-9), routes and
greedy ids equal, other readings too. Backwards: a directory that `deepseek
init` makes must load in transformers without a missing or unexpected tensor,
and give there the logits that the C program gives.

    python check_c.py ./deepseek [--models DIR] [--only NAME] [-v] [--no-init]
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

import forward
import models

NMSE = 1e-9
ROUTE_MARGIN = 1e-5
HERE = os.path.dirname(os.path.abspath(__file__))
# Our names of the disputed readings, and the program's.
READING = {'latent_eps_from_config': 'latent-eps=rms_norm_eps',
           'v2_norm_scales': 'v2-norm-topk=divide-and-scale'}
# Of forward.py's trace, what no engine shows.
PRIVATE = ('group_gap', 'choice_gap')


def call(args):
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip()[-500:]
        raise RuntimeError(f'{args[1]} exits {done.returncode}: {said}')
    return done.stdout


def listed(ids):
    return ','.join(str(i) for i in ids)


def trace(program, path, ids, *options):
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, 'trace.safetensors')
        call([program, 'trace', path, '--ids', listed(ids), '-o', out,
              *options])
        return load_file(out)


def nmse(ours, theirs):
    """Mean square of the difference over the mean square of ours."""
    power = float((ours.astype(np.float64) ** 2).mean())
    wrong = float(((ours - theirs.astype(np.float64)) ** 2).mean())
    return wrong / power if power else wrong


def causal(scores):
    """The part of scores (T, heads, T) that attention sees."""
    t = np.arange(scores.shape[0])
    return np.where(t[None, None, :] > t[:, None, None], 0, scores)


def shaped_like(name, want, got):
    """got in want's shape (heads may be flattened), or None. Scores may have
    more columns, for positions that are not there: -inf."""
    scores = name.endswith('attn.scores')
    if scores and got.size > want.size and got.shape[0] == want.shape[0]:
        got = got.reshape(*want.shape[:2], -1)
        if (got[:, :, want.shape[2]:] == -np.inf).all():
            got = np.ascontiguousarray(got[:, :, :want.shape[2]])
    if got.size != want.size or got.shape[0] != want.shape[0]:
        return None
    got = got.reshape(want.shape)
    return causal(got) if scores else got


def compare_one(name, want, got):
    """'' where the tensors agree, else what is wrong."""
    if got is None:
        return 'missing'
    shape, got = got.shape, shaped_like(name, want, got)
    if got is None:
        return f'shape {shape}, not {want.shape}'
    if want.dtype.kind == 'i':
        rows = np.nonzero((want != got).any(axis=1))[0]
        return f'rows {rows[:8].tolist()} differ' if len(rows) else ''
    if name.endswith('attn.scores'):
        want = causal(want)
    e = nmse(want, got)
    return '' if e <= NMSE else f'NMSE {e:.1e}'


def compare(want, got):
    """Complaints, in the order of the computation; the worst NMSE."""
    out, worst = [], 0.0
    for name, value in want.items():
        if name.endswith(PRIVATE):
            continue
        wrong = compare_one(name, value, got.get(name))
        if wrong:
            out.append(f'{name}: {wrong}')
        elif value.dtype.kind != 'i' and not name.endswith('attn.scores'):
            other = got[name].reshape(value.shape)
            worst = max(worst, nmse(value, other))
    return out, worst


# Forwards -------------------------------------------------------------------

def check_readings(program, path, c, w, ids, readings):
    out = []
    for r in readings:
        want = forward.forward(dict(c, **{r: True}), w, ids)['logits']
        got = trace(program, path, ids, '--reading', READING[r])
        wrong = compare_one('logits', want, got.get('logits'))
        if wrong:
            out.append(f'--reading {READING[r]}: {wrong}')
    return out


def check_greedy(program, path, golden):
    text = call([program, 'generate', path, '--ids', listed(golden['ids']),
                 '-n', str(len(golden['greedy_ids'])), '--temp', '0',
                 '--print-ids'])
    got = [int(i) for i in text.split()]
    want = golden['greedy_ids'].tolist()
    return [] if got == want else [f'greedy ids {got}, not {want}']


def check_model(program, path, readings, verbose):
    c, w = forward.load(path)
    golden = load_file(os.path.join(path, 'golden', 'golden.safetensors'))
    ids = golden['ids']
    want = forward.forward(c, w, ids)
    out, worst, n = [], 0.0, 0
    for form in ('absorbed', 'naive'):
        got = trace(program, path, ids, '--mla', form)
        wrong, e = compare(want, got)
        out += [f'{form}: {line}' for line in wrong]
        worst, n = max(worst, e), len(got)
        if verbose:
            extra = sorted(got.keys() - want.keys())
            print(f'  {form} also has: {", ".join(extra) or "nothing"}')
    out += check_greedy(program, path, golden)
    out += check_readings(program, path, c, w, ids, readings)
    return out, f'{n} tensors, worst NMSE {worst:.0e}'


# Backwards ------------------------------------------------------------------

INIT = {'k1-v2-lite': ('f32', 'f16', 'bf16'), 'k2-v2': ('bf16', 'f32'),
        'k3-v3': ('bf16', 'f32', 'fp8'), 'k9-shapes': ('bf16',),
        'one-group': ('f16',), 'transformers-5-v3': ('f32',),
        'fp8-ragged': ('fp8', 'bf16'), 'fp8-ue8m0': ('fp8',)}


def route_margin(t):
    gaps = [v.min(initial=np.inf) for k, v in t.items() if k.endswith(PRIVATE)]
    return min(gaps, default=np.inf)


def init(program, config, out, dtype, ids):
    """A new directory whose routes are not near a tie, and our trace."""
    for seed in range(1, 50):
        path = os.path.join(out, str(seed))
        call([program, 'init', config, '-o', path, '--seed', str(seed),
              '--dtype', dtype, '--std', '0.2'])
        want = forward.forward(*forward.load(path), ids)
        if route_margin(want) > ROUTE_MARGIN:
            return path, want
    raise RuntimeError('no seed without a near-tie')


def loads_complete(path):
    """What transformers misses or finds too much, as it is. It has no MTP
    layer, so those tensors are too many for it."""
    import hf
    model, info = hf.AutoModelForCausalLM.from_pretrained(
        path, dtype=hf.torch.float32, output_loading_info=True,
        attn_implementation='eager', experts_implementation='eager')
    mtp = tuple(f'model.layers.{model.config.num_hidden_layers + k}.'
                for k in range(8))
    info['unexpected_keys'] = [k for k in info['unexpected_keys']
                               if not k.startswith(mtp)]
    return [f'transformers: {k}: {sorted(map(str, v))[:4]}'
            for k, v in info.items() if v]


def one_block_each(weights, path):
    """Then transformers' blocks, rows // grid, are the true ones."""
    raw = {}
    for file in forward.weight_files(path):
        raw.update(forward.read_safetensors(os.path.join(path, file)))
    return all(raw[name + '_scale_inv'][1].size == 1 for name in weights
               if name + '_scale_inv' in raw)


def fp8_as_it_is(path, ids):
    """transformers turns FP8 into BF16 weights when it loads them: its float32
    logits against ours from weights rounded alike."""
    import hf
    import matter
    c, w = forward.load(path)
    if not one_block_each(w, path):
        return []
    model = hf.load(path, hf.torch.bfloat16).float()
    e = nmse(forward.forward(c, {k: matter.bf16(a) for k, a in w.items()},
                             ids)['logits'], hf.run(model, ids)['logits'])
    return [] if e <= NMSE else [f'transformers, FP8 read by it: NMSE {e:.1e}']


def check_init(program, models_dir, name, dtype):
    import hf
    config = os.path.join(models_dir, name, 'config.json')
    ids = models.prompt(models.CASES[name])[:24]
    with tempfile.TemporaryDirectory() as tmp:
        path, want = init(program, config, tmp, dtype, ids)
        got = trace(program, path, ids)
        out, worst = compare(want, got)
        missing = hf.departures(forward.read_config(path), dtype == 'fp8')
        if not missing:
            out += loads_complete(path)
        if dtype == 'fp8':
            out += fp8_as_it_is(path, ids)
        theirs = hf.strict(path, ids)['logits']
        e = nmse(theirs, got['logits'])
        if e > NMSE:
            out.append(f'transformers: logits NMSE {e:.1e}')
    return out, (f'init {dtype}: NMSE {worst:.0e}, transformers {e:.0e}'
                 + (f' (departs: {", ".join(missing)})' if missing else ''))


# All of it ------------------------------------------------------------------

def report(name, check, *args):
    try:
        out, note = check(*args)
    except Exception as e:  # a case that breaks is a case that fails
        text = ' '.join(str(e).split())
        out, note = [f'{type(e).__name__}: {text[-400:]}'], ''
    print(f'{"FAIL" if out else "ok":4} {name:18} {note}', flush=True)
    for line in out[:6]:
        print(f'     {line}')
    if len(out) > 6:
        print(f'     and {len(out) - 6} more')
    return bool(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('program')
    parser.add_argument('--models', default=os.path.normpath(
        os.path.join(HERE, '..', 'data', 'models')))
    parser.add_argument('--only')
    parser.add_argument('--no-init', action='store_true')
    parser.add_argument('-v', action='store_true')
    args = parser.parse_args()
    program, failures = os.path.abspath(args.program), 0
    for name in sorted(os.listdir(args.models)):
        if args.only not in (None, name):
            continue
        readings = models.CASES.get(name, {}).get('readings', [])
        failures += report(name, check_model, program,
                           os.path.join(args.models, name), readings, args.v)
        for dtype in [] if args.no_init else INIT.get(name, []):
            failures += report(name, check_init, program, args.models, name,
                               dtype)
    print(f'{failures} failures')
    return failures != 0


if __name__ == '__main__':
    sys.exit(main())
