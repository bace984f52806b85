#!/bin/sh
# coverage.sh: which lines of each source file the tests ran.
#
# Three builds by gcc with --coverage: one for all tests and for the failing
# calls of check_faults.sh; one over a bare C library (NO_POSIX) for the tests
# of files and clock; one for a big-endian machine, whose program writes and
# reads models under an emulator. Prints for each file the lines that hold code,
# the share of them that one of these ran, and the numbers of those that none
# did. With FILES: fails if a line of these did not run. Without the emulator or
# its compiler, base/safetensors.c, which swaps bytes there, is not among them.
# usage: tests/coverage.sh [FILE...]
set -u
root=build/coverage
options='-O0 -g --coverage'
wanted=" $* "
unset MAKEFLAGS # of a make that runs this
mkdir -p "$root"
: >"$root/lines"
find "$root" -name '*.gcda' -delete

# `make` with this folder's settings.
build() {
    folder=$root/$1
    shift
    make -s -j2 OPT="$options" BUILD="$folder" PROGRAM="$folder/deepseek" "$@"
}

# "file line ran" of every line with code that the last build has; $1: its gcov.
count() {
    for source in *.c base/*.c commands/*.c; do
        counts=$folder/${source%.c}.gcda
        [ ! -e "$counts" ] || "$1" -t "$counts" 2>/dev/null |
            awk -v source="$source" '
            /^ *-: *0:Source:/ { mine = $0 ~ ":" source "$"; next }
            !mine { next }
            {
                split($0, part, ":")
                if (part[1] !~ /-$/)
                    print source, part[2] + 0, part[1] !~ /#|=/
            }'
    done >>"$root/lines"
}

# With all calls that may fail, and no line lost to a sudden end.
whole() {
    gcc -c -o "$root/coverage.o" tests/coverage.c || exit 1
    build whole CC=gcc test LDFLAGS="$root/coverage.o -Wl,--wrap=_exit \
        -Wl,--wrap=raise" || exit 1
    FAULTS_BUILD=$folder FAULTS_OPT="$options" sh tests/check_faults.sh ||
        exit 1
    count gcov
}

bare() {
    build bare CC=gcc CPPFLAGS=-DNO_POSIX "$root/bare/tests/test_file" \
        "$root/bare/tests/test_os" || exit 1
    sh tests/run.sh "$folder/tests/test_file" "$folder/tests/test_os" || exit 1
    count gcov
}

# What is written there is what is written here; and a disk that is full.
big_endian() {
    for tool in s390x-linux-gnu-gcc s390x-linux-gnu-gcov qemu-s390x; do
        command -v $tool >/dev/null 2>&1 && continue
        echo "big-endian: skipped, no $tool here"
        wanted=$(echo "$wanted" | sed 's| base/safetensors.c | |')
        return
    done
    build s390x CC=s390x-linux-gnu-gcc "$root/s390x/deepseek" \
        LDFLAGS=-static || exit 1
    for dtype in f32 f16 bf16 fp8; do
        for program in "$root/whole/deepseek" "qemu-s390x $folder/deepseek"
        do
            $program init tests/data/tiny/config.json --dtype $dtype --force \
                -o "$folder/model" || exit 1
            $program generate "$folder/model" --ids 1,2,3 --print-ids -n 4 \
                2>/dev/null || exit 1
            cat "$folder/model/model.safetensors"
        done | (cd "$folder" && split -n 2 - half. && cmp half.aa half.ab) ||
            exit 1
    done
    (ulimit -f 8 && trap '' XFSZ && qemu-s390x "$folder/deepseek" init --force \
        tests/data/tiny/config.json -o "$folder/model" 2>/dev/null) && exit 1
    echo "big-endian: four types written and read, the same bytes"
    count s390x-linux-gnu-gcov
}

report() {
    sort -k1,1 -k2,2n -k3,3nr "$root/lines" | awk -v wanted="$wanted" '
    function close_range()
    {
        if (first)
            missed = missed " " first (last > first ? "-" last : "")
        first = 0
    }
    function close_file()
    {
        close_range()
        if (source != "")
            printf "%-22s %5d lines, %5.1f %%%s\n", source, lines,
                100 * ran / lines, missed ? "  not" missed : ""
        failed += missed && index(wanted, " " source " ")
        lines = ran = 0
        missed = ""
    }
    $1 == source && $2 == line { next }
    $1 != source { close_file(); source = $1 }
    {
        line = $2
        lines++
        ran += $3
        if ($3)
            close_range()
        else if (!first)
            first = line
        last = line
    }
    END {
        close_file()
        exit failed > 0
    }'
}

whole
bare
big_endian
report
