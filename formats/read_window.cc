#include "formats/read_window.h"

#include <algorithm>
#include <vector>

#include "formats/base/checked.h"

namespace weightfs {

Result<std::span<const std::byte>> ReadWindow::Take(std::string_view field,
                                                    uint64_t length) {
  RETURN_IF_ERROR(Check(field, length));
  if (buffered() < length) RETURN_IF_ERROR(Fill(length));
  const std::span<const std::byte> bytes =
      std::span<const std::byte>(buffer_.span()).subspan(at_, length);
  at_ += length;
  return bytes;
}

Result<> ReadWindow::Skip(std::string_view field, uint64_t length) {
  RETURN_IF_ERROR(Check(field, length));
  if (length <= buffered()) {
    at_ += length;
    return {};
  }
  start_ = offset() + length;
  at_ = 0;
  buffer_ = ByteBuffer();
  return {};
}

Result<> ReadWindow::Check(std::string_view field, uint64_t length) const {
  if (!RangeFits(offset(), length, source_.size())) {
    return MakeError(Code::kCorrupt,
                     "{}: {} at byte {} needs {} bytes, the file has {}",
                     format_, field, offset(), length, source_.size());
  }
  if (!RangeFits(offset(), length, limits_.end)) {
    return MakeError(Code::kUnsupported,
                     "{}: {} at byte {} has {} bytes, {} of a header are read",
                     format_, field, offset(), length, limits_.end);
  }
  return {};
}

Result<> ReadWindow::Fill(uint64_t length) {
  // What is left goes before what comes; never two buffers at a time.
  const auto left = std::span<const std::byte>(buffer_.span()).subspan(at_);
  const std::vector<std::byte> tail(left.begin(), left.end());
  start_ = offset();
  at_ = 0;
  buffer_ = ByteBuffer();

  last_read_ = last_read_ == 0 ? limits_.first : 2 * last_read_;
  last_read_ = std::min(std::max(last_read_, expected_), limits_.most);
  expected_ = 0;
  const uint64_t want = std::max(length, last_read_);
  const uint64_t size =
      std::min(want, std::min(source_.size(), limits_.end) - start_);
  ByteBuffer next(size);
  std::copy(tail.begin(), tail.end(), next.span().begin());
  RETURN_IF_ERROR(
      source_.ReadAt(start_ + tail.size(), next.span().subspan(tail.size())));
  buffer_ = std::move(next);
  return {};
}

}  // namespace weightfs
