"""Holds what `deepseek quantize` writes to NumPy's and transformers' reading.

- A quantiser and a dequantiser in NumPy give the same bits as the files, for
  every directory of tests/data/models: codes, scales, BF16; from FP8 (kept,
  and with the other kind of scales), to FP8, to BF16.
- transformers' own FP8 reader loads models/stories in FP8 and gives the logits
  that the program gives for the weights that reader makes: code * scale
  rounded to BF16, which is the --to bf16 directory.

    python check_quantize.py ./deepseek [--only NAME]
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
from safetensors import deserialize
from safetensors.numpy import load_file

import forward
import models

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.normpath(os.path.join(HERE, '..', '..'))
NMSE = 1e-9


def raw(path):
    """name -> (dtype, shape, bytes) of all files of a directory."""
    out = {}
    for file in forward.weight_files(path):
        with open(os.path.join(path, file), 'rb') as f:
            for name, t in deserialize(f.read()):
                out[name] = t['dtype'], tuple(t['shape']), bytes(t['data'])
    return out


def exact(tensors, name):
    """float64 values of a tensor."""
    a = forward.decode(*tensors[name]).astype(np.float64)
    if tensors[name][0] == 'F8_E4M3':
        a = forward.dequantise(a, forward.decode(
            *tensors[name + '_scale_inv']))
    return a


def bf16(x):
    """float64 to the nearest BF16, ties to even, rounded once: the bits of
    the one below in magnitude, and the distance to it and to the next."""
    low = (np.abs(x).astype(np.float32).view(np.uint32) & 0xffff0000)

    def value(bits):
        return bits.view(np.float32).astype(np.float64)
    low = np.where(value(low) > np.abs(x), low - 0x10000, low).astype('u4')
    down = np.abs(x) - value(low)
    up = value(low + np.uint32(0x10000)) - np.abs(x)
    odd = (low >> 16 & 1) == 1
    bits = np.where((up < down) | ((up == down) & odd), low + 0x10000, low)
    return (bits >> 16 | np.signbit(x).astype('u4') << 15).astype('<u2')


def quantise(w, ue8m0):
    """Codes and scales of float32 values in blocks of 128 x 128."""
    w = w.astype(np.float32)
    rows, cols = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
    s = np.zeros((rows, cols), '<f4')
    for i in range(rows):
        for j in range(cols):
            a = np.abs(w[128*i:128*i+128, 128*j:128*j+128]).max()
            s[i, j] = max(a, np.float32(1e-4)) / np.float32(448)
    if ue8m0:
        m, e = np.frexp(s)
        s = np.ldexp(np.float32(1), e - (m == 0.5)).astype('<f4')
    r, c = np.arange(w.shape[0]) // 128, np.arange(w.shape[1]) // 128
    q = w / s[r][:, c]
    q = np.clip(q, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return q.view(np.uint8), s


def wanted(tensors, to, ue8m0, was_ue8m0):
    """The file that should come, name -> (dtype, shape, bytes)."""
    out = {}
    for name, (dtype, shape, data) in tensors.items():
        if name.endswith('_scale_inv'):
            continue
        x = exact(tensors, name)
        if name.endswith('e_score_correction_bias'):
            out[name] = 'F32', shape, x.astype('<f4').tobytes()
        elif to == 'bf16' or not models.is_fp8(name, shape):
            out[name] = 'BF16', shape, bf16(x).tobytes()
        elif dtype == 'F8_E4M3' and ue8m0 == was_ue8m0:
            out[name] = dtype, shape, data
            out[name + '_scale_inv'] = tensors[name + '_scale_inv']
        else:
            q, s = quantise(x, ue8m0)
            out[name] = 'F8_E4M3', shape, q.tobytes()
            out[name + '_scale_inv'] = 'F32', s.shape, s.tobytes()
    return out


def call(*args):
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{args[1]}: {done.stderr.strip()[-300:]}')


def config(path):
    with open(os.path.join(path, 'config.json'), encoding='utf-8') as f:
        return json.load(f)


def check_config(before, after, fp8, ue8m0):
    stored = ('quantization_config', 'torch_dtype', 'dtype')
    same = {k: v for k, v in before.items() if k not in stored}
    if {k: v for k, v in after.items() if k not in stored} != same:
        return ['config.json: other keys changed']
    q = after.get('quantization_config')
    if (q is not None) != fp8 or (fp8 and ('scale_fmt' in q) != ue8m0):
        return [f'quantization_config {q}']
    return []


def check(program, path):
    """Complaints, and how many tensors were compared."""
    out, n = [], 0
    before, tensors = config(path), raw(path)
    q = before.get('quantization_config') or {}
    for options in (('f32',), ('ue8m0',), ()):
        with tempfile.TemporaryDirectory() as tmp:
            to = os.path.join(tmp, 'out')
            args = (['--scale-fmt', *options] if options else
                    ['--to', 'bf16'])
            call(program, 'quantize', path, '-o', to, *args)
            got, fp8 = raw(to), bool(options)
            want = wanted(tensors, 'fp8' if fp8 else 'bf16',
                          options == ('ue8m0',), 'scale_fmt' in q)
            out += [f'{args}: {name} differs' for name in sorted(
                got.keys() | want.keys()) if got.get(name) != want.get(name)]
            out += check_config(before, config(to), fp8, options == ('ue8m0',))
            n += len(want)
    return out, f'{n} tensors, every bit'


def check_transformers(program, path, ids):
    """The FP8 directory by transformers' reader against the BF16 one here."""
    import hf
    with tempfile.TemporaryDirectory() as tmp:
        fp8, half = os.path.join(tmp, 'fp8'), os.path.join(tmp, 'bf16')
        trace = os.path.join(tmp, 'trace.safetensors')
        call(program, 'quantize', path, '-o', fp8)
        call(program, 'quantize', fp8, '-o', half, '--to', 'bf16')
        call(program, 'trace', half, '--ids', ','.join(map(str, ids)), '-o',
             trace, '--only', 'logits')
        want = load_file(trace)['logits'].astype(np.float64)
        model = hf.load(fp8, hf.torch.bfloat16).float()
        got = hf.run(model, ids)['logits']
    e = float(((want - got) ** 2).mean() / (want ** 2).mean())
    return [] if e <= NMSE else [f'logits NMSE {e:.1e}'], f'logits NMSE {e:.0e}'


def report(name, function, *args):
    try:
        out, note = function(*args)
    except Exception as e:  # a case that breaks is a case that fails
        out, note = [f'{type(e).__name__}: {" ".join(str(e).split())[-300:]}'], ''
    print(f'{"FAIL" if out else "ok":4} {name:18} {note}', flush=True)
    for line in out[:6]:
        print('     ' + line)
    return bool(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('program')
    parser.add_argument('--only')
    args = parser.parse_args()
    program, failures = os.path.abspath(args.program), 0
    data = os.path.join(ROOT, 'tests', 'data', 'models')
    for name in sorted(os.listdir(data)):
        if args.only in (None, name):
            failures += report(name, check, program, os.path.join(data, name))
    stories = os.path.join(ROOT, 'models', 'stories')
    if args.only in (None, 'stories'):
        failures += report('stories', check, program, stories)
        failures += report('transformers', check_transformers, program,
                           stories, np.arange(100, 164))
    print(f'{failures} failures')
    return failures != 0


if __name__ == '__main__':
    sys.exit(main())
