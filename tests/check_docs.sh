#!/bin/sh
# Holds the documents to the program: README.md and docs/*.md.
#
#   sh tests/check_docs.sh            complains about what is not so
#   sh tests/check_docs.sh --update   writes the outputs anew
#
# - Links to files, and to headings in them, lead somewhere.
# - Files that are named exist: X.c, X.h, X.sh, X.py, and what begins with
#   base/, commands/, docs/, models/, tests/. With a line, as in X.py:12, they
#   are another project's.
# - "test_X.c: name" is a test function of that file, "model k3-v3" a directory
#   of tests/data/models, "pack K5" a manifest of golden/.
# - Every entry of docs/disputes.md says what is done "Here", and after "Shown
#   by:" names a test, a model or a pack.
# - "./deepseek COMMAND --option" and "make target" are there.
# - "--reading NAME=VALUE" is accepted.
# - In ```console blocks every line after "$ " is run in a scratch directory
#   that looks like this one, and prints on stdout what follows there.
# - What stands between the story comments of README.md is what "make run"
#   prints.
# - No line of a C file is longer than 80 characters.
#
# DEEPSEEK names the program, else ./deepseek.
cd "$(dirname "$0")/.." || exit 1
root=$PWD
program=${DEEPSEEK:-./deepseek}
case $program in /*) ;; *) program=$root/$program ;; esac
update=
[ "$1" = --update ] && update=1
scratch=${TMPDIR:-/tmp}/deepseek-docs.$$
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch" && : >"$scratch/bad" || exit 1
docs=$(ls README.md docs/*.md)

complain()
{
    echo "$*"
    echo "$*" >>"$scratch/bad"
}

# Every thing that a document names: kind, place, thing, one a line.
things()
{
    LC_ALL=C awk '
    function thing(kind, text)
    {
        print kind "\t" FILENAME ":" FNR "\t" text
    }

    # All that match pattern in text; from: so many characters are dropped.
    function all(kind, text, pattern, from)
    {
        while (match(text, pattern)) {
            found = substr(text, RSTART + from, RLENGTH - from)
            rest = substr(text, RSTART + RLENGTH)
            sub(/[.\/]+$/, "", found)
            thing(kind, found)
            text = rest
        }
    }

    /^```/ { block = !block }

    {
        line = $0
        if (!block)
            all("link", line, "\\]\\([^)]*", 2)
        all("test", line, "test_[a-z0-9_]+\\.c: [a-z0-9_]+", 0)
        all("reading", line, "--reading [a-z0-9_-]+=[a-z0-9_.-]+", 10)
        all("command", line, "\\./deepseek [a-z]+[^|>`]*", 11)
        all("model", line, "models? [a-z0-9]+(-[a-z0-9]+)+" \
            "((,| and) [a-z0-9]+(-[a-z0-9]+)+)*", 0)
        all("pack", line, "packs? K[0-9]+(-[a-z0-9]+)?" \
            "((,| and) K[0-9]+(-[a-z0-9]+)?)*", 0)
        all("target", line, "(^|[`$ ])make [a-z]+[`]?$", 0)
        all("target", line, "`make [a-z]+`", 0)
        gsub(/\]\([^)]*\)/, "]", line)
        gsub(/[A-Za-z0-9_.\/-]+:[0-9]+/, "", line)
        gsub(/docs\/X\.md/, "", line)
        gsub(/tests\/test_[A-Z*]\.c|test_[A-Z*]\.c/, "", line)
        gsub(/[A-Za-z0-9_.\/-]*\/tmp\/[^ ]*/, "", line)
        all("path", line,
            "(base|commands|docs|models|tests)/[A-Za-z0-9_./-]*", 0)
        gsub(/[A-Za-z0-9_.-]+\/[A-Za-z0-9_.\/-]*/, "", line)
        all("file", " " line " ",
            "[^A-Za-z0-9_.][a-z0-9_]+\\.(c|h|sh|py)[^a-z0-9_]", 1)
    }' $docs
}

# A heading as links name it: lower case, blanks to hyphens, no punctuation.
anchors()
{
    sed -n 's/^##* //p' "$1" | tr 'A-Z ' 'a-z-' | sed 's/[^a-z0-9_-]//g'
}

check_link()
{
    case $2 in http://*|https://*) return ;; esac
    file=${2%%#*}
    if [ -z "$file" ]; then
        file=${1%%:*}
    else
        file=$(dirname "${1%%:*}")/$file
    fi
    [ -e "$file" ] || { complain "$1: the link $2 leads nowhere"; return; }
    case $2 in *#*)
        anchors "$file" | grep -qxF -e "${2#*#}" ||
            complain "$1: $file has no heading ${2#*#}" ;;
    esac
}

check_file()
{
    name=$(echo "$2" | sed 's/[^a-z0-9_.].*//')
    ls "$name" base/"$name" commands/"$name" tests/"$name" \
        tests/reference/"$name" 2>/dev/null | grep -q . ||
        complain "$1: there is no file $name"
}

check_test()
{
    grep -q "^static void ${2#*: }(" "tests/${2%%:*}" 2>/dev/null ||
        complain "$1: there is no test $2"
}

check_command()
{
    set -f
    set -- "$1" $2
    set +f
    where=$1
    help=$scratch/help.$2
    [ -f "$help" ] || "$program" "$2" --help >"$help" 2>&1 || {
        complain "$where: there is no command $2"
        return
    }
    shift
    for word in "$@"; do
        case $word in
        --help) ;;
        -[a-z]|--[a-z]*)
            grep -q -e "^ *${word%%=*}\( \|\$\)" "$help" ||
                complain "$where: $1 has no option $word" ;;
        esac
    done
}

check_target()
{
    target=$(echo "$2" | sed 's/.*make //; s/`//')
    grep -q "^$target:" Makefile ||
        complain "$1: there is no make $target"
}

check_model()
{
    for name in $(echo "$2" | sed 's/^models* //; s/,//g; s/ and / /g'); do
        [ -d "tests/data/models/$name" ] ||
            complain "$1: there is no model $name"
    done
}

check_pack()
{
    for name in $(echo "$2" | sed 's/^packs* //; s/,//g; s/ and / /g'); do
        [ -e "golden/$name.json" ] || complain "$1: there is no pack $name"
    done
}

check_disputes()
{
    awk '
    function judge()
    {
        if (entry != "" && !here)
            print FILENAME ": " entry ": nothing says what is done here"
        if (entry != "" && shown !~ /test_[a-z0-9_]+\.c: |models? [a-z]|packs? K/)
            print FILENAME ": " entry ": no test, model or pack shows it"
        entry = shown = ""
        here = open = 0
    }

    /^##/ { judge() }
    /^### / { entry = substr($0, 5) }
    /Here:/ { here = 1 }
    /Shown by:/ { open = 1 }
    /^$/ { open = 0 }
    open { shown = shown $0 " " }
    END { judge() }' docs/disputes.md >"$scratch/disputes"
    while read -r line; do
        complain "$line"
    done <"$scratch/disputes"
}

check_reading()
{
    "$program" trace tests/data/models/k3-v3 --ids 1 --reading "$2" --force \
        -o "$scratch/reading" 2>"$scratch/err" >&2 ||
        complain "$1: --reading $2: $(cat "$scratch/err")"
}

check_things()
{
    tab=$(printf '\t')
    things | sort -u >"$scratch/things"
    while IFS=$tab read -r kind where thing; do
        case $kind in
        link) check_link "$where" "$thing" ;;
        path) [ -e "$thing" ] || complain "$where: there is no $thing" ;;
        file) check_file "$where" "$thing" ;;
        test) check_test "$where" "$thing" ;;
        command) check_command "$where" "$thing" ;;
        model) check_model "$where" "$thing" ;;
        pack) check_pack "$where" "$thing" ;;
        target) check_target "$where" "$thing" ;;
        reading) check_reading "$where" "$thing" ;;
        esac
    done <"$scratch/things"
}

# N.command and N.want of every command of a document's console blocks; with
# `new`, the document itself with N.got in their place.
consoles()
{
    LC_ALL=C awk -v dir="$2" -v new="$3" '
    function put(line)
    {
        if (new)
            print line
    }

    function show_output(    line)
    {
        while (new && (getline line < (dir "/" n ".got")) > 0)
            print line
    }

    !block && /^```console$/ { block = 1; put($0); next }
    block && /^```$/ { block = 0; put($0); next }
    !block { put($0); next }
    more || /^\$ / {
        put($0)
        if (!more)
            n++
        line = more ? $0 : substr($0, 3)
        more = sub(/\\$/, "", line)
        if (!new)
            printf "%s%s", line, more ? " " : "\n" > (dir "/" n ".command")
        if (!more)
            show_output()
        next
    }
    !new { print > (dir "/" n ".want") }
    ' "$1"
}

run_consoles()
{
    dir=$scratch/$(basename "$1")
    mkdir "$dir" "$dir/run"
    for f in * ; do
        [ "$f" = deepseek ] || ln -s "$root/$f" "$dir/run/$f"
    done
    ln -s "$program" "$dir/run/deepseek"
    consoles "$1" "$dir" ""
    n=1
    while [ -f "$dir/$n.command" ]; do
        [ -f "$dir/$n.want" ] || : >"$dir/$n.want"
        (cd "$dir/run" && sh ../"$n.command" >../"$n.got" 2>/dev/null)
        cmp -s "$dir/$n.want" "$dir/$n.got" || [ -n "$update" ] || {
            complain "$1: not what this prints: $(cat "$dir/$n.command")"
            diff "$dir/$n.want" "$dir/$n.got"
        }
        commands=$((commands + 1)) n=$((n + 1))
    done
    [ -z "$update" ] || [ "$n" = 1 ] || {
        consoles "$1" "$dir" 1 >"$dir/new"
        cmp -s "$1" "$dir/new" || cat "$dir/new" >"$1"
    }
}

# The lines between the comments, without those of the block around them.
story()
{
    sed -n '/^<!-- story -->$/,/^<!-- \/story -->$/p' README.md |
        sed '/^<!--/d; /^```/d'
}

check_story()
{
    make -s run >"$scratch/story" 2>/dev/null
    story | cmp -s - "$scratch/story" && return
    if [ -n "$update" ]; then
        awk -v file="$scratch/story" '
        /^<!-- \/story -->$/ { inside = 0 }
        !inside { print }
        /^<!-- story -->$/ {
            inside = 1
            print "```text"
            while ((getline line < file) > 0)
                print line
            print "```"
        }' README.md >"$scratch/readme" && cat "$scratch/readme" >README.md
    else
        complain "README.md: the story is not what make run prints"
    fi
}

check_width()
{
    LC_ALL=C awk '
    {
        line = $0
        gsub(/[\200-\277]/, "", line)
        if (length(line) > 80)
            print FILENAME ":" FNR ": " length(line) " characters"
    }' *.[ch] base/*.[ch] commands/*.[ch] tests/*.[ch] >"$scratch/wide"
    while read -r line; do
        complain "$line"
    done <"$scratch/wide"
}

commands=0
check_width
check_disputes
check_story
for doc in $docs; do
    run_consoles "$doc"
done
check_things
[ -s "$scratch/bad" ] && exit 1
echo "$(wc -l <"$scratch/things" | tr -d ' ') things named are there," \
    "$commands commands print what the documents say"
