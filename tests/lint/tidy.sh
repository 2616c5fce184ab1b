#!/usr/bin/env bash
# tidy.sh FILE BUILD [OPTIONS…]: clang-tidy 14 over one source, with BUILD's
# compile commands. A clean result is kept under the hash of all that it came from (the
# file, every header it includes, the configuration, the flags, clang-tidy), so
# an unchanged file costs a preprocessor run. Exits with 77 (skipped) without a
# clang-tidy 14: other versions have other checks.
set -euo pipefail

file=$(realpath "$1")
build=$2
shift 2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${WEIGHTFS_DEV_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/weightfs-dev}/tidy

tidy=
for candidate in clang-tidy-14 clang-tidy; do
  if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
    tidy=$candidate
    break
  fi
done
if [[ -z $tidy ]]; then
  echo "skipped: no clang-tidy 14 here"
  exit 77
fi

# The compile command: the folder it runs in, then its words, one a line.
mapfile -t command < <(python3 -c '
import json, os, shlex, sys
for entry in json.load(open(sys.argv[2], encoding="utf-8")):
    if os.path.realpath(entry["file"]) == sys.argv[1]:
        print("\n".join([entry["directory"], *shlex.split(entry["command"])]))
        break
' "$file" "$build/compile_commands.json")
((${#command[@]} > 2)) || { echo "$file: not in the build in $build"; exit 1; }

# Without ccache, the output, the sanitizers and the compiled form of the
# precompiled header, whose text a source may lean on all the same.
words=()
pch=()
for ((i = 1; i < ${#command[@]}; i++)); do
  word=${command[i]}
  case $word in
  */ccache | -c | -MD | -Winvalid-pch | -fsanitize=* | -fno-sanitize*) ;;
  -fpch-instantiate-templates | "$file") ;;
  -o | -MF | -MT) ((++i)) ;;
  -Xclang)
    ((++i))
    # A copy: beside the original lies its compiled form, which clang would
    # take, made with other flags.
    if [[ ${command[i]} == */cmake_pch.hxx ]]; then
      mkdir -p "$cache"
      pch=(-include "$cache/$(sha256sum <"${command[i]}" | cut -c1-16).hxx")
      [[ -e ${pch[1]} ]] || {
        cp "${command[i]}" "${pch[1]}.$$" && mv "${pch[1]}.$$" "${pch[1]}"
      }
    fi
    ;;
  *) words+=("$word") ;;
  esac
done
words+=("${pch[@]}")
cd "${command[0]}"

key=$({
  "$tidy" --version
  echo "$@"
  printf '%s\n' "${words[@]}"
  cat "$root/.clang-tidy" "$root"/tests/.clang-tidy
  # System headers count by name: an update of theirs that matters brings new
  # names or a new compiler.
  "${words[@]}" -M -MT x "$file" | tr -d '\\' | tr -s ' ' '\n' | sed 1d |
    sort -u | while read -r header; do
      case $header in
      "$root"/* | "$build"/*) sha256sum "$header" ;;
      *) echo "$header" ;;
      esac
    done
} | sha256sum | cut -c1-32)

if [[ -e $cache/$key ]]; then
  echo "clean already: ${file#"$root"/}"
  exit 0
fi
"$tidy" --quiet --warnings-as-errors='*' "$@" "$file" -- "${words[@]:1}" 2>&1 |
  { grep -v ' warnings\? generated\.$' || true; }
mkdir -p "$cache"
: >"$cache/$key"
echo "clean: ${file#"$root"/}"
