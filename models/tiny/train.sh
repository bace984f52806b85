#!/bin/sh
# train.sh: from texts to a small V3-style model: tokenizer, data, training, a
# picture of it. `make tiny` calls it.
#
# A step whose result is there is left out; training goes on where it was
# stopped. So the same command again goes on, whatever ended it.
# usage: models/tiny/train.sh OUT TEXT...
#   OUT        a directory: tokenizer/, train.bin, held-out.bin, run/, run.svg
#   DEEPSEEK   the program, else ./deepseek
#   HELD_OUT   documents at the end of each text that are kept for evaluation,
#              else 20; FILE=N: of that text alone
#   SET        settings other than in train.json: "seed=2 total_tokens=1e6"
set -eu
settings=$(dirname "$0")
DEEPSEEK=${DEEPSEEK:-./deepseek}
held_out=${HELD_OUT:-20}
[ $# -ge 2 ] || {
    echo "wanted texts to learn from: make tiny TEXTS=\"a.txt b.txt\"; a" \
        "line <|endoftext|> stands between documents" >&2
    exit 2
}
out=$1
shift
mkdir -p "$out"

[ -e "$out/tokenizer" ] ||
    "$DEEPSEEK" train-tokenizer "$@" -o "$out/tokenizer" --vocab 4096
[ -e "$out/train.bin" ] ||
    "$DEEPSEEK" prepare "$out/tokenizer" "$@" -o "$out/train.bin" \
        --held-out "$held_out"
[ -e "$out/held-out.bin" ] ||
    "$DEEPSEEK" prepare "$out/tokenizer" "$@" -o "$out/held-out.bin" \
        --held-out "$held_out" --only-held-out

cp "$settings/config.json" "$out/tokenizer/config.json"
set -- "$out/tokenizer/config.json" "$settings/train.json" -o "$out/run" \
    --set data="$out/train.bin" --set eval_data="$out/held-out.bin"
for setting in ${SET:-}; do
    set -- "$@" --set "$setting"
done
[ ! -e "$out/run" ] || set -- "$@" --resume
"$DEEPSEEK" train "$@"
"$DEEPSEEK" plot "$out/run" -o "$out/run.svg" --force
