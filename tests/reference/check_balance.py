"""balance.c against the equations in torch float64, with autograd.

    python tests/reference/check_balance.py [CASES]

Random scores of softmax and sigmoid gates, random picks; each loss alone and
all together; by sequence and by batch.  Dropping against a sort in NumPy,
exemption against SplitMix64 in whole numbers.
"""
import ctypes
import sys

import numpy as np
import torch

import library

KINDS = 4
EXPERT, DEVICE, COMMUNICATION, SEQUENCE = range(KINDS)


class Routes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "NKBT"] + [
        ("scores", ctypes.c_void_p), ("topk_ids", ctypes.c_void_p)]


class Balance(ctypes.Structure):
    _fields_ = [("alpha", ctypes.c_double * KINDS),
                ("devices", ctypes.c_size_t),
                ("device_limit", ctypes.c_size_t),
                ("batch", ctypes.c_bool), ("count_picks", ctypes.c_bool)]


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def from_c(lib, s, ids, b, scale):
    B, T, N = s.shape
    routes = Routes(N, ids.shape[2], B, T, pointer(s), pointer(ids))
    losses, work = np.zeros(KINDS), np.zeros(4 * N)
    ds = np.zeros_like(s)
    lib.balance_losses(pointer(losses), pointer(ds), ctypes.byref(routes),
                       ctypes.byref(b), ctypes.c_double(scale), pointer(work))
    return losses, ds


def mask_of(ids, N):
    return torch.zeros(*ids.shape[:2], N, dtype=torch.float64).scatter(
        2, ids, 1.0)


def from_torch(s, ids, b, scale):
    """Mean over sequences of V2 (23)-(31) and V3 (17)-(20)."""
    B, T, N = s.shape
    K, D, M = ids.shape[2], b.devices, b.device_limit
    weight = scale
    if b.batch:
        s, ids = s.reshape(1, B * T, N), ids.reshape(1, B * T, K)
        weight, T, B = scale * B, B * T, 1
    picks = mask_of(ids, N)
    f = N / (K * T) * picks.sum(1)
    P = s.mean(1)
    groups = (B, D, N // D)
    sent = picks.reshape(B, T, D, N // D).amax(3)
    f2 = D / (M * T) * sent.sum(1)
    share = (s / s.sum(2, keepdim=True)).mean(1)
    best = picks if b.count_picks else mask_of(s.topk(K, dim=2).indices, N)
    f3 = N / (K * T) * best.sum(1)
    device_P = P.reshape(groups).sum(2)
    losses = [(f * P).sum(), (f.reshape(groups).mean(2) * device_P).sum(),
              (f2 * device_P).sum(), (f3 * share).sum()]
    return torch.stack([weight * a * x for a, x in zip(b.alpha, losses)])


def random_case(rng):
    D = int(rng.integers(1, 5))
    N = D * int(rng.integers(2, 17))
    K = int(rng.integers(1, N))
    B, T = int(rng.integers(1, 5)), int(rng.integers(1, 40))
    z = torch.from_numpy(rng.normal(size=(B, T, N)))
    s = z.softmax(2) if rng.random() < 0.5 else z.sigmoid()
    s = s.to(torch.float32).numpy().copy()
    ids = np.argsort(rng.random((B, T, N)), axis=2)[:, :, :K]
    alpha = rng.random(KINDS) * rng.integers(0, 2, KINDS)
    b = Balance((ctypes.c_double * KINDS)(*alpha), D,
                int(rng.integers(1, D + 1)), rng.random() < 0.3,
                rng.random() < 0.5)
    return s, np.ascontiguousarray(ids.astype(np.int32)), b


def check_losses(lib, rng, cases):
    worst = [0.0, 0.0]
    for _ in range(cases):
        s, ids, b = random_case(rng)
        scale = 1 / s.shape[0]
        losses, ds = from_c(lib, s, ids, b, scale)
        leaf = torch.from_numpy(s.astype(np.float64)).requires_grad_()
        wanted = from_torch(leaf, torch.from_numpy(ids).long(), b, scale)
        wanted.sum().backward()
        grad = leaf.grad.numpy()
        off = np.abs(losses - wanted.detach().numpy()).max()
        norm = np.abs(grad).max()
        worst[0] = max(worst[0], off / max(losses.sum(), 1e-300))
        if norm > 0:
            worst[1] = max(worst[1], np.abs(ds - grad).max() / norm)
    print(f"{cases} cases: losses differ by {worst[0]:.1e}, "
          f"gradients by {worst[1]:.1e}")
    return worst[0] < 1e-13 and worst[1] < 3e-7


def dropped_by_sort(s, ids, exempt, capacity, D):
    B, T, N = s.shape
    K = ids.shape[2]
    flat = ids.reshape(-1)
    row = np.arange(B * T).repeat(K)
    score = s.reshape(-1, N)[row, flat]
    kept = np.asarray(exempt).repeat(T * K)
    dropped = np.zeros(B * T * K, np.int32)
    for g in range(D):
        mine = np.nonzero(flat // (N // D) == g)[0]
        excess = len(mine) - int(capacity * B * T * K / D)
        may = mine[~kept[mine]]
        order = may[np.lexsort((-may, score[may]))]
        dropped[order[:max(excess, 0)]] = 1
    return dropped


def check_dropping(lib, rng, cases):
    lib.drop_tokens.restype = ctypes.c_size_t
    total = 0
    for _ in range(cases):
        s, ids, b = random_case(rng)
        s = np.round(s, int(rng.integers(1, 8))).astype(np.float32)
        B, T, N = s.shape
        D = b.devices
        exempt = rng.random(B) < 0.3
        capacity = float(rng.choice([0.5, 0.75, 1.0, 1.25]))
        routes = Routes(N, ids.shape[2], B, T, pointer(s), pointer(ids))
        dropped = np.empty(ids.size, np.int32)
        work = np.empty(ids.size, np.uint64)
        n = lib.drop_tokens(pointer(dropped), ctypes.byref(routes),
                            pointer(exempt), ctypes.c_double(capacity),
                            ctypes.c_size_t(D), pointer(work))
        wanted = dropped_by_sort(s, ids, exempt, capacity, D)
        if n != wanted.sum() or (wanted != dropped).any():
            print("dropping differs")
            return False
        total += n
    print(f"{cases} cases: the same {total} pairs dropped")
    return True


WORD = (1 << 64) - 1


def split_mix(state):
    """(The number that follows this state, the next state.)"""
    state = (state + 0x9E3779B97F4A7C15) & WORD
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31), state


def exempt(seed, sequence, rate):
    key, _ = split_mix(split_mix(seed)[1])
    number, _ = split_mix((key + sequence) & WORD)
    return (number >> 11) * 2.0 ** -53 < rate


def check_exempt(lib, rng):
    lib.drop_exempt.restype = ctypes.c_bool
    for _ in range(2000):
        seed, n = (int(x) for x in rng.integers(0, 1 << 62, 2))
        rate = float(rng.random())
        found = lib.drop_exempt(ctypes.c_uint64(seed), ctypes.c_uint64(n),
                                ctypes.c_double(rate))
        if found != exempt(seed, n, rate):
            print("exemption differs")
            return False
    first = [i for i in range(36) if exempt(1, i, 0.1)]
    print("exempt with seed 1 and rate 0.1:", *first)
    return True


def main():
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    lib = library.load("balance.c", "base/random.c")
    rng = np.random.default_rng(1)
    good = check_losses(lib, rng, cases)
    good = check_dropping(lib, rng, cases) and good
    sys.exit(not (check_exempt(lib, rng) and good))


if __name__ == "__main__":
    main()
