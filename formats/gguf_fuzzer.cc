// Fuzzes ReadGguf. Whatever the bytes: no crash, every range lies in the file
// and none overlap, memory and reads stay in proportion, and what can be
// dequantised is the same in pieces as whole.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/gguf.h"
#include "formats/gguf_dequantise.h"
#include "formats/text.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

// Counts what is read, and checks where.
class CountingSource final : public ByteSource {
 public:
  explicit CountingSource(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t size() const override { return bytes_.size(); }
  const std::string& name() const override { return name_; }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    Require(offset <= bytes_.size() && out.size() <= bytes_.size() - offset);
    Require(out.size() <= kMaxGgufRead);
    if (!out.empty()) {
      std::memcpy(out.data(), bytes_.data() + offset, out.size());
    }
    ++reads_;
    bytes_read_ += out.size();
    return {};
  }
  uint64_t reads() const { return reads_; }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  const std::span<const std::byte> bytes_;
  const std::string name_ = "fuzz";
  uint64_t reads_ = 0;
  uint64_t bytes_read_ = 0;
};

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
    Require(tensor.dense() && tensor.shape.size() <= kMaxGgufDims);
    Require(tensor.name.size() <= kMaxGgufName);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const SourceRange& a, const SourceRange& b) {
              return a.offset < b.offset;
            });
  for (size_t i = 1; i < ranges.size(); ++i) {
    Require(ranges[i].offset >= ranges[i - 1].offset + ranges[i - 1].length);
  }
}

// What the index holds is bounded by the header that it came from: a tensor
// takes at least 24 bytes there, a pair 14.
void CheckMemory(const TensorIndex& index, size_t size) {
  Require(24 * index.tensors().size() <= size);
  Require(14 * index.metadata().size() <= size);
  size_t shown = 0;
  for (const auto& [key, value] : index.metadata()) {
    Require(IsUtf8(key) && IsUtf8(value));
    shown += key.size() + value.size();
  }
  Require(shown <= kMaxGgufShown);
}

std::vector<std::byte> Apply(const Transform& transform, ByteSource& source,
                             uint64_t offset, uint64_t length) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::span<const std::byte>> inputs;
  for (const SourceRange& range : transform.Inputs(offset, length)) {
    bytes.emplace_back(range.length);
    Require(source.ReadAt(range.offset, bytes.back()).has_value());
  }
  for (const auto& input : bytes) inputs.emplace_back(input);
  std::vector<std::byte> out(length);
  transform.Apply(offset, inputs, out);
  return out;
}

void CheckDequantised(const TensorInfo& tensor, ByteSource& source) {
  for (const DType to : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto segments = DequantiseSegments(tensor, to);
    Require(segments.has_value() == CanDequantise(tensor.dtype));
    if (!segments.has_value() || segments->empty()) continue;
    const auto& transform =
        *std::get<TransformSegment>(segments->at(0)).transform;
    const uint64_t size = std::min<uint64_t>(transform.size(), 4096);
    const auto whole = Apply(transform, source, 0, size);
    const uint64_t from = size / 3;
    const auto part = Apply(transform, source, from, size - from - 1);
    Require(std::equal(part.begin(), part.end(),
                       whole.begin() + static_cast<std::ptrdiff_t>(from)));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  CountingSource source(bytes);
  const auto index = ReadGguf(source);
  Require(source.bytes_read() <= size);
  Require(source.reads() <= 2 + size / kGgufProbe);
  if (!index.has_value()) {
    Require(index.error().code() == Code::kCorrupt ||
            index.error().code() == Code::kUnsupported);
    Require(!index.error().message().empty());
    return 0;
  }
  CheckRanges(*index, size);
  CheckMemory(*index, size);
  size_t dequantised = 0;
  for (const TensorInfo& tensor : index->tensors()) {
    if (!CanDequantise(tensor.dtype)) continue;
    CheckDequantised(tensor, source);
    if (++dequantised == 4) break;
  }
  return 0;
}
