#!/bin/sh
# mutants.sh: makes every mistake of tests/mutants/table.txt, one at a time,
# and looks which golden packs show it (docs/mutants.md).
#
# A mutant is the program with one source changed. It traces the tokens of
# every pack, and `deepseek diff --rule fp32` judges what it gives; then, made
# to round as an engine in BF16 does, again with --rule bf16. The right program
# that rounds so must be right by that rule. A step of training, and K12, are
# judged in F32 alone. What the table gives to a test must make that test fail.
#
# Prints a row a mutant and a column a pack: '#' shown in F32 and in BF16, '+'
# in F32 alone, '!' refused, '.' not; then where it shows first. Fails if one
# is not shown, or not where the table says.
#
#   sh tests/mutants.sh DIR [NAME...]
#
# PACKS  other packs than those below
# JOBS   how many mutants at once; 2
# KEEP   where to keep all dumps: KEEP/NAME/PACK.safetensors, and those in
#        BF16, KEEP.bf16/NAME/PACK.safetensors, "golden" being the right program
set -u
root=$1 table=tests/mutants/table.txt
shift
packs='K1 K2 K3 K4 K5 K5-ties K6 K7 K8 K9 K10 K11 K11-ue8m0 K12 K13-v2 K13-v3'
packs=${PACKS:-$packs}
build=$root/build bf16=$root/bf16 keep=${KEEP:-$root/dumps}
mkdir -p "$root/golden" "$root/rows" || exit 1

record() { # NAME KEY: a field of the table
    awk -v name="$1" -v key="$2:" '/^= / { inside = $2 == name }
        inside && $1 == key { sub(/^[^ ]* /, ""); print }' $table
}

# Building ---------------------------------------------------------------

rounded() { # SOURCE: functions that it calls and whose results BF16 rounds
    case $1 in
    deepseek.c) echo matmul rmsnorm add rope_table ;;
    mla.c) echo matmul rmsnorm softmax rope_apply ;;
    mtp.c) echo matmul rmsnorm rope_table ;;
    moe.c) echo silu_mul ;; # the gate stays F32
    fp8.c) echo matmul ;;
    esac
}

compile() { # DIR SOURCE OBJECTS [RENAMED...]: DIR/SOURCE, else the right one
    source=$1/$2 include="-I$1 -I$1/base -I. -Ibase -Icommands"
    [ -e "$source" ] || source=$2
    object=$3/${2%.c}.o defines=
    shift 3
    for f in "$@"; do defines="$defines -D$f=bf16_$f"; done
    mkdir -p "${object%/*}"
    # shellcheck disable=SC2086
    $cc -w $defines $include -c -o "$object" "$source"
}

link() { # PROGRAM LIST DIR...: the objects of LIST, as the first DIR has them
    program=$1 list=$2 objects=
    shift 2
    while read -r o; do
        for d in "$@"; do
            [ ! -e "$d/$o" ] || { objects="$objects $d/$o" && break; }
        done
    done <"$list"
    # shellcheck disable=SC2086
    $cc -o "$program" $objects $libraries
}

prepare() { # NAME...
    tests=$(for name in "$@"; do record "$name" by; done |
        sed -n "s,^test_.*,$build/tests/&,p" | sort -u)
    # shellcheck disable=SC2086
    # shellcheck disable=SC2016 # for make: K12 is slow without FMA
    make -s BUILD="$build" PROGRAM="$build/deepseek" \
        OPT='-O1 $(call accepts,-march=native)' \
        "$build/deepseek" $tests || exit 1
    read -r cc <"$build/flags"
    libraries="-lm $(pkg-config --libs cmocka 2>/dev/null || echo -lcmocka)"
    (cd "$build" && ls ./*.o base/*.o commands/*.o) >"$root/objects"
    grep -v -e '/main\.o' -e '^commands/' "$root/objects" >"$root/library"
    echo tests/mutants/bf16.o | cat "$root/objects" - >"$root/objects.bf16"
    for f in tests/mutants/bf16.c deepseek.c mla.c mtp.c moe.c fp8.c; do
        # shellcheck disable=SC2046
        compile . "$f" "$bf16" $(rounded "$f") || exit 1
    done
    link "$bf16/deepseek" "$root/objects.bf16" "$bf16" "$build" || exit 1
}

make_mutant() { # NAME: new/, new.bf16/ get its objects
    file=$(record "$1" file)
    sources=$file
    rm -rf "$new" "$new.bf16"
    mkdir -p "$new/base" "$new/commands"
    awk -v name="$1" -f tests/mutants/patch.awk $table "$file" \
        >"$new/$file" || return 1
    # What a header is for, beside it, lest the right one be found first.
    case $file in *.h)
        sources=$(record "$1" with)
        for f in $sources; do cp "$f" "$new/$f"; done ;;
    esac
    for f in $sources; do
        # shellcheck disable=SC2046
        compile "$new" "$f" "$new" &&
            compile "$new" "$f" "$new.bf16" $(rounded "$f") || return 1
    done
}

# Judging ----------------------------------------------------------------

dump() { # PROGRAM PACK DUMP: a trace, or a step of training
    pack=$root/golden/$2
    mkdir -p "${3%/*}"
    case $2 in
    K13*) "$1" train "$pack/config.json" "$pack/golden/train.json" \
        --from "$pack" --ids-file "$pack/golden/ids.txt" \
        --dump-grads "$3" --force ;;
    *) ids=$(sed -n 's/^  "ids": \[\(.*\)\],$/\1/p' \
        "$pack/golden/manifest.json" | tr -d ' ')
        "$1" trace "$pack" --ids "$ids" --ctx 48 -o "$3" --force ;;
    esac >"$3.log" 2>&1
}

first_by() { # RULE PACK DUMP: what departs first, or nothing
    "$build/deepseek" diff --rule "$1" --json \
        "$root/golden/$2/golden/golden.safetensors" "$3" 2>>"$3.log" |
        sed -n '1s/.*"first": "\([^"]*\)".*/\1/p'
}

# All packs; those that BF16 is judged by.
golden() {
    for p in $packs; do
        [ -e "$root/golden/$p" ] ||
            "$build/deepseek" golden "$p" -o "$root/golden/$p" || exit 1
        in_bf16 "$p" || continue
        right=$keep.bf16/golden/$p.safetensors
        dump "$bf16/deepseek" "$p" "$right" || exit 1
        first=$(first_by bf16 "$p" "$right")
        [ -z "$first" ] || echo "$p: in BF16 the right program departs: $first"
    done
}

in_bf16() { # PACK: training is not done in BF16, and K12 takes its time
    case $1 in K12 | K13*) return 1 ;; esac
}

judge_pack() { # NAME PACK: sets mark and first
    theirs=$keep/$1/$2.safetensors
    mark=! first=refused
    dump "$new/deepseek" "$2" "$theirs" || return
    first=$(first_by fp32 "$2" "$theirs")
    mark=.
    [ -n "$first" ] || return
    mark=+
    in_bf16 "$2" || return
    theirs=$keep.bf16/$1/$2.safetensors
    dump "$new.bf16/deepseek" "$2" "$theirs" || return
    [ -z "$(first_by bf16 "$2" "$theirs")" ] || mark='#'
}

judge_by_packs() { # NAME PACK
    link "$new/deepseek" "$root/objects" "$new" "$build" &&
        link "$new.bf16/deepseek" "$root/objects.bf16" "$new.bf16" "$bf16" \
            "$build" || return
    for p in $packs; do
        judge_pack "$1" "$p"
        marks="$marks$mark"
        [ "$p" != "$2" ] || found="$p $first"
    done
}

judge_by_test() { # TEST
    marks=$(echo "$packs" | sed 's/[^ ][^ ]* */ /g')
    echo "tests/$1.o" | cat "$root/library" - >"$new/objects"
    link "$new/deepseek" "$root/objects" "$new" "$build" &&
        link "$new/test" "$new/objects" "$new" "$build" || return
    DEEPSEEK=$new/deepseek "$new/test" >"$new/log" 2>&1 </dev/null ||
        found=$1
}

judge() { # NAME: its row
    new=$root/new/$1 marks='' found=-
    by=$(record "$1" by)
    if make_mutant "$1"; then
        case $by in
        test_*) judge_by_test "$by" ;;
        *) judge_by_packs "$1" "${by% *}" ;;
        esac
    fi
    wanted=
    [ "$found" = "$by" ] || wanted=", wanted $by"
    printf '%-26s %s  %s%s\n' "$1" "$marks" "$found" "$wanted"
    [ -n "${KEEP:-}" ] || rm -rf "${keep:?}/$1" "${keep:?}.bf16/$1"
    rm -rf "$new" "$new.bf16"
}

heading() { # the packs' names, downwards
    echo "$packs" | awk '{
        for (i = 1; more || i == 1; i++) {
            line = ""
            more = 0
            for (f = 1; f <= NF; f++) {
                c = substr($f, i, 1)
                more += c != ""
                line = line (c == "" ? " " : c)
            }
            sub(/ +$/, "", line)
            if (more)
                printf "%26s %s\n", "", line
        }
    }'
}

# shellcheck disable=SC2046
[ $# -gt 0 ] || set -- $(sed -n 's/^= //p' $table)
prepare "$@"
golden
heading
running=0 rows=
for name in "$@"; do
    judge "$name" >"$root/rows/$name" &
    rows="$rows $root/rows/$name" running=$((running + 1))
    [ $running -lt "${JOBS:-2}" ] && continue
    wait
    # shellcheck disable=SC2086
    cat $rows
    running=0 rows=
done
wait
# shellcheck disable=SC2086
[ -z "$rows" ] || cat $rows
for name in "$@"; do cat "$root/rows/$name"; done >"$root/matrix"
! grep -q ', wanted' "$root/matrix"
