#!/bin/sh
# table.sh: the limits of one thread, then what models and tokenizers reach.
#
# Makes random models of the shape in 304m.json (2 GB) and of its first four
# layers, and runs the programs of bench/ on them; then peers.py, where
# its Python packages are. `make bench` calls it.
# usage: bench/table.sh [PROGRAMS]     build/bench by default
#   DEEPSEEK    the program, else ./deepseek
#   WORK        where models are kept, else build/bench-models
#   PYTHON      for the peers, else python3; PYTHON=none leaves them out
#   TOKENIZERS, TEXTS   directories and files to encode, else those at hand
set -eu
programs=${1:-build/bench}
DEEPSEEK=${DEEPSEEK:-./deepseek}
work=${WORK:-build/bench-models}
python=${PYTHON:-python3}
tokenizers=${TOKENIZERS:-models/stories}
texts=${TEXTS:-tests/data/fairy_excerpt.txt}
export DEEPSEEK
mkdir -p "$work"

# A random model of $2's weights from the config $1, once.
make_model() {
    [ -e "$work/$3/model.safetensors" ] ||
        "$DEEPSEEK" init "$1" -o "$work/$3" --dtype "$2" --std 0.04
}

title() {
    echo
    echo "$*"
}

model() {
    "$programs/model" "$@"
}

echo "products: speed, and share of the limit"
"$programs/kernels"

for dtype in f32 bf16 fp8; do
    make_model bench/304m.json $dtype $dtype
done
sed 's/"num_hidden_layers": 27/"num_hidden_layers": 4/' bench/304m.json \
    >"$work/4-layers.json"
make_model "$work/4-layers.json" f32 4-layers

for dtype in f32 bf16 fp8; do
    title "304M, $dtype"
    model "$work/$dtype" decode:128 prefill:128
done
sed 's/"num_hidden_layers": 27/&, "num_nextn_predict_layers": 1/' \
    bench/304m.json >"$work/1-module.json"
make_model "$work/1-module.json" bf16 1-module
title "304M with an MTP module, bf16: what a draft costs"
model "$work/1-module" draft:128 draft:2048
title "models/stories, bf16"
model models/stories decode:128 prefill:128
title "304M, f32, 1.2 GB in the page cache; goal: 50 ms beyond a prefill"
model "$work/f32" start:128
title "memory beside the mapped file; goal: what the formula says"
model "$work/f32" memory:4096
title "training models/stories: operations three times those of a forward pass"
"$programs/train" models/stories 16 256
title "training's memory beside the mapped file; goal: what the formula says"
"$programs/train" models/stories 8 256 memory
title "training: goal: time linear in layers, experts and tokens"
sh bench/scaling.sh "$programs/train"
title "long contexts: 4 layers of it; goal: time linear in the cache's bytes"
model "$work/4-layers" decode:1024 decode:8192 decode:32768 decode:131072
title "long prompts: absorbed (prompt) and naive; time of each length"
model "$work/4-layers" curve:8192 naive:8192

for dir in $tokenizers; do
    title "tokenizer; goal: V3's opens in 60 ms"
    "$programs/tokenizer" "$dir" $texts
done

[ "$python" != none ] || exit 0
title "peers, one thread"
if "$python" -c 'import gguf, llama_cpp, ml_dtypes, numpy, tokenizers, torch
import transformers' 2>/dev/null; then
    "$python" bench/peers.py "$work" --bench "$programs" \
        --program "$DEEPSEEK" --tokenizers $tokenizers --texts $texts
else
    echo "skipped: pip install -r bench/requirements.txt, then PYTHON=" \
        "names that Python"
fi
