#!/usr/bin/env bash
# fuzz.sh FUZZER CORPUS OPTIONS…: runs a libFuzzer program over CORPUS, which
# must hold something and is not written to. What it finds is kept beside the
# fuzzer and named; put such a file into CORPUS with the fix.
set -euo pipefail

fuzzer=$1 corpus=$2
shift 2
if [[ -z $(find "$corpus" -type f 2>/dev/null | head -1) ]]; then
  echo "$corpus holds no seeds"
  exit 1
fi
# In memory, if that can be: targets that write files wait for no disk.
scratch=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
export TMPDIR=$scratch/files
trap 'rm -rf "$scratch"' EXIT
artifacts=$(dirname "$fuzzer")/findings
mkdir -p "$artifacts" "$scratch/found" "$TMPDIR"
# New inputs go to the first folder.
"$fuzzer" "$@" -artifact_prefix="$artifacts/$(basename "$fuzzer")-" \
  "$scratch/found" "$corpus" 2>&1 | tail -40
