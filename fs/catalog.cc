#include "fs/catalog.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "formats/model_file.h"
#include "formats/shards.h"
#include "fs/node_id.h"

namespace weightfs {
namespace {

constexpr std::string_view kIndexMark = ".index.";
constexpr std::string_view kIndexEnd = "json";

struct Group {
  std::map<uint32_t, uint32_t> shards;  // shard number → file
  uint32_t count = 0;                   // as the names say
};

// What a folder holds, by the name that a set would have unsharded.
struct FolderContent {
  std::map<std::string, uint32_t> singles;
  std::map<std::pair<std::string, uint32_t>, Group> sharded;  // name, count
  std::map<std::string, uint32_t> indexes;
};

// "model.safetensors.index.json" → "model.safetensors";
// "pytorch_model.bin.index.fp16.json" → "pytorch_model.fp16.bin".
std::optional<std::string> UnshardedNameOfIndex(std::string_view name) {
  const size_t mark = name.rfind(kIndexMark);
  if (mark == std::string_view::npos) return std::nullopt;
  if (!name.ends_with(kIndexEnd)) return std::nullopt;
  const std::string_view file = name.substr(0, mark);
  const std::string_view extension = WeightExtension(file);
  if (extension.empty()) return std::nullopt;
  std::string_view variant = name.substr(mark + kIndexMark.size());
  variant.remove_suffix(kIndexEnd.size());
  if (variant.empty()) return std::string(file);
  if (!variant.ends_with('.') || variant.size() == 1) return std::nullopt;
  variant.remove_suffix(1);
  const std::string_view stem = file.substr(0, file.size() - extension.size());
  return fmt::format("{}.{}{}", stem, variant, extension);
}

std::string_view NameOf(const WeightSet& set) {
  const size_t folder = set.folder.empty() ? 0 : set.folder.size() + 1;
  return std::string_view(set.path).substr(folder);
}

// What trainers leave beside a model: tensors, perhaps, but no model's.
bool IsTrainersState(std::string_view name) {
  constexpr std::array<std::string_view, 5> kStems = {
      "training_args", "optimizer", "scheduler", "scaler", "rng_state"};
  return std::any_of(kStems.begin(), kStems.end(), [&](std::string_view stem) {
    return name.starts_with(stem) &&
           (name.size() == stem.size() || name[stem.size()] == '.' ||
            name[stem.size()] == '_');
  });
}

std::string Join(const std::string& folder, const std::string& name) {
  return folder.empty() ? name : folder + "/" + name;
}

// A set's stem and extension; the name may be an index's.
std::pair<std::string_view, std::string_view> TakeApart(std::string_view name) {
  if (WeightExtension(name).empty()) {
    name = name.substr(0, name.rfind(kIndexMark));
  }
  const std::string_view extension = WeightExtension(name);
  return {name.substr(0, name.size() - extension.size()), extension};
}

// Files that loaders look for first, in transformers' order and then the other
// libraries' names; a variant after every set that is none.
using Rank = std::tuple<bool, size_t, size_t, bool, bool, std::string>;
Rank RankOf(const WeightSet& set, const std::set<std::string>& paths) {
  constexpr std::array<std::string_view, 6> kKnown = {
      "model.safetensors",
      "pytorch_model.bin",
      "diffusion_pytorch_model.safetensors",
      "diffusion_pytorch_model.bin",
      "adapter_model.safetensors",
      "adapter_model.bin"};
  const auto [stem, extension] = TakeApart(NameOf(set));
  const size_t dot = stem.rfind('.');
  const std::string base(stem.substr(0, dot));
  const auto* known =
      std::find(kKnown.begin(), kKnown.end(), base + std::string(extension));
  // A dot may be a part of a model's name ("Llama-3.1-8B"): it marks a variant
  // only of a name that is known or has a set of its own.
  const bool variant =
      dot != std::string::npos &&
      (known != kKnown.end() ||
       paths.count(Join(set.folder, base + std::string(extension))) != 0);
  const auto extensions = WeightExtensions();
  const auto format =
      std::find(extensions.begin(), extensions.end(), extension);
  const bool sharded = set.files.size() != 1 || set.index_file.has_value();
  return {variant,
          static_cast<size_t>(known - kKnown.begin()),
          static_cast<size_t>(format - extensions.begin()),
          sharded,
          sharded && !set.index_file,
          set.path};
}

WeightSet MakeShardedSet(const std::string& folder, const std::string& name,
                         const Group& group) {
  WeightSet set;
  set.folder = folder;
  set.path = Join(folder, name);
  for (const auto& [number, file] : group.shards) set.files.push_back(file);
  for (uint32_t i = 1; i <= group.count && set.problems.size() < 10; ++i) {
    if (group.shards.count(i) == 0) {
      set.problems.push_back(
          fmt::format("shard {} of {} is missing", i, group.count));
    }
  }
  return set;
}

void AddSets(const Snapshot& snapshot, const std::string& folder,
             const FolderContent& content, std::vector<WeightSet>& sets) {
  std::set<std::string> used;  // paths
  for (const auto& [name, file] : content.singles) {
    WeightSet set;
    set.folder = folder;
    set.path = Join(folder, name);
    set.files = {file};
    used.insert(set.path);
    sets.push_back(std::move(set));
  }
  std::set<std::string> indexed;
  // Complete groups first, so that they get the plain path and the index.
  std::vector<const std::pair<const std::pair<std::string, uint32_t>, Group>*>
      groups;
  for (const auto& entry : content.sharded) groups.push_back(&entry);
  std::stable_sort(groups.begin(), groups.end(), [](auto* a, auto* b) {
    return (a->second.shards.size() == a->second.count) >
           (b->second.shards.size() == b->second.count);
  });
  for (const auto* entry : groups) {
    const std::string& name = entry->first.first;
    WeightSet set = MakeShardedSet(folder, name, entry->second);
    auto index = content.indexes.find(name);
    if (index != content.indexes.end() && indexed.insert(name).second) {
      set.index_file = index->second;
    }
    if (!used.insert(set.path).second) {
      set.path = snapshot.files[set.index_file.value_or(set.files[0])].path;
      used.insert(set.path);
    }
    sets.push_back(std::move(set));
  }
  for (const auto& [name, file] : content.indexes) {
    if (indexed.count(name) != 0) continue;
    WeightSet set;
    set.folder = folder;
    set.path = Join(folder, name);
    set.index_file = file;
    if (!used.insert(set.path).second) set.path = snapshot.files[file].path;
    sets.push_back(std::move(set));
  }
}

}  // namespace

Catalog Catalog::Create(const Snapshot& snapshot) {
  std::map<std::string, FolderContent> folders;
  for (uint32_t i = 0; i < snapshot.files.size(); ++i) {
    const std::string& path = snapshot.files[i].path;
    const size_t slash = path.rfind('/');
    const std::string folder =
        slash == std::string::npos ? "" : path.substr(0, slash);
    const std::string name =
        slash == std::string::npos ? path : path.substr(slash + 1);
    if (auto unsharded = UnshardedNameOfIndex(name)) {
      folders[folder].indexes.emplace(*unsharded, i);
    } else if (!WeightExtension(name).empty()) {
      if (auto shard = ParseShardName(name)) {
        Group& group =
            folders[folder].sharded[{shard->unsharded, shard->count}];
        group.count = shard->count;
        group.shards.emplace(shard->number, i);
      } else {
        folders[folder].singles.emplace(name, i);
      }
    }
  }

  Catalog catalog;
  for (const auto& [folder, content] : folders) {
    AddSets(snapshot, folder, content, catalog.sets_);
  }
  std::sort(
      catalog.sets_.begin(), catalog.sets_.end(),
      [](const WeightSet& a, const WeightSet& b) { return a.path < b.path; });
  if (catalog.sets_.size() > kMaxSets) {
    catalog.sets_left_out_ = catalog.sets_.size() - kMaxSets;
    catalog.sets_.resize(kMaxSets);
  }

  std::set<std::string> paths;
  for (const WeightSet& set : catalog.sets_) paths.insert(set.path);
  std::map<std::string, Rank> best;
  for (uint32_t i = 0; i < catalog.sets_.size(); ++i) {
    const WeightSet& set = catalog.sets_[i];
    if (IsTrainersState(NameOf(set))) continue;
    Rank rank = RankOf(set, paths);
    auto [it, first] = best.emplace(set.folder, rank);
    if (first || rank < it->second) {
      it->second = std::move(rank);
      catalog.primary_[set.folder] = i;
    }
  }
  if (auto root = catalog.primary_.find(""); root != catalog.primary_.end()) {
    catalog.shown_.insert(*root);
  } else {
    catalog.shown_ = catalog.primary_;
  }
  return catalog;
}

}  // namespace weightfs
