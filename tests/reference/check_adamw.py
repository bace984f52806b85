"""adamw.c against torch.optim.AdamW, and clipping against torch's.

    python tests/reference/check_adamw.py [STEPS]

Both get the same random gradients, clipped to a norm of 1.  torch computes
in float64, and in float32 beside it: in float32 it rounds in another order
(docs/train.md), so what it is off by shows what is to be expected of us.
torch divides by norm + 1e-6, which is undone here by clipping in float64.
"""
import ctypes
import sys

import numpy as np
import torch

import library

N = 5000
BETA1, BETA2, EPS, DECAY = 0.9, 0.95, 1e-8, 0.1
F32, BF16 = 0, 2


class AdamW(ctypes.Structure):
    _fields_ = [(n, ctypes.c_double)
                for n in ("beta1", "beta2", "eps", "weight_decay")]


class Step(ctypes.Structure):
    _fields_ = [(n, ctypes.c_float) for n in (
        "lr", "clip", "eps", "weight_decay", "beta1", "rest1", "beta2",
        "rest2", "unbias1", "unbias2")]


class Moments(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("m", ctypes.c_void_p),
                ("v", ctypes.c_void_p)]


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


class Ours:
    def __init__(self, lib, start, dtype):
        kind = np.float32 if dtype == F32 else np.uint16
        self.lib, self.p = lib, start.astype(np.float32)
        self.m, self.v = np.zeros(N, kind), np.zeros(N, kind)
        self.moments = Moments(dtype, pointer(self.m), pointer(self.v))

    def step(self, g, lr, t):
        g = g.astype(np.float32)
        norm = self.lib.sum_of_squares(pointer(g), ctypes.c_size_t(N)) ** 0.5
        clip = self.lib.clip_factor(ctypes.c_double(norm),
                                    ctypes.c_double(1.0))
        settings = AdamW(BETA1, BETA2, EPS, DECAY)
        step = self.lib.adamw_step(ctypes.byref(settings),
                                   ctypes.c_double(lr), ctypes.c_float(clip),
                                   ctypes.c_uint64(t))
        self.lib.adamw_update(pointer(self.p), pointer(g),
                              ctypes.byref(self.moments),
                              ctypes.c_size_t(N), ctypes.c_bool(True),
                              ctypes.byref(step))


class Theirs:
    def __init__(self, start, dtype):
        self.p = torch.tensor(start, dtype=dtype).requires_grad_()
        self.optimiser = torch.optim.AdamW(
            [self.p], lr=1.0, betas=(BETA1, BETA2), eps=EPS,
            weight_decay=DECAY)

    def step(self, g, lr):
        g = g.astype(np.float64)
        g = g * min(1.0, 1.0 / np.sqrt((g * g).sum()))
        self.p.grad = torch.tensor(g, dtype=self.p.dtype)
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()


def load():
    lib = library.load("adamw.c", "base/dtype.c")
    lib.sum_of_squares.restype = ctypes.c_double
    lib.clip_factor.restype = ctypes.c_float
    lib.adamw_step.restype = Step
    return lib


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    lib, rng = load(), np.random.default_rng(1)
    start = rng.normal(size=N).astype(np.float32) * np.float32(0.02)
    runs = {"adamw.c": Ours(lib, start, F32),
            "adamw.c, BF16 moments": Ours(lib, start, BF16),
            "torch float32": Theirs(start, torch.float32)}
    exact = Theirs(start, torch.float64)
    for t in range(1, steps + 1):
        g = (rng.normal(size=N) * rng.choice([0.003, 0.3])).astype(np.float32)
        lr = 1e-3 * min(1, t / 50)
        exact.step(g, lr)
        for run in runs.values():
            run.step(g, lr, t) if isinstance(run, Ours) else run.step(g, lr)
    wanted = exact.p.detach().numpy()
    moved = np.sqrt(((wanted - start) ** 2).mean())
    off = {}
    for name, run in runs.items():
        p = run.p if isinstance(run, Ours) else run.p.detach().numpy()
        off[name] = np.sqrt(((p - wanted) ** 2).mean()) / moved
        print(f"{name:24}{off[name]:.2e} of what {steps} steps moved")
    sys.exit(not (off["adamw.c"] < 2 * off["torch float32"]
                  and off["adamw.c, BF16 moments"] < 1e-2))


if __name__ == "__main__":
    main()
