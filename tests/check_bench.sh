#!/bin/sh
# check_bench.sh: the programs of bench/ build without a warning and measure.
#
# Small models, a second or two: what the figures are does not matter here.
# usage: tests/check_bench.sh
set -u
root=build/check-bench
programs="$root/bench/kernels $root/bench/model $root/bench/tokenizer
$root/bench/train"
DEEPSEEK=${DEEPSEEK:-./deepseek}
export DEEPSEEK
unset MAKEFLAGS # of a make that runs this

# Says what failed of a command that has to print $1 lines.
lines() {
    wanted=$1
    shift
    found=$("$@" 2>"$root/err" | wc -l)
    [ "$found" -eq "$wanted" ] && [ ! -s "$root/err" ] && return
    echo "bench: $*: wanted $wanted lines, found $found: $(cat "$root/err")"
    exit 1
}

serve() {
    input=$1
    shift
    printf "$input" | "$@"
}

make -s WERROR=1 BUILD="$root" $programs || exit 1
model=tests/data/models/k1-v2-lite
lines 14 "$root/bench/model" $model decode:8 prefill:8 curve:32 naive:32 \
    start:4 memory:64
lines 1 "$root/bench/model" tests/data/models/mtp-two draft:8
lines 2 serve 'prefill:8\ndecode:8\n' "$root/bench/model" $model
lines 2 "$root/bench/train" $model 4 8
lines 6 "$root/bench/train" $model 4 8 memory
lines 2 serve '\n\n' "$root/bench/train" $model 4 8 2 -
text=tests/data/fairy_excerpt.txt
lines 2 "$root/bench/tokenizer" models/stories $text
lines 3 serve "open\nencode $text\ndecode $text\n" \
    "$root/bench/tokenizer" models/stories
TOKENS=64 WORK="$root" lines 15 sh bench/scaling.sh "$root/bench/train"
rm -rf "$root/balance"
found=$(STEPS=2 SEEDS=1 WORK="$root/balance" sh bench/balance.sh $text \
    2>"$root/err" | wc -l)
[ "$found" = 4 ] && [ -s "$root/balance/balance.svg" ] || {
    echo "bench: balance.sh: wanted 4 lines, found $found: $(cat "$root/err")"
    exit 1
}
echo "bench: models, training and tokenizers are measured"
