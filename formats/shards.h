// Sharded weight sets: file names of the form STEM-00001-of-0000N.EXT, index
// files (STEM.EXT.index.json), and the one TensorIndex that shards make.

#ifndef WEIGHTFS_FORMATS_SHARDS_H_
#define WEIGHTFS_FORMATS_SHARDS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/tensor_index.h"

namespace weightfs {

// Shards of a set, at most: file names have five digits.
inline constexpr uint32_t kMaxShards = 99'999;
// An index file that is read, at most, in bytes.
inline constexpr uint64_t kMaxShardIndexSize = 256 * 1024 * 1024;
// Tensors that an index file names, at most.
inline constexpr uint64_t kMaxShardIndexEntries = 1 << 20;

struct ShardName {
  std::string unsharded;  // "model.safetensors", without folder
  uint32_t number = 0;    // from 1
  uint32_t count = 0;
};

// "model-00001-of-00003.safetensors" → {"model.safetensors", 1, 3}; nothing if
// the name is no shard's (number 0, number > count, no extension, …).
// `file_name` has no folder. Also transformers' variant form
// "model.fp16-00001-of-00002.safetensors" and diffusers'
// "diffusion_pytorch_model-00001-of-00002.fp16.safetensors".
std::optional<ShardName> ParseShardName(std::string_view file_name);

struct ShardIndex {
  // Tensor name → file name, as written, relative to the index's folder.
  std::map<std::string, std::string> weight_map;
};

// Reads {"metadata": …, "weight_map": {tensor: file}}. kCorrupt names the
// field; a repeated tensor name is kCorrupt; a file that is absolute or has a
// `..` component is kCorrupt.
Result<ShardIndex> ReadShardIndex(ByteSource& source);

// One shard of a set: its index, or why it has none.
struct Shard {
  std::string file;  // path in the repository
  Result<std::shared_ptr<const TensorIndex>> index;
};

struct MergedSet {
  // The tensors of all good shards; objects() are the shards' files in order.
  TensorIndex index;
  // What is wrong with it: a bad shard, what a shard's index says is wrong with
  // it, a tensor that the weight map names and its file lacks. Empty: the set
  // is whole.
  std::vector<std::string> problems;
};

// Joins shards. A name in two shards is taken from the file that `shard_index`
// (null: none; its files are relative to `folder`, "" or "a/b") gives for it,
// and is kCorrupt without one. Tensors that a weight map does not name are
// kept.
Result<MergedSet> MergeShards(const std::vector<Shard>& shards,
                              const ShardIndex* shard_index,
                              std::string_view folder);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_SHARDS_H_
