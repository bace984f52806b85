#!/bin/sh
# check_install.sh: what `make install` puts under PREFIX is whole, and away
# from the sources, the program knows the bugs that it names.
#
#   DEEPSEEK=build/deepseek sh tests/check_install.sh
set -eu
unset MAKEFLAGS # of a make that runs this
program=${DEEPSEEK:-./deepseek}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s -o "$program" BUILD="$work/build" PROGRAM="$program" \
    DESTDIR="$work/" PREFIX=usr install
cd "$work/usr"
cmp share/deepseek/bugs.txt "$OLDPWD/golden/bugs.txt"
test -s share/man/man1/deepseek.1
test -s share/bash-completion/completions/deepseek
deepseek=bin/deepseek reading=latent-eps=rms_norm_eps
$deepseek golden K8 -o K8 2>log
ids=$(sed -n 's/^  "ids": \[\(.*\)\],$/\1/p' K8/golden/manifest.json | tr -d ' ')
$deepseek trace K8 --ids "$ids" --reading $reading -o theirs.safetensors 2>>log
$deepseek diff K8/golden/golden.safetensors theirs.safetensors --rule fp32 \
    >told 2>>log && exit 1
grep -q 'none of the known bugs' told
