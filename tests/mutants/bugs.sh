#!/bin/sh
# bugs.sh: prints golden/bugs.txt, from what tests/mutants.sh keeps.
#
#   KEEP=DUMPS sh tests/mutants.sh DIR
#   sh tests/mutants/bugs.sh DUMPS DIR/golden >golden/bugs.txt
#
# DUMPS/NAME/PACK.safetensors is what the mutant NAME gives for a pack,
# PACKS/PACK/golden/golden.safetensors what is right. A mutant that changes
# nothing in a pack has no lines for it; nor has one that refuses it.
deepseek=${DEEPSEEK:-./deepseek} dumps=$1 packs=$2
cat <<'END'
# bugs.txt: what each known bug does to each golden pack; tests/mutants/bugs.sh
# makes it. "bug NAME HASH", the hash being golden.safetensors' SHA-256, then
# sketches (base/sketch.h) of the first tensor to depart and of some behind it.
END
for dir in "$dumps"/*/; do
    name=$(basename "$dir")
    [ "$name" != golden ] || continue
    for dump in "$dir"*.safetensors; do
        pack=$(basename "$dump" .safetensors)
        golden=$packs/$pack/golden/golden.safetensors
        [ -e "$dump" ] && [ -e "$golden" ] || continue
        "$deepseek" diff "$golden" "$dump" --fingerprint "$name" || exit 1
    done
done
