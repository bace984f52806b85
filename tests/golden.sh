#!/bin/sh
# Makes the golden packs, all or those named, below DIR and compares their
# manifests, which have the hashes of all files, with golden/NAME.json.
# --update writes these instead; a pack whose bytes have changed must have
# another version.
#
#   sh tests/golden.sh DIR [--update] [NAME...]
deepseek=${DEEPSEEK:-./deepseek} dir=$1 update= failed=0
shift
if [ "$1" = --update ]; then
    update=1
    shift
fi
[ $# -gt 0 ] || set -- $(cd golden && ls ./*.json | sed 's,^./,,; s/.json$//')

version() {
    sed -n 's/^  "version": \([0-9]*\),$/\1/p' "$1"
}

mkdir -p "$dir" || exit 1
for name in "$@"; do
    kept=golden/$name.json made=$dir/$name/golden/manifest.json
    "$deepseek" golden "$name" -o "$dir/$name" --force || exit 1
    if cmp -s "$made" "$kept"; then
        echo "$name: as in $kept"
    elif [ -z "$update" ]; then
        echo "$name: other than $kept:"
        diff "$kept" "$made" | head -n 20
        failed=1
    elif [ -e "$kept" ] && [ "$(version "$made")" = "$(version "$kept")" ]; then
        echo "$name: other bytes than $kept and the same version"
        failed=1
    else
        cp "$made" "$kept" && echo "$name: wrote $kept"
    fi
done
exit $failed
