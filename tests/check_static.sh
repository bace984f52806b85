#!/bin/sh
# check_static.sh: compilers, cppcheck, clang-tidy and clang's analyzer find
# nothing in the sources, and nothing in the program is there in vain.
#
# Every finding is an error; what is not asked for, and what is let pass, is
# listed in the functions below with its reason. What is absent is named as
# skipped.
# usage: tests/check_static.sh [CHECK...]: warnings, unused, mutants, cppcheck,
#        tidy, analyzer
set -u
root=build/static
failed=0
unset MAKEFLAGS # of a make that runs this
mkdir -p "$root"

have() {
    command -v "$1" >/dev/null 2>&1 && return
    echo "static: $1 skipped, none here"
    return 1
}

# The program with these settings of make's, into $root/NAME, of which LOG
# gets what the compiler says.
build() {
    name=$1
    shift
    make -s -j2 "$@" BUILD="$root/$name" PROGRAM="$root/$name/deepseek" \
        "$root/$name/deepseek" >"$root/$name.log" 2>&1 ||
        echo "error: build failed" >>"$root/$name.log"
}

# Lines of $2 that no pattern on standard input lets pass are findings of $1.
report() {
    if grep -vE "$(grep . | paste -sd'|')" "$2"; then
        failed=$((failed + 1))
    else
        echo "static: $1 found nothing"
    fi
}

# -pedantic -Wall -Wextra -Wconversion -Wshadow; the build is not kept, for a
# warning comes once.
warnings() {
    for cc in gcc clang; do
        have $cc || continue
        rm -rf "${root:?}/$cc"
        build $cc CC=$cc OPT=-O1
        echo '^$' | report "$cc" "$root/$cc.log"
    done
}

# Functions that neither main nor one of these reaches: the linker knows, where
# cppcheck's unusedFunction guesses. For the tests alone are
# - the naive loops of the products, to which tests hold the fast ones;
# - e4m3_decode, the definition to which tests hold the tables;
# - fp8_dequantize, the inverse of fp8_quantize;
# - moe_forward, the whole of a layer, which a pass of the model cuts in two.
unused() {
    have gcc || return
    rm -rf "$root/unused"
    roots=
    for name in matmul_plain matmul_t_plain e4m3_decode fp8_dequantize \
        moe_forward; do roots="$roots,-u,$name"; done
    build unused CC=gcc OPT='-O0 -ffunction-sections' \
        LDFLAGS="-Wl,--gc-sections,--print-gc-sections$roots"
    sed -n "s/.*'\.text\.\(.*\)' in file '.*unused\/\(.*\)\.o'/\2.c: \1/p" \
        "$root/unused.log" >"$root/unused.list"
    echo '^$' | report "search for functions that nothing calls" \
        "$root/unused.list"
}

# How golden/bugs.txt calls a pack.
golden_hash() {
    sed -n 's,^ *"golden/golden.safetensors": .*"sha256": "\(.\{16\}\).*,\1,p' \
        "$1"
}

# The lines that tests/mutants/table.txt changes are in their files, once; and
# the fingerprints of what they do are of the packs as these are now.
mutants() {
    table=tests/mutants/table.txt
    awk '/^= / { name = $2 } /^file: / { print name, $2 }' $table |
        while read -r name file; do
            awk -v name="$name" -f tests/mutants/patch.awk $table "$file" \
                2>&1 >/dev/null
        done >"$root/mutants.log"
    echo '^$' | report "search for mutants that have lost their lines" \
        "$root/mutants.log"
    for manifest in golden/*.json; do
        grep -q "^bug .* $(golden_hash "$manifest")\$" golden/bugs.txt ||
            echo "$manifest: golden/bugs.txt has no fingerprints of this pack"
    done >"$root/bugs.log"
    echo '^$' | report "search for packs without fingerprints" "$root/bugs.log"
}

# Not asked for: knownConditionTrueFalse, since it takes enum constants for 0;
# shadowFunction, since a sum is called sum, though base/ has a function of this
# name. Let pass:
# - uninitvar in base/vector.h: a loop sets every lane;
# - arrayIndexThenCheck in balance.c: last == N is looked at first;
# - moduloofone: a macro's i % columns, for one column;
# - ctuuninitvar: an Error is written by who fails and not read before, and
#   model_open begins with a memset;
# - unusedStructMember: of a stamp, which only a build with POSIX compares.
cppcheck_all() {
    have cppcheck || return
    cppcheck --quiet --std=c99 --force -I. --template-location='' \
        --suppress=shadowFunction --suppress=knownConditionTrueFalse \
        --template='{file}:{line}: {message} [{id}]' \
        --enable=warning,style,performance,portability \
        ./*.c base/*.c commands/*.c 2>"$root/cppcheck.log"
    report cppcheck "$root/cppcheck.log" <<'END'
^base/vector.h:.* v \[uninitvar\]$
^balance.c:.* 'last' .*\[arrayIndexThenCheck\]$
^base/matmul.c:.*\[moduloofone\]$
^([a-z./]*:.* err|model.c:.*argument m) .*\[ctuuninitvar\]$
^base/file.c:.*'Stamp::.*\[unusedStructMember\]$
^$
END
}

# Not asked for: bugprone-easily-swappable-parameters, since outputs, inputs,
# weights, sizes is the one order here, and many of them are of one type. Then
# - reserved identifiers: POSIX wants its macros defined;
# - int-to-ptr: inside MAP_FAILED and SIG_ERR, which are not ours;
# - sizeof(A*): arrays of pointers, to be sorted;
# - widening in the products, commands/fp8.c and commands/drafts.c: constants,
#   below 2^17;
# - memcpy's missing terminator: path_join copies m + 1 bytes, with it;
# - signal-handler: file_remove_temps calls unlink alone;
# - recursion: as deep as the stages of a pattern, an encoder or a JSON file;
#   settings.c stops at two.
tidy() {
    have clang-tidy || return
    checks='-*,bugprone-*,misc-*,performance-*,portability-*'
    checks="$checks,-bugprone-easily-swappable-parameters"
    ls ./*.c base/*.c commands/*.c | xargs -n 4 -P 2 sh -c '
        clang-tidy --quiet --checks="$0" "$@" -- \
            -std=c99 -ffp-contract=off -I. 2>/dev/null' "$checks" |
        grep -aE ': (warning|error):' | sed "s|^$PWD/||" | sort -u \
            >"$root/tidy.log"
    report clang-tidy "$root/tidy.log" <<'END'
_(XOPEN_SOURCE|FILE_OFFSET_BITS)'.*\[bugprone-reserved-identifier\]$
\[performance-no-int-to-ptr\]$
sizeof\(A\*\).*\[bugprone-sizeof-expression\]$
^(base/matmul|base/matmul_t|base/tile|commands/fp8|commands/drafts)\.[ch]:.*\[bugprone-implicit-widening-of-multiplication-result\]$
^base/file.c:.*'memcpy'.*\[bugprone-not-null-terminated-result\]$
^commands/stream.c:.*'file_remove_temps'.*\[bugprone-signal-handler\]$
'(cut|encode_span|read_(pretokenizer|post_processor|object))'.*\[misc-no-recursion\]$
END
}

# - base/matmul.c: rows have at least one column, and a matrix its data, but
#   the analyzer sees no caller that says so;
# - base/safetensors.c: read_sizes has set both where it returns 2.
analyzer() {
    have scan-build || return
    rm -rf "$root/analyzer"
    scan-build -o "$root/reports" make -s -j2 OPT=-O1 BUILD="$root/analyzer" \
        PROGRAM="$root/analyzer/deepseek" "$root/analyzer/deepseek" 2>&1 |
        grep -aE ': (warning|error):' | sort -u >"$root/analyzer.log"
    report "clang's analyzer" "$root/analyzer.log" <<'END'
^base/safetensors.c:.*'>' is a garb.*\[core\.UndefinedBinaryOperatorResult\]$
^base/matmul.c:.*\[core\.(NonNullParamChecker|CallAndMessage)\]$
END
}

# The analyzer runs when asked for: what it reports has to be read, and differs
# from version to version.
for check in ${*:-warnings unused mutants cppcheck tidy}; do
    case $check in cppcheck) cppcheck_all ;; *) $check ;; esac
done
[ "$failed" = 0 ]
