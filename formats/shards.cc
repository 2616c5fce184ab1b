#include "formats/shards.h"

#include <algorithm>
#include <new>
#include <unordered_map>
#include <utility>

#include "formats/base/checked.h"
#include "formats/json_events.h"
#include "formats/text.h"

namespace weightfs {
namespace {

constexpr size_t kDigits = 5;
// Some repositories write the count with six ("-00001-of-000163").
constexpr size_t kMaxDigits = 6;
// Tensor names that one problem line gives as examples.
constexpr size_t kExamples = 3;

// Takes the digits off the front of `text`; nothing if there are not five or
// six of them.
std::optional<uint32_t> TakeNumber(std::string_view& text) {
  size_t length = 0;
  uint32_t value = 0;
  while (length < text.size() && text[length] >= '0' && text[length] <= '9') {
    if (++length > kMaxDigits) return std::nullopt;
    value = value * 10 + static_cast<uint32_t>(text[length - 1] - '0');
  }
  if (length < kDigits) return std::nullopt;
  text.remove_prefix(length);
  return value;
}

bool TakePrefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

Result<> CheckFileName(std::string_view file) {
  if (file.empty()) return MakeError(Code::kCorrupt, "an empty file name");
  if (file.starts_with('/')) {
    return MakeError(Code::kCorrupt, "file {} is absolute", QuoteName(file));
  }
  if (file.find('\0') != std::string_view::npos) {
    return MakeError(Code::kCorrupt, "file {} holds a NUL", QuoteName(file));
  }
  std::string_view rest = file;
  while (true) {
    const size_t slash = rest.find('/');
    if (rest.substr(0, slash) == "..") {
      return MakeError(Code::kCorrupt, "file {} leaves the folder",
                       QuoteName(file));
    }
    if (slash == std::string_view::npos) return {};
    rest.remove_prefix(slash + 1);
  }
}

// Collects weight_map; all else in the file is skipped.
class IndexHandler final : public JsonHandler {
 public:
  Result<> Handle(const JsonEvent& event) override {
    switch (event.kind) {
      case Kind::kBeginObject:
      case Kind::kBeginArray:
        return Begin(event);
      case Kind::kEndObject:
      case Kind::kEndArray:
        if (--depth_ == 1) in_map_ = false;
        return {};
      case Kind::kKey:
        return OnKey(event);
      default:
        return OnValue(event);
    }
  }

  Result<> Finish() const {
    if (map_seen_) return {};
    return MakeError(Code::kCorrupt, "weight_map: is missing");
  }
  ShardIndex& index() { return index_; }

 private:
  using Kind = JsonEvent::Kind;

  static Error Wrong(std::string_view what) {
    return MakeError(Code::kCorrupt, "weight_map: {}", what);
  }

  Result<> Begin(const JsonEvent& event) {
    const bool object = event.kind == Kind::kBeginObject;
    if (depth_ == 0 && !object) {
      return MakeError(Code::kCorrupt, "the index is not an object");
    }
    if (depth_ == 1 && in_map_ && !object) return Wrong("is not an object");
    if (depth_ > 1 && in_map_) return NotAString();
    ++depth_;
    return {};
  }

  Result<> OnKey(const JsonEvent& event) {
    if (depth_ == 1) {
      in_map_ = *event.text == "weight_map";
      if (in_map_ && std::exchange(map_seen_, true)) {
        return Wrong("comes twice");
      }
    } else if (in_map_) {
      tensor_ = std::move(*event.text);
    }
    return {};
  }

  Result<> OnValue(const JsonEvent& event) {
    if (depth_ == 0) {
      return MakeError(Code::kCorrupt, "the index is not an object");
    }
    if (!in_map_) return {};
    if (depth_ == 1) return Wrong("is not an object");
    if (event.kind != Kind::kString) return NotAString();
    auto name = CheckFileName(*event.text);
    if (!name.has_value()) {
      return std::move(name.error())
          .AddContext(fmt::format("weight_map: {}", QuoteName(tensor_)));
    }
    const auto [at, fresh] = index_.weight_map.try_emplace(
        std::move(tensor_), std::move(*event.text));
    if (!fresh) {
      return Wrong(fmt::format("{} comes twice", QuoteName(at->first)));
    }
    if (index_.weight_map.size() > kMaxShardIndexEntries) {
      return MakeError(Code::kUnsupported, "weight_map: more than {} tensors",
                       kMaxShardIndexEntries);
    }
    return {};
  }

  Error NotAString() const {
    return Wrong(
        fmt::format("the file of {} is not a string", QuoteName(tensor_)));
  }

  ShardIndex index_;
  int depth_ = 0;
  bool in_map_ = false;
  bool map_seen_ = false;
  std::string tensor_;
};

Result<ShardIndex> ParseIndex(ByteSource& source) {
  if (source.size() > kMaxShardIndexSize) {
    return MakeError(Code::kUnsupported, "{} bytes, at most {} are read",
                     source.size(), kMaxShardIndexSize);
  }
  std::string text(source.size(), '\0');
  RETURN_IF_ERROR(source.ReadAt(0, std::as_writable_bytes(std::span(text))));
  IndexHandler handler;
  RETURN_IF_ERROR(ParseJson(text, 0, handler));
  RETURN_IF_ERROR(handler.Finish());
  return std::move(handler.index());
}

// `folder`/`file` without empty and `.` components.
std::string JoinPath(std::string_view folder, std::string_view file) {
  std::string joined;
  for (std::string_view rest : {folder, file}) {
    while (!rest.empty()) {
      const size_t slash = rest.find('/');
      const std::string_view component = rest.substr(0, slash);
      if (!component.empty() && component != ".") {
        if (!joined.empty()) joined += '/';
        joined += component;
      }
      if (slash == std::string_view::npos) break;
      rest.remove_prefix(slash + 1);
    }
  }
  return joined;
}

// One run of MergeShards.
class Merger {
 public:
  Merger(const std::vector<Shard>& shards, const ShardIndex* shard_index,
         std::string_view folder)
      : shards_(shards), shard_index_(shard_index), folder_(folder) {}

  Result<MergedSet> Run() {
    RETURN_IF_ERROR(LookAtShards());
    CheckWeightMap();
    RETURN_IF_ERROR(ChooseTensors());
    return Join();
  }

 private:
  // A shard's ordinal, or kNone.
  static constexpr uint32_t kNone = UINT32_MAX;

  Result<> LookAtShards() {
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      const Shard& shard = shards_[i];
      objects_.push_back(shard.file);
      if (!by_file_.try_emplace(JoinPath("", shard.file), i).second) {
        return MakeError(Code::kInvalid, "shard {} is given twice",
                         QuoteName(shard.file));
      }
      if (!shard.index.has_value()) {
        problems_.push_back(shard.index.error().ToString());
        continue;
      }
      if ((*shard.index)->objects().size() > 1) {
        return MakeError(Code::kInvalid, "shard {} lies in more than one file",
                         QuoteName(shard.file));
      }
      for (const auto& [key, value] : (*shard.index)->metadata()) {
        metadata_.try_emplace(key, value);
      }
      for (const std::string& problem : (*shard.index)->problems()) {
        problems_.push_back(
            fmt::format("{}: {}", QuoteName(shard.file), problem));
      }
    }
    return {};
  }

  bool IsGood(uint32_t shard) const { return shards_[shard].index.has_value(); }

  // The shard that the weight map names for `file`.
  uint32_t ShardOf(const std::string& file) const {
    const auto found = by_file_.find(JoinPath(folder_, file));
    return found == by_file_.end() ? kNone : found->second;
  }

  // One problem for each file that is not there or lacks tensors.
  void CheckWeightMap() {
    if (shard_index_ == nullptr) return;
    struct Missing {
      uint64_t count = 0;
      std::string examples;
    };
    std::map<std::string_view, Missing> missing;
    std::map<std::string_view, uint32_t> shard_of;
    for (const auto& [tensor, file] : shard_index_->weight_map) {
      const auto [known, fresh] = shard_of.try_emplace(file, kNone);
      if (fresh) known->second = ShardOf(file);
      const uint32_t shard = known->second;
      if (shard != kNone &&
          (!IsGood(shard) || (*shards_[shard].index)->Find(tensor))) {
        continue;
      }
      Missing& entry = missing[file];
      if (++entry.count > kExamples) continue;
      if (!entry.examples.empty()) entry.examples += ", ";
      entry.examples += QuoteName(tensor);
    }
    for (const auto& [file, entry] : missing) {
      problems_.push_back(fmt::format(
          "{} {} {} of the index's tensors: {}{}", QuoteName(file),
          shard_of[file] == kNone ? "is not there and would hold" : "lacks",
          entry.count, entry.examples, entry.count > kExamples ? ", …" : ""));
    }
  }

  // Says which shard each repeated name is taken from.
  Result<> ChooseTensors() {
    std::unordered_map<std::string_view, uint32_t> seen;
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      if (!IsGood(i)) continue;
      for (const TensorInfo& tensor : (*shards_[i].index)->tensors()) {
        const auto [first, fresh] = seen.try_emplace(tensor.name, i);
        if (fresh || chosen_.contains(tensor.name)) continue;
        const uint32_t shard = Decide(tensor.name);
        if (shard == kNone) {
          return MakeError(
              Code::kCorrupt,
              "tensor {} is in {} and in {}, and no index says which counts",
              QuoteName(tensor.name), QuoteName(shards_[first->second].file),
              QuoteName(shards_[i].file));
        }
        chosen_.emplace(tensor.name, shard);
      }
    }
    return {};
  }

  // The good shard that the weight map gives for `tensor` and that has it.
  uint32_t Decide(const std::string& tensor) const {
    if (shard_index_ == nullptr) return kNone;
    const auto entry = shard_index_->weight_map.find(tensor);
    if (entry == shard_index_->weight_map.end()) return kNone;
    const uint32_t shard = ShardOf(entry->second);
    if (shard == kNone || !IsGood(shard)) return kNone;
    return (*shards_[shard].index)->Find(tensor) == nullptr ? kNone : shard;
  }

  Result<MergedSet> Join() {
    std::vector<TensorInfo> tensors;
    size_t total = 0;
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      if (IsGood(i)) total += (*shards_[i].index)->tensors().size();
    }
    tensors.reserve(total);
    uint64_t next_storage = 0;
    for (uint32_t i = 0; i < shards_.size(); ++i) {
      if (!IsGood(i)) continue;
      const TensorIndex& index = **shards_[i].index;
      std::unordered_map<uint64_t, uint64_t> storages;
      for (const uint32_t ordinal : index.InFileOrder()) {
        const TensorInfo& tensor = index.tensors()[ordinal];
        const auto choice = chosen_.find(tensor.name);
        if (choice != chosen_.end() && choice->second != i) continue;
        TensorInfo& copy = tensors.emplace_back(tensor);
        copy.order = tensors.size() - 1;
        const auto [storage, fresh] =
            storages.try_emplace(tensor.storage_id, next_storage);
        if (fresh) ++next_storage;
        copy.storage_id = storage->second;
        for (SourceRange& range : copy.data) range.object = i;
      }
    }
    MergedSet merged;
    ASSIGN_OR_RETURN(merged.index, TensorIndex::Create(std::move(objects_),
                                                       std::move(tensors),
                                                       std::move(metadata_)));
    merged.problems = std::move(problems_);
    return merged;
  }

  const std::vector<Shard>& shards_;
  const ShardIndex* const shard_index_;
  const std::string_view folder_;
  std::vector<std::string> objects_;
  std::map<std::string, uint32_t> by_file_;
  std::map<std::string, std::string> metadata_;
  // For names in more than one shard: the shard that counts.
  std::unordered_map<std::string_view, uint32_t> chosen_;
  std::vector<std::string> problems_;
};

}  // namespace

std::optional<ShardName> ParseShardName(std::string_view file_name) {
  if (file_name.find('/') != std::string_view::npos) return std::nullopt;
  // The last "-of-" counts: a stem may hold one of its own.
  const size_t of = file_name.rfind("-of-");
  if (of == std::string_view::npos) return std::nullopt;
  const size_t dash = file_name.substr(0, of).rfind('-');
  if (dash == std::string_view::npos || dash == 0) return std::nullopt;

  std::string_view rest = file_name.substr(dash + 1);
  const auto number = TakeNumber(rest);
  if (!number || !TakePrefix(rest, "-of-")) return std::nullopt;
  const auto count = TakeNumber(rest);
  if (!count || *number == 0 || *number > *count || *count > kMaxShards) {
    return std::nullopt;
  }
  // An extension, perhaps after diffusers' variant: ".fp16.safetensors".
  if (rest.size() < 2 || rest.front() != '.' || rest.back() == '.') {
    return std::nullopt;
  }
  ShardName name;
  name.unsharded = std::string(file_name.substr(0, dash)) + std::string(rest);
  name.number = *number;
  name.count = *count;
  return name;
}

Result<ShardIndex> ReadShardIndex(ByteSource& source) {
  try {
    auto index = ParseIndex(source);
    if (index.has_value()) return index;
    return std::move(index.error()).AddContext(source.name());
  } catch (const std::bad_alloc&) {
    return MakeError(Code::kNoSpace, "{}: no memory for the index",
                     source.name());
  }
}

Result<MergedSet> MergeShards(const std::vector<Shard>& shards,
                              const ShardIndex* shard_index,
                              std::string_view folder) {
  return Merger(shards, shard_index, folder).Run();
}

}  // namespace weightfs
