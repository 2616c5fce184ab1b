// The tensors of a model file, in whichever format that weightfs reads: told by
// its first bytes, not by its name.

#ifndef WEIGHTFS_FORMATS_MODEL_FILE_H_
#define WEIGHTFS_FORMATS_MODEL_FILE_H_

#include <cstdint>
#include <span>
#include <string_view>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/tensor_index.h"

namespace weightfs {

// What files with tensors are called, ".safetensors" first: the order in which
// loaders look for them. Only such files are opened to look for tensors.
std::span<const std::string_view> WeightExtensions();
// Which of them ends the name; empty if none does, or nothing is before it.
std::string_view WeightExtension(std::string_view file_name);

// What an index takes of a file of `size` bytes at least, in bytes of its begin
// and of its end: worth fetching before ReadTensors() asks for it.
struct IndexProbe {
  uint64_t head = 0;
  uint64_t tail = 0;
};
IndexProbe ProbeOf(std::string_view file_name, uint64_t size);

// The file's tensors. Errors as the format's reader has them; a file in no
// known format has no tensors and says so in problems(), but for one that is
// called ".safetensors".
Result<TensorIndex> ReadTensors(ByteSource& source);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_MODEL_FILE_H_
