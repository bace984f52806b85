#!/bin/sh
# identical.sh: the same bits from every build.
#
# Builds the program with every compiler, optimisation level, vector width and
# machine at hand (other machines run under qemu-user), lets each trace three
# models, of which one is FP8 and one has MTP modules, generate from them
# greedily, by sampling, with drafts and with FP8 activations, quantise one,
# train one and make golden packs, and compares all that comes out with that of
# the first build, byte for byte.
# A compiler, emulator or instruction set that is absent is named as skipped.
# usage: tests/identical.sh [NAME-PATTERN]
set -u
pattern=${1:-*}
root=build/identical
models='k3-v3 fp8-ragged mtp-two'
ids=1,5,9,2,7,3,11,4,6,8,13,10,12,17,15,14
mkdir -p "$root"

# name | compiler | flags | runs under | needs this of the processor
builds='
gcc-O0             | gcc | -O0 | |
gcc-O1             | gcc | -O1 | |
gcc-O2             | gcc | -O2 | |
gcc-O3             | gcc | -O3 | |
gcc-native         | gcc | -O3 -march=native | |
gcc-avx512         | gcc | -O3 -march=x86-64-v4 | | avx512vl
gcc-avx2           | gcc | -O3 -mavx2 -mfma | | avx2
clang-O0           | clang | -O0 | |
clang-O1           | clang | -O1 | |
clang-O2           | clang | -O2 | |
clang-O3           | clang | -O3 | |
clang-native       | clang | -O3 -march=native | |
clang-avx512       | clang | -O3 -march=x86-64-v4 | | avx512vl
clang-avx2         | clang | -O3 -mavx2 -mfma | | avx2
tcc                | tcc | | |
musl               | musl-gcc | -O3 -static | |
i386-sse2          | i686-linux-gnu-gcc | -O2 -msse2 -mfpmath=sse -static | |
aarch64            | aarch64-linux-gnu-gcc | -O3 -static | qemu-aarch64 |
aarch64-O0         | aarch64-linux-gnu-gcc | -O0 -static | qemu-aarch64 |
armhf              | arm-linux-gnueabihf-gcc | -O2 -static | qemu-arm |
riscv64            | riscv64-linux-gnu-gcc | -O2 -static | qemu-riscv64 |
ppc64-big-endian   | powerpc64-linux-gnu-gcc | -O2 -static | qemu-ppc64 |
s390x-big-endian   | s390x-linux-gnu-gcc | -O2 -static | qemu-s390x |
mips64-big-endian  | mips64-linux-gnuabi64-gcc | -O2 -static | qemu-mips64 |
'

have() { command -v "$1" >/dev/null 2>&1; }

# All that a build says about the models, into the folder $2. No pipes here:
# an emulator's failure must be seen.
run_all() {
    program=$1 out=$2
    for model in $models; do
        dir=tests/data/models/$model
        $program trace "$dir" --ids $ids -o "$out/$model.safetensors" \
            --force || return 1
        $program trace "$dir" --ids $ids -o "$out/$model-naive.safetensors" \
            --mla naive --force || return 1
        $program generate "$dir" --ids $ids --print-ids -n 16 --temp 0 \
            >"$out/$model-greedy" 2>/dev/null || return 1
        $program generate "$dir" --ids $ids --print-ids -n 24 --temp 0.9 \
            --top-k 20 --top-p 0.95 --seed 7 >"$out/$model-sampled" \
            2>/dev/null || return 1
    done
    run_drafts "$1" "$2" && run_fp8 "$1" "$2" && run_train "$1" "$2" &&
        run_golden "$1" "$2" || return 1
    (cd "$out" && cat ./*.safetensors ./*-greedy ./*-sampled quantized-*/* \
        trained/step-00000003/* |
        sha256sum | cut -c1-16)
}

run_drafts() {
    program=$1 out=$2 dir=tests/data/models/mtp-two
    $program generate $dir --ids $ids --print-ids -n 16 --temp 0 --draft 3 \
        >"$out/draft-greedy" 2>/dev/null || return 1
    cmp "$out/draft-greedy" "$out/mtp-two-greedy" || return 1
    $program generate $dir --ids $ids --print-ids -n 40 --temp 2 --top-k 20 \
        --top-p 0.95 --seed 7 --draft 2 >"$out/draft-sampled" 2>/dev/null ||
        return 1
    $program generate $dir --ids $ids --print-ids -n 40 --temp 2 --seed 7 \
        --draft 3 --draft-best >"$out/draft-best-sampled" 2>/dev/null
}

# Manifests have the hashes of all files of a pack.
run_golden() {
    program=$1 out=$2
    for pack in K2 K10 K11-ue8m0 K13-v3; do
        $program golden $pack -o "$out/$pack" --force &&
            cmp "$out/$pack/golden/manifest.json" golden/$pack.json ||
            return 1
    done
}

run_fp8() {
    program=$1 out=$2 dir=tests/data/models/fp8-ragged
    fp8='--fp8 activations --mla naive'
    $program trace $dir --ids $ids $fp8 -o "$out/fp8-acts.safetensors" \
        --force || return 1
    $program generate $dir --ids $ids --print-ids -n 16 --temp 0 $fp8 \
        >"$out/fp8-acts-greedy" 2>/dev/null || return 1
    for scale in f32 ue8m0; do
        $program quantize tests/data/models/k3-v3 --scale-fmt $scale --force \
            -o "$out/quantized-$scale" || return 1
    done
}

# Three steps with all that a step has.
run_train() {
    program=$1 out=$2 dir=tests/data/models/mtp-two
    printf '%s\n' 1,5,9,2,7,3,11,4,6 8,13,10,12,17,15,14,1,5 \
        9,2,7,3,11,4,6,8,13 10,12,17,15,14,1,5,9,2 7,3,11,4,6,8,13,10,12 \
        17,15,14,1,5,9,2,7,3 >"$out/ids.txt"
    rm -rf "$out/trained"
    $program train $dir/config.json docs/train.json --from $dir \
        --ids-file "$out/ids.txt" --set sequence_length=8 \
        --set total_tokens=48 --set batch_size=2 --set micro_batch=1 \
        --set eval_every=0 --set eval_data=null --set warmup_steps=1 \
        --set balance.gamma=0.001 --set adamw.moments=BF16 \
        --set ema_decay=0.9 -o "$out/trained" 2>/dev/null
}

one() {
    name=$1 cc=$2 flags=$3 emulator=$4 feature=$5
    skip=
    have "$cc" || skip="no $cc"
    [ -z "$emulator" ] || have "$emulator" || skip="no $emulator"
    [ -z "$feature" ] || grep -qw "$feature" /proc/cpuinfo 2>/dev/null ||
        skip="this processor has no $feature"
    if [ -n "$skip" ]; then
        echo "$name: skipped, $skip"
        return 0
    fi
    folder=$root/$name
    mkdir -p "$folder"
    make -s CC="$cc" OPT="$flags" BUILD="$folder" \
        PROGRAM="$folder/deepseek" "$folder/deepseek" \
        >"$folder/log" 2>&1 || {
        echo "$name: DOES NOT BUILD, see $folder/log"
        return 1
    }
    hash=$(run_all "$emulator $folder/deepseek" "$folder" 2>>"$folder/log") || {
        echo "$name: DOES NOT RUN, see $folder/log"
        return 1
    }
    first=$(cat "$root/first" 2>/dev/null || echo "$hash")
    echo "$first" >"$root/first"
    [ "$hash" = "$first" ] && echo "$name: $hash" && return 0
    echo "$name: $hash DIFFERS from $first"
    return 1
}

# x87 has no plain float arithmetic: the sources must refuse to build.
x87() {
    have i686-linux-gnu-gcc || {
        echo "x87: skipped, no i686-linux-gnu-gcc"
        return 0
    }
    if i686-linux-gnu-gcc -std=c99 -mno-sse -mfpmath=387 -I. \
        -c base/kernels.c -o "$root/x87.o" 2>"$root/x87.log"; then
        echo "x87: BUILDS, though it must be refused"
        return 1
    fi
    echo "x87: refused, $(sed -n 's/.*#error //p' "$root/x87.log" | head -1)"
}

rm -f "$root/first"
failed=0 count=0
while IFS='|' read -r name cc flags emulator feature; do
    name=$(echo $name) cc=$(echo $cc) emulator=$(echo $emulator)
    feature=$(echo $feature) flags=$(echo $flags)
    case $name in '') continue ;; $pattern) ;; *) continue ;; esac
    one "$name" "$cc" "$flags" "$emulator" "$feature" || failed=$((failed + 1))
    count=$((count + 1))
done <<TABLE
$builds
TABLE
x87 || failed=$((failed + 1))
echo "identical: $((count - failed)) of $count builds agree or were skipped"
[ "$failed" = 0 ]
