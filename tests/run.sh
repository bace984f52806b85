#!/bin/sh
# Runs the test programs named and prints one line for each, the whole output
# of those that fail, and a total. Fails if any fails or none was named.
out=${TMPDIR:-/tmp}/deepseek-test.$$
trap 'rm -f "$out"' EXIT
total=0 skipped=0 failed=0
for test in "$@"; do
    case $test in
    /*) "$test" ;;
    *) "./$test" ;;
    esac >"$out" 2>&1 </dev/null
    status=$?
    n=$(sed -n 's/^\[==========\].* \([0-9]*\) test(s) run.*/\1/p' "$out" |
        awk '{ n += $1 } END { print n + 0 }')
    s=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test(s).*/\1/p' "$out" |
        awk '{ n += $1 } END { print n + 0 }')
    total=$((total + n)) skipped=$((skipped + s))
    if [ "$status" = 0 ] && [ "$n" -gt 0 ]; then
        printf '%-28s %4d passed' "${test##*/}" $((n - s))
        [ "$s" -eq 0 ] || printf ', %d skipped' "$s"
        echo
    else
        failed=$((failed + 1))
        cat "$out"
        printf '%-28s FAILED, status %d\n' "${test##*/}" "$status"
    fi
done
printf '%d test programs, %d tests' $# "$total"
[ "$skipped" = 0 ] || printf ', %d skipped' "$skipped"
[ "$failed" = 0 ] || printf ', %d PROGRAMS FAILED' "$failed"
echo
[ "$failed" = 0 ] && [ $# -gt 0 ]
