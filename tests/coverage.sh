#!/bin/sh
# coverage.sh: which lines of each source file the tests ran.
#
# Reads what a build with --coverage left in FOLDER after its tests (`make
# coverage` does both) and prints for each file the lines that hold code, the
# share of them that ran, and the numbers of those that did not. With FILES:
# fails if a line of these did not run.
# usage: tests/coverage.sh FOLDER [FILE...]
set -u
folder=$1
shift
wanted=" $* "

for source in *.c base/*.c commands/*.c; do
    counts=$folder/${source%.c}.gcda
    if [ -e "$counts" ]; then gcov -t "$counts" 2>/dev/null; else echo; fi |
        awk -v source="$source" -v wanted="$wanted" '
        function note()
        {
            if (first)
                missed = missed " " first (last > first ? "-" last : "")
            first = 0
        }
        /^ *-: *0:Source:/ { mine = $0 ~ ":" source "$"; next }
        !mine { next }
        {
            split($0, part, ":")
            count = part[1]
            if (count ~ /-$/)
                next
            lines++
            if (count !~ /#|=/) {
                ran++
                note()
                next
            }
            if (!first)
                first = part[2] + 0
            last = part[2] + 0
        }
        END {
            note()
            printf "%-20s %5d lines, %5.1f %%%s\n", source, lines,
                lines ? 100 * ran / lines : 0, missed ? "  not" missed : ""
            exit ran < lines && index(wanted, " " source " ")
        }' || touch "$folder/missed"
done
[ ! -e "$folder/missed" ] || { rm "$folder/missed"; exit 1; }
