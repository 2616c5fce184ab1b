// The shape of the mount: which nodes there are, what they are called.

#include <xxhash.h>

#include <algorithm>
#include <array>

#include "fs/vfs_impl.h"

namespace weightfs {
namespace {

constexpr std::string_view kRepoName = "repo";
constexpr std::string_view kTensorsName = "tensors";
constexpr std::string_view kMetaName = ".weightfs";
constexpr std::array<std::string_view, 2> kMetaFiles = {"index.json",
                                                        "status.json"};

NodeId Node(NodeKind kind, uint32_t ordinal = 0) {
  NodeId id;
  id.kind = kind;
  id.ordinal = ordinal;
  return id;
}

NodeId SetFolder(Format format, uint32_t folder) {
  NodeId id = Node(NodeKind::kSetFolder, folder);
  id.format = static_cast<uint8_t>(format);
  return id;
}

Format FormatOf(const NodeId& id) { return static_cast<Format>(id.format); }

bool Shows(const NodeId& id, const IndexedSet& index, uint32_t tensor) {
  return CheckFormatHolds(FormatOf(id), index.index.tensors()[tensor].dtype)
      .has_value();
}

}  // namespace

// A folder's children as names and ids; small folders only.
class PlainListing final : public Vfs::Listing {
 public:
  explicit PlainListing(Vfs::Impl& impl) : impl_(impl) {}
  void Add(std::string name, const NodeId& id) {
    entries_.emplace_back(std::move(name), id);
  }
  size_t size() const override { return entries_.size(); }
  std::string name(size_t i) const override { return entries_[i].first; }
  NodeAttr attr(size_t i) const override {
    return impl_.AttrOf(entries_[i].second, nullptr);
  }

 private:
  Vfs::Impl& impl_;
  std::vector<std::pair<std::string, NodeId>> entries_;
};

// Folders, and then the tensors of one folder of a set; names and attributes
// are made when asked for.
class SetListing final : public Vfs::Listing {
 public:
  SetListing(Vfs::Impl& impl, const NodeId& id, Vfs::Impl::IndexPtr index)
      : impl_(impl), id_(id), index_(std::move(index)) {}
  void AddFolder(std::string name, const NodeId& id) {
    folders_.emplace_back(std::move(name), id);
  }
  void AddNames(uint32_t set, uint32_t folder) {
    set_ = set;
    const NameTree::Folder& names = index_->names->folder(folder);
    for (uint32_t child : names.folders) {
      NodeId id = Node(NodeKind::kNameFolder, child);
      id.set = set;
      id.format = id_.format;
      AddFolder(index_->names->folder(child).component, id);
    }
    for (uint32_t tensor : names.tensors) {
      if (Shows(id_, *index_, tensor)) tensors_.push_back(tensor);
    }
  }
  size_t size() const override { return folders_.size() + tensors_.size(); }
  std::string name(size_t i) const override {
    if (i < folders_.size()) return folders_[i].first;
    return index_->names->FileName(tensors_[i - folders_.size()],
                                   FormatOf(id_));
  }
  NodeAttr attr(size_t i) const override {
    if (i < folders_.size()) {
      return impl_.AttrOf(folders_[i].second, index_.get());
    }
    NodeId id = Node(NodeKind::kTensorFile, tensors_[i - folders_.size()]);
    id.set = set_;
    id.format = id_.format;
    return impl_.AttrOf(id, index_.get());
  }

 private:
  Vfs::Impl& impl_;
  const NodeId id_;
  const Vfs::Impl::IndexPtr index_;
  uint32_t set_ = 0;
  std::vector<std::pair<std::string, NodeId>> folders_;
  std::vector<uint32_t> tensors_;
};

Vfs::Impl::Impl(Repo& repo, ParkedOps& parked, WorkerPool& pool,
                const VfsOptions& options)
    : repo_(repo),
      parked_(parked),
      pool_(pool),
      options_(options),
      tree_(repo.snapshot()),
      readahead_(options.readahead),
      // What is read where it is needs no order.
      order_(repo.origin().cache_namespace().empty() ? std::vector<FileInfo>()
                                                     : repo.snapshot().files),
      shown_(tree_.folders().size()),
      leads_to_set_(tree_.folders().size()),
      set_of_file_(repo.snapshot().files.size()) {
  const std::string& commit = repo.snapshot().commit;
  ino_seed_ = XXH3_64bits(commit.data(), commit.size());
  for (const auto& [path, set] : repo.catalog().shown()) {
    const std::optional<uint32_t> folder = tree_.FindFolder(path);
    if (!folder) continue;
    shown_[*folder] = set;
    for (uint32_t f = *folder;; f = tree_.folders()[f].parent) {
      leads_to_set_[f] = true;
      if (f == 0) break;
    }
    for (uint32_t file : repo.catalog().sets()[set].files) {
      set_of_file_[file] = set;
    }
  }
}

std::optional<uint32_t> Vfs::Impl::SetOf(const NodeId& id) const {
  switch (id.kind) {
    case NodeKind::kNameFolder:
    case NodeKind::kTensorFile:
      return id.set < repo_.catalog().sets().size() ? std::optional(id.set)
                                                    : std::nullopt;
    case NodeKind::kSetFolder:
      return id.ordinal < shown_.size() ? shown_[id.ordinal] : std::nullopt;
    default:
      return std::nullopt;
  }
}

Result<> Vfs::Impl::Check(const NodeId& id, const IndexedSet* index) const {
  size_t limit = 0;
  bool has_set = false;
  bool has_format = false;
  switch (id.kind) {
    case NodeKind::kRoot:
      limit = 2;
      break;
    case NodeKind::kTensorsFolder:
    case NodeKind::kMetaFolder:
      limit = 1;
      break;
    case NodeKind::kRepoFolder:
      limit = tree_.folders().size();
      break;
    case NodeKind::kSetFolder:
      limit = tree_.folders().size();
      has_format = true;
      break;
    case NodeKind::kRepoFile:
      limit = repo_.snapshot().files.size();
      break;
    case NodeKind::kNameFolder:
      limit = index != nullptr ? index->names->folder_count() : 0;
      has_set = has_format = true;
      break;
    case NodeKind::kTensorFile:
      limit = index != nullptr ? index->index.tensors().size() : 0;
      has_set = has_format = true;
      break;
    case NodeKind::kMetaFile:
      limit = kMetaFiles.size();
      break;
  }
  if (id.slot == 0 && id.ordinal < limit && (has_set || id.set == 0) &&
      (has_format ? id.format < AllFormats().size() : id.format == 0)) {
    return {};
  }
  return MakeError(Code::kStale, "no node {:#x} in this mount", PackNode(id));
}

NodeAttr Vfs::Impl::AttrOf(const NodeId& id, const IndexedSet* index) {
  NodeAttr attr;
  attr.node = PackNode(id);
  attr.ino = XXH3_64bits_withSeed(&attr.node, sizeof(attr.node), ino_seed_);
  attr.folder = id.kind != NodeKind::kRepoFile &&
                id.kind != NodeKind::kTensorFile &&
                id.kind != NodeKind::kMetaFile;
  attr.valid = kForever;
  if (!attr.folder) attr.size = SizeOf(id, index);
  if (id.kind == NodeKind::kMetaFile) attr.valid = std::chrono::seconds(0);
  return attr;
}

uint64_t Vfs::Impl::SizeOf(const NodeId& id, const IndexedSet* index) const {
  if (id.kind == NodeKind::kRepoFile) {
    return repo_.snapshot().files[id.ordinal].size;
  }
  if (id.kind == NodeKind::kTensorFile) {
    auto file = TensorFile(id, *index);
    return file.has_value() ? file->size() : 0;
  }
  return 0;
}

Result<VirtualFile> Vfs::Impl::TensorFile(const NodeId& id,
                                          const IndexedSet& index) const {
  ASSIGN_OR_RETURN(
      auto segments,
      WriteTensor(FormatOf(id), index.index.tensors()[id.ordinal]));
  return VirtualFile::Create(std::move(segments));
}

std::optional<NodeId> Vfs::Impl::Child(const NodeId& parent,
                                       std::string_view name,
                                       const IndexedSet* index) const {
  switch (parent.kind) {
    case NodeKind::kRoot:
      if (name == kRepoName) return Node(NodeKind::kRepoFolder);
      if (name == kTensorsName) return Node(NodeKind::kTensorsFolder);
      if (name == kMetaName) return Node(NodeKind::kMetaFolder);
      return std::nullopt;
    case NodeKind::kRepoFolder: {
      const RepoTree::Folder& folder = tree_.folders()[parent.ordinal];
      if (auto it = folder.folders.find(name); it != folder.folders.end()) {
        return Node(NodeKind::kRepoFolder, it->second);
      }
      if (auto it = folder.files.find(name); it != folder.files.end()) {
        return Node(NodeKind::kRepoFile, it->second);
      }
      return std::nullopt;
    }
    case NodeKind::kTensorsFolder: {
      const auto format = FormatFromName(name);
      if (!format || !leads_to_set_[0]) return std::nullopt;
      return SetFolder(*format, 0);
    }
    case NodeKind::kSetFolder:
      return SetFolderChild(parent, name, index);
    case NodeKind::kNameFolder:
      return NameChild(parent, parent.ordinal, name, *index);
    case NodeKind::kMetaFolder:
      for (uint32_t i = 0; i < kMetaFiles.size(); ++i) {
        if (name == kMetaFiles[i]) return Node(NodeKind::kMetaFile, i);
      }
      return std::nullopt;
    case NodeKind::kRepoFile:
    case NodeKind::kTensorFile:
    case NodeKind::kMetaFile:
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<NodeId> Vfs::Impl::SetFolderChild(const NodeId& parent,
                                                std::string_view name,
                                                const IndexedSet* index) const {
  const RepoTree::Folder& folder = tree_.folders()[parent.ordinal];
  if (auto it = folder.folders.find(name);
      it != folder.folders.end() && leads_to_set_[it->second]) {
    return SetFolder(FormatOf(parent), it->second);
  }
  if (index == nullptr) return std::nullopt;
  NodeId names = parent;
  names.set = *shown_[parent.ordinal];
  return NameChild(names, 0, name, *index);
}

std::optional<NodeId> Vfs::Impl::NameChild(const NodeId& parent,
                                           uint32_t folder,
                                           std::string_view name,
                                           const IndexedSet& index) const {
  NodeId id = parent;
  if (auto child = index.names->FindFolder(folder, name)) {
    id.kind = NodeKind::kNameFolder;
    id.ordinal = *child;
    return id;
  }
  if (auto tensor = index.names->FindTensor(folder, name, FormatOf(parent));
      tensor && Shows(parent, index, *tensor)) {
    id.kind = NodeKind::kTensorFile;
    id.ordinal = *tensor;
    return id;
  }
  return std::nullopt;
}

std::shared_ptr<const Vfs::Listing> Vfs::Impl::ListingOf(
    const NodeId& id, const IndexPtr& index) {
  if (id.kind == NodeKind::kSetFolder || id.kind == NodeKind::kNameFolder) {
    auto listing = std::make_shared<SetListing>(*this, id, index);
    if (id.kind == NodeKind::kNameFolder) {
      listing->AddNames(id.set, id.ordinal);
      return listing;
    }
    for (const auto& [name, child] : tree_.folders()[id.ordinal].folders) {
      if (leads_to_set_[child]) {
        listing->AddFolder(name, SetFolder(FormatOf(id), child));
      }
    }
    if (index != nullptr) listing->AddNames(*shown_[id.ordinal], 0);
    return listing;
  }
  auto listing = std::make_shared<PlainListing>(*this);
  if (id.kind == NodeKind::kRoot) {
    for (std::string_view name : {kMetaName, kRepoName, kTensorsName}) {
      listing->Add(std::string(name), *Child(id, name, nullptr));
    }
  } else if (id.kind == NodeKind::kRepoFolder) {
    const RepoTree::Folder& folder = tree_.folders()[id.ordinal];
    for (const auto& [name, child] : folder.folders) {
      listing->Add(name, Node(NodeKind::kRepoFolder, child));
    }
    for (const auto& [name, file] : folder.files) {
      listing->Add(name, Node(NodeKind::kRepoFile, file));
    }
  } else if (id.kind == NodeKind::kTensorsFolder && leads_to_set_[0]) {
    for (Format format : AllFormats()) {
      listing->Add(std::string(FormatName(format)), SetFolder(format, 0));
    }
  } else if (id.kind == NodeKind::kMetaFolder) {
    for (uint32_t i = 0; i < kMetaFiles.size(); ++i) {
      listing->Add(std::string(kMetaFiles[i]), Node(NodeKind::kMetaFile, i));
    }
  }
  return listing;
}

std::string Vfs::Impl::PathOf(const NodeId& id, const IndexedSet* index) const {
  const std::string tensors =
      std::string(kTensorsName) + "/" +
      (id.format < AllFormats().size() ? std::string(FormatName(FormatOf(id)))
                                       : "?");
  const auto below = [](const std::string& top, const std::string& path) {
    return path.empty() ? top : top + "/" + path;
  };
  switch (id.kind) {
    case NodeKind::kRoot:
      return "";
    case NodeKind::kRepoFolder:
      return below("repo", tree_.folders()[id.ordinal].path);
    case NodeKind::kRepoFile:
      return below("repo", repo_.snapshot().files[id.ordinal].path);
    case NodeKind::kTensorsFolder:
      return std::string(kTensorsName);
    case NodeKind::kSetFolder:
      return below(tensors, tree_.folders()[id.ordinal].path);
    case NodeKind::kNameFolder:
    case NodeKind::kTensorFile: {
      const std::string top =
          below(tensors, repo_.catalog().sets()[id.set].folder);
      if (index == nullptr) return top + "/?";
      return id.kind == NodeKind::kTensorFile
                 ? below(top, index->names->FilePath(id.ordinal, FormatOf(id)))
                 : below(top, index->names->folder(id.ordinal).prefix);
    }
    case NodeKind::kMetaFolder:
      return std::string(kMetaName);
    case NodeKind::kMetaFile:
      return below(std::string(kMetaName), std::string(kMetaFiles[id.ordinal]));
  }
  return "?";
}

std::vector<uint64_t> Vfs::NodesOfFile(uint32_t file) {
  std::vector<uint64_t> nodes = {
      PackNode({.kind = NodeKind::kRepoFile, .ordinal = file})};
  const Repo& repo = impl_->repo_;
  for (uint32_t set = 0; set < repo.catalog().sets().size(); ++set) {
    const auto index = impl_->repo_.FindIndex(set);
    if (index == nullptr) continue;
    const auto& tensors = index->index.tensors();
    for (uint32_t tensor = 0; tensor < tensors.size(); ++tensor) {
      const bool of_file =
          std::any_of(tensors[tensor].data.begin(), tensors[tensor].data.end(),
                      [&](const SourceRange& range) {
                        return index->files[range.object] == file;
                      });
      if (!of_file) continue;
      for (const Format format : AllFormats()) {
        nodes.push_back(PackNode({.set = set,
                                  .kind = NodeKind::kTensorFile,
                                  .format = static_cast<uint8_t>(format),
                                  .ordinal = tensor}));
      }
    }
  }
  return nodes;
}

}  // namespace weightfs
