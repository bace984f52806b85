#!/bin/sh
# acceptance.sh: how often the main model takes what its MTP module drafts.
#
# Each of the last documents of a text is begun by its own first words and
# continued by the model; counted is over all of them. A line
# <|endoftext|> stands between documents.
# usage: bench/acceptance.sh DIR TEXT [OPTION...]    of generate: --temp 0.7
#   DEEPSEEK   the program, else ./deepseek
#   DOCUMENTS  how many, else 50
#   WORDS      of a document that are its beginning, else 40
#   TOKENS     to be written, else 100; a text may end before
set -eu
program=${DEEPSEEK:-./deepseek}
[ $# -ge 2 ] || {
    echo "usage: bench/acceptance.sh DIR TEXT [OPTION...]" >&2
    exit 2
}
model=$1
text=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/texts"
: >"$work/told"

# Files 000001, 000002, ... of so many first words.
awk -v dir="$work/texts" -v most="${WORDS:-40}" '
    function keep() {
        file = sprintf("%s/%06d", dir, ++files)
        if (n == most)
            printf "%s", line >file
        close(file)
        n = 0
    }
    $0 == "<|endoftext|>" { keep(); next }
    { for (i = 1; i <= NF && n < most; i++)
          line = (n++ ? line " " : "") $i }
    END { keep() }' "$text"

for document in $(find "$work/texts" -type f | sort |
    tail -n "${DOCUMENTS:-50}"); do
    "$program" generate "$model" -p - -n "${TOKENS:-100}" --draft 1 "$@" \
        <"$document" 2>>"$work/told" >/dev/null || {
        tail -n 1 "$work/told" >&2
        exit 1
    }
done
awk '
    /^drafts: / { drafts += $5; accepted += $5 * $(NF - 1) / 100; texts++ }
    END { if (!drafts) { print "no drafts"; exit 1 }
          printf "%d texts, %d drafts, %.1f %% accepted\n", texts, drafts,
                 100 * accepted / drafts }' "$work/told"
