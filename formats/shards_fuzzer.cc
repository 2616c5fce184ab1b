// Fuzzes shards.h. The first line is a file name, the rest an index file.
// Whatever the bytes: no crash; what is accepted obeys the header's rules; the
// set that the index describes merges, each tensor once and in order.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/shards.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckShardName(std::string_view file_name) {
  const auto name = ParseShardName(file_name);
  if (!name) return;
  Require(name->number >= 1 && name->number <= name->count);
  Require(name->count <= kMaxShards);
  Require(name->unsharded.size() < file_name.size());
  Require(name->unsharded.find('/') == std::string::npos);
}

// Makes the shards that the index names (every fourth tensor missing, every
// third in a second file too) and merges them.
void CheckMerge(const ShardIndex& shard_index) {
  std::map<std::string, std::vector<TensorInfo>> files;
  std::vector<TensorInfo> again;
  uint64_t i = 0;
  for (const auto& [name, file] : shard_index.weight_map) {
    auto& tensors = files[file];
    TensorInfo tensor;
    tensor.name = name;
    tensor.order = tensors.size();
    tensor.storage_id = i % 5;
    if (i % 4 != 0) tensors.push_back(tensor);
    tensor.order = again.size();
    if (i % 4 != 0 && i % 3 == 0) again.push_back(tensor);
    ++i;
  }
  std::vector<Shard> shards;
  const auto add = [&](const std::string& file, std::vector<TensorInfo> list) {
    auto index = TensorIndex::Create({file}, std::move(list), {});
    Require(index.has_value());
    shards.push_back({file, std::make_shared<const TensorIndex>(*index)});
  };
  size_t expected = 0;
  for (auto& [file, tensors] : files) {
    expected += tensors.size();
    add(file, std::move(tensors));
  }
  add("again\n", std::move(again));
  const auto merged = MergeShards(shards, &shard_index, "");
  if (!merged.has_value()) {
    // Two spellings of one file ("x", "./x") are one shard given twice.
    Require(merged.error().code() == Code::kInvalid);
    return;
  }
  Require(merged->index.tensors().size() == expected);
  uint64_t order = 0;
  for (const uint32_t ordinal : merged->index.InFileOrder()) {
    Require(merged->index.tensors()[ordinal].order == order++);
  }
  Require(merged->problems.empty() == shard_index.weight_map.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(data[i]);
  const size_t line = text.find('\n');
  CheckShardName(std::string_view(text).substr(0, line));
  if (line == std::string::npos) return 0;

  const auto bytes = std::as_bytes(std::span(text).subspan(line + 1));
  MemorySource source("fuzz", {bytes.begin(), bytes.end()});
  const auto index = ReadShardIndex(source);
  if (!index.has_value()) {
    Require(index.error().code() == Code::kCorrupt ||
            index.error().code() == Code::kUnsupported);
    return 0;
  }
  for (const auto& [tensor, file] : index->weight_map) {
    Require(!file.empty() && !file.starts_with('/') && file != ".." &&
            !file.starts_with("../") && !file.ends_with("/..") &&
            file.find("/../") == std::string::npos &&
            file.find('\0') == std::string::npos);
  }
  CheckMerge(*index);
  return 0;
}
