// The calls by which torch's pickles make tensors again: which function is
// called, and what its arguments say. Pure functions. Spec: formats/torch.md.

#ifndef WEIGHTFS_FORMATS_TORCH_REBUILD_H_
#define WEIGHTFS_FORMATS_TORCH_REBUILD_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/pickle.h"

namespace weightfs {

// Dimensions of one tensor, at most.
inline constexpr size_t kMaxTorchRank = 1024;

enum class TorchFunction {
  kOther,      // not torch's, or of no interest here
  kTensor,     // (storage, offset, size, stride, …): a tensor
  kTensorV3,   // the same, and the dtype as the seventh
  kQuantised,  // the same as kTensor, and how it is quantised as the fifth
  kFirst,      // stands for its first argument
  kFromType,   // (function, type, arguments, …): stands for that call
  kSparse,     // (layout, (indices, values, size, …))
  kRefused,    // a tensor whose bytes lie in no storage
};

TorchFunction TorchFunctionOf(const Pickle& pickle, Pickle::Ref callable);

// What a persistent id says: ('storage', class, key, location, elements, view).
struct TorchStorageId {
  std::string key;
  DType dtype = DType::kU8;
  bool typed = false;  // false: bytes, of no dtype
  uint64_t item = 1;   // bytes of an element
  uint64_t size = 0;   // bytes
  // The part of it that is meant (legacy files only), in bytes.
  uint64_t view_offset = 0;
  uint64_t view_size = 0;
};

struct RebuiltTensor {
  DType dtype = DType::kU8;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> strides;  // empty: dense
  uint64_t offset = 0;            // elements, from the view's start
  TorchStorageId storage;
};

// The tensor that `function` makes of `args`; it lies in its storage. kCorrupt
// or kUnsupported with the reason. REQUIRES: kTensor, kTensorV3 or kQuantised.
Result<RebuiltTensor> RebuildTensor(const Pickle& pickle,
                                    TorchFunction function,
                                    std::span<const Pickle::Ref> args);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_REBUILD_H_
