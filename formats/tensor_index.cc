#include "formats/tensor_index.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "formats/base/checked.h"
#include "formats/text.h"

namespace weightfs {

std::optional<uint64_t> ElementCount(const std::vector<uint64_t>& shape) {
  // Zeros are left out of the product at first, so that whether a shape
  // overflows does not depend on where its zero stands.
  uint64_t product = 1;
  bool empty = false;
  for (const uint64_t dim : shape) {
    if (dim == 0) {
      empty = true;
      continue;
    }
    const auto next = CheckedMul(product, dim);
    if (!next) return std::nullopt;
    product = *next;
  }
  return empty ? 0 : product;
}

Result<uint64_t> DenseSize(DType dtype, const std::vector<uint64_t>& shape) {
  const auto elements = ElementCount(shape);
  if (!elements) {
    return MakeError(Code::kCorrupt, "the shape's product overflows 64 bits");
  }
  const uint64_t block = BlockElements(dtype);
  if (IsBlockDType(dtype) && (shape.empty() || shape.back() % block != 0)) {
    return MakeError(Code::kCorrupt,
                     "rows of {} elements are no whole number of {} blocks of "
                     "{}",
                     shape.empty() ? 1 : shape.back(), DTypeName(dtype), block);
  }
  const uint64_t bits = DTypeBits(dtype);
  if (bits % 8 == 0) {
    const auto bytes = CheckedMul(*elements / block, BlockBytes(dtype));
    if (bytes) return *bytes;
    return MakeError(Code::kCorrupt, "{} elements of {} overflow 64 bits",
                     *elements, DTypeName(dtype));
  }
  const auto total = CheckedMul(*elements, bits);
  if (!total) {
    return MakeError(Code::kCorrupt, "{} elements of {} overflow 64 bits",
                     *elements, DTypeName(dtype));
  }
  if (*total % 8 != 0) {
    return MakeError(Code::kCorrupt,
                     "{} elements of {} are no whole number of bytes",
                     *elements, DTypeName(dtype));
  }
  return *total / 8;
}

Result<TensorIndex> TensorIndex::Create(
    std::vector<std::string> objects, std::vector<TensorInfo> tensors,
    std::map<std::string, std::string> metadata,
    std::vector<std::string> problems) {
  std::sort(
      tensors.begin(), tensors.end(),
      [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) {
                           return a.name == b.name;
                         });
  if (twice != tensors.end()) {
    return MakeError(Code::kCorrupt, "tensor {} comes twice",
                     QuoteName(twice->name));
  }
  for (const TensorInfo& tensor : tensors) {
    for (const SourceRange& range : tensor.data) {
      if (range.object >= objects.size()) {
        return MakeError(Code::kInvalid, "tensor {} lies in object {} of {}",
                         QuoteName(tensor.name), range.object, objects.size());
      }
    }
  }
  TensorIndex index;
  index.objects_ = std::move(objects);
  index.tensors_ = std::move(tensors);
  index.metadata_ = std::move(metadata);
  index.problems_ = std::move(problems);
  return index;
}

const TensorInfo* TensorIndex::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& a, std::string_view b) { return a.name < b; });
  if (found == tensors_.end() || found->name != name) return nullptr;
  return &*found;
}

std::vector<uint32_t> TensorIndex::InFileOrder() const {
  std::vector<uint32_t> ordinals(tensors_.size());
  std::iota(ordinals.begin(), ordinals.end(), 0U);
  std::sort(ordinals.begin(), ordinals.end(), [this](uint32_t a, uint32_t b) {
    return tensors_[a].order < tensors_[b].order;
  });
  return ordinals;
}

}  // namespace weightfs
