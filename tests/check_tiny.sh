#!/bin/sh
# check_tiny.sh: `make tiny` goes from a text to a model that generates, in
# seconds: a short text, a few steps. Run again it goes on.
# usage: tests/check_tiny.sh
set -eu
export DEEPSEEK=${DEEPSEEK:-./deepseek}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

fail() {
    echo "make tiny: $*: $(tail -3 "$dir/said")"
    exit 1
}

# Trains for so many tokens.
tiny() {
    HELD_OUT=2 SET="total_tokens=$1 sequence_length=32 batch_size=2
        micro_batch=2 warmup_steps=2 log_every=1 eval_every=2
        checkpoint_every=2" \
        sh models/tiny/train.sh "$dir/out" "$dir/a.txt" "$dir/b.txt" \
        >"$dir/said" 2>&1 || fail "failed"
}

if sh models/tiny/train.sh "$dir/out" >"$dir/said" 2>&1 ||
    ! grep -q '^wanted texts' "$dir/said"; then
    fail "took no text for one"
fi
for i in 1 2 3 4 5 6; do
    cat tests/data/fairy_excerpt.txt
    echo '<|endoftext|>'
done >"$dir/a.txt"
cp "$dir/a.txt" "$dir/b.txt"
tiny 128
tiny 256
for name in run.svg run/log.jsonl run/step-00000004/model.safetensors; do
    [ -s "$dir/out/$name" ] || fail "no $name"
done
[ "$(grep -c eval_loss "$dir/out/run/log.jsonl")" = 2 ] || fail "no evaluation"
"$DEEPSEEK" generate "$dir/out/run/step-00000004" -p Once -n 4 --draft 1 \
    >"$dir/said" 2>&1 || fail "does not generate"
echo "make tiny: a model from two texts, stopped and gone on with"
