"""engines.py: what other engines make of the golden packs.

    python tests/engines/engines.py WORK [--engines mlx] [--packs K4 K9]

Makes the packs below WORK, runs every engine that is installed on each of
them, a process each, tokens given, and compares the logits: NMSE (the bound of
an F32 engine is 1e-9), the largest difference over the largest logit, at how
many tokens the greatest logit is the same; of gate_X, an engine whose gate
alone is run, the weights of experts (gates.py). Then the matrix.
docs/engines.md says why some of them depart.

    --set KEY=VALUE ...  packs with another config.json, golden values traced
                         anew; --drop KEY ...: without these keys
    --reading NAME=VALUE golden values in another reading (docs/disputes.md)
    --draw               with --set: weights drawn where shapes are others
    --mend NAME ...      changes to the engine, if its adapter has some
    --like MISTAKE       golden values with a mistake in them (like.py), to
                         show that an engine makes this one and no other
    --json PATH          all figures

An engine's Python is WORK/NAME/bin/python (sh tests/engines/install.sh), for
gate_X that of WORK/gate, else the one that runs this. Needs numpy and
safetensors; $DEEPSEEK or ./deepseek.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gates
import numpy as np
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEEPSEEK = os.environ.get("DEEPSEEK", "./deepseek")
BOUND = 1e-9
NOT_INSTALLED = 3
SECONDS = 1800
TWINS = {".embed_tokens.weight": "model.embed_tokens.weight",
         ".shared_head.head.weight": "lm_head.weight"}


def engines():
    return sorted(p.stem[4:] for p in HERE.glob("run_*.py"))


def pack_names():
    """In the order of golden.c, which an unknown name is answered with; K13 is
    a step of training."""
    said = subprocess.run([DEEPSEEK, "golden", "?", "-o", os.devnull],
                          capture_output=True, text=True).stderr
    return [name for name in re.findall(r"K\d+[\w-]*", said)
            if not name.startswith("K13")]


# Packs ----------------------------------------------------------------------

def make_pack(work, name):
    pack = work / "packs" / name
    if not pack.exists():
        pack.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([DEEPSEEK, "golden", name, "-o", pack], check=True)
    return pack


def changed(config, settings):
    """Where a key stands more than once, as those of YaRN do, everywhere."""
    for key, value in config.items():
        if key in settings:
            config[key] = settings[key]
        elif isinstance(value, dict):
            changed(value, settings)


def copy_of(pack):
    twin = pack.parent / "changed" / pack.name
    shutil.rmtree(twin, ignore_errors=True)
    shutil.copytree(pack, twin)
    return twin


def ids_of(pack):
    return json.loads((pack / "golden/manifest.json").read_text())["ids"]


def write_safetensors(path, tensors):
    """Of any dtype, also those that NumPy has not."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor["data"])
        header[name] = dict(dtype=tensor["dtype"], shape=tensor["shape"],
                            data_offsets=[begin, end])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(
        tensor["data"] for tensor in tensors.values()))


def draw(twin):
    """Weights of the shapes that config.json has now; what fits is kept."""
    path, drawn = twin / "model.safetensors", twin / "drawn"
    subprocess.run([DEEPSEEK, "init", twin / "config.json", "-o", drawn,
                    "--std", "0.25"], check=True)
    kept = dict(deserialize(path.read_bytes()))
    weights = dict(deserialize((drawn / path.name).read_bytes()))
    for name, tensor in weights.items():
        if name in kept and all(kept[name][key] == tensor[key]
                                for key in ("shape", "dtype")):
            tensor.update(kept[name])
    for name in weights:  # an MTP module's are those of the model
        for end, main in TWINS.items():
            if name.startswith("model.layers.") and name.endswith(end):
                weights[name] = weights[main]
    write_safetensors(path, weights)
    shutil.rmtree(drawn)


def with_settings(pack, a):
    """A copy with another config, and what that gives."""
    twin = copy_of(pack)
    config = json.loads((pack / "config.json").read_text())
    changed(config, a.settings)
    config.update({k: v for k, v in a.settings.items() if k not in config})
    for key in a.drop:
        del config[key]
    (twin / "config.json").write_text(json.dumps(config, indent=2))
    if a.draw:
        draw(twin)
    golden, ids = twin / "golden/golden.safetensors", ids_of(twin)
    subprocess.run([DEEPSEEK, "trace", twin, "--ids",
                    ",".join(map(str, ids)), "--force", "-o", golden,
                    *(["--reading", a.reading] if a.reading else [])],
                   check=True)
    write_safetensors(golden, {
        "ids": dict(dtype="I32", shape=[len(ids)],
                    data=np.array(ids, "<i4").tobytes()),
        **dict(deserialize(golden.read_bytes()))})
    return twin


def with_mistake(pack, mistake):
    """A copy whose golden logits are wrong."""
    import like
    twin = copy_of(pack)
    save_file({"logits": like.logits(twin, ids_of(twin), mistake)},
              twin / "golden/golden.safetensors")
    return twin


# Running and judging --------------------------------------------------------

def python_of(work, engine):
    own = work / engine.split("_")[0] / "bin/python"
    return own if own.exists() else sys.executable


def refusal(run):
    """The last exception's text in one line, or the last line."""
    if run.returncode < 0:
        return f"died with signal {-run.returncode}"
    said = re.split(r"\n(?=[\w.]*(?:Error|Exception)\b)", run.stderr)
    lines = said[-1].split("\n") if len(said) > 1 else run.stderr.split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    shown = lines if len(said) > 1 else lines[-1:]
    return " ".join(shown)[:200] or f"exit status {run.returncode}"


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def apart(want, x):
    if x.shape != want.shape or not np.isfinite(x).all():
        return dict(nmse=np.inf, worst=np.inf, same=0)
    d = x - want
    return dict(nmse=float((d * d).sum() / (want * want).sum()),
                worst=float(np.abs(d).max() / np.abs(want).max()),
                same=float((x.argmax(1) == want.argmax(1)).mean()))


def wanted(golden, name):
    """What it has to be, or None of what is not judged."""
    kind = re.match(r"(mtp\.\d\.)?(logits|logprobs)", name)
    if name == "gates":
        return gates.wanted(golden).astype(np.float64)
    if not kind:
        return None
    want = golden[(kind[1] or "") + "logits"].astype(np.float64)
    return log_softmax(want) if kind[2] == "logprobs" else want


def judge(golden, found):
    """name -> figures, of all logits that the engine gave, its
    log-probabilities or what its gates weigh experts with."""
    given = {name: (wanted(golden, name), x) for name, x in found.items()}
    return {name: apart(want, x.astype(np.float64))
            for name, (want, x) in given.items() if want is not None}


def right(figures):
    return figures and all(f["nmse"] <= BOUND for f in figures.values())


def verdict(pack, found):
    """Which of the pack's readings it is, the first of them golden.safetensors
    itself."""
    figures = judge(load_file(pack / "golden/golden.safetensors"), found)
    if right(figures):
        return dict(verdict="passes", figures=figures)
    for reading in sorted((pack / "golden").glob("*=*.safetensors")):
        other = judge(load_file(reading), found)
        if right(other):
            return dict(verdict=reading.stem, figures=figures)
    return dict(verdict="departs", figures=figures)


def run(a, engine, pack):
    """What became of it: verdict, and figures or message."""
    out = a.work / "out" / engine / (pack.name + ".safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    env = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    try:
        done = subprocess.run(
            [python_of(a.work, engine), HERE / f"run_{engine}.py", pack, out,
             *a.mend], capture_output=True, text=True, env=env, cwd=ROOT,
            timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return dict(verdict="refuses", message=f"not done in {SECONDS} s")
    out.with_suffix(".log").write_text(done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith("MEND "):
            print(line)
    if done.returncode == NOT_INSTALLED:
        return dict(verdict="not installed")
    if done.returncode:
        return dict(verdict="refuses", message=refusal(done))
    with safe_open(out, "numpy") as f:
        version = f.metadata()["version"]
    return dict(verdict(pack, load_file(out)), version=version)


# The report -----------------------------------------------------------------

def cell(result):
    if result["verdict"] == "departs":
        return f"{max(f['nmse'] for f in result['figures'].values()):.1e}"
    return "-" if result["verdict"] == "not installed" else result["verdict"]


def details(engine, pack, result):
    if result["verdict"] == "refuses":
        print(f"{engine} {pack}: refuses: {result['message']}")
    for name, f in result.get("figures", {}).items():
        print(f"{engine} {pack}: {name}: NMSE {f['nmse']:.1e}, largest "
              f"difference {f['worst']:.1e}, top-1 {f['same']:.0%}",
              flush=True)


def heading(engine, row):
    versions = [r["version"] for r in row.values() if "version" in r]
    return " ".join([engine, *versions[:1]])


def print_matrix(results, names):
    """A Markdown table; a number is the NMSE of what departs."""
    print("\n| pack | " + " | ".join(
        heading(engine, row) for engine, row in results.items()) + " |")
    print("| --- |" + " --- |" * len(results))
    for name in names:
        print(f"| {name} | " + " | ".join(
            cell(row[name]) for row in results.values()) + " |")


def value_of(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--engines", nargs="*", default=engines())
    parser.add_argument("--packs", nargs="*", default=pack_names())
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--drop", nargs="*", default=[])
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--reading")
    parser.add_argument("--mend", nargs="*", default=[])
    parser.add_argument("--like")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    a.settings = {key: value_of(value) for key, value in
                  (text.split("=", 1) for text in a.set)}
    a.work = a.work.resolve()
    return a


def main():
    a = arguments()
    results = {engine: {} for engine in a.engines}
    for name in a.packs:
        pack = make_pack(a.work, name)
        if a.settings or a.drop or a.draw or a.reading:
            pack = with_settings(pack, a)
        if a.like:
            pack = with_mistake(pack, a.like)
        for engine in a.engines:
            results[engine][name] = run(a, engine, pack)
            details(engine, name, results[engine][name])
    print_matrix(results, a.packs)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
