# judge.awk: one dump of a mutant, from what `deepseek diff --json` says of it.
#   awk -v limit=X -f judge.awk [NOISE] DUMP
# Prints the first tensor, in the order of computation, whose NMSE is greater
# than its limit, or '-'. The limit is `limit`, or four times what NOISE has,
# the same for the right program in BF16, if that is greater: twice the error.

function number(key,    at) {
    at = index($0, "\"" key "\": ")
    at = at ? substr($0, at + length(key) + 4) : ""
    sub(/[,}].*/, "", at)
    gsub(/"/, "", at)
    return at
}

{
    name = number("name")
    nmse = number("nmse")
    if (nmse == "")
        next
    if (nmse !~ /^[0-9]/)
        nmse = 1e300
    nmse += 0
}

ARGC > 2 && FILENAME == ARGV[1] {
    noise[name] = 4 * nmse
    next
}

{
    bound = noise[name] > limit + 0 ? noise[name] : limit + 0
    if (nmse > bound && first == "")
        first = name
}

END {
    print first == "" ? "-" : first
}
