#!/bin/sh
# scaling.sh: what a step of training costs in layers, experts and context.
#
# Changes one number of models/stories at a time, and lays a straight line by
# least squares through the times of a token (all kept). "off" is how far the
# worst time lies from it: work that grows faster would bend it. Of a
# sequence's tokens each attends to half, so that their cost is a line, too.
# usage: bench/scaling.sh [PROGRAM]    build/bench/train by default
#   TOKENS      of a step, else 2048
#   WORK        where models are kept, else build/bench-models
#   DEEPSEEK    the program, else ./deepseek
set -eu
train=${1:-build/bench/train}
DEEPSEEK=${DEEPSEEK:-./deepseek}
work=${WORK:-build/bench-models}/scaling
tokens=${TOKENS:-2048}
stories=$(dirname "$0")/../models/stories/config.json
mkdir -p "$work"

# point KEY VALUE T: "VALUE rate" of a model like that, in sequences of T.
point() {
    sed "s/\"$1\": [0-9]*/\"$1\": $2/" "$stories" >"$work/config.json"
    "$DEEPSEEK" init "$work/config.json" -o "$work/model" --force
    "$train" "$work/model" $((tokens / $3)) "$3" |
        awk -v x="$2" '/kept/ { print x, $6 }'
}

# A line a value, then how straight they lie; $1 names it.
line() {
    awk -v name="$1" '
    {
        x[NR] = $1
        y[NR] = 1e6 / $2
        sx += x[NR]; sy += y[NR]; sxx += x[NR] * x[NR]; sxy += x[NR] * y[NR]
        printf "%-22s %6d %10.0f tok/s %10.1f us a token\n", name, x[NR],
            $2, y[NR]
    }
    END {
        slope = (NR * sxy - sx * sy) / (NR * sxx - sx * sx)
        start = (sy - slope * sx) / NR
        for (i = 1; i <= NR; i++) {
            off = y[i] / (start + slope * x[i]) - 1
            if (off < 0)
                off = -off
            if (off > most)
                most = off
        }
        printf "%-22s %.1f us + %.3f us each, off by %.1f %%\n", name,
            start, slope, 100 * most
    }'
}

each() {
    key=$1
    shift
    for value in "$@"; do point "$key" "$value" $((tokens / 8)); done | line "$key"
}

each num_hidden_layers 2 4 8 12
each num_experts_per_tok 1 4 8 12
for T in $((tokens / 32)) $((tokens / 8)) $((tokens / 4)) $((tokens / 2)); do
    point max_position_embeddings 2048 $T | sed "s/^[0-9]*/$T/"
done | line "tokens of a sequence"
