#!/bin/sh
# check_faults.sh: each allocation, read, write, mapping and renaming fails
# once in turn, in every command.
#
# tests/fault.c does that, under AddressSanitizer. Each run must end as if
# nothing had failed or with status 1 and one line, leak nothing, and leave the
# files as they were or as they should become: no temporary one, never half of
# one or one of two.
# Linux with glibc and gcc; elsewhere it says so and passes. FAULTS_BUILD and
# FAULTS_OPT name another folder, and other flags than AddressSanitizer's.
# usage: tests/check_faults.sh [NAME...]: all commands, or those of these names
set -u
names=" $* "
root=$PWD/${FAULTS_BUILD:-build/faults}
options=${FAULTS_OPT:--O1 -g -fsanitize=address}
calls='malloc calloc realloc fopen64 fdopen fread fwrite fflush fclose fseek
ftell fsync rename open64 fstat64 mmap64 mkdir opendir getc getchar
device_weight'
wraps=
unset MAKEFLAGS # of a make that runs this
for call in $calls; do wraps="$wraps -Wl,--wrap=$call"; done

mkdir -p "$root"
{ gcc -D_GNU_SOURCE -I. -c -o "$root/fault.o" tests/fault.c &&
    make -s CC=gcc OPT="$options" BUILD="$root" \
        LDFLAGS="$wraps $root/fault.o" PROGRAM="$root/faulty" \
        "$root/faulty"; } >"$root/log" 2>&1 || {
    echo "faults: skipped, no build with --wrap here, see $root/log"
    exit 0
}
program=$root/faulty
work=$root/work
model=$PWD/tests/data/models/k1-v2-lite
fp8=$PWD/tests/data/models/fp8-sharded
drafting=$PWD/tests/data/models/mtp-two
words=$PWD/tests/data/tokenizer/v3
tiny=$root/tiny
config=$PWD/tests/data/models/k3-v3/config.json
small=$PWD/tests/data/tiny
runs=0 failed=0

complain() {
    echo "faults: $name, call $n ($(cat "$work/mark")): $1"
    failed=$((failed + 1))
}

# The program among old files, its input a pipe.
run() {
    rm -rf "$work" && mkdir -p "$work/out"
    echo old >"$work/out/old"
    [ -z "$begun" ] || cp -R "$begun" "$work/out/new"
    (cd "$work/out" && cat "$input" | ASAN_OPTIONS=$asan "$program" "$@" \
        >"$work/stdout" 2>"$work/stderr")
}

# What there is; a log tells the time.
files() {
    (cd "$work" && find out -type d -print -o -type f ! -name log.jsonl \
        -exec cksum {} +) | sort
}

# True where a run of training that failed goes on to the same end.
goes_on() {
    case $name in
    train-run) set -- "$@" --resume ;;
    train-resume) ;;
    *) return 1 ;;
    esac
    [ -e "$work/out/new" ] &&
        (cd "$work/out" && ASAN_OPTIONS=$asan "$program" "$@" \
            2>"$work/stderr") && files >"$work/files" &&
        cmp -s "$work/files" "$root/after"
}

# One run in which call n fails; false when there are fewer calls.
one() {
    FAULT_AT=$n FAULT_MARK=$work/mark run "$@"
    status=$?
    [ -e "$work/mark" ] || return 1
    runs=$((runs + 1))
    files >"$work/files"
    case $status in
    0) cmp -s "$work/stdout" "$root/stdout" || complain "other output" ;;
    1) [ "$(wc -l <"$work/stderr")" = 1 ] ||
        complain "$(wc -l <"$work/stderr") lines on stderr" ;;
    *) complain "status $status: $(grep -m1 ERROR "$work/stderr")" ;;
    esac
    cmp -s "$work/files" "$root/after" && return
    [ "$status" != 0 ] && cmp -s "$work/files" "$root/before" && return
    [ "$status" != 0 ] && goes_on "$@" && return
    complain "left $(tr '\n' ' ' <"$work/files")"
}

# NAME, then the program's words.
try() {
    name=$1
    shift
    case $names in "  " | *" $name "*) ;; *) return ;; esac
    run "$@" || { echo "faults: $name: $(cat "$work/stderr")"; exit 1; }
    cp "$work/stdout" "$root/stdout"
    files >"$root/after"
    n=1 before=$runs
    while one "$@"; do n=$((n + step)); done
    echo "faults: $name, $((runs - before)) calls"
}

# A safetensors file but for its elements; $1: its header, under 256 bytes.
header() {
    printf "\\$(printf %o ${#1})\\0\\0\\0\\0\\0\\0\\0%s" "$1"
}

input=/dev/null
begun=  # a run that is there as out/new
step=1  # from one failing call to the next
asan=exitcode=23:allocator_may_return_null=1
"$program" init "$small/config.json" -o "$tiny" --force || exit 1
text=$root/text
printf 'the sand and\n<|endoftext|>\nthe land, the\nsea and...\n' >"$text"
learnt=$root/learnt
"$program" train-tokenizer "$text" -o "$learnt" --vocab 280 --force \
    >/dev/null || exit 1
run --help && files >"$root/before"
try info info "$fp8"
try info-config info "$config" --json
try info-json info "$tiny" --json
try generate generate "$model" --ids 1,2,3 --print-ids -n 4 --temp 0.8
try trace trace "$model" --ids 1,2,3 -o old --force --only 'model.l*.mlp*'
try trace-new trace "$fp8" --ids 1,2,3 -o new --only logits
try init init "$small/config.json" -o new --dtype fp8
try quantize quantize "$fp8" -o new --to bf16
try quantize-text quantize "$tiny" -o new --scale-fmt ue8m0
try tokenize tokenize "$words" "$PWD/README.md"
try diff diff "$model/golden/golden.safetensors" \
    "$model/golden/golden.safetensors"
arrays=$PWD/tests/data/npy
{ header '{"logits":{"dtype":"F64","shape":[2,3,4],"data_offsets":[0,192]},
"model.layers.0":{"dtype":"F32","shape":[2,3,4],"data_offsets":[192,288]},
"ids":{"dtype":"I32","shape":[3],"data_offsets":[288,300]}}'
    tail -c 192 "$arrays/f8.npy"
    tail -c 96 "$arrays/f4.npy"
    printf '\0\0\0\0\1\0\0\0\2\0\0\0'; } >"$root/npz.safetensors"
{ header '{"i1":{"dtype":"I8","shape":[2,3,4],"data_offsets":[0,24]}}'
    tail -c 24 "$arrays/i1.npy"; } >"$root/npy.safetensors"
try diff-npz diff "$root/npz.safetensors" "$arrays/stored.npz"
try diff-npy diff "$root/npy.safetensors" "$arrays/i1.npy"
# 1,450 calls, most of them a trace's for one tensor like another.
step=7
try golden golden K5-ties -o new
step=1
try eval eval "$tiny" "$small/config.json" --ctx 512
try draft generate "$drafting" --ids 1,2,3 --print-ids -n 6 --draft 3
try draft-sampled generate "$drafting" --ids 1,2,3 --print-ids -n 4 --draft 2 \
    --draft-best --temp 0.8
try info-draft info "$drafting" --draft 2 --json
try trace-draft trace "$drafting" --ids 1,2,3 -o new --only logits
try activations generate "$fp8" --ids 1,2,3 --print-ids -n 2 --fp8 activations
try accumulation fp8 accumulation
try prepare prepare "$learnt" "$text" "$text" -o old --force --fim 0.5 \
    --split 0.5 --held-out 1
try prepare-new prepare "$learnt" "$text" -o new --json
try train train-tokenizer "$text" -o new --vocab 280 --min-count 1

cat >"$root/train.json" <<END
{"data": null, "sequence_length": 4, "total_tokens": 8, "batch_size": 1,
 "learning_rate": 0.01, "ema_decay": 0.9, "keep_checkpoints": 1}
END
printf '1,2,3,4,5\n9,8,7,6,5\n' >"$root/ids"
dense=$PWD/tests/data/models/dense-v3/config.json
try train-run train "$dense" "$root/train.json" --ids-file "$root/ids" -o new
begun=$root/begun
rm -rf "$begun"
"$program" train "$dense" "$root/train.json" --ids-file "$root/ids" \
    --set total_tokens=4 -o "$begun" 2>"$root/log" || exit 1
try train-resume train "$dense" "$root/train.json" --ids-file "$root/ids" \
    -o new --resume
begun=
rm -rf "$root/run"
"$program" train "$config" "$root/train.json" --ids-file "$root/ids" \
    -o "$root/run" 2>"$root/log" || exit 1
try plot plot "$root/run" -o new

# With something to read, longer than what is read at once.
input=$root/input
printf 'the sand\nand\n' >"$input"
try eval-json eval "$tiny" - --ctx 9 --json
try generate-text generate "$tiny" -p - -n 4
try precision precision "$tiny" - -o new
try formats fp8 formats "$tiny" -
try chat chat "$tiny" --template v3 --system 'on land' -n 3
printf '{"text": "the"}\n{"text": "and"}\n' >"$input"
try tokenize-lines tokenize "$small" --jsonl --bos
printf '{"ids": [260, 35]}\n{"ids": [100]}\n' >"$input"
try tokenize-ids tokenize "$small" --jsonl --decode
awk 'BEGIN { for (; i < 14000; i++) printf "%s", i % 99 ? "aband" : " " }' \
    >"$input"
try tokenize-long tokenize "$small" /dev/stdin

echo "faults: $runs runs, $failed complaints"
[ "$failed" = 0 ]
