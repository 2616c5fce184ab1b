# Shared by tools/run and tools/test: packages, build folders. Sourced by bash.
# Needs: set -euo pipefail. Changes no directory.

# A machine that starts jobs may leave it out; ccache and pip want it.
export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}

weightfs_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What a build needs, then what the tests need on top (Debian 12's names, which
# newer Debian and Ubuntu have too).
weightfs_build_packages=(
  ca-certificates ccache cmake fuse3 g++ libcli11-dev libcurl4-openssl-dev
  libexpected-dev libfmt-dev libfuse3-dev libgmock-dev libgtest-dev
  libmicrohttpd-dev libspdlog-dev libssl-dev libxxhash-dev ninja-build
  nlohmann-json3-dev pkg-config python3 python3-venv util-linux zlib1g-dev
)
weightfs_test_packages=(
  binutils clang clang-format clang-tidy libclang-rt-dev llvm procps
  spin
)

say() { printf 'weightfs: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# need_packages NAME…: installs those that are missing, as root or by sudo.
need_packages() {
  local missing=() name
  if ! command -v dpkg-query >/dev/null; then
    say "not a Debian: expecting these packages to be here: $*"
    return 0
  fi
  local installed
  # ${db:Status-Status} is "installed" for a whole package; a package that
  # dpkg never heard of makes it exit with 1 and prints nothing.
  # shellcheck disable=SC2016
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" \
    2>/dev/null || true)
  for name in "$@"; do
    grep -qx "$name installed" <<<"$installed" || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y
    -o DPkg::Lock::Timeout=300)
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null ||
      die "missing packages, and neither root nor sudo: ${missing[*]}"
    apt=(sudo "${apt[@]}")
  fi
  say "installing ${missing[*]}"
  # An index that is there may be good enough, and saves a download.
  if ! "${apt[@]}" install --no-install-recommends "${missing[@]}" \
    >&2 </dev/null; then
    "${apt[@]}" update >&2 </dev/null
    "${apt[@]}" install --no-install-recommends "${missing[@]}" >&2 </dev/null
  fi
}

# Warnings are errors with the compilers that the project is held to; a newer
# one knows warnings that nobody has seen yet.
werror_for() {
  case $("$1" -dumpversion 2>/dev/null) in
  12 | 12.* | 14 | 14.*) echo ON ;;
  *) echo OFF ;;
  esac
}

# Sets the array flavour_options to CMake's options for a flavour. clang's builds
# compile ten sources as one, in a third of the time; g++ compiles each on its
# own, which tells when one leans on what another includes.
options_of() {
  flavour_options=(-DCMAKE_BUILD_TYPE=RelWithDebInfo
    -DWEIGHTFS_TEST_PREFIX="$1/")
  local libfuse=$weightfs_root/build/libfuse
  [[ ! -e $libfuse/lib/libfuse3.a ]] ||
    flavour_options+=(-DWEIGHTFS_LIBFUSE="$libfuse")
  [[ $1 != clang-* ]] ||
    flavour_options+=(-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=10)
  case $1 in
  gcc)
    flavour_options+=(-DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++
      -DWEIGHTFS_WERROR="$(werror_for g++)")
    ;;
  clang-asan)
    flavour_options+=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
      -DWEIGHTFS_WERROR="$(werror_for clang++)"
      -DWEIGHTFS_SANITIZE=address,undefined -DWEIGHTFS_LINT=ON)
    ;;
  clang-tsan)
    flavour_options+=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
      -DWEIGHTFS_WERROR="$(werror_for clang++)" -DWEIGHTFS_SANITIZE=thread)
    ;;
  *) die "no build is called \"$1\"" ;;
  esac
}

# build_flavour FLAVOUR [NINJA ARGS…]: configures build/FLAVOUR when that was
# not done with these options yet, and builds. Progress goes to stderr.
build_flavour() {
  local flavour=$1 folder=$weightfs_root/build/$1 flavour_options
  shift
  # Says why, if there is none.
  "$weightfs_root/tools/libfuse.sh" "$weightfs_root/build/libfuse" || true
  options_of "$flavour"
  if [[ ! -f $folder/build.ninja ||
    $(cat "$folder/options" 2>/dev/null) != "${flavour_options[*]}" ]]; then
    say "configuring build/$flavour"
    mkdir -p "$folder"
    rm -f "$folder/options" "$folder/CMakeCache.txt"
    cmake -S "$weightfs_root" -B "$folder" -G Ninja "${flavour_options[@]}" \
      >"$folder/configure.log" 2>&1 || {
      cat "$folder/configure.log" >&2
      return 1
    }
    printf '%s' "${flavour_options[*]}" >"$folder/options"
  fi
  # Precompiled headers hit the cache only with these two.
  CCACHE_SLOPPINESS=pch_defines,time_macros \
    ninja -C "$folder" "$@" >&2
}

# Without /etc/mtab, fusermount3 unmounts nothing. Whatever starts a system or a
# container makes it; a folder that was only debootstrapped lacks it. Makes it,
# as root or by sudo.
need_mtab() {
  [[ ! -e /etc/mtab ]] || return 0
  local make=(ln -sfn ../proc/self/mounts /etc/mtab)
  say "making /etc/mtab, which fusermount3 reads"
  if [[ $(id -u) == 0 ]]; then
    "${make[@]}" && return
  elif command -v sudo >/dev/null; then
    sudo "${make[@]}" && return
  fi
  say "/etc/mtab could not be made, so ordinary users cannot unmount: as root," \
    "${make[*]}"
}

# Whether this process may use /dev/fuse; says what is wrong when not.
check_fuse() {
  need_mtab
  if [[ ! -e /dev/fuse && $(id -u) == 0 ]]; then
    mknod -m 666 /dev/fuse c 10 229 2>/dev/null || true
  fi
  if [[ ! -e /dev/fuse ]]; then
    say "there is no /dev/fuse here: load the kernel's fuse module (modprobe" \
      "fuse), or start the container with --device /dev/fuse" \
      "--cap-add SYS_ADMIN"
    return 1
  fi
}
