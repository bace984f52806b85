#!/bin/sh
# Runs the test programs named, as many at once as there are processors or as
# JOBS says, and prints one line for each as it ends, the whole output of those
# that fail, and a total. Fails if any fails.

# The number in lines like $1 of cmocka's output $2, summed.
count() {
    sed -n "s/^\[$1\([0-9]*\) test(s)$2/\1/p" "$3" |
        awk '{ n += $1 } END { print n + 0 }'
}

# Runs the program $1; leaves "tests skipped failed" in the file $2.
one() {
    "$1" >"$2.out" 2>&1 </dev/null
    status=$?
    n=$(count '==========\] ' ' run\..*' "$2.out")
    s=$(count '  SKIPPED \] ' '.*' "$2.out")
    if [ "$status" = 0 ] && [ "$n" -gt 0 ]; then
        skipped=
        [ "$s" -eq 0 ] || skipped=", $s skipped"
        printf '%-28s %4d passed%s\n' "${1##*/}" $((n - s)) "$skipped"
        echo "$n $s 0" >"$2"
    else
        printf '%-28s FAILED, status %d\n' "${1##*/}" "$status" |
            cat "$2.out" -
        echo "$n $s 1" >"$2"
    fi
}

if [ "${1:-}" = --one ]; then
    one "$2" "$3"
    exit 0
fi
[ $# -gt 0 ] || {
    echo "wanted test programs"
    exit 2
}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
for test in "$@"; do
    case $test in */*) ;; *) test=./$test ;; esac
    printf '%s\n%s\n' "$test" "$work/${test##*/}.result"
done | xargs -n 2 -P "$jobs" sh "$0" --one
cat "$work"/*.result 2>/dev/null | awk -v programs=$# '
    { tests += $1; skipped += $2; failed += $3 }
    END {
        failed += programs - NR
        printf "%d test programs, %d tests", programs, tests
        if (skipped)
            printf ", %d skipped", skipped
        if (failed)
            printf ", %d PROGRAMS FAILED", failed
        print ""
        exit failed > 0
    }'
