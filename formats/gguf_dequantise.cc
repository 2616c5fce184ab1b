#include "formats/gguf_dequantise.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <variant>

#include "formats/gather.h"
#include "formats/gguf_blocks.h"
#include "formats/half_float.h"
#include "formats/text.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

// Writes values as another float type, packed; `to` has room for all of them.
using StoreFloats = void (*)(std::span<const float> values, std::byte* to);

void StoreF32(std::span<const float> values, std::byte* to) {
  std::memcpy(to, values.data(), values.size_bytes());
}

template <uint16_t (*kConvert)(float)>
void StoreSixteen(std::span<const float> values, std::byte* to) {
  for (const float value : values) {
    const uint16_t bits = kConvert(value);
    std::memcpy(to, &bits, sizeof(bits));
    to += sizeof(bits);
  }
}

StoreFloats StoreOf(DType to) {
  switch (to) {
    case DType::kF32:
      return StoreF32;
    case DType::kF16:
      return StoreSixteen<FloatToHalf>;
    case DType::kBF16:
      return StoreSixteen<FloatToBFloat16>;
    default:
      return nullptr;
  }
}

// Walks bytes that lie in pieces.
class PieceReader {
 public:
  explicit PieceReader(std::span<const std::span<const std::byte>> pieces)
      : pieces_(pieces) {}

  // REQUIRES: so many bytes are left.
  void Read(std::span<uint8_t> out) {
    while (!out.empty()) {
      if (at_ == pieces_.front().size()) {
        pieces_ = pieces_.subspan(1);
        at_ = 0;
        continue;
      }
      const size_t take = std::min(out.size(), pieces_.front().size() - at_);
      std::memcpy(out.data(), pieces_.front().data() + at_, take);
      out = out.subspan(take);
      at_ += take;
    }
  }

 private:
  std::span<const std::span<const std::byte>> pieces_;
  size_t at_ = 0;  // in the first piece
};

class Dequantise final : public Transform {
 public:
  // `size`: of the blocks in `data`, in bytes.
  Dequantise(DType from, DType to, uint64_t size, std::vector<SourceRange> data)
      : decode_(BlockDecoderOf(from)),
        store_(StoreOf(to)),
        item_(DTypeBits(to) / 8),
        block_in_(BlockBytes(from)),
        block_out_(BlockElements(from) * item_),
        size_(size / block_in_ * block_out_),
        data_(std::move(data)) {}

  uint64_t size() const override { return size_; }

  std::vector<SourceRange> Inputs(uint64_t offset,
                                  uint64_t length) const override {
    if (length == 0) return {};
    const uint64_t first = offset / block_out_;
    const uint64_t last = (offset + length - 1) / block_out_;
    return SliceRanges(data_, first * block_in_,
                       (last - first + 1) * block_in_);
  }

  void Apply(uint64_t offset,
             std::span<const std::span<const std::byte>> inputs,
             std::span<std::byte> out) const override {
    PieceReader reader(inputs);
    std::array<uint8_t, kMaxBlockBytes> block{};
    std::array<float, kMaxBlockElements> values{};
    std::array<std::byte, kMaxBlockElements * sizeof(float)> stored{};
    const auto count = block_out_ / item_;
    uint64_t skip = offset % block_out_;  // of the block's output
    while (!out.empty()) {
      reader.Read(std::span(block).first(block_in_));
      decode_(block.data(), values.data());
      const uint64_t take = std::min(block_out_ - skip, out.size());
      const auto whole = std::span<const float>(values).first(count);
      if (take == block_out_) {
        store_(whole, out.data());
      } else {
        store_(whole, stored.data());
        std::memcpy(out.data(), stored.data() + skip, take);
      }
      out = out.subspan(take);
      skip = 0;
    }
  }

 private:
  const BlockDecoder decode_;
  const StoreFloats store_;
  const uint64_t item_;       // bytes of one value
  const uint64_t block_in_;   // bytes of a block
  const uint64_t block_out_;  // bytes of its values
  const uint64_t size_;
  const std::vector<SourceRange> data_;
};

}  // namespace

bool CanDequantise(DType dtype) { return BlockDecoderOf(dtype) != nullptr; }

Result<std::vector<Segment>> DequantiseSegments(const TensorInfo& tensor,
                                                DType to) {
  if (!CanDequantise(tensor.dtype) || StoreOf(to) == nullptr) {
    return MakeError(Code::kUnsupported, "tensor {}: {} is not made of {}",
                     QuoteName(tensor.name), DTypeName(to),
                     DTypeName(tensor.dtype));
  }
  if (!tensor.dense()) {
    return MakeError(Code::kUnsupported, "tensor {} is a strided {}",
                     QuoteName(tensor.name), DTypeName(tensor.dtype));
  }
  ASSIGN_OR_RETURN(const uint64_t size, DenseSize(tensor.dtype, tensor.shape));
  RETURN_IF_ERROR(DenseSize(to, tensor.shape));
  ASSIGN_OR_RETURN(const auto segments, DenseSegments(tensor));
  std::vector<SourceRange> data;
  data.reserve(segments.size());
  for (const Segment& segment : segments) {
    data.push_back(std::get<SourceSegment>(segment).range);
  }
  if (size == 0) return std::vector<Segment>();
  return std::vector<Segment>{
      TransformSegment{std::make_shared<const Dequantise>(
          tensor.dtype, to, size, std::move(data))}};
}

}  // namespace weightfs
