"""test_engine.py: golden packs as the test of an engine (docs/validate.md).

    DEEPSEEK=./deepseek pytest tests/reference/test_engine.py

`run_engine` is transformers here; put yours in its place and keep the rest.
"""
import os
import subprocess

import pytest

import dump

DEEPSEEK = os.environ.get("DEEPSEEK", "./deepseek")


def run_engine(pack, out):
    """Runs the ids of the pack's manifest, writes tensors by their names."""
    dump.main(pack, out)


def judge(name, folder):
    """What diff says of the engine on this pack, and its status."""
    pack, theirs = folder / name, folder / "theirs.safetensors"
    subprocess.run([DEEPSEEK, "golden", name, "-o", pack], check=True)
    run_engine(pack, theirs)
    return subprocess.run(
        [DEEPSEEK, "diff", pack / "golden/golden.safetensors", theirs,
         "--rule", "fp32"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["K1", "K3", "K10"])
def test_pack(name, tmp_path):
    told = judge(name, tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_departure_shows(tmp_path):
    """transformers 5.23 has experts in every layer of K9 (docs/engines.md)."""
    told = judge("K9", tmp_path)
    assert told.returncode == 1 and "model.layers.1" in told.stdout
