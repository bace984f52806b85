#!/bin/sh
# fuzz.sh: lets libFuzzer search for inputs that break a reader.
#
# Every tests/fuzz/X.c runs for SECONDS (20) from the seeds in tests/fuzz/seeds
# and the models and tokenizers of tests/data, with AddressSanitizer and
# UndefinedBehaviorSanitizer; an input may take 2 seconds and 500 MB. What is
# found is kept in build/fuzz/X. Needs clang with its runtime; without it says
# so and passes.
# usage: tests/fuzz.sh [SECONDS [TARGET...]]
set -u
seconds=${1:-20}
[ $# -eq 0 ] || shift
root=build/fuzz
options='-g -O1 -fsanitize=fuzzer-no-link,address,undefined'
options="$options -fno-sanitize-recover=all"
mkdir -p "$root/seeds"

echo 'int LLVMFuzzerTestOneInput(const char *p, long n);
int LLVMFuzzerTestOneInput(const char *p, long n) { return p && n < 0; }' \
    >"$root/probe.c"
clang -fsanitize=fuzzer "$root/probe.c" -o "$root/probe" 2>/dev/null || {
    echo "fuzz: skipped, no clang with libFuzzer here"
    exit 0
}
make -s CC=clang OPT="$options" BUILD="$root" "$root/library.a" || exit 1

# A model's two files as the model target reads them.
for model in tests/fuzz/seeds/model/*/; do
    { cat "$model/config.json" && printf '\0' &&
        cat "$model/model.safetensors"; } \
        >"$root/seeds/model-$(basename "$model")"
done

seeds() {
    case $1 in
    json) echo tests/fuzz/seeds/json tests/data/configs ;;
    safetensors) echo tests/fuzz/seeds/safetensors ;;
    npy) echo tests/data/npy ;;
    settings) echo tests/data/train ;;
    model) echo "$root/seeds" ;;
    tokenizer) echo tests/data/tokenizer/v2 tests/data/tokenizer/v3 ;;
    *) echo "tests/fuzz/seeds/$1" ;;
    esac
}

memory=/tmp
[ -w /dev/shm ] && memory=/dev/shm
failed=0
for source in tests/fuzz/*.c; do
    name=$(basename "$source" .c)
    case " ${*:-$name} " in *" $name "*) ;; *) continue ;; esac
    mkdir -p "$root/corpus/$name" "$root/found/$name"
    # shellcheck disable=SC2086
    clang -std=c99 $options -fsanitize=fuzzer -I. "$source" \
        "$root/library.a" -lm -o "$root/fuzz-$name" || exit 1
    FUZZ_DIR=$(mktemp -d -p "$memory" deepseek-fuzz.XXXXXX) || exit 1
    export FUZZ_DIR
    # shellcheck disable=SC2046
    "$root/fuzz-$name" -max_total_time="$seconds" -timeout=2 \
        -rss_limit_mb=500 -max_len=65536 -print_final_stats=1 \
        -dict=tests/fuzz/dictionary -artifact_prefix="$root/found/$name/" \
        "$root/corpus/$name" $(seeds "$name") >"$root/$name.log" 2>&1
    status=$?
    rm -rf "$FUZZ_DIR"
    echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' \
        "$root/$name.log") runs, $(sed -n 's/.*\(cov: [0-9]*\).*/\1/p' \
        "$root/$name.log" | tail -1)"
    [ "$status" = 0 ] && continue
    failed=$((failed + 1))
    grep -m3 -E 'ERROR|SUMMARY|does not hold' "$root/$name.log"
    echo "$name: FAILED, see $root/$name.log and $root/found/$name"
done
[ "$failed" = 0 ]
