// GuardedMapping: a file mapped MAP_SHARED whose faults do not kill the
// process. Where the mapped file was truncated or its disk fails, the first
// touch raises SIGBUS; the handler then puts zero pages over the whole mapping
// and the touch goes on, reading zeros. faulted() is true from before the first
// such zero can be seen, so that whoever reads checks it after reading.
//
// The SIGBUS handler is the process's: it is installed with the first mapping
// and calls the handler that it replaced for every other address. A handler
// that is installed later must do the same.
//
// Thread-safety: safe for concurrent use; the bytes are accessed with atomics.
// Ownership: owns the mapping, not the descriptor.

#ifndef WEIGHTFS_CACHE_FAULT_GUARD_H_
#define WEIGHTFS_CACHE_FAULT_GUARD_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "formats/base/result.h"

namespace weightfs {

class GuardedMapping {
 public:
  // Maps [0, length) of `fd` for reading and writing. REQUIRES: length > 0.
  static Result<std::unique_ptr<GuardedMapping>> Map(int fd, size_t length,
                                                     const std::string& name);
  ~GuardedMapping();
  GuardedMapping(const GuardedMapping&) = delete;
  GuardedMapping& operator=(const GuardedMapping&) = delete;

  std::span<std::byte> bytes() const { return bytes_; }
  bool faulted() const;

  struct Slot;

 private:
  GuardedMapping(std::span<std::byte> bytes, Slot& slot)
      : bytes_(bytes), slot_(slot) {}

  const std::span<std::byte> bytes_;
  Slot& slot_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_FAULT_GUARD_H_
