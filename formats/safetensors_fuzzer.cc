// Fuzzes ReadSafetensors. Whatever the bytes: no crash, every range lies in the
// file, none overlap and none are left over, memory stays in proportion, and
// each tensor that is written reads back the same.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/safetensors.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckRanges(const TensorIndex& index, uint64_t file_size) {
  std::vector<SourceRange> ranges;
  for (const TensorInfo& tensor : index.tensors()) {
    uint64_t size = 0;
    for (const SourceRange& range : tensor.data) {
      Require(range.object == 0 && range.length > 0);
      Require(range.offset <= file_size &&
              range.length <= file_size - range.offset);
      ranges.push_back(range);
      size += range.length;
    }
    const auto dense = DenseSize(tensor.dtype, tensor.shape);
    Require(dense.has_value() && *dense == size);
    Require(tensor.dense());
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const SourceRange& a, const SourceRange& b) {
              return a.offset < b.offset;
            });
  for (size_t i = 1; i < ranges.size(); ++i) {
    Require(ranges[i].offset == ranges[i - 1].offset + ranges[i - 1].length);
  }
  if (!ranges.empty()) {
    Require(ranges.back().offset + ranges.back().length == file_size);
  }
}

// What the index holds is bounded by the header that it came from: an entry
// takes at least 20 bytes there, a dimension 2, a metadata pair 6.
void CheckMemory(const TensorIndex& index, size_t size) {
  size_t dims = 0;
  size_t names = 0;
  for (const TensorInfo& tensor : index.tensors()) {
    dims += tensor.shape.size();
    names += tensor.name.size();
  }
  Require(20 * index.tensors().size() <= size);
  Require(2 * dims <= size + index.tensors().size());
  Require(names <= size);
  Require(6 * index.metadata().size() <= size);
}

void CheckWrittenReadsBack(const TensorInfo& tensor, ByteSource& source) {
  const auto segments = WriteSafetensors(tensor);
  Require(segments.has_value());
  std::vector<std::byte> bytes;
  for (const Segment& segment : *segments) {
    const size_t at = bytes.size();
    bytes.resize(at + SegmentSize(segment));
    const auto out = std::span(bytes).subspan(at);
    if (const auto* literal = std::get_if<LiteralSegment>(&segment)) {
      const auto text = std::as_bytes(std::span(*literal->bytes));
      std::copy(text.begin(), text.end(), out.begin());
    } else {
      const SourceRange& range = std::get<SourceSegment>(segment).range;
      Require(source.ReadAt(range.offset, out).has_value());
    }
  }
  MemorySource written("written", bytes);
  const auto again = ReadSafetensors(written);
  Require(again.has_value() && again->tensors().size() == 1);
  const TensorInfo& read = again->tensors()[0];
  Require(read.name == tensor.name && read.dtype == tensor.dtype &&
          read.shape == tensor.shape && read.data.size() == tensor.data.size());
  if (tensor.data.empty()) return;
  std::vector<std::byte> data(tensor.data[0].length);
  Require(source.ReadAt(tensor.data[0].offset, data).has_value());
  Require(std::equal(data.begin(), data.end(),
                     bytes.end() - static_cast<std::ptrdiff_t>(data.size()),
                     bytes.end()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  MemorySource source("fuzz", {bytes.begin(), bytes.end()});
  const auto index = ReadSafetensors(source);
  if (!index.has_value()) {
    Require(index.error().code() == Code::kCorrupt ||
            index.error().code() == Code::kUnsupported);
    Require(!index.error().message().empty());
    return 0;
  }
  CheckRanges(*index, size);
  CheckMemory(*index, size);
  const size_t written = std::min<size_t>(index->tensors().size(), 4);
  for (size_t i = 0; i < written; ++i) {
    CheckWrittenReadsBack(index->tensors()[i], source);
  }
  return 0;
}
