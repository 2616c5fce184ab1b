#include "formats/base/byte_source.h"

#include <algorithm>

#include "formats/base/checked.h"

namespace weightfs {

Result<> MemorySource::ReadAt(uint64_t offset, std::span<std::byte> out) {
  if (!RangeFits(offset, out.size(), bytes_.size())) {
    return MakeError(Code::kInvalid, "{}: read of {} bytes at {} is past {}",
                     name_, out.size(), offset, bytes_.size());
  }
  std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(),
              out.begin());
  return {};
}

}  // namespace weightfs
