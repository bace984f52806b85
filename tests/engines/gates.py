"""gates.py: the gate of an engine alone, where the rest of it wants a GPU.

The engine's own function, from its package as released, is given the logits
that the pack's gates have, and so picks experts and weighs them; nothing
before the gate or behind it is run. What comes out, "gates", has a row for
each token of each layer, in order, and a column for each expert: its weight,
0 if it was not picked.

A package whose import wants what is not here (kernels, a GPU, a server) is not
imported: `cut` takes the function out of its file. The mend "ties" is of all:
a sort that puts the lowest index first among equals.
"""
import __future__
import ast
import importlib.metadata
import re
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

import adapter

LOGITS = re.compile(r"model\.layers\.(\d+)\.mlp\.gate\.logits")


def layers(golden):
    """Those with a gate, in order."""
    return sorted(int(m[1]) for m in map(LOGITS.fullmatch, golden) if m)


def weights(ids, weight, experts):
    """(tokens, experts), 0 for those that were not picked."""
    out = np.zeros((len(ids), experts), np.float32)
    np.put_along_axis(out, np.asarray(ids, np.int64), np.asarray(weight), 1)
    return out


def wanted(golden):
    """What "gates" has to be."""
    at = [f"model.layers.{i}.mlp.gate." for i in layers(golden)]
    return np.vstack([weights(golden[g + "topk_ids"],
                              golden[g + "topk_weights"],
                              golden[g + "logits"].shape[1]) for g in at])


def named(node):
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", None)
    return getattr(node, "name", None)


def cut(package, module, names, known, mends=()):
    """The functions, classes and constants of these names, as its file has
    them, but for their decorators; the rest of what they call is known."""
    path = importlib.metadata.distribution(package).locate_file(
        module.replace(".", "/") + ".py")
    text = adapter.replaced(path, [(theirs, ours) for where, theirs, ours
                                   in mends if where == module])
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if named(node) in names]
    for node in ast.walk(tree):
        if getattr(node, "decorator_list", None):
            node.decorator_list = []
    space = dict(known)
    exec(compile(tree, path, "exec", __future__.annotations.compiler_flag,
                 dont_inherit=True), space)
    return space


def stable_topk(x, k, dim=-1, largest=True, sorted=True):
    values, ids = x.sort(dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), ids.narrow(dim, 0, k)


def gates(pack, prepare, mends):
    """What the engine's gate makes of all layers of a pack."""
    import torch
    golden, out = load_file(pack / "golden/golden.safetensors"), []
    route = prepare(adapter.config(pack), mends)
    with safe_open(pack / "model.safetensors", "pt") as files:
        for i in layers(golden):
            g = f"model.layers.{i}.mlp.gate."
            bias = g + "e_score_correction_bias"
            bias = files.get_tensor(bias) if bias in files.keys() else None
            logits = torch.from_numpy(golden[g + "logits"])
            picked = route(logits, bias)
            if isinstance(picked, tuple):
                picked = weights(*picked, logits.shape[1])
            out.append(np.asarray(picked))
    return {"gates": np.vstack(out)}


def main(package, prepare, mends=None):
    """prepare(config, mends) gives route(logits, bias), which gives ids and
    weights as tensors, or the weights of all experts."""
    import torch
    mends, chosen = dict(mends or {}, ties=[]), sys.argv[3:]
    if "ties" in chosen:
        torch.topk = stable_topk
    adapter.main(package, lambda pack, _: gates(pack, prepare, [
        mend for name in chosen for mend in mends[name]]), mends)
