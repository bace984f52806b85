#!/bin/sh
# train.sh: from texts to a model like the ones beside this: tokenizer, data,
# three runs of training, a picture of each. `make tiny` calls it.
#
# first.json trains at a constant rate on all texts; decay.json goes on from
# these weights at a rate that falls to zero, on texts that may be others;
# long.json teaches them rows as long as the model's context. A step whose
# result is there is left out, a run that was stopped goes on: so the same
# command again goes on, whatever ended it.
# usage: models/train.sh LIKE OUT TEXT...
#   LIKE       a directory with config.json and a JSON file for each run
#   OUT        a directory: tokenizer/, first.bin, decay.bin, held-out.bin;
#              first/, decay/, long/, and .svg of each
#   TEXT       a text named twice is learnt from twice
#   DECAY      the texts of the second and third run, else all
#   DEEPSEEK   the program, else ./deepseek
#   TOKENIZER  a directory whose tokenizer is taken, else one is trained
#   HELD_OUT   documents at the end of each text that are kept for evaluation,
#              else 20; FILE=N: of that text alone
#   SET        settings other than in all three files: "seed=2 log_every=1"
#   TOKENS     of each run, if other than there: "2e6 1e6 1e5"
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
DECAY=${DECAY:-$*}
# Files are the words of lists from here on: names without blanks.
each=$(printf '%s\n' "$@" $DECAY | awk '!seen[$0]++')

prepare() {
    data=$1
    shift
    [ -e "$out/$data" ] ||
        "$DEEPSEEK" prepare "$out/tokenizer" "$@" -o "$out/$data"
}

# --held-out, unless it names a text that is none of these.
keeping() {
    case $held_out in
    *=*) printf '%s\n' "$@" | grep -Fqx -e "${held_out%=*}" || return 0 ;;
    esac
    echo "--held-out $held_out"
}

# A run: its name, its data, the one before, its place in TOKENS.
train() {
    run=$1
    data=$2
    from=${3:+$(find "$out/$3" -name 'step-*[0-9]' | sort | tail -1)}
    tokens=$(echo "${TOKENS:-}" | awk -v run="$4" '{ print $run }')
    set -- "$out/tokenizer/config.json" "$like/$run.json" -o "$out/$run" \
        --set data="$out/$data" --set eval_data="$out/held-out.bin" \
        ${from:+--from "$from"}
    for setting in ${SET:-} ${tokens:+total_tokens=$tokens}; do
        set -- "$@" --set "$setting"
    done
    [ ! -e "$out/$run" ] || set -- "$@" --resume
    "$DEEPSEEK" train "$@"
    "$DEEPSEEK" plot "$out/$run" -o "$out/$run.svg" --force || : # too short
}

if [ ! -e "$out/tokenizer" ]; then
    if [ -n "${TOKENIZER:-}" ]; then
        mkdir -p "$out/tokenizer.tmp"
        cp "$TOKENIZER/tokenizer.json" "$TOKENIZER/tokenizer_config.json" \
            "$out/tokenizer.tmp"
        mv "$out/tokenizer.tmp" "$out/tokenizer"
    else
        "$DEEPSEEK" train-tokenizer $each -o "$out/tokenizer" --vocab 4096
    fi
fi
prepare held-out.bin $each --held-out "$held_out" --only-held-out
prepare first.bin "$@" $(keeping "$@")
prepare decay.bin $DECAY $(keeping $DECAY)

cp "$like/config.json" "$out/tokenizer/config.json"
train first first.bin '' 1
train decay decay.bin first 2
train long decay.bin decay 3
