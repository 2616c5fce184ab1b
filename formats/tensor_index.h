// TensorIndex: what a reader finds in a model file: its tensors and where their
// bytes lie. Immutable once made; share it as shared_ptr<const TensorIndex>.

#ifndef WEIGHTFS_FORMATS_TENSOR_INDEX_H_
#define WEIGHTFS_FORMATS_TENSOR_INDEX_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"

namespace weightfs {

struct TensorInfo {
  // Any bytes, as the file has them; unique in its index. Names become paths
  // only through formats/view/path_name.h.
  std::string name;
  DType dtype = DType::kU8;
  std::vector<uint64_t> shape;  // elements per dimension; {} is a scalar
  // Elements to step per dimension; empty means dense row-major, so a scalar is
  // always dense: its `data` is its own bytes, whatever storage it lies in.
  std::vector<uint64_t> strides;
  // Elements between the storage's first and the tensor's first. 0 if dense.
  uint64_t storage_offset = 0;
  // Equal for tensors that share bytes (tied weights, views of one storage).
  uint64_t storage_id = 0;
  // Where the tensor stands in its set's own order (file order, shard by
  // shard): 0, 1, 2, …
  uint64_t order = 0;
  // Dense: exactly the tensor's bytes, row-major, little-endian; empty ranges
  // are left out. Strided: the bytes of the whole storage.
  std::vector<SourceRange> data;

  bool dense() const { return strides.empty(); }
};

// Elements of a shape, or nothing if that overflows 64 bits.
std::optional<uint64_t> ElementCount(const std::vector<uint64_t>& shape);
// Bytes of a dense tensor; kCorrupt if that overflows, is no whole number of
// bytes (sub-byte dtypes), or its rows are no whole number of blocks (block
// types; a scalar has no row).
Result<uint64_t> DenseSize(DType dtype, const std::vector<uint64_t>& shape);

class TensorIndex {
 public:
  // `objects` are the source files' names, in the order that
  // SourceRange::object counts. Sorts by name; kCorrupt if a name comes twice.
  static Result<TensorIndex> Create(std::vector<std::string> objects,
                                    std::vector<TensorInfo> tensors,
                                    std::map<std::string, std::string> metadata,
                                    std::vector<std::string> problems = {});

  // Sorted by name, bytewise.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::string>& objects() const { return objects_; }
  // The format's own key-value pairs (safetensors' __metadata__, GGUF's
  // pairs as formats/gguf.md says).
  const std::map<std::string, std::string>& metadata() const {
    return metadata_;
  }
  // What the file holds that is not in tensors(), a line each: the tensor's
  // name and why it is left out. Empty: the index is whole.
  const std::vector<std::string>& problems() const { return problems_; }
  // Null if there is none. Valid as long as the index.
  const TensorInfo* Find(std::string_view name) const;
  // Ordinals into tensors(), by TensorInfo::order.
  std::vector<uint32_t> InFileOrder() const;

 private:
  std::vector<std::string> objects_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::string> problems_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TENSOR_INDEX_H_
