#!/usr/bin/env bash
# libfuse.sh FOLDER: where the system's libfuse is older than 3.17, which is the
# first that knows passthrough, builds a newer one into FOLDER, static: Debian's
# own source package of the next suite, from the mirror that the system's apt
# uses, with its patches. FOLDER/lib/libfuse3.a, FOLDER/include/fuse3/ and the
# library's licence are there after that; the second time it only looks.
#
# Exit status: 0, there is a libfuse in FOLDER, or the system's will do; 1, there
# is none, and one line says why: weightfs builds with the system's all the same,
# and mounts without passthrough. A failure is remembered for a day
# (FOLDER/failed).
set -euo pipefail
shopt -s inherit_errexit
# shellcheck source=tools/lib.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/lib.sh"

suite=trixie
upstream=3.17.2
# Checked beside apt's own signatures: what is linked into the program is what
# was looked at.
files=(
  "3d932431ad94e86179e5265cddde1d67aa3bb2fb09a5bd35c641f86f2b5ed06f  fuse3_$upstream.orig.tar.gz"
  "eaf7a177761ae8bf99ea97619f2cccf83f169b4f000e17b6106834e69456b5a2  fuse3_$upstream-3.debian.tar.xz"
)
packages=(meson ninja-build patch pkg-config xz-utils)

# The system's own mirror of Debian.
mirror() {
  local id='' VERSION_CODENAME=''
  # shellcheck disable=SC1091
  id=$(. /etc/os-release && echo "${ID-}")
  # shellcheck disable=SC1091
  VERSION_CODENAME=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  if [[ $id != debian ]] || ! command -v apt-get >/dev/null; then
    echo "this is not a Debian"
    return 1
  fi
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(COMPONENT) $(RELEASE) $(SITE)' \
    'Created-By: Packages' |
    awk -v suite="$VERSION_CODENAME" \
      '$1 == "main" && $2 == suite && !found { print $3; found = 1 }
       END { exit !found }' || {
    echo "apt has no source for $VERSION_CODENAME main"
    return 1
  }
}

# Its lists lie beside, so that the system's apt learns of no other suite.
download() {
  local site=$1 keys=/usr/share/keyrings/debian-archive-keyring.gpg signed=''
  [[ ! -r $keys ]] || signed="[signed-by=$keys] "
  mkdir -p apt/lists/partial
  echo "deb-src $signed$site $suite main" >apt/sources.list
  local apt=(timeout 300 apt-get -q
    -o "Dir::Etc::sourcelist=$PWD/apt/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$PWD/apt/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20
    -o Acquire::https::Timeout=20)
  "${apt[@]}" -o APT::Update::Error-Mode=any update </dev/null
  "${apt[@]}" source --download-only --only-source fuse3 </dev/null
  rm -rf apt
}

build() {
  printf '%s\n' "${files[@]}" | sha256sum --check --strict
  tar xzf "fuse3_$upstream.orig.tar.gz"
  tar xJf "fuse3_$upstream-3.debian.tar.xz" -C "fuse-$upstream"
  cd "fuse-$upstream"
  local patch
  while read -r patch; do
    patch -p1 <"debian/patches/$patch"
  done < <(grep -v '^#' debian/patches/series)
  # As Debian's: fusermount3 is looked for in /usr/bin first. Without mtab, no
  # program is started to write to it, which is a link to the kernel's table.
  meson setup build --prefix=/usr --sysconfdir=/etc --buildtype=release \
    --default-library=static -Dexamples=false -Dtests=false -Dutils=false \
    -Duseroot=false -Ddisable-mtab=true
  ninja -C build
  mkdir -p ../made/lib ../made/include/fuse3
  cp build/lib/libfuse3.a ../made/lib/
  cp include/fuse{,_common,_log,_lowlevel,_opt}.h build/libfuse_config.h \
    ../made/include/fuse3/
  cp LGPL2.txt LICENSE ../made/
}

# In a shell of its own: called in a condition, a function knows no set -e.
step() {
  bash -euo pipefail -c "$(declare -p files upstream suite)
    $(declare -f "$1"); \"\$@\"" step "$@" >>"$folder/log" 2>&1
}

give_up() {
  mkdir -p "$folder"
  echo "$1" >"$folder/failed"
  say "no passthrough: $1; the system's libfuse is used"
  exit 1
}

folder=$(realpath -m "${1:?usage: libfuse.sh FOLDER}")
[[ ! -e $folder/lib/libfuse3.a ]] || exit 0
! pkg-config --atleast-version=3.17 fuse3 2>/dev/null || exit 0
if [[ -n $(find "$folder/failed" -mmin -1440 2>/dev/null) ]]; then
  say "no passthrough: $(cat "$folder/failed") (rm $folder/failed to try again)"
  exit 1
fi

site=$(mirror) || give_up "libfuse is older than 3.17, and $site"
(need_packages "${packages[@]}") ||
  give_up "libfuse $upstream cannot be built without ${packages[*]}"
say "building libfuse $upstream, which has passthrough"
rm -rf "$folder"
mkdir -p "$folder/work"
cd "$folder/work"
step download "$site" ||
  give_up "libfuse $upstream cannot be downloaded ($folder/log says why)"
step build ||
  give_up "libfuse $upstream cannot be built ($folder/log says why)"
cd "$folder"
# The library last: it says that all is there.
mv work/made/include work/made/LGPL2.txt work/made/LICENSE .
mv work/made/lib .
rm -rf work
