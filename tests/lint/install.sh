#!/usr/bin/env bash
# install.sh BUILD: `cmake --install` installs the program, which runs from
# where it was put, and nothing of the tests.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cmake --install "$1" --prefix "$folder" >"$folder.log"
rm "$folder.log"
installed=$(cd "$folder" && find . -type f -o -type l | sort)
if [[ $installed != ./bin/weightfs ]]; then
  printf 'installed:\n%s\n' "$installed"
  exit 1
fi
"$folder/bin/weightfs" --version
