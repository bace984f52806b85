"""Asks `deepseek train` for gradients and steps, and PyTorch for the same.

gradients: on each directory of tests/data/models, one step's gradient of every
parameter against autograd through transformers' classes in float64 (learn.py):
||ours - theirs|| / ||theirs|| <= 1e-5 for each tensor, or at most three times
what PyTorch's own float32 is off there, where a model magnifies rounding.
curves: 300 steps of a V2-Lite-style and a V3-style model beside PyTorch in
float32, from the same weights on the same batches. Two runs part as soon as
rounding sends one token to another expert. The onset of that is the first step
where a loss of PyTorch parts by 1e-5 from its own in a run with one weight
changed by one ulp; before it our losses must be within 1e-4 of PyTorch's.
moments: how far BF16 moments move the losses of these runs.

    python check_train.py ./deepseek [gradients curves moments] [--only NAME]
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
# Other settings: (model, balance, capacity factor of token dropping).
MORE = {'batch-wise': ('k3-v3', dict(batch_wise=True), 0),
        'picks counted': ('mtp-two', dict(count_picks=True), 0),
        'V2 dropping': ('k2-v2', {}, 0.9),
        'V3 dropping': ('mtp-present', {}, 0.8)}


# Asking deepseek -------------------------------------------------------------

def settings(rows, sequences, **more):
    s = dict(data='none.bin', sequence_length=rows, batch_size=sequences,
             micro_batch=2, total_tokens=rows * sequences, warmup_steps=0,
             learning_rate=1e-3, mtp_lambda=0.3, log_every=1)
    s.update(more)
    return s


def ask(program, path, tmp, s, batches, flag, out):
    """Runs `deepseek train` from the weights in path."""
    ids, given = os.path.join(tmp, 'ids'), os.path.join(tmp, 'train.json')
    models.write_json(given, s)
    with open(ids, 'w', encoding='ascii') as f:
        for row in np.concatenate(batches):
            print(*row, sep=',', file=f)
    check_c.call([program, 'train', os.path.join(path, 'config.json'), given,
                  '--from', path, '--ids-file', ids, flag, out])


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
        if learner.capacity:
            found.extend(gaps_of_drops(learner, layer))
    found = np.array(found)
    return found[found != 0].min() if ties else found.min()


def gaps_of_drops(learner, layer):
    """Between the best dropped and the worst kept pair of each device."""
    s, device = learner.picked_scores(layer)
    keep = learner.kept(layer) > 0
    for g in range(learner.balance['devices']):
        lost, rest = s[(device == g) & ~keep], s[(device == g) & keep]
        if len(lost):
            yield float(rest.min() - lost.max())


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


def of_autograd(path, dtype, balance, capacity, batch):
    learner = learn.Learner(path, dtype, balance, capacity=capacity)
    learner.total(learner.losses(batch)).backward()
    return learner.gradients()


def of_deepseek(program, path, rows, balance, capacity, batch):
    """What looks at a whole pass has the step in one."""
    whole = capacity or balance.get('batch_wise')
    with tempfile.TemporaryDirectory() as tmp:
        dump = os.path.join(tmp, 'grads.safetensors')
        s = settings(rows, SEQUENCES, balance=balance,
                     micro_batch=SEQUENCES if whole else SEQUENCES - 1,
                     token_dropping=dict(capacity_factor=capacity,
                                         exempt_rate=0))
        ask(program, path, tmp, s, [batch], '--dump-grads', dump)
        return {name.removesuffix('.grad'): a
                for name, a in load_file(dump).items()
                if name.endswith('.grad')}


def times_theirs(far, rough):
    """The typical ratio of two distances, where neither is 0."""
    ratios = [far[k] / rough[k] for k in far if far[k] and rough[k]]
    return float(np.exp(np.mean(np.log(ratios))))


def compare_gradients(program, path, spec, more, capacity):
    kind = forward.read_config(path)['model_type']
    balance = dict(BALANCE[kind], devices=4, device_limit=2, **more)
    learner = learn.Learner(path, torch.float64, balance, capacity=capacity)
    batch, losses = draw_batch(learner, spec['tokens'], 'ties' in spec)
    learner.total(losses).backward()
    want = learner.gradients()
    got = of_deepseek(program, path, spec['tokens'],
                      balance if learner.gates else {}, capacity, batch)
    _, rough = compare(want, of_autograd(path, torch.float32, balance,
                                         capacity, batch))
    return *compare(want, got), rough


def check_gradients(program, name, more, capacity):
    path = os.path.join(HERE, '..', 'data', 'models', name)
    spec = models.CASES[name]
    with tempfile.TemporaryDirectory() as tmp:
        bad, far, rough = compare_gradients(
            program, without_announced(path, tmp), spec, more, capacity)
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
    plain = {name: (name, {}, 0) for name, spec in models.CASES.items()
             if spec['store'] != 'FP8'}
    return sum(check_c.report(title, check_gradients, program, *case)
               for title, case in {**plain, **MORE}.items()
               if args.only in (None, title))


# Curves ----------------------------------------------------------------------

STEPS, ROWS, BATCH = 300, 48, 4
SPAN = 30               # steps of one line of the table
LOSSES = ('loss', 'mtp_loss', 'balance_loss')
PARTED, CLOSE = 1e-5, 1e-4
MOVED = 0.02            # at most, by BF16 moments
# One number in the middle of each is changed.
ULP = ('lm_head.weight', 'model.layers.0.self_attn.o_proj.weight',
       'model.layers.1.mlp.gate.weight')
SMALL = dict(models.COMMON, vocab_size=256, hidden_size=64,
             intermediate_size=128, moe_intermediate_size=32,
             num_attention_heads=4, num_key_value_heads=4,
             qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
             kv_lora_rank=32, n_routed_experts=16, num_experts_per_tok=3,
             num_hidden_layers=3, rope_scaling=None, torch_dtype='float32',
             max_position_embeddings=256)
STYLES = {
    'V2-Lite': (dict(models.LITE, **SMALL, n_shared_experts=2),
                dict(alpha1=0.001)),
    'V3': (dict(models.V3, **dict(SMALL, q_lora_rank=32, n_shared_experts=1),
                num_nextn_predict_layers=1),
           dict(alpha=0.0001, gamma=0.001))}


def text_batches():
    """Bytes of a text: STEPS batches of BATCH sequences, anywhere in it."""
    with open(os.path.join(HERE, '..', 'data', 'fairy_excerpt.txt'),
              'rb') as f:
        text = np.frombuffer(f.read(), np.uint8)
    rng = np.random.default_rng(1)
    first = rng.integers(0, len(text) - ROWS, (STEPS, BATCH, 1))
    return text[first + np.arange(ROWS + 1)].astype(np.int32)


def new_model(program, config, tmp):
    path, source = os.path.join(tmp, 'model'), os.path.join(tmp, 'config.json')
    models.write_json(source, config)
    check_c.call([program, 'init', source, '-o', path, '--dtype', 'f32',
                  '--std', '0.02', '--seed', '1'])
    return path


def curve_settings(balance, **adamw):
    return settings(
        ROWS, BATCH, total_tokens=STEPS * BATCH * ROWS, micro_batch=BATCH,
        learning_rate=1e-3, warmup_steps=20, balance=balance,
        adamw=dict(dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1,
                        clip=1.0), **adamw))


def one_ulp_off(learner, name):
    """The middle number of one tensor, one ulp larger."""
    flat = learner.parameters()[name].data.view(-1)
    i = len(flat) // 2
    flat[i] = torch.nextafter(flat[i], torch.tensor(torch.inf))


def their_curve(path, s, batches, ulp=None):
    learner = learn.Learner(path, torch.float32, s['balance'])
    if ulp:
        one_ulp_off(learner, ulp)
    training = learn.Training(learner, s)
    return columns([training.step(batch) for batch in batches])


def our_curve(program, path, s, batches):
    with tempfile.TemporaryDirectory() as tmp:
        run = os.path.join(tmp, 'run')
        ask(program, path, tmp, s, list(batches), '-o', run)
        with open(os.path.join(run, 'log.jsonl'), encoding='utf-8') as f:
            return columns([json.loads(line) for line in f])


def columns(steps):
    """The losses of a run, (3, STEPS); that of modules is their mean."""
    return np.array([[np.mean(step.get(name) or 0) for step in steps]
                     for name in LOSSES])


def apart(a, b):
    """Relative difference of each step's losses, the worst of them."""
    return (np.abs(a - b) / np.maximum(np.abs(b), 1e-12)).max(axis=0)


def first_above(difference, limit):
    """A step's number, STEPS + 1 if there is none."""
    above = np.nonzero(difference > limit)[0]
    return int(above[0]) + 1 if len(above) else STEPS + 1


def print_curves(theirs, ours, others):
    """Spans of steps: the mean loss, then the largest difference."""
    print(f'{"steps":>9}{"loss":>8}{"ours":>9}' + ''.join(
        f'{f"ulp {i}":>9}' for i in range(1, len(others) + 1)))
    for end in range(SPAN, STEPS + 1, SPAN):
        part = slice(end - SPAN, end)
        print(f'{end - SPAN + 1:>5}-{end:3}{theirs[0, part].mean():8.4f}'
              + ''.join(f'{d[part].max():9.0e}' for d in (ours, *others)))


def check_curve(program, style):
    config, balance = STYLES[style]
    with tempfile.TemporaryDirectory() as tmp:
        path = new_model(program, config, tmp)
        s, batches = curve_settings(balance), text_batches()
        ours = our_curve(program, path, s, batches)
        theirs = their_curve(path, s, batches)
        others = [apart(their_curve(path, s, batches, name), theirs)
                  for name in ULP]
    ours = apart(ours, theirs)
    onset = min(first_above(d, PARTED) for d in others)
    print_curves(theirs, ours, others)
    bad = []
    if onset <= SPAN:
        bad = [f'PyTorch parts from itself at step {onset}: this says little']
    if first_above(ours, CLOSE) < onset:
        bad = [f'step {first_above(ours, CLOSE)}: off by more than {CLOSE}']
    return bad, (f'onset at step {onset}, ours parts at '
                 f'{first_above(ours, PARTED)}; before the onset off by '
                 f'{ours[:onset - 1].max():.1e} at most')


def curves(program, args):
    return sum(check_c.report(style, check_curve, program, style)
               for style in STYLES if args.only in (None, style))


# Moments ---------------------------------------------------------------------

def check_moments(program, style):
    """The mean loss of the last SPAN steps, and what one ulp does to it."""
    config, balance = STYLES[style]
    with tempfile.TemporaryDirectory() as tmp:
        path = new_model(program, config, tmp)
        batches, last = text_batches(), slice(STEPS - SPAN, STEPS)
        full, half = (our_curve(program, path, curve_settings(
            balance, moments=kind), batches)[0] for kind in ('F32', 'BF16'))
    moved = half[last].mean() / full[last].mean() - 1
    bad = [f'moved by {moved:.1e}'] if abs(moved) > MOVED else []
    return bad, (f'loss of the last {SPAN} steps {full[last].mean():.4f} with '
                 f'F32, {half[last].mean():.4f} with BF16 moments '
                 f'({moved:+.2%}); at step 50 {half[49] / full[49] - 1:+.1e}')


def moments(program, args):
    return sum(check_c.report(style, check_moments, program, style)
               for style in STYLES if args.only in (None, style))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('what', nargs='*', help='all of them if none is named',
                        default=['gradients', 'curves', 'moments'])
    parser.add_argument('--only')
    args = parser.parse_args()
    program = os.path.abspath(args.program)
    failures = sum(globals()[what](program, args) for what in args.what)
    print(f'{failures} failures')
    return failures != 0


if __name__ == '__main__':
    raise SystemExit(main())
