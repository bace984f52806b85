"""Does every part of the small models matter? Changes one thing at a time.

For each case: every tensor that is used (a gain to 1, a bias to 0, a matrix to
0), every number of the configuration that the case is about, and a few known
mistakes of real engines. Each change must move the logits by MOVES of the
largest; else a mistake there could hide. Mistakes a case cannot show are
printed as '-', and each must be shown by some case.

    python matter.py [NAME ...]
"""
import sys

import numpy as np

import forward
import make_golden
import models

MOVES = 1e-3


def used_experts(c, trace):
    """Prefixes of the routed experts that no token of the prompt chose."""
    idle = set()
    for layer in range(c['num_hidden_layers']):
        p = f'model.layers.{layer}.mlp.'
        if p + 'gate.topk_ids' in trace:
            chosen = set(trace[p + 'gate.topk_ids'].ravel().tolist())
            idle |= {f'{p}experts.{e}.' for e in
                     set(range(c['n_routed_experts'])) - chosen}
    return idle


def moved(c, w, ids, base):
    with np.errstate(all='ignore'):
        logits = forward.forward(c, w, ids)['logits']
    if not np.isfinite(logits).all():
        return np.inf
    return make_golden.error(base, logits)


def tensors_that_do_not(c, w, ids, trace):
    """Names of tensors one could lose unseen."""
    idle, out = used_experts(c, trace), []
    for name, a in w.items():
        layer = name.split('.')[2] if 'layers' in name else '0'
        if (int(layer) >= c['num_hidden_layers']
                or name.rsplit('.', 2)[0] + '.' in idle):
            continue
        gain = a.ndim == 1 and not name.endswith('bias')
        changed = dict(w, **{name: np.ones_like(a) if gain else 0 * a})
        m = moved(c, changed, ids, trace['logits'])
        if m < MOVES:
            out.append(f'{name} {m:.0e}')
    return out


# Mistakes: (name, changed configuration or None if it is not one) -----------

def yarn(**change):
    return lambda c: c['rope_scaling'] and dict(
        c, rope_scaling=dict(c['rope_scaling'], **change))


def setting(**change):
    return lambda c: dict(c, **change)


def yarn_off(c):
    return c['rope_scaling'] and dict(c, rope_scaling=None)


def v3_groups(c):
    return c['topk_method'] == 'group_limited_greedy' and dict(
        c, topk_method='noaux_tc')


def v2_groups(c):
    return c['topk_method'] == 'noaux_tc' and dict(
        c, topk_method='group_limited_greedy')


CONFIGS = {
    'YaRN off': yarn_off,
    'theta 10000': setting(rope_theta=10000),
    'factor 40': yarn(factor=40),
    'original length 4096': yarn(original_max_position_embeddings=4096),
    'beta_fast 32': yarn(beta_fast=32),
    'beta_slow 1': yarn(beta_slow=1),
    'mscale missing': yarn(mscale=1),
    'mscale_all_dim missing': yarn(mscale_all_dim=0),
    'no groups': setting(n_group=1, topk_group=1),
    'scaling skipped': setting(routed_scaling_factor=1.0),
    'normalisation skipped': lambda c: dict(
        c, norm_topk_prob=not c['norm_topk_prob']),
    'softmax for sigmoid': setting(scoring_func='softmax'),
    'eps 1e-5': setting(rms_norm_eps=1e-5),
    'latent eps': setting(latent_eps_from_config=True),
    'one expert fewer': lambda c: c.get('num_experts_per_tok') and dict(
        c, num_experts_per_tok=c['num_experts_per_tok'] - 1),
}


def group_rule(score):
    """group_choice with another score of a group, and another mask."""
    def choose(c, choice, _keep):
        if c['topk_method'] == 'greedy' or c['n_group'] == 1:
            return choice
        by = choice.reshape(choice.shape[0], c['n_group'], -1)
        s, hidden = score(c, by)
        mask = np.zeros(s.shape, bool)
        np.put_along_axis(mask, forward.best(s, c['topk_group']), True, axis=1)
        return np.where(mask[:, :, None], by, hidden).reshape(choice.shape)
    return choose


def top_two(by):
    return -np.sort(-by, axis=2)[:, :, :2].sum(axis=2)


def own(c, by):
    v2 = c['topk_method'] == 'group_limited_greedy'
    return by.max(axis=2) if v2 else top_two(by)


def half_split(x, freq, mult):
    n = x.shape[-1] // 2
    order = np.arange(2 * n).reshape(2, n).T.ravel()
    return rotate(x[..., order], freq, mult)


def highest_index(values, k):
    n = values.shape[-1]
    return n - 1 - best(values[..., ::-1], k)


def bf16(a):
    bits = a.astype(np.float32).view(np.uint32)
    bits = bits + 0x7fff + (bits >> 16 & 1) & np.uint32(0xffff0000)
    return bits.view(np.float32).astype(np.float64)


def bias_in_bf16(w):
    return {k: bf16(a) if k.endswith('correction_bias') else a
            for k, a in w.items()}


def float32_scores(x, w, c, p, keep):
    """Weights as (s + b) - b in float32: what cancellation leaves of s."""
    ids, _ = route(x, w, c, p, keep)
    s = 1 / (1 + np.exp(-forward.linear(x, w[p + 'gate.weight'])))
    b = w.get(p + 'gate.e_score_correction_bias', 0 * s[0]).astype(np.float32)
    s = ((s.astype(np.float32) + b) - b).astype(np.float64)
    g = np.take_along_axis(s, ids, axis=1)
    g = g / (g.sum(axis=1, keepdims=True) + 1e-20)
    return ids, keep('topk_weights', g * c['routed_scaling_factor'])


def no_epsilon(x, w, c, p, keep):
    ids, _ = route(x, w, c, p, keep)
    s = 1 / (1 + np.exp(-forward.linear(x, w[p + 'gate.weight'])))
    g = np.take_along_axis(s, ids, axis=1)
    g = g / g.sum(axis=1, keepdims=True)
    return ids, keep('topk_weights', g * c['routed_scaling_factor'])


def blocks_of_the_grid(q, scale):
    """FP8 blocks of rows / grid, rounded up, instead of 128."""
    r = np.arange(q.shape[0]) // -(-q.shape[0] // scale.shape[0])
    c = np.arange(q.shape[1]) // -(-q.shape[1] // scale.shape[1])
    return q * scale.astype(np.float64)[r][:, c]


rotate, best, route = forward.rotate, forward.best, forward.route
CODE = {
    'mask 0': ('group_choice', group_rule(lambda c, by: (own(c, by), 0.0))),
    'V2 groups by top two': ('group_choice', group_rule(
        lambda c, by: (top_two(by), -np.inf))),
    'V3 groups by maximum': ('group_choice', group_rule(
        lambda c, by: (by.max(axis=2), -np.inf))),
    'V3 groups by sum': ('group_choice', group_rule(
        lambda c, by: (by.sum(axis=2), -np.inf))),
    'half-split RoPE': ('rotate', half_split),
    'ties to the highest index': ('best', highest_index),
    'score from the biased sum': ('route', float32_scores),
    '1e-20 missing': ('route', no_epsilon),
}
LAST = ['bias in BF16', 'FP8 blocks of the grid']


def with_code(name, value, call):
    old = getattr(forward, name)
    setattr(forward, name, value)
    try:
        return call()
    finally:
        setattr(forward, name, old)


def possible(c, attribute):
    if attribute == 'rotate':
        return True
    return c.get('n_routed_experts') and (
        attribute != 'route' or c['scoring_func'] == 'sigmoid')


def mistakes(spec, c, w, ids, base):
    """name -> how far each mistake moves the logits."""
    out = {}
    for name, change in CONFIGS.items():
        other = change(c)
        if other:
            out[name] = moved(other, w, ids, base)
    for name, (attribute, value) in CODE.items():
        if possible(c, attribute):
            out[name] = with_code(attribute, value,
                                  lambda: moved(c, w, ids, base))
    wrong = with_code('dequantise', blocks_of_the_grid,
                      lambda: make_golden.models_in_memory(spec)[1])
    out[LAST[0]] = moved(c, bias_in_bf16(w), ids, base)
    out[LAST[1]] = moved(c, wrong, ids, base)
    return out


def main(names):
    shown = {}
    for name in names or models.CASES:
        spec = models.CASES[name]
        c, w = make_golden.models_in_memory(spec)
        ids = models.prompt(spec)
        trace = forward.forward(c, w, ids)
        lost = tensors_that_do_not(c, w, ids, trace)
        seen = mistakes(spec, c, w, ids, trace['logits'])
        for k, m in seen.items():
            if m > MOVES:
                shown.setdefault(k, []).append(name)
        print(f'{name:18} tensors unseen: {", ".join(lost) or "none"}',
              flush=True)
    for k in [*CONFIGS, *CODE, *LAST]:
        print(f'{k:32} {" ".join(shown.get(k, ["-"]))}')
    return 0 if names else any(
        k not in shown for k in [*CONFIGS, *CODE, *LAST])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
