"""How often `deepseek diff` names a known bug rightly: docs/golden.md's table.

Dumps are those that tests/mutants.sh keeps, made by this tree:

    KEEP=DUMPS sh tests/mutants.sh DIR
    python names.py ./deepseek DIR/golden DUMPS [PACK...]

DUMPS.bf16 has those in BF16. A row has the mutants that F32 shows: the dump
departs or is lost within the bounds; its bug is named alone, among others,
wrongly or not at all. Then what a whole dump of the right program in BF16 is
found to be. What only hooks see, and the logits alone, in K2 and K3.
"""
import json
import os
import re
import subprocess
import sys
import tempfile

from safetensors.numpy import load_file, save_file

PACKS = ['K2', 'K3', 'K7', 'K9', 'K10']
# What stands inside a function of a Hugging Face class, or after its sum.
INSIDE = re.compile(r'\.(query|q_pe|k_pe|scores|probs|z|attn_residual|choice|'
                    r'group_scores)$|rotary_emb|\.mlp\.gate\.scores$')
PARTS = [('whole', 'fp32', '', lambda name: True, PACKS),
         ('whole', 'bf16', '.bf16', lambda name: True, PACKS),
         ('hooks', 'bf16', '.bf16', lambda name: not INSIDE.search(name),
          ['K2', 'K3']),
         ('logits', 'bf16', '.bf16', lambda name: name == 'logits',
          ['K2', 'K3'])]


class Judge:
    def __init__(self, program, packs, dumps, chosen):
        self.program, self.packs, self.dumps = program, packs, dumps
        self.chosen = chosen
        self.part = os.path.join(tempfile.mkdtemp(), 'part.safetensors')

    def path(self, name, pack, end):
        return os.path.join(self.dumps + end, name, pack + '.safetensors')

    def ask(self, pack, path, rule):
        golden = os.path.join(self.packs, pack, 'golden/golden.safetensors')
        told = subprocess.run([self.program, 'diff', golden, path, '--rule',
                               rule, '--json'], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False)
        return json.loads(told.stdout)

    def some_of(self, path, keep):
        """A file with those tensors of the dump alone."""
        save_file({name: x for name, x in load_file(path).items()
                   if keep(name)}, self.part)
        return self.part

    def told(self, name, pack, part):
        what, rule, end, keep, _ = part
        path = self.path(name, pack, end)
        return self.ask(pack, path if what == 'whole'
                        else self.some_of(path, keep), rule)

    @staticmethod
    def verdict(name, told):
        bugs = [bug['name'] for bug in told['bugs']]
        if told['right']:
            return 'lost'
        if name not in bugs:
            return 'wrongly' if bugs else 'not named'
        return 'alone' if len(bugs) == 1 else 'among others'

    def shown(self, pack):
        """Mutants whose dumps of this pack F32 shows, and what diff says."""
        names = [name for name in sorted(os.listdir(self.dumps))
                 if os.path.exists(self.path(name, pack, ''))
                 and name != 'golden']
        told = {name: self.told(name, pack, PARTS[0]) for name in names}
        return {name: told[name] for name in names if not told[name]['right']}

    def row(self, part, shown):
        counts = {}
        for pack in [p for p in part[4] if p in self.chosen]:
            for name, told in shown[pack].items():
                if part is not PARTS[0]:
                    told = self.told(name, pack, part)
                found = self.verdict(name, told)
                counts[found] = counts.get(found, 0) + 1
                if found in ('wrongly', 'not named'):
                    print(f'  {part[0]} {part[1]} {pack} {name}: {found}')
        named = counts.get('alone', 0) + counts.get('among others', 0)
        departs = sum(counts.values()) - counts.get('lost', 0)
        print(part[0], part[1], 'departs', departs, counts,
              f'{named / max(departs, 1):.1%} named rightly', flush=True)


def main(program, packs, dumps, *chosen):
    judge = Judge(os.path.abspath(program), packs, dumps, chosen or PACKS)
    for pack in judge.chosen:
        path = judge.path('golden', pack, '.bf16')
        if os.path.exists(path):
            told = judge.ask(pack, path, 'bf16')
            print(pack, 'in BF16:', 'right' if told['right'] else told['first'])
    shown = {pack: judge.shown(pack) for pack in judge.chosen}
    for part in PARTS:
        judge.row(part, shown)


if __name__ == '__main__':
    main(*sys.argv[1:])
