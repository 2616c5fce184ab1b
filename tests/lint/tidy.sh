#!/usr/bin/env bash
# tidy.sh TARGET BUILD [OPTIONS…]: clang-tidy 14 over what BUILD compiles for a
# target, as it compiles it: several sources as one, where headers are read and
# checked once for all of them. A clean result is kept under the hash of all that
# it came from (the sources, every header, the configuration, the flags,
# clang-tidy), so what is unchanged costs a preprocessor run. Exits with 77
# (skipped) without a clang-tidy 14: other versions have other checks.
set -euo pipefail

target=$1
build=$(realpath "$2")
shift 2
options=("$@")
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

# Checks one source: FOLDER, then the words of the command that compiles it.
check() {
  local folder=$1 file='' word key words=() pch=()
  shift
  cd "$folder"
  # Without ccache, the output, the sanitizers and the compiled form of the
  # precompiled header, whose text a source may lean on all the same.
  while (($#)); do
    word=$1
    shift
    case $word in
    */ccache | -MD | -Winvalid-pch | -fsanitize=* | -fno-sanitize*) ;;
    -fpch-instantiate-templates) ;;
    -c)
      file=$1
      shift
      ;;
    -o | -MF | -MT) shift ;;
    -Xclang)
      # A copy: beside the original lies its compiled form, which clang would
      # take, made with other flags.
      if [[ $1 == */cmake_pch.hxx ]]; then
        mkdir -p "$cache"
        pch=(-include "$cache/$(sha256sum <"$1" | cut -c1-16).hxx")
        [[ -e ${pch[1]} ]] || {
          cp "$1" "${pch[1]}.$$" && mv "${pch[1]}.$$" "${pch[1]}"
        }
      fi
      shift
      ;;
    *) words+=("$word") ;;
    esac
  done
  words+=("${pch[@]}")

  key=$({
    "$tidy" --version
    printf '%s\n' "${options[@]}" "${words[@]}"
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
    echo "clean already: ${file#"$build"/}"
    return
  fi
  # It says where it suppressed warnings of others' headers.
  "$tidy" --quiet --warnings-as-errors='*' "${options[@]}" "$file" -- \
    "${words[@]:1}" 2>&1 | { grep -v ' warnings\? generated\.$' || true; }
  mkdir -p "$cache"
  : >"$cache/$key"
  echo "clean: ${file#"$build"/}"
}

# One line a source: the folder that its compiler runs in, and the command.
sources=$(python3 - "$build/compile_commands.json" "$target" <<'SOURCES'
import json
import shlex
import sys

for entry in json.load(open(sys.argv[1], encoding="utf-8")):
    words = shlex.split(entry["command"])
    made = words[words.index("-o") + 1]
    if f"CMakeFiles/{sys.argv[2]}.dir/" in made and "cmake_pch" not in made:
        print(shlex.join([entry["directory"], *words]))
SOURCES
)
[[ -n $sources ]] || { echo "$build compiles nothing for $target"; exit 1; }
while read -r source; do
  eval "set -- $source"
  check "$@"
done <<<"$sources"
