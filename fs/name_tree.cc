#include "fs/name_tree.h"

#include <algorithm>
#include <utility>

#include "formats/view/path_name.h"

namespace weightfs {
namespace {

// The part of a tensor name that makes folders: up to and with its last '/'.
std::string_view PrefixOf(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == std::string_view::npos ? std::string_view()
                                         : name.substr(0, slash + 1);
}

std::string EscapeComponent(std::string_view raw) {
  return EscapeName(raw).front();
}

}  // namespace

NameTree::NameTree(const TensorIndex& index, const std::set<std::string>& taken)
    : index_(index) {
  folders_.emplace_back();
  AddTensors(taken);
  for (Folder& folder : folders_) {
    std::sort(folder.folders.begin(), folder.folders.end(),
              [this](uint32_t a, uint32_t b) {
                return folders_[a].component < folders_[b].component;
              });
  }
  ResolveClashes(taken);
}

uint32_t NameTree::AddFolder(uint32_t parent, std::string_view raw,
                             std::string prefix,
                             const std::set<std::string>& taken) {
  Folder folder;
  folder.parent = parent;
  folder.component = EscapeComponent(raw);
  if (folder.component.size() > kMaxComponent ||
      (parent == 0 && taken.count(folder.component) != 0)) {
    folder.component = HashComponent(prefix);
  }
  folder.prefix = std::move(prefix);
  const auto ordinal = static_cast<uint32_t>(folders_.size());
  folders_[parent].folders.push_back(ordinal);
  folders_.push_back(std::move(folder));
  return ordinal;
}

void NameTree::AddTensors(const std::set<std::string>& taken) {
  std::map<std::string, uint32_t, std::less<>> by_prefix;
  by_prefix.emplace("", 0);
  const auto& tensors = index_.tensors();
  folder_of_.reserve(tensors.size());
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].name;
    const std::string_view prefix = PrefixOf(name);
    uint32_t folder = 0;
    if (auto it = by_prefix.find(prefix); it != by_prefix.end()) {
      folder = it->second;
    } else {
      for (size_t start = 0; start < prefix.size();) {
        const size_t slash = prefix.find('/', start);
        std::string so_far(prefix.substr(0, slash + 1));
        auto known = by_prefix.find(so_far);
        if (known == by_prefix.end()) {
          const uint32_t added = AddFolder(
              folder, prefix.substr(start, slash - start), so_far, taken);
          known = by_prefix.emplace(std::move(so_far), added).first;
        }
        folder = known->second;
        start = slash + 1;
      }
    }
    folders_[folder].tensors.push_back(i);
    folder_of_.push_back(folder);
  }
}

void NameTree::ResolveClashes(const std::set<std::string>& taken) {
  for (uint32_t f = 0; f < folders_.size(); ++f) {
    const Folder& folder = folders_[f];
    for (uint32_t tensor : folder.tensors) {
      const std::string& name = index_.tensors()[tensor].name;
      const std::string leaf =
          EscapeComponent(std::string_view(name).substr(folder.prefix.size()));
      uint32_t formats = 0;
      for (Format format : AllFormats()) {
        const std::string shown = leaf + std::string(FormatExtension(format));
        if (shown.size() > kMaxComponent ||
            (f == 0 && taken.count(shown) != 0) || FindFolder(f, shown)) {
          formats |= 1u << static_cast<uint32_t>(format);
        }
      }
      if (formats == 0) continue;
      // Two names with one hash: hash again until the component is free.
      std::string component = HashComponent(name);
      for (int n = 1; by_hash_.count({f, component}) != 0; ++n) {
        component = HashComponent(name + '\0' + std::to_string(n));
      }
      by_hash_.emplace(std::pair(f, component), tensor);
      hashed_.emplace(tensor, Hashed{std::move(component), formats});
    }
  }
}

std::string NameTree::FileName(uint32_t tensor, Format format) const {
  const std::string extension(FormatExtension(format));
  auto hashed = hashed_.find(tensor);
  if (hashed != hashed_.end() &&
      (hashed->second.formats >> static_cast<uint32_t>(format) & 1u) != 0) {
    return hashed->second.component + extension;
  }
  const std::string_view name = index_.tensors()[tensor].name;
  return EscapeComponent(name.substr(PrefixOf(name).size())) + extension;
}

std::string NameTree::FilePath(uint32_t tensor, Format format) const {
  std::string path = FileName(tensor, format);
  for (uint32_t f = folder_of_[tensor]; f != 0; f = folders_[f].parent) {
    path.insert(0, folders_[f].component + "/");
  }
  return path;
}

std::optional<uint32_t> NameTree::FindFolder(uint32_t folder,
                                             std::string_view component) const {
  const auto& children = folders_[folder].folders;
  auto it = std::lower_bound(children.begin(), children.end(), component,
                             [this](uint32_t child, std::string_view c) {
                               return folders_[child].component < c;
                             });
  if (it == children.end() || folders_[*it].component != component) {
    return std::nullopt;
  }
  return *it;
}

std::optional<uint32_t> NameTree::FindTensor(uint32_t folder,
                                             std::string_view component,
                                             Format format) const {
  const std::string_view extension = FormatExtension(format);
  if (!component.ends_with(extension)) return std::nullopt;
  component.remove_suffix(extension.size());
  std::optional<uint32_t> tensor;
  auto hashed = by_hash_.find({folder, std::string(component)});
  if (hashed != by_hash_.end()) {
    tensor = hashed->second;
  } else if (auto raw = UnescapeName({std::string(component)})) {
    if (raw->find('/') != std::string::npos) return std::nullopt;
    const TensorInfo* info = index_.Find(folders_[folder].prefix + *raw);
    if (info == nullptr) return std::nullopt;
    tensor = static_cast<uint32_t>(info - index_.tensors().data());
  }
  // One name for each file: the hash only where it is shown, and the other way
  // around.
  if (!tensor || FileName(*tensor, format) !=
                     std::string(component) + std::string(extension)) {
    return std::nullopt;
  }
  return tensor;
}

}  // namespace weightfs
