#!/bin/sh
# coverage.sh: which lines of each source file the tests ran.
#
# Three builds by gcc with --coverage: one for the tests and for the failing
# calls of check_faults.sh; one over a bare C library (NO_POSIX) for the tests
# of files and clock; one for a big-endian machine, whose program writes and
# reads models under an emulator. Prints for each file the lines that hold code,
# the share of them that one of these ran, and the numbers of those that none
# did.
#
# With FILES, of that what is for them: tests/test_X.c for each X.c, the tests
# of chat templates and of malformed inputs, the failing calls of FAULTS,
# commands that between them read and write every kind of file. A line that only
# a test of something else runs is missed. Prints these files alone, and fails
# if a line of theirs did not run. Without the emulator or its compiler,
# base/safetensors.c, which swaps bytes there, is not among them.
# usage: tests/coverage.sh [FILE...]
set -u
FAULTS='quantize diff-npz diff-npy tokenize tokenize-long
train-run train-resume'
root=build/coverage
options='-O0 -g --coverage'
files=$*
wanted=" $* "
# Whatever else counts costs time, above all when a run ends.
[ -z "$files" ] || options="$options -fprofile-filter-files=^$(
    echo "$files" | sed 's/ /\\;^/g')"
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
# A function's last brace, where gcc counts its returns, is none.
count() {
    for source in *.c base/*.c commands/*.c; do
        counts=$folder/${source%.c}.gcda
        [ ! -e "$counts" ] || "$1" -t "$counts" 2>/dev/null |
            awk -v source="$source" '
            /^ *-: *0:Source:/ { mine = $0 ~ ":" source "$"; next }
            !mine { next }
            {
                split($0, part, ":")
                if (part[1] !~ /-$/ && part[3] != "}")
                    print source, part[2] + 0, part[1] !~ /#|=/
            }'
    done >>"$root/lines"
}

# The programs of the tests that are to run.
tests() {
    if [ -z "$files" ]; then
        set -- tests/test_*.c
    else
        # shellcheck disable=SC2046,SC2086
        set -- tests/test_malformed.c tests/test_chat.c \
            $(basename -a $files | sed 's|^|tests/test_|')
    fi
    printf "$root/whole/%s\n" "$@" | sed 's/\.c$//'
}

# With all calls that may fail, and no line lost to a sudden end.
whole() {
    gcc -c -o "$root/coverage.o" tests/coverage.c || exit 1
    # shellcheck disable=SC2046
    build whole CC=gcc LDFLAGS="$root/coverage.o -Wl,--wrap=_exit \
        -Wl,--wrap=raise" "$root/whole/deepseek" $(tests) || exit 1
    # shellcheck disable=SC2046
    DEEPSEEK=$PWD/$folder/deepseek sh tests/run.sh $(tests) || exit 1
    # shellcheck disable=SC2046
    FAULTS_BUILD=$folder FAULTS_OPT="$options" sh tests/check_faults.sh \
        $([ -z "$files" ] || echo "$FAULTS") || exit 1
    count gcov
}

bare() {
    build bare CC=gcc CPPFLAGS=-DNO_POSIX "$root/bare/tests/test_file" \
        "$root/bare/tests/test_os" || exit 1
    sh tests/run.sh "$folder/tests/test_file" "$folder/tests/test_os" || exit 1
    count gcov
}

# A model of type $1 by program $2, and what that reads of it.
written() {
    # shellcheck disable=SC2086
    $2 init tests/data/tiny/config.json --dtype "$1" --force \
        -o "$folder/model" &&
        $2 generate "$folder/model" --ids 1,2,3 --print-ids -n 4 2>/dev/null &&
        cat "$folder/model/model.safetensors"
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
        written $dtype "$root/whole/deepseek" >"$folder/here" || exit 1
        written $dtype "qemu-s390x $folder/deepseek" >"$folder/there" || exit 1
        cmp "$folder/here" "$folder/there" || exit 1
    done
    # Behind its header, 19 KB.
    (ulimit -f 64 && trap '' XFSZ &&
        qemu-s390x "$folder/deepseek" init --force -o "$folder/model" \
            tests/data/tiny/config.json 2>/dev/null) && exit 1
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
        if (source != "" && (wanted ~ /^ *$/ || index(wanted, " " source " ")))
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
