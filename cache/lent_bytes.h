// LentBytes: bytes of an object where they lie in memory, for who passes them
// on to the kernel: they need not be copied first.
//
// To be given to system calls only, not looked at. Some parts may be mappings
// of a file: where somebody truncates it, a call fails (EFAULT), but whoever
// looks gets a signal.
//
// Thread-safety: a value; distinct ones are independent.

#ifndef WEIGHTFS_CACHE_LENT_BYTES_H_
#define WEIGHTFS_CACHE_LENT_BYTES_H_

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace weightfs {

struct LentBytes {
  std::vector<std::span<const std::byte>> parts;  // in order
  // The parts are valid, and stay as they are, as long as these live.
  std::vector<std::shared_ptr<const void>> owners;

  size_t size() const {
    size_t bytes = 0;
    for (const auto& part : parts) bytes += part.size();
    return bytes;
  }
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_LENT_BYTES_H_
