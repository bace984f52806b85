"""Asks ml_dtypes and torch what fp8.c's formats make of a number.

Builds fp8.c and its helpers as a shared library, encodes every BF16 pattern,
every number of a format, the middles of neighbours and the floats beside them,
and 200000 random floats. Where a library departs, the table DEPARTURES says
where and how; any other difference, and a departure that is gone, is an error.
E5M6 is in neither: a line of NumPy stands in.

    python check_fp8.py [--cc gcc] [-n 200000] [--seed 1]
"""
import argparse
import ctypes
import glob
import os
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
import torch

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')
# name: exponent bits, mantissa bits, greatest finite number
FORMATS = {'E4M3': (4, 3, 448.0), 'E5M2': (5, 2, 57344.0),
           'E5M6': (5, 6, 65024.0), 'BF16': (8, 7, 3.3895313892515355e38),
           'F16': (5, 10, 65504.0)}
ML = {'E4M3': ml_dtypes.float8_e4m3fn, 'E5M2': ml_dtypes.float8_e5m2,
      'BF16': ml_dtypes.bfloat16, 'F16': np.float16}
TORCH = {'E4M3': torch.float8_e4m3fn, 'E5M2': torch.float8_e5m2,
         'BF16': torch.bfloat16, 'F16': torch.float16}


# (library, format): the numbers where it departs, and what it gives there
def beyond_e4m3(x):
    return np.abs(x) > 464


DEPARTURES = {
    ('ml_dtypes', 'E4M3'): (beyond_e4m3, 'NaN, where fp8.c saturates at 448'),
}


def library(cc, folder):
    path = os.path.join(folder, 'libfp8.so')
    sources = [os.path.join(ROOT, 'fp8.c')]
    sources += glob.glob(os.path.join(ROOT, 'base', '*.c'))
    subprocess.run([cc, '-std=c99', '-ffp-contract=off', '-O2', '-shared',
                    '-fPIC', '-I', ROOT, '-o', path, *sources, '-lm'],
                   check=True)
    lib = ctypes.CDLL(path)
    lib.format_encode.restype = ctypes.c_uint32
    lib.format_encode.argtypes = [ctypes.c_void_p, ctypes.c_float]
    lib.format_decode.restype = ctypes.c_float
    lib.format_decode.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.ue8m0_encode.restype = ctypes.c_uint8
    lib.ue8m0_encode.argtypes = [ctypes.c_float]
    return lib


def inputs(decoded, rng, n):
    """Floats that can tell two encoders apart, NaN aside."""
    bf16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    finite = np.unique(np.abs(decoded[np.isfinite(decoded)]))
    with np.errstate(over='ignore'):
        middles = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    ends = np.array([464, 465, 480, 61440, 65280, 65520, 3.4e38], np.float32)
    points = np.concatenate([finite.astype(np.float32), middles, ends])
    points = np.concatenate([points, np.nextafter(points, np.float32(0)),
                             np.nextafter(points, np.float32(np.inf))])
    bits = rng.integers(0, 1 << 32, n, dtype=np.uint32)
    x = np.concatenate([bf16, points, -points, bits.view(np.float32)])
    return x[~np.isnan(x)]


def ours(lib, name, x):
    f = ctypes.addressof(ctypes.c_char.in_dll(lib, name))
    codes = np.array([lib.format_encode(f, v) for v in x.tolist()])
    E, M, _ = FORMATS[name]
    table = np.array([lib.format_decode(f, c)
                      for c in range(1 << (1 + E + M))], np.float64)
    return table[codes], table


def by_numpy(name, x):
    """The format's definition with frexp and rint."""
    E, M, greatest = FORMATS[name]
    least = 2 - (1 << (E - 1))
    x = x.astype(np.float64)
    e = np.maximum(np.frexp(x)[1] - 1, least)
    with np.errstate(invalid='ignore'):
        y = np.ldexp(np.rint(np.ldexp(x, M - e)), e - M)
    y = np.where(np.isinf(x), x, y)
    over = np.abs(y) > greatest
    most = greatest if name == 'E4M3' else np.inf
    return np.where(over, np.copysign(most, x), y)


def peers(name, x):
    yield 'numpy', by_numpy(name, x)
    with np.errstate(over='ignore'):
        if name in ML:
            yield 'ml_dtypes', x.astype(ML[name]).astype(np.float64)
    if name in TORCH:
        y = torch.from_numpy(x).to(TORCH[name]).to(torch.float64)
        yield 'torch', y.numpy()


def same(a, b):
    return ((a == b) & (np.signbit(a) == np.signbit(b))) \
        | (np.isnan(a) & np.isnan(b))


def check(lib, name, rng, n):
    bad = 0
    _, table = ours(lib, name, np.zeros(1, np.float32))
    x = inputs(table, rng, n)
    found, _ = ours(lib, name, x)
    for peer, wanted in peers(name, x):
        where, how = DEPARTURES.get((peer, name), (None, ''))
        apart = ~same(found, wanted)
        named = where(x) if where else np.zeros(x.shape, bool)
        unnamed = apart != named
        print(f'{name:5} {peer:10} {x.size:7} numbers, '
              f'{np.count_nonzero(apart):6} differ'
              + (f': {how}' if where else ''))
        for v, f, w in list(zip(x[unnamed], found[unnamed],
                                wanted[unnamed]))[:5]:
            print(f'    {float(v).hex()}: {f}, {peer} has {w}')
        bad += np.count_nonzero(unnamed)
    return bad


def check_ue8m0(lib, rng, n):
    """Up to the next power of two. Both libraries round to the nearest, so
    they are asked for the powers alone."""
    x = rng.integers(1, 0x7f800000, n, dtype=np.uint32).view(np.float32)
    found = np.array([lib.ue8m0_encode(v) for v in x.tolist()], np.int64)
    m, e = np.frexp(x.astype(np.float64))
    wanted = np.clip(e - (m == 0.5) + 127, 1, 254)
    powers = np.ldexp(np.float32(1), np.arange(-126, 128)).astype(np.float32)
    codes = np.array([lib.ue8m0_encode(v) for v in powers.tolist()], np.uint8)
    ml = powers.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    pt = torch.from_numpy(powers).to(torch.float8_e8m0fnu) \
        .view(torch.uint8).numpy()
    up = np.float32(1.25)
    print(f'UE8M0 numpy {n} numbers, powers of two in both; of 1.25 fp8.c '
          f'makes {2.0 ** (lib.ue8m0_encode(up) - 127)}, ml_dtypes '
          f'{float(up.astype(ml_dtypes.float8_e8m0fnu))}, torch '
          f'{float(torch.tensor(up).to(torch.float8_e8m0fnu).float())}')
    return np.count_nonzero(found != wanted) \
        + np.count_nonzero(codes != ml) + np.count_nonzero(codes != pt)


def main():
    p = argparse.ArgumentParser()
    p.add_argument('--cc', default='cc')
    p.add_argument('-n', type=int, default=200000)
    p.add_argument('--seed', type=int, default=1)
    args = p.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        lib = library(args.cc, folder)
        bad = sum(check(lib, name, rng, args.n) for name in FORMATS)
        bad += check_ue8m0(lib, rng, args.n)
    print(f'ml_dtypes {ml_dtypes.__version__}, torch {torch.__version__}: '
          f'{bad} differences that have no name')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(main())
