#include "cache/local_disk.h"

#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cstdint>

namespace weightfs {
namespace {

// As statfs(2) has them; some are in no header.
constexpr std::array<uint32_t, 7> kLocal = {
    0xef53,      // ext4
    0x58465342,  // XFS
    0x9123683e,  // btrfs
    0xf2f52010,  // F2FS
    0xca451a4e,  // bcachefs
    0x2fc12fc1,  // ZFS
    0x01021994,  // tmpfs
};

}  // namespace

bool IsOnLocalDisk(const std::string& folder) {
  struct statfs disk {};
  if (::statfs(folder.c_str(), &disk) != 0) return false;
  const auto type = static_cast<uint32_t>(disk.f_type);
  return std::find(kLocal.begin(), kLocal.end(), type) != kLocal.end();
}

}  // namespace weightfs
