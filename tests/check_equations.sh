#!/bin/sh
# Proves that the numbered equations of the papers that this program computes
# stand as tags directly above the lines that compute them, and that no tag
# points to an equation that does not exist.
#
#   sh tests/check_equations.sh [-l] [ROOT]      -l: list where each one stands
#
# A tag is "V2 (12)", "V2 (12), (37)" or "V3 (6)": a paper and one or more
# numbers on one line. It counts where its comment is in the file that computes
# the equation and code follows directly: the rest of the line, or the next
# line, which is neither blank nor another comment nor a preprocessor line (so
# a file's header does not count). Everything else is a reference, which has to
# exist and no more: ranges like "V2 (1)-(8)" anywhere, tags in other files.
# In a document a reference to an equation that has to stand in the code is an
# error while it does not.
#
# Numbers of equations: V2 (1)-(47), V3 (1)-(28), YaRN (1)-(22).
# Those that must stand: in mla.c V2 (1)-(19), (37)-(47) and V3 (1)-(11), in
# moe.c V2 (20)-(22) and V3 (12)-(16), in balance.c V2 (23)-(31) and V3
# (17)-(20), in mtp.c V3 (21)-(23).
list=
[ "$1" = -l ] && list=1 && shift
cd "${1:-$(dirname "$0")/..}" || exit 1

LC_ALL=C awk -v list="$list" '
BEGIN {
    last["V2"] = 47; last["V3"] = 28; last["YaRN"] = 22
    want("mla.c", "V2", 1, 19)
    want("mla.c", "V2", 37, 47)
    want("mla.c", "V3", 1, 11)
    want("moe.c", "V2", 20, 22)
    want("balance.c", "V2", 23, 31)
    want("balance.c", "V3", 17, 20)
    want("moe.c", "V3", 12, 16)
    want("mtp.c", "V3", 21, 23)
}

function want(file, paper, from, to)
{
    for (; from <= to; from++) {
        order[++n_wanted] = paper " (" from ")"
        home[order[n_wanted]] = file
    }
}

function complain(where, text)
{
    print where ": " text
    bad = 1
}

# Notes every number of one tag; pending[] holds those that code may follow.
function tag(text,    paper, n, first, range)
{
    paper = text
    sub(/ .*/, "", paper)
    first = 0
    while (match(text, /-?\([0-9]+\)/)) {
        range = substr(text, RSTART, 1) == "-"
        n = substr(text, RSTART + range + 1, RLENGTH - range - 2) + 0
        text = substr(text, RSTART + RLENGTH)
        refer(paper, n)
        if (range)
            for (; ++first < n;)
                refer(paper, first)
        if (!range && text !~ /^-/)
            pending[paper " (" n ")"] = FILENAME ":" FNR
        first = n
    }
}

function refer(paper, n,    name)
{
    name = paper " (" n ")"
    if (n < 1 || n > last[paper])
        complain(FILENAME ":" FNR, name " is no equation of the paper")
    else if (FILENAME ~ /\.md$/)
        named[name] = FILENAME ":" FNR
}

function tags(line,    found, rest)
{
    if (line ~ /(V2|V3)(\([0-9]| eqs?[. ]|  +\([0-9])/)
        complain(FILENAME ":" FNR, "not the form of a tag: " line)
    while (match(line, /(V2|V3|YaRN) \([0-9]+\)((-|, )\([0-9]+\))*/)) {
        found = substr(line, RSTART, RLENGTH)
        rest = substr(line, RSTART + RLENGTH)
        tag(found)
        line = rest
    }
}

function forget(    name)
{
    for (name in pending)
        delete pending[name]
}

function stand(    name)
{
    for (name in pending) {
        if (home[name] == FILENAME)
            stands[name] = stands[name] " " pending[name]
        delete pending[name]
    }
}

FNR == 1 {
    forget()
    comment = code = 0
    source = FILENAME ~ /^[a-z0-9_]+\.c$/
}

!source {
    tags($0)
    forget()
    next
}

{
    line = $0
    # The line after a comment: does it have code?
    if (!comment && (line ~ /^[ \t]*$/ || line ~ /^[ \t]*(#|\/\*)/))
        forget()
    else if (!comment)
        stand()
    while (line != "") {
        if (comment) {
            at = index(line, "*/")
            tags(at ? substr(line, 1, at - 1) : line)
            if (!at)
                break
            line = substr(line, at + 2)
            comment = 0
            if (code || line ~ /[^ \t]/)
                stand()
        } else {
            at = index(line, "/*")
            before = at ? substr(line, 1, at - 1) : line
            code = before ~ /[^ \t]/
            if (!at)
                break
            line = substr(line, at + 2)
            comment = 1
        }
    }
}

END {
    for (i = 1; i <= n_wanted; i++) {
        name = order[i]
        if (!(name in stands))
            complain(home[name], name " stands above no code")
        if (!(name in stands) && name in named)
            complain(named[name], name " is not in the code")
        if (list && name in stands)
            print name stands[name]
    }
    if (!bad)
        print n_wanted " equations stand above their lines"
    exit bad
}
' $(ls *.c *.h base/*.[ch] commands/*.[ch] tests/*.[ch] \
    docs/*.md README.md 2>/dev/null)
