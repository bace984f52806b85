"""Asks `deepseek train` for gradients and steps, and PyTorch for the same.

gradients: on each directory of tests/data/models, one step's gradient of every
parameter against autograd through transformers' classes in float64 (learn.py):
||ours - theirs|| / ||theirs|| <= 1e-5 for each tensor, or at most three times
what PyTorch's own float32 is off there, where a model magnifies rounding.
curves: STEPS steps of a V2-Lite-style and a V3-style model beside PyTorch in
float32, from the same weights on the same batches. Two runs part sooner or
later, since rounding grows: the onset of that is where PyTorch parts from
itself with one weight changed by one ulp. Until there ours must be as near.
moments: how far BF16 moments move the loss of the same run.

    python check_train.py ./deepseek [gradients|curves|moments] [--only NAME]
"""
import argparse
import json
import os
import shutil
import tempfile

import numpy as np
from safetensors.numpy import load_file

import check_c
import forward
import learn
import make_golden
import models

torch = learn.torch
HERE = os.path.dirname(os.path.abspath(__file__))
ERROR = 1e-5            # of a gradient tensor, ours in F32
AS_THEIRS = 3           # times the error of theirs in float32
ROUTE_MARGIN = 2e-5     # no route may hang on rounding
SEQUENCES = 3           # of a step, two of them in one pass
# As large as the main loss, or a mistake in them would not show.
BALANCE = {'deepseek_v2': dict(alpha1=0.3, alpha2=0.5, alpha3=0.2),
           'deepseek_v3': dict(alpha=0.5)}


# Asking deepseek -------------------------------------------------------------

def settings(rows, sequences, **more):
    s = dict(data='none.bin', sequence_length=rows, batch_size=sequences,
             micro_batch=2, total_tokens=rows * sequences, warmup_steps=0,
             learning_rate=1e-3, mtp_lambda=0.3, log_every=1)
    s.update(more)
    return s


def ask(program, path, tmp, s, batches, *flags):
    """Runs `deepseek train` from the weights in path; the run's directory."""
    run, ids = os.path.join(tmp, 'run'), os.path.join(tmp, 'ids')
    config = os.path.join(path, 'config.json')
    models.write_json(os.path.join(tmp, 'train.json'), s)
    shutil.rmtree(run, ignore_errors=True)
    with open(ids, 'w', encoding='ascii') as f:
        for row in np.concatenate(batches):
            print(*row, file=f)
    check_c.call([program, 'train', config, os.path.join(tmp, 'train.json'),
                  '-o', run, '--from', path, '--ids-file', ids, *flags])
    return run


def without_announced(path, tmp):
    """The same directory, without modules in its config that it has not."""
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
        config = json.load(f)
    first = f'model.layers.{config["num_hidden_layers"]}.enorm.weight'
    if (not config.get('num_nextn_predict_layers')
            or first in forward.read_weights(path)):
        return path
    out = os.path.join(tmp, 'model')
    shutil.copytree(path, out)
    models.write_json(os.path.join(out, 'config.json'),
                      dict(config, num_nextn_predict_layers=0))
    return out


# Gradients -------------------------------------------------------------------

def smallest_gap(learner, ties):
    """By how much the nearest route is decided; of the scores that V3 (18)
    counts, relative to them, which may be tiny."""
    c, found = learner.c, [np.inf]
    for layer, (logits, _) in learner.gates.items():
        s = learner.scores(layer).detach().numpy()
        choice, k = s, c['num_experts_per_tok']
        if c['topk_method'] == 'noaux_tc':
            choice = s + learner.gate(layer).e_score_correction_bias.numpy()
        choice = forward.group_choice(
            c, choice, lambda name, gap: found.extend(
                gap.ravel() if name == 'group_gap' else []))
        found.extend(forward.gap(choice, k)[:, -1])
        if learner.balance['alpha']:
            best = -np.sort(-s, axis=1)[:, k - 1]
            found.extend(forward.gap(s, k)[:, -1] / best)
    found = np.array(found)
    return found[found != 0].min() if ties else found.min()


def draw_batch(learner, rows, ties):
    """Random ids for which no route is near a tie, and their losses."""
    for seed in range(1, 200):
        rng = np.random.default_rng(seed)
        batch = rng.integers(0, learner.c['vocab_size'],
                             (SEQUENCES, rows + 1))
        losses = learner.losses(batch)
        if smallest_gap(learner, ties) > ROUTE_MARGIN:
            return batch, losses
    raise RuntimeError('no seed without a near-tie')


def distance(ours, theirs):
    norm = np.linalg.norm(theirs)
    off = np.linalg.norm(ours.astype(np.float64) - theirs)
    return off / norm if norm else off


def compare(want, got):
    """name -> distance; what is missing or has another shape."""
    bad = [f'{name}: missing' for name in want if name not in got]
    bad += [f'{name}: nobody asked' for name in got if name not in want]
    bad += [f'{name}: shape {got[name].shape}, not {want[name].shape}'
            for name in want.keys() & got.keys()
            if got[name].shape != want[name].shape]
    return bad, {} if bad else {name: distance(got[name], want[name])
                                for name in want}


def of_autograd(path, dtype, balance, batch):
    learner = learn.Learner(path, dtype, balance)
    learner.total(learner.losses(batch)).backward()
    return learner.gradients()


def of_deepseek(program, path, rows, balance, batch):
    with tempfile.TemporaryDirectory() as tmp:
        dump = os.path.join(tmp, 'grads.safetensors')
        s = settings(rows, SEQUENCES, balance=balance)
        ask(program, path, tmp, s, [batch], '--dump-grads', dump)
        return {name.removesuffix('.grad'): a
                for name, a in load_file(dump).items()}


def times_theirs(far, rough):
    """The typical ratio of two distances, where neither is 0."""
    ratios = [far[k] / rough[k] for k in far if far[k] and rough[k]]
    return float(np.exp(np.mean(np.log(ratios))))


def compare_gradients(program, path, spec):
    kind = forward.read_config(path)['model_type']
    balance = dict(BALANCE[kind], devices=4, device_limit=2)
    learner = learn.Learner(path, torch.float64, balance)
    batch, losses = draw_batch(learner, spec['tokens'], 'ties' in spec)
    learner.total(losses).backward()
    want = learner.gradients()
    got = of_deepseek(program, path, spec['tokens'],
                      balance if learner.gates else {}, batch)
    _, rough = compare(want, of_autograd(path, torch.float32, balance, batch))
    return *compare(want, got), rough


def check_gradients(program, path, spec):
    with tempfile.TemporaryDirectory() as tmp:
        bad, far, rough = compare_gradients(
            program, without_announced(path, tmp), spec)
    if 'ties' in spec:      # float32 breaks them as it likes
        rough = {}
    bad += [f'{name}: {e:.1e}, in PyTorch {rough.get(name, 0):.1e}'
            for name, e in far.items()
            if e > max(ERROR, AS_THEIRS * rough.get(name, 0))]
    worst = max(far, key=far.get, default='')
    note = f'{len(far):3} tensors, worst {far.get(worst, 0):.1e}'
    if far and rough:
        note += (f', PyTorch {rough[worst]:.1e}, typically '
                 f'{times_theirs(far, rough):.2f} of it')
    return bad, note + '  ' + worst.removeprefix('model.')


def gradients(program, args):
    failures = 0
    for name, spec in models.CASES.items():
        path = os.path.join(HERE, '..', 'data', 'models', name)
        if args.only in (None, name) and spec['store'] != 'FP8':
            failures += check_c.report(name, check_gradients, program, path,
                                       spec)
    return failures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('what', nargs='*', default=['gradients'])
    parser.add_argument('--only')
    args = parser.parse_args()
    program = os.path.abspath(args.program)
    failures = sum(globals()[what](program, args) for what in args.what)
    print(f'{failures} failures')
    return failures != 0


if __name__ == '__main__':
    raise SystemExit(main())
