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

# Trains a model like $1 into $2, for so many tokens a run.
tiny() {
    HELD_OUT=2 DECAY=$dir/b.txt TOKENS="$3" SET="
        sequence_length=32 batch_size=2 micro_batch=2 warmup_steps=2
        log_every=1 eval_every=2 checkpoint_every=2" \
        sh models/train.sh "models/$1" "$dir/$2" "$dir/a.txt" "$dir/b.txt" \
        "$dir/b.txt" >"$dir/said" 2>&1 || fail "failed"
}

if sh models/train.sh models/stories-v3 "$dir/out" >"$dir/said" 2>&1 ||
    ! grep -q '^wanted texts' "$dir/said"; then
    fail "took no text for one"
fi
for i in 1 2 3 4 5 6; do
    cat tests/data/fairy_excerpt.txt
    echo '<|endoftext|>'
done >"$dir/a.txt"
cp "$dir/a.txt" "$dir/b.txt"
tiny stories-v3 out "128 128 128"
tiny stories-v3 out "256 256 256"
for name in first.svg decay.svg long.svg long/log.jsonl \
    long/step-00000004/model.safetensors; do
    [ -s "$dir/out/$name" ] || fail "no $name"
done
for run in first decay long; do
    [ "$(grep -c eval_loss "$dir/out/$run/log.jsonl")" = 2 ] ||
        fail "no evaluation in $run"
done
"$DEEPSEEK" generate "$dir/out/long/step-00000004" -p Once -n 4 --draft 1 \
    >"$dir/said" 2>&1 || fail "does not generate"

export TOKENIZER=models/stories
tiny stories v2 "128 128 128"
cmp -s "$dir/v2/long/step-00000002/tokenizer.json" \
    models/stories/tokenizer.json || fail "took another tokenizer"
echo "make tiny: models from two texts, stopped and gone on with"
