// TensorStream: a virtual file from its first byte to its last, with several
// reads in flight so that latency costs nothing, in bounded memory.

#ifndef WEIGHTFS_TOOLS_TENSOR_STREAM_H_
#define WEIGHTFS_TOOLS_TENSOR_STREAM_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache/object.h"
#include "formats/base/result.h"
#include "formats/view/virtual_file.h"

namespace weightfs {

struct StreamOptions {
  uint64_t window = 4 << 20;  // bytes of one read
  size_t windows = 8;         // in flight or waiting to be written
  std::chrono::milliseconds read_timeout{300'000};  // of each window
};

// Hands the file's bytes to `write`, in order. `objects[i]` is what
// SourceRead::object i means. The first error ends it: one of a read, or what
// `write` returned. Blocks; no read is in flight when it returns.
Result<> StreamVirtual(
    const VirtualFile& file, std::span<const std::shared_ptr<Object>> objects,
    const StreamOptions& options,
    const std::function<Result<>(std::span<const std::byte>)>& write);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_TENSOR_STREAM_H_
