#!/bin/sh
# check_sanitizers.sh: the tests touch no memory that is not theirs, use no
# value that was never set, leak nothing, and compute nothing undefined.
#
# All tests run under gcc's AddressSanitizer (with its search for leaks) and
# UndefinedBehaviorSanitizer, under clang's MemorySanitizer, and under
# valgrind; those that run the program run one built the same way. A finding
# fails the test program. What is absent is named as skipped.
#
# Valgrind is some 30 times slower and takes long double for double. It leaves
# out the tests of LEFT_OUT: test_cli, test_malformed, test_precision and
# test_train_run, which run other programs; test_maths, which measures in long
# double; and the longest, whose code runs in others.
# usage: tests/check_sanitizers.sh [asan|msan|memcheck...]
set -u
LEFT_OUT='test_cli test_malformed test_precision test_train_run test_maths
test_deepseek test_golden test_json test_kernels test_mla test_model test_moe
test_mtp test_pass test_pretoken test_train'
root=build/sanitize
flags='-g -O1 -fno-omit-frame-pointer'
failed=0
unset MAKEFLAGS # of a make that runs this
export QUICK=1  # test_pass does less

# Does compiler $1 with flags $2 make a program that runs?
can() {
    mkdir -p "$root"
    echo 'int main(void) { return 0; }' >"$root/probe.c"
    # shellcheck disable=SC2086
    $1 $2 "$root/probe.c" -o "$root/probe-$1" 2>/dev/null &&
        "$root/probe-$1" && return
    echo "sanitizers: skipped, no $1 with $2 here"
    return 1
}

# The program and all tests, in $root/$1, by compiler $2 with options $3.
build() {
    folder=$root/$1
    tests=
    for test in tests/test_*.c; do tests="$tests $folder/${test%.c}"; done
    # shellcheck disable=SC2086
    make -s -j2 CC="$2" OPT="$flags $3" BUILD="$folder" \
        PROGRAM="$folder/deepseek" "$folder/deepseek" $tests || exit 1
}

run() {
    echo "sanitizers: $1"
    shift
    DEEPSEEK=$PWD/$folder/deepseek sh tests/run.sh "$@" ||
        failed=$((failed + 1))
}

# Requests for too much memory, which tests make, are refused, not reported.
asan() {
    options='-fsanitize=address,undefined -fno-sanitize-recover=all'
    can gcc "$options" || return
    build asan gcc "$options"
    export ASAN_OPTIONS=allocator_may_return_null=1:strict_string_checks=1
    # shellcheck disable=SC2086
    run 'AddressSanitizer, UndefinedBehaviorSanitizer' $tests
}

# cmocka itself is not built with it: no value of cmocka's is looked at.
msan() {
    options='-fsanitize=memory'
    can clang "$options" || return
    build msan clang "$options"
    export MSAN_OPTIONS=allocator_may_return_null=1
    # shellcheck disable=SC2086
    run MemorySanitizer $tests
}

# Without -march=native, since valgrind may not know the newest vectors; one
# script for each test puts it under valgrind.
memcheck() {
    command -v valgrind >/dev/null 2>&1 || {
        echo "sanitizers: skipped, no valgrind here"
        return
    }
    build valgrind gcc ''
    mkdir -p "$folder/under"
    chosen=
    for test in $tests; do
        case " $(echo $LEFT_OUT) " in *" ${test##*/} "*) continue ;; esac
        script=$folder/under/${test##*/}
        { echo '#!/bin/sh'
            echo "exec valgrind -q --error-exitcode=99 --leak-check=full" \
                "--errors-for-leak-kinds=definite,possible $test"; } >"$script"
        chmod +x "$script"
        chosen="$chosen $script"
    done
    # shellcheck disable=SC2086
    run "valgrind, without $(echo $LEFT_OUT)" $chosen
}

for check in ${*:-asan msan memcheck}; do $check; done
[ "$failed" = 0 ]
