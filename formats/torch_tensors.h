// The tensors in a pickle of torch's: what they are called, what they are, and
// which part of which storage they take. Where storages lie is the container's
// matter: formats/torch_zip.h, formats/torch_legacy.h. Spec: formats/torch.md.
//
// One tensor that cannot be shown does not hide the others: it becomes a line
// in `problems`, with its name and the reason.

#ifndef WEIGHTFS_FORMATS_TORCH_TENSORS_H_
#define WEIGHTFS_FORMATS_TORCH_TENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/pickle.h"
#include "formats/tensor_index.h"

namespace weightfs {

// Tensors of one file, dimensions of all of them, and bytes of all names.
inline constexpr size_t kMaxTorchTensors = 1 << 20;
inline constexpr size_t kMaxTorchDims = 1 << 22;
inline constexpr size_t kMaxTorchNames = 128 << 20;
// Bytes of one name, and containers within each other.
inline constexpr size_t kMaxTorchName = 4096;
inline constexpr size_t kMaxTorchDepth = 128;
// Steps of the walk, about one for each value: a pickle may reach the same ones
// on many ways.
inline constexpr size_t kMaxTorchVisits = 1 << 22;
// Numbers and texts beside the tensors that become metadata, and bytes of one.
inline constexpr size_t kMaxTorchMetadata = 1024;
inline constexpr size_t kMaxTorchMetadataValue = 4096;
// Lines that say what is wrong.
inline constexpr size_t kMaxTorchProblems = 1000;

struct TorchStorage {
  std::string key;    // "data/0" in a zip, the bare key in a legacy file
  uint64_t size = 0;  // bytes; the most that a tensor says it has
  // Bytes of an element, as the first tensor has it, and whether others agree
  // on both.
  uint64_t item = 1;
  bool agreed = true;
};

struct TorchTensor {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<uint64_t> shape;    // elements, those of F4 counted one by one
  std::vector<uint64_t> strides;  // elements; empty: dense
  uint64_t offset = 0;            // elements from the view's start
  size_t storage = 0;             // of TorchContents::storages
  // The part of the storage that is the tensor's (a legacy view), in bytes.
  uint64_t view_offset = 0;
  uint64_t view_size = 0;
};

struct TorchContents {
  std::vector<TorchTensor> tensors;
  std::vector<TorchStorage> storages;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> problems;

  void AddProblem(std::string_view name, const Error& error);
};

// Collects what one or more pickles hold.
class TorchCollector {
 public:
  // Adds the root's tensors. Their names begin with `prefix` ("" or "a.b"), the
  // keys of their storages with `folder` ("data/", "").
  void Add(const Pickle& pickle, std::string_view prefix,
           std::string_view folder);
  TorchContents Take() && { return std::move(contents_); }

 private:
  class Walker;
  friend class Walker;

  TorchContents contents_;
  std::unordered_map<std::string, size_t> storage_of_;  // by key
  std::unordered_map<std::string, size_t> tensor_of_;   // by name
  size_t dims_ = 0;
  size_t name_bytes_ = 0;
};

// Bytes of a storage of `size` bytes that begin at `offset` of object 0, as
// `tensor` sees them. kCorrupt if it reaches past its storage.
Result<TensorInfo> PlaceTorchTensor(const TorchTensor& tensor, uint64_t offset,
                                    uint64_t size);

// The index of what was placed: sets orders, by where bytes lie.
Result<TensorIndex> TorchIndex(std::string object,
                               std::vector<TensorInfo> tensors,
                               TorchContents contents);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_TENSORS_H_
