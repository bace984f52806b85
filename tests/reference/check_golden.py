"""The packs' steps of training by PyTorch, K10's drafts by NumPy.

Makes K13-v2 and K13-v3 and takes their step with learn.py: transformers'
classes, autograd, the losses as the papers have them, torch.optim.AdamW, in
float64. Losses by part, loads, gradients, weights and biases after the step
must have an NMSE of at most 1e-9; and again with both sequences padded, by
positions that attention sees and nothing counts. Drafts, by one module and by two, in every
reading, are those of mtp.py, which computes all anew for each.

    python check_golden.py ./deepseek
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

import forward
import learn
import mtp

torch = learn.torch
PACKS = {'K13-v2': ['', 'adamw.decay_all=true'],
         'K13-v3': ['', 'balance.count_picks=true',
                    'balance.batch_wise=true']}
LIMIT = 1e-9
PARTS = ('expert', 'device', 'communication', 'sequence')


def read_settings(path, reading):
    with open(path, encoding='utf-8') as f:
        s = json.load(f)
    if reading:
        group, key = reading.partition('=')[0].split('.')
        s[group][key] = True
    return s


def with_biases(learner, weights):
    """name -> array of every parameter and bias, as a checkpoint has them."""
    out = {name: b.numpy() for name, b in learner.model.named_buffers()
           if name.endswith('correction_bias')}
    for name, p in weights.items():
        if '.experts.' in name:
            out.update(learn.divide_experts(name, p))
        else:
            out[name] = p.numpy()
    return out


def of_torch(path, s, ids, pad):
    learner = learn.Learner(path, torch.float64, s['balance'],
                            mtp_lambda=s['mtp_lambda'], pad=pad)
    training = learn.Training(learner, s)
    if s['adamw']['decay_all']:
        for group in training.optimiser.param_groups:
            group['weight_decay'] = s['adamw']['weight_decay']
    main, each, balance = learner.losses(ids)
    out = {'loss.main': main.item()}
    out.update({f'loss.mtp.{k}': x.item() for k, x in enumerate(each, 1)})
    out.update({f'loss.balance.{part}': x.item()
                for part, x in zip(PARTS, balance) if x > 0})
    learner.total((main, each, balance)).backward()
    out.update({f'{name}.grad': np.array(g)
                for name, g in learner.gradients().items()})
    out.update({f'model.layers.{layer}.mlp.gate.load': x.numpy()
                for layer, x in learner.loads().items()})
    out['grad_norm'] = training.step(ids)['grad_norm']
    out.update(with_biases(learner, {
        name: p.detach() for name, p in learner.parameters().items()}))
    return out


def nmse(ours, theirs):
    norm = np.square(theirs).sum()
    off = np.square(ours.astype(np.float64) - theirs).sum()
    return off / norm if norm else off


def check(path, reading, pad=0):
    golden = os.path.join(path, 'golden')
    got = load_file(os.path.join(
        golden, (reading or 'golden') + '.safetensors'))
    s = read_settings(os.path.join(golden, 'train.json'), reading)
    want = of_torch(path, s, got.pop('ids').astype(np.int64), pad)
    if want.keys() != got.keys():
        sys.exit(f'{path}: {want.keys() ^ got.keys()}')
    far = {name: nmse(got[name], np.asarray(want[name])) for name in want}
    worst = max(far, key=far.get)
    what = f'{pad} positions of padding' if pad else reading
    print(f'{os.path.basename(path):8}{what:26}{len(far):4} values, worst '
          f'{far[worst]:.1e} {worst}')
    return far[worst] <= LIMIT


def check_drafts(path, field=None):
    """The default reading's drafts, or those with one field of it set."""
    c, w = forward.read_config(path), forward.read_weights(path)
    if field:
        c[field] = True
    golden = os.path.join(path, 'golden')
    plain = load_file(os.path.join(golden, 'golden.safetensors'))
    got = load_file(os.path.join(
        golden, mtp.READING.get(field, 'golden') + '.safetensors'))
    known, worst = plain['ids'][:plain['draft.tokens'][0]], 0
    for depth in range(1, c['num_nextn_predict_layers'] + 1):
        ids, logits = mtp.drafts(dict(c, num_nextn_predict_layers=depth), w,
                                 known, len(plain['draft.1.ids']))
        ours = got[f'draft.{depth}.logits']
        worst = max(worst, nmse(ours, logits[1:]))
        if not field and (plain[f'draft.{depth}.ids'] != ids).any():
            sys.exit(f'{path}: drafts of {depth} modules: {ids}')
    print(f'K10     {mtp.READING.get(field, ""):26} drafts, worst '
          f'{worst:.1e}')
    return worst <= LIMIT


def main(program):
    good = True
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, 'K10')
        subprocess.run([program, 'golden', 'K10', '-o', path], check=True)
        good &= all([check_drafts(path, f) for f in (None, *mtp.READING)])
        for pack, readings in PACKS.items():
            path = os.path.join(tmp, pack)
            subprocess.run([program, 'golden', pack, '-o', path], check=True)
            good &= all([check(path, reading) for reading in readings])
            good &= check(path, '', pad=9)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
