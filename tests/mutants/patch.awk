# patch.awk: one mutant's source.
#   awk -v name=NAME -f patch.awk table.txt SOURCE
# Prints SOURCE with the mutant's lines; fails where the right ones are not
# there once and no more.

function differs(hunk, at,    i)
{
    for (i = 1; i <= olds[hunk]; i++)
        if (old[hunk, i] != line[at + i - 1])
            return 1
    return 0
}

function place(hunk,    at, found, place_of)
{
    for (at = 1; at + olds[hunk] - 1 <= n; at++)
        if (!differs(hunk, at)) {
            found++
            place_of = at
        }
    if (found != 1) {
        printf "%s: wanted its lines once, found them %d times: %s\n", name,
            found, old[hunk, 1] >"/dev/stderr"
        failed = 1
    }
    hunk_at[place_of] = hunk
}

FILENAME != ARGV[1] {
    line[++n] = $0
    next
}

/^= / {
    inside = ($2 == name)
}

inside && /^-/ {
    if (!hunks || news[hunks])
        hunks++
    old[hunks, ++olds[hunks]] = substr($0, 2)
}

inside && /^\+/ {
    new[hunks, ++news[hunks]] = substr($0, 2)
}

END {
    for (h = 1; h <= hunks; h++)
        place(h)
    if (!hunks || failed)
        exit 1
    for (i = 1; i <= n; i++) {
        h = hunk_at[i]
        for (k = 1; h && k <= news[h]; k++)
            print new[h, k]
        if (h)
            i += olds[h] - 1
        else
            print line[i]
    }
}
