#!/bin/sh
# train.sh: from texts to a model like the ones beside this: tokenizer, data,
# two runs of training, a picture of each. `make tiny` calls it.
#
# first.json trains at a constant rate on all texts; last.json goes on from
# these weights at a rate that falls to zero, on the texts that the model is to
# sound like. A step whose result is there is left out; training goes on where
# it was stopped. So the same command again goes on, whatever ended it.
# usage: models/train.sh LIKE OUT TEXT...
#   LIKE       a directory with config.json, first.json, last.json
#   OUT        a directory: tokenizer/, first.bin, last.bin, held-out.bin,
#              first/, last/, first.svg, last.svg
#   TEXT       a text named twice is learnt from twice
#   LAST       the texts of the last run, else all
#   DEEPSEEK   the program, else ./deepseek
#   TOKENIZER  a directory whose tokenizer is taken, else one is trained
#   HELD_OUT   documents at the end of each text that are kept for evaluation,
#              else 20; FILE=N: of that text alone
#   SET        settings other than in both files: "seed=2 batch_size=2"
#   FIRST_TOKENS, LAST_TOKENS  the tokens of a run, if other than there
set -eu
DEEPSEEK=${DEEPSEEK:-./deepseek}
held_out=${HELD_OUT:-20}
[ $# -ge 3 ] || {
    echo "wanted texts to learn from: make tiny TEXTS=\"a.txt b.txt\"; a" \
        "line <|endoftext|> stands between documents" >&2
    exit 2
}
like=$1
out=$2
shift 2
mkdir -p "$out"
LAST=${LAST:-$*}
each=$(printf '%s\n' "$@" | awk '!seen[$0]++')

# Files are the words of lists from here on: names without blanks.
prepare() {
    data=$1
    shift
    [ -e "$out/$data" ] ||
        "$DEEPSEEK" prepare "$out/tokenizer" "$@" -o "$out/$data" \
            --held-out "$held_out"
}

# A run: its name, its tokens if not the file's, whatever else is to be said.
train() {
    run=$1
    tokens=$2
    shift 2
    set -- "$out/tokenizer/config.json" "$like/$run.json" -o "$out/$run" \
        --set data="$out/$run.bin" --set eval_data="$out/held-out.bin" "$@"
    for setting in ${SET:-} ${tokens:+total_tokens=$tokens}; do
        set -- "$@" --set "$setting"
    done
    [ ! -e "$out/$run" ] || set -- "$@" --resume
    "$DEEPSEEK" train "$@"
    "$DEEPSEEK" plot "$out/$run" -o "$out/$run.svg" --force
}

if [ ! -e "$out/tokenizer" ]; then
    if [ -n "${TOKENIZER:-}" ]; then
        mkdir "$out/tokenizer"
        cp "$TOKENIZER/tokenizer.json" "$TOKENIZER/tokenizer_config.json" \
            "$out/tokenizer"
    else
        "$DEEPSEEK" train-tokenizer $each -o "$out/tokenizer" --vocab 4096
    fi
fi
prepare first.bin "$@"
prepare last.bin $LAST
prepare held-out.bin $each --only-held-out

cp "$like/config.json" "$out/tokenizer/config.json"
train first "${FIRST_TOKENS:-}"
train last "${LAST_TOKENS:-}" \
    --from "$(find "$out/first" -name 'step-*[0-9]' | sort | tail -1)"
