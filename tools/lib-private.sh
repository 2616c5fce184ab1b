#!/usr/bin/env bash
# lib-private.sh COMMAND…: runs COMMAND so that it leaves nothing behind, and
# fails if it would have.
#
# As root, COMMAND gets mount and process namespaces of its own: whatever it
# leaves mounted or running ends with it. Where /dev/fuse is root's alone (0600,
# as in containers without udev), a node of mode 0666 is bound over it there, so
# that tests can mount as an ordinary user; the machine's own stays as it is.
# An ordinary user who may not open /dev/fuse gets the same by sudo, if there is
# one. Exit status: COMMAND's, or 99 when it left mounts or daemons behind.
set -euo pipefail
shopt -s inherit_errexit

say() { printf 'weightfs: %s\n' "$*" >&2; }

mounts() { awk '$3 == "fuse.weightfs" { print $2 }' /proc/self/mounts | sort; }
daemons() {
  # Not `pgrep`: a name there is cut to 15 letters.
  local path program
  for path in /proc/[0-9]*; do
    # A weightfs shows its user no more than its arguments.
    program=$(readlink "$path/exe" 2>/dev/null ||
      tr '\0' '\n' 2>/dev/null <"$path/cmdline" | head -1) || true
    case $program in
    */weightfs | */weightfs\ * | */weightfs-test-hub*) echo "${path#/proc/}" ;;
    esac
  done | sort
}

left_behind() {  # left_behind MOUNTS DAEMONS (those from before)
  comm -13 <(echo "$1") <(mounts) | sed 's/^/mount /'
  comm -13 <(echo "$2") <(daemons) | sed 's/^/process /'
}

# Runs the command and looks at what is left; a daemon gets 5 s to go.
run_and_look() {
  local status=0 before_mounts before_daemons left
  before_mounts=$(mounts)
  before_daemons=$(daemons)
  "$@" || status=$?
  for _ in {1..50}; do
    left=$(left_behind "$before_mounts" "$before_daemons")
    [[ -n $left ]] || return "$status"
    sleep 0.1
  done
  say "left behind by the tests:"
  printf '%s\n' "$left" >&2
  return 99
}

open_fuse() {
  local node=/dev/.fuse-weightfs-$$
  [[ -c /dev/fuse ]] || { say "there is no /dev/fuse here"; return 1; }
  (($(stat -c '0%a' /dev/fuse) & 06)) && return 0
  if mknod -m 666 "$node" c 10 229 && mount --bind "$node" /dev/fuse; then
    say "/dev/fuse is root's alone here: bound a node of mode 0666 over it," \
      "for these tests only"
  else
    say "/dev/fuse is root's alone here, and nothing may be bound over it:" \
      "the tests that mount as an ordinary user will fail"
  fi
  rm -f "$node"
}

case ${1:?usage: lib-private.sh COMMAND…} in
--inside) # --inside UID GID COMMAND…: as root, in the new namespaces
  uid=$2 gid=$3
  shift 3
  # Copies of mounts that tests beside this one unmount: they would keep those
  # daemons alive.
  mounts | while read -r path; do
    umount -l "$(printf '%b' "$path")" 2>/dev/null || true
  done
  open_fuse
  if [[ $uid == 0 ]]; then
    run_and_look "$@"
  else
    run_and_look setpriv --reuid="$uid" --regid="$gid" --init-groups "$@"
  fi
  ;;
*)
  self=$(realpath "${BASH_SOURCE[0]}")
  namespaces=(unshare --mount --pid --fork --kill-child --mount-proc)
  inside=("$self" --inside "$(id -u)" "$(id -g)" "$@")
  if [[ $(id -u) == 0 ]]; then
    "${namespaces[@]}" true 2>/dev/null ||
      namespaces=(unshare --mount)
    exec "${namespaces[@]}" "${inside[@]}"
  elif [[ ! -w /dev/fuse ]] && sudo -n true 2>/dev/null; then
    exec sudo -E "${namespaces[@]}" env PATH="$PATH" HOME="$HOME" "${inside[@]}"
  fi
  [[ -w /dev/fuse ]] || say "/dev/fuse may not be opened by $(id -un)," \
    "and there is no sudo without a password: tests that mount will fail"
  run_and_look "$@"
  ;;
esac
