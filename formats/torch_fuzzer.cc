// Fuzzes ReadTorch: pickles, zip archives, files from before 1.6. Whatever the
// bytes: no crash, nothing runs, every range lies in the file, no tensor
// reaches past its storage, and memory stays in proportion.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <variant>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/pickle.h"
#include "formats/torch.h"
#include "formats/writer.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckTensor(const TensorInfo& tensor, uint64_t file_size) {
  uint64_t size = 0;
  for (const SourceRange& range : tensor.data) {
    Require(range.object == 0 && range.length > 0);
    Require(range.offset <= file_size &&
            range.length <= file_size - range.offset);
    size += range.length;
  }
  const auto dense = DenseSize(tensor.dtype, tensor.shape);
  Require(dense.has_value());
  if (tensor.dense()) {
    Require(*dense == size);
  } else {
    Require(tensor.strides.size() == tensor.shape.size());
  }
}

// All that a reader of its raw file can make the daemon do.
void CheckWritten(const TensorInfo& tensor, uint64_t file_size) {
  constexpr uint64_t kMost = 1 << 16;
  const auto segments = WriteTensor(Format::kRaw, tensor);
  if (!segments.has_value()) return;  // of less than a byte, and strided
  uint64_t size = 0;
  for (const Segment& segment : *segments) {
    size += SegmentSize(segment);
    const auto* transformed = std::get_if<TransformSegment>(&segment);
    if (transformed == nullptr) continue;
    const Transform& transform = *transformed->transform;
    const uint64_t length = std::min(transform.size(), kMost);
    for (const SourceRange& range : transform.Inputs(0, length)) {
      Require(range.object == 0 && range.offset <= file_size &&
              range.length <= file_size - range.offset);
    }
  }
  Require(size == *DenseSize(tensor.dtype, tensor.shape));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto pickle = Pickle::Parse(
      {reinterpret_cast<const char*>(data), size});  // NOLINT: bytes as text
  Require(!pickle.has_value() || pickle->size() <= size);

  MemorySource source("fuzz", {bytes.begin(), bytes.end()});
  const auto index = ReadTorch(source);
  if (!index.has_value()) {
    Require(index.error().code() == Code::kCorrupt ||
            index.error().code() == Code::kUnsupported);
    Require(!index.error().message().empty());
    return 0;
  }
  size_t left = 64;
  for (const TensorInfo& tensor : index->tensors()) {
    CheckTensor(tensor, size);
    if (left-- > 0) CheckWritten(tensor, size);
    if (left == 0) break;
  }
  return 0;
}
