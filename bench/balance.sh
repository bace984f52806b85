#!/bin/sh
# balance.sh: the same small model trained without any balancing, with an
# auxiliary loss (V3's sequence-wise one), and with V3's bias: what each does to
# loss and loads.
#
# A model of bytes (balance.json: d = 128, two layers of 16 experts, 2 of them
# picked, 1 shared, V3's gate), 1,024 tokens a step. Prints a line a run:
#
#   held-out loss      nats a token at the end, on the last tenth of the lines
#   MaxVio             mean of the last 100 steps and of both layers
#   lowest load        of an expert over the mean, over the last 100 steps; the
#                      log has tenths
#
# and draws MaxVio over the steps. A run that was stopped goes on.
# usage: bench/balance.sh TEXT    a megabyte or more; `make balance` calls it
#   STEPS, SEEDS   else 1200 and "1 2"
#   ALPHA, GAMMA   else 0.01 and 0.001
#   WORK           where runs and balance.svg go, else build/balance
#   DEEPSEEK       the program, else ./deepseek
set -eu
DEEPSEEK=${DEEPSEEK:-./deepseek}
work=${WORK:-build/balance}
steps=${STEPS:-1200}
seeds=${SEEDS:-1 2}
alpha=${ALPHA:-0.01}
gamma=${GAMMA:-0.001}
config=$(dirname "$0")/balance.json
[ $# = 1 ] || {
    echo "wanted a text of a megabyte or more: make balance" \
        "TEXTS=stories.txt" >&2
    exit 2
}
mkdir -p "$work"

# Bytes as tokens, the last tenth of the lines held out.
prepare() {
    lines=$(wc -l <"$1")
    head -n $((lines - lines / 10)) "$1" >"$work/train.txt"
    tail -n $((lines / 10)) "$1" >"$work/held-out.txt"
    "$DEEPSEEK" train-tokenizer "$work/train.txt" -o "$work/bytes" \
        --vocab 264 --force
    cp "$config" "$work/bytes/config.json"
    for part in train held-out; do
        "$DEEPSEEK" prepare "$work/bytes" "$work/$part.txt" \
            -o "$work/$part.bin" --force
    done
    cat >"$work/train.json" <<END
{
  "data": "$work/train.bin", "eval_data": "$work/held-out.bin",
  "sequence_length": 64, "batch_size": 16, "micro_batch": 16,
  "total_tokens": $((steps * 1024)),
  "learning_rate": 2e-3, "warmup_steps": 50, "init_std": 0.02,
  "balance": {"alpha": 0, "gamma": 0},
  "eval_every": $steps, "eval_sequences": 0, "checkpoint_every": 400
}
END
}

# train RUN SEED SETTING
train() {
    resume=
    [ ! -e "$work/$1" ] || resume=--resume
    "$DEEPSEEK" train "$work/bytes/config.json" "$work/train.json" \
        -o "$work/$1" --set seed="$2" --set "$3" $resume
}

# row NAME SEED RUN: its line of the table
row() {
    awk -v name="$1" -v seed="$2" -v steps="$steps" '
    function number(key) {
        match($0, "\"" key "\": ")
        return substr($0, RSTART + RLENGTH) + 0
    }
    BEGIN {
        digits = "0123456789abcdefghijklmnopqrstuvwxyz" \
                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    }
    /"eval_loss"/ { loss = number("eval_loss"); next }
    number("step") > steps - 100 {
        n++
        violation += number("maxvio")
        sub(/.*"load": \[/, "")
        sub(/\].*/, "")
        gsub(/[",]/, "")
        for (l = 1; l <= NF; l++)
            for (i = 1; i <= length($l); i++)
                load[l, i] += index(digits, substr($l, i, 1)) - 1
    }
    END {
        lowest = 1
        for (k in load)
            if (load[k] / n / 10 < lowest)
                lowest = load[k] / n / 10
        printf "%-20s %4s  %13.4f  %6.2f  %11.2f\n", name, seed, loss,
            violation / n, lowest
    }' "$work/$3/log.jsonl"
}

# draw RUN...: MaxVio, means of sixty parts of the run; a colour a variant
draw() {
    for run in "$@"; do
        sed -n "s|.*\"step\": \([0-9]*\),.*\"maxvio\": \([^,]*\),.*|$run \1 \2|p" \
            "$work/$run/log.jsonl"
    done | awk -v steps="$steps" '
    function x(step) { return 60 + 560 * step / steps }
    function y(v) { return 300 - 270 * v / 7 }
    function text(at, line, anchor, s) {
        printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
            at, line, anchor, s
    }
    BEGIN {
        colour["none"] = "#555"
        colour["loss"] = "#c60"
        colour["bias"] = "#06c"
        part = int((steps + 59) / 60)
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\"" \
            " height=\"340\" font-family=\"sans-serif\" font-size=\"12\">"
        print "<rect width=\"640\" height=\"340\" fill=\"#fff\"/>"
        for (v = 0; v <= 7; v++) {
            printf "<path d=\"M60 %.1fH620\" stroke=\"#ddd\"/>\n", y(v)
            text(52, y(v) + 4, "end", v)
        }
        text(60, 318, "middle", 0)
        text(620, 318, "middle", steps)
        text(340, 334, "middle", "step")
        text(60, 20, "start", "MaxVio")
        text(420, 20, "start", "none")
        text(470, 20, "start", "loss")
        text(520, 20, "start", "bias")
        for (i = split("none loss bias", names, " "); i > 0; i--)
            printf "<path d=\"M%d 16h14\" stroke=\"%s\"" \
                " stroke-width=\"3\"/>\n", 353 + 50 * i, colour[names[i]]
    }
    function finish() {
        if (points != "")
            printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\"/>\n",
                points, colour[substr(run, 1, 4)]
        points = ""
    }
    $1 != run { finish(); run = $1; sum = n = 0 }
    {
        sum += $3
        if (++n == part) {
            points = points sprintf("%.1f,%.1f ", x($2 - part / 2), y(sum / n))
            sum = n = 0
        }
    }
    END { finish(); print "</svg>" }'
}

prepare "$1" >"$work/words"
runs=
for seed in $seeds; do
    train "none-$seed" "$seed" balance.alpha=0
    train "loss-$seed" "$seed" balance.alpha="$alpha"
    train "bias-$seed" "$seed" balance.gamma="$gamma"
    runs="$runs none-$seed loss-$seed bias-$seed"
done
echo "balancing            seed  held-out loss  MaxVio  lowest load"
for seed in $seeds; do row none "$seed" "none-$seed"; done
for seed in $seeds; do row "loss, alpha $alpha" "$seed" "loss-$seed"; done
for seed in $seeds; do row "bias, gamma $gamma" "$seed" "bias-$seed"; done
draw $runs >"$work/balance.svg"
