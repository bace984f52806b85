"""Vectors for docs/disputes.md: what each reading gives on a golden pack.

The default is the pack's golden value. Another reading is had by --reading, by
--set of a training setting, or by the change of tests/mutants/table.txt that
makes this program read so; the program is built anew for each in a copy.
Prints the table of docs/disputes.md: where the two are furthest apart in the
first tensor that departs, both values there, and the NMSE of the logits.

    python disputes.py WORK [NAME...]

WORK: a directory for the copy and the packs, which is kept.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')
# what is disputed: pack, kind of switch, its name
ROWS = [
    ('latent-eps', 'K8', 'reading', 'latent-eps=rms_norm_eps'),
    ('ramp over rotations', 'K7', 'mutant', 'yarn-ramp-in-rotations'),
    ('an absent mscale', 'K2', 'mutant', 'yarn-mscale-default'),
    ('no mscale²', 'K2', 'mutant', 'yarn-mscale2-missing'),
    ('no YaRN below 4096', 'K3', 'mutant', 'yarn-off'),
    ('V2: groups by two', 'K2', 'mutant', 'groups-by-top-two'),
    ('V3: groups without bias', 'K3', 'mutant', 'groups-unbiased'),
    ('V3: groups by K_r/M', 'K9', 'mutant', 'groups-by-share'),
    ('mask 0', 'K4', 'mutant', 'mask-zero'),
    ('no 1e-20', 'K5', 'mutant', 'norm-without-1e-20'),
    ('ties to the highest', 'K5-ties', 'mutant', 'ties-to-the-highest'),
    ('gate in BF16', 'K3', 'mutant', 'gate-logits-bf16'),
    ('bias in BF16', 'K5', 'mutant', 'bias-bf16'),
    ('block of the grid', 'K11', 'mutant', 'fp8-blocks-of-the-grid'),
    ('FP8 as BF16', 'K11', 'bf16', ''),
    ('hidden first', 'K10', 'reading', 'mtp-order=hidden-first'),
    ('state before model.norm', 'K10', 'reading', 'mtp-state=before-norm'),
    ('carried before the norm', 'K10', 'reading', 'mtp-carry=before-norm'),
    ('embedding 0 zeroed', 'K10', 'reading', 'mtp-embedding-0=zeroed'),
    ('V3 (18): picks', 'K13-v3', 'set', 'balance.count_picks=true'),
    ('norms decay', 'K13-v2', 'set', 'adamw.decay_all=true'),
]


def call(*words, cwd=None):
    subprocess.run(words, check=True, cwd=cwd, stdout=subprocess.DEVNULL)


class Work:
    """A copy of the sources, built; packs by the right program."""

    def __init__(self, path):
        self.path = path
        self.tree = os.path.join(path, 'tree')
        if not os.path.isdir(self.tree):
            call('git', 'clone', '-q', ROOT, self.tree)
        self.build()
        self.right = os.path.join(path, 'right')
        shutil.copy(os.path.join(self.tree, 'deepseek'), self.right)

    def build(self):
        call('make', '-s', 'OPT=-O1', 'deepseek', cwd=self.tree)

    def pack(self, name):
        path = os.path.join(self.path, name)
        if not os.path.isdir(path):
            call(self.right, 'golden', name, '-o', path)
        return path

    def mutant(self, name):
        """The program with one change of the table."""
        file, pairs = record(self.tree, name)
        path = os.path.join(self.tree, file)
        with open(path, encoding='utf-8') as f:
            right = f.read()
        wrong = right
        for old, new in pairs:
            assert wrong.count(old) == 1, (name, old)
            wrong = wrong.replace(old, new)
        out = os.path.join(self.path, 'wrong')
        try:
            write(path, wrong)
            self.build()
            shutil.copy(os.path.join(self.tree, 'deepseek'), out)
        finally:
            write(path, right)
        return out


def write(path, text):
    with open(path, 'w', encoding='utf-8') as f:
        f.write(text)


def record(tree, name):
    """file, [(lines as they stand, lines as they were wrong)]"""
    with open(os.path.join(tree, 'tests/mutants/table.txt'),
              encoding='utf-8') as f:
        text = re.search(rf'(?ms)^= {re.escape(name)}\n(.*?)(?=^= |\Z)',
                         f.read()).group(1)
    file, pairs, was = None, [], ''
    for line in text.splitlines():
        if line.startswith('file: '):
            file = line[6:]
        elif line[:1] in '-+' and line:
            if line[0] == '-' and was != '-':
                pairs.append([[], []])
            pairs[-1][line[0] == '+'].append(line[1:])
        was = line[:1]
    return file, [['\n'.join(side) + '\n' if side else '' for side in pair]
                  for pair in pairs]


def trace(program, pack, model, out, *more):
    with open(os.path.join(pack, 'golden/manifest.json'),
              encoding='utf-8') as f:
        ids = json.load(f)['ids']
    call(program, 'trace', model, '--ids', ','.join(map(str, ids)), '--force',
         '-o', out, *more)
    return load_file(out)


def step(program, pack, out, setting):
    call(program, 'train', pack, os.path.join(pack, 'golden/train.json'),
         '--from', pack, '--ids-file', os.path.join(pack, 'golden/ids.txt'),
         '--dump-grads', out, '--force', '--set', setting)
    return load_file(out)


def other(work, pack, kind, name):
    """All that the other reading gives."""
    out = os.path.join(work.path, 'other.safetensors')
    if kind == 'reading':
        return trace(work.right, pack, pack, out, '--reading', name)
    if kind == 'mutant':
        return trace(work.mutant(name), pack, pack, out)
    if kind == 'bf16':
        model = os.path.join(work.path, 'as-bf16')
        call(work.right, 'quantize', pack, '--to', 'bf16', '--force',
             '-o', model)
        return trace(work.right, pack, model, out)
    return step(work.right, pack, out, name)


def nmse(a, b):
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both].astype(np.float64), b[both].astype(np.float64)
    norm = np.square(a).sum()
    return np.square(a - b).sum() / norm if norm else float((b != 0).any())


def departs(golden, theirs):
    """The names that differ, in the order of the golden file."""
    return [n for n in golden if n in theirs and (
        golden[n].dtype.kind == 'i' and (golden[n] != theirs[n]).any()
        or golden[n].dtype.kind == 'f'
        and not nmse(golden[n], theirs[n]) <= 1e-9)]


def in_order(path):
    """Names by where their data lie, which safetensors does not keep."""
    with open(path, 'rb') as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
    header.pop('__metadata__', None)
    return sorted(header, key=lambda n: header[n]['data_offsets'])


def shown(x):
    return str(int(x)) if x.dtype.kind == 'i' else f'{x:.6g}'


def row(work, what, name, kind, switch):
    pack = work.pack(name)
    path = os.path.join(pack, 'golden/golden.safetensors')
    values = load_file(path)
    golden = {n: values[n] for n in in_order(path)}
    theirs = other(work, pack, kind, switch)
    names = departs(golden, theirs)
    if not names:
        return f'| {what} | {name} | - | | | |'
    first = names[0]
    a, b = golden[first], theirs[first]
    both = np.isfinite(a) & np.isfinite(b)
    off = np.abs(np.where(both, a, 0).astype(np.float64)
                 - np.where(both, b, 0))
    at = np.unravel_index(off.argmax(), a.shape)
    far = max((nmse(golden[n], theirs[n]) for n in names
               if 'logits' in n and 'gate' not in n), default=None)
    short = first.removeprefix('model.').replace('layers.', '')
    return (f'| {what} | {name} | {short} {list(map(int, at))} | '
            f'{shown(a[at])} | {shown(b[at])} | '
            + (f'{far:.1e} |' if far is not None else '- |'))


def main(path, *only):
    os.makedirs(path, exist_ok=True)
    work = Work(path)
    print('| other reading | pack | first departs | default | other | logits |')
    print('| --- | --- | --- | ---: | ---: | ---: |')
    for what, name, kind, switch in ROWS:
        if not only or what in only:
            print(row(work, what, name, kind, switch), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
