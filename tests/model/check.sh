#!/usr/bin/env bash
# check.sh holds|fails MODEL -DNAME…: has spin explore every state of MODEL with
# these macros. `holds` passes if it has no error, `fails` if one is found, of
# which the last steps are printed. Prints the number of states.
set -euo pipefail

wanted=$1 model=$(realpath "$2")
shift 2
if ! command -v spin >/dev/null; then
  echo "SKIP: there is no spin (Debian: spin)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cp "$model" model.pml
spin -a "$@" model.pml >spin.log || { cat spin.log; exit 1; }
# An error is found at once: then compiling takes longer than looking.
level=-O2
[[ $wanted == holds ]] || level=-O0
gcc $level -w -DSAFETY -DNOFAIR -DCOLLAPSE -DMEMLIM=6000 -o pan pan.c
./pan -m100000 -w22 >pan.log 2>&1 || { cat pan.log; exit 1; }

states=$(awk '/states, stored/ { print $1 }' pan.log)
errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
echo "$* : $states states, ${errors:-no count of} errors"
if [[ $wanted == holds ]]; then
  if [[ $errors == 0 ]] &&
    ! grep -qE 'not completed|too small|out of memory' pan.log; then
    exit 0
  fi
else
  # Of the two kinds that are looked for; a trail that cannot be replayed, or an
  # error of the model's own (an index out of range) is none of them.
  if [[ $errors == 1 ]] &&
    grep -E 'assertion violated|invalid end state \(at' pan.log; then
    spin -t -p "$@" model.pml | grep '^ *[0-9]*:' | tail -15
    exit 0
  fi
  echo "this error is not found"
fi
cat pan.log
spin -t -p "$@" model.pml 2>/dev/null | tail -60 || true
exit 1
