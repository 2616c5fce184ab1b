#include "formats/window_reader.h"

#include <utility>

#include "formats/base/checked.h"

namespace weightfs {

Result<std::span<const std::byte>> WindowReader::Read(uint64_t offset,
                                                      uint64_t length) {
  if (const auto known = Known(offset, length)) return *known;
  if (!RangeFits(offset, length, size())) {
    return MakeError(Code::kCorrupt, "{} bytes at {} do not fit a file of {}",
                     length, offset, size());
  }
  Window window{offset, std::vector<std::byte>(length)};
  RETURN_IF_ERROR(source_.ReadAt(offset, window.bytes));
  return std::span<const std::byte>(
      windows_.emplace_back(std::move(window)).bytes);
}

std::optional<std::span<const std::byte>> WindowReader::Known(
    uint64_t offset, uint64_t length) const {
  for (const Window& window : windows_) {
    if (offset >= window.offset &&
        RangeFits(offset - window.offset, length, window.bytes.size())) {
      return std::span(window.bytes).subspan(offset - window.offset, length);
    }
  }
  return std::nullopt;
}

}  // namespace weightfs
