#!/bin/sh
# eva.sh: lets Frama-C's Eva search for run-time errors in all runs at once.
#
# Each driver in tests/eva calls functions of the program with every input of
# its kind; Eva computes what each variable may hold and raises an alarm where
# it cannot exclude an access out of bounds, an uninitialised value, a division
# by zero, an overflow. Prints the alarms of each driver and how many there
# are; docs/robustness.md argues those that are left. Without frama-c it says
# so and passes.
# usage: tests/eva.sh
set -u
root=build/eva
failed=0
command -v frama-c >/dev/null 2>&1 || {
    echo "eva: skipped, no frama-c here"
    exit 0
}
mkdir -p "$root"

# DRIVER ALARMS OPTION...: no more alarms than these.
driver() {
    name=$1 argued=$2
    shift 2
    frama-c -machdep gcc_x86_64 -cpp-extra-args="-I. -Itests/eva" \
        -eva -eva-no-print "$@" "tests/eva/$name.c" >"$root/$name.log" 2>&1
    alarms=$(sed -n 's/^ *\([0-9]*\) alarms\{0,1\} generated.*/\1/p' \
        "$root/$name.log")
    grep -A1 '^\[eva:alarm\]' "$root/$name.log" | grep -vE '^--|^\[eva\]'
    echo "eva: $name, alarms: ${alarms:-no end}, argued: $argued"
    [ "${alarms:-99}" -le "$argued" ] || failed=1
}

driver check_config 0 -eva-precision 3 -warn-unsigned-overflow
driver scan_json 5 -eva-precision 4
[ "$failed" = 0 ]
