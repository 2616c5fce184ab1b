#!/usr/bin/env bash
# tidy_planted.sh BUILD: clang-tidy, as tidy.sh runs it, refuses a source with a
# planted fault and keeps no "clean" for it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
status=0
output=$("$here/tidy.sh" planted_tidy "$1" \
  --config-file="$here/../../.clang-tidy" 2>&1) || status=$?
[[ $status != 77 ]] || { echo "$output"; exit 77; }
if [[ $status == 0 ]]; then
  echo "the planted faults were not found"
  exit 1
fi
for check in bugprone-use-after-move google-explicit-constructor \
  readability-identifier-naming performance-unnecessary-value-param; do
  grep -q "$check" <<<"$output" || { echo "$check slept"; exit 1; }
done
