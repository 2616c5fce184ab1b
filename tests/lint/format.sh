#!/usr/bin/env bash
# format.sh FOLDER: clang-format 14 over every source of ours; exits with 77
# (skipped) where there is no clang-format 14, since others format differently.
set -euo pipefail

format=
for candidate in clang-format-14 clang-format; do
  if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
    format=$candidate
    break
  fi
done
if [[ -z $format ]]; then
  echo "skipped: no clang-format 14 here"
  exit 77
fi
cd "$1"
mapfile -t files < <(find formats cache fs tools tests -name '*.cc' -o \
  -name '*.h' -o -name '*.cu' | sort)
((${#files[@]} > 10)) || { echo "where are the sources?"; exit 1; }
"$format" --dry-run --Werror "${files[@]}"
echo "${#files[@]} files are formatted"
