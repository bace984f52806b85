"""like.py: what a pack's logits would be with a mistake of an engine that is
compiled, and so cannot be mended here: tests/reference/forward.py with one
function of it replaced.
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
import forward  # noqa: E402

route, group_choice = forward.route, forward.group_choice


def floor(x, w, c, p, keep):
    """The sum of the chosen scores is at least 2^-14, the least normal F16."""
    ids, _ = route(x, w, c, p, keep)
    s = 1 / (1 + np.exp(-forward.linear(x, w[p + "gate.weight"])))
    g = np.take_along_axis(s, ids, axis=1)
    g = g / np.maximum(g.sum(axis=1, keepdims=True), 2.0 ** -14)
    return ids, keep("topk_weights", g * c["routed_scaling_factor"])


def no_routed(x, w, c, p, keep):
    """Every weight is 0."""
    ids, weights = route(x, w, c, p, keep)
    return ids, keep("topk_weights", 0 * weights)


def top_two(c, choice, keep):
    """Groups by the sum of their two greatest, in V2 too."""
    return group_choice(dict(c, topk_method="noaux_tc"), choice, keep)


def zero_mask(c, choice, keep):
    """Experts of dropped groups count as 0."""
    kept = group_choice(c, choice, keep)
    return np.where(np.isinf(kept), 0, kept)


def highest_first(values, k):
    """Of equal ones the last."""
    n = values.shape[-1]
    return n - 1 - np.argsort(-values[..., ::-1], axis=-1, kind="stable")[
        ..., :k]


MISTAKES = {"floor": ("route", floor), "no-routed": ("route", no_routed),
            "top-two": ("group_choice", top_two),
            "mask-0": ("group_choice", zero_mask),
            "ties": ("best", highest_first)}


def logits(pack, ids, mistake):
    name, wrong = MISTAKES[mistake]
    setattr(forward, name, wrong)
    c, w = forward.load(str(pack))
    return forward.forward(c, w, np.array(ids))["logits"].astype(np.float32)
