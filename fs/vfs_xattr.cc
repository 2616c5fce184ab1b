// Extended attributes of the mount: user.weightfs.*.

#include <fmt/format.h>

#include "fs/vfs_impl.h"

namespace weightfs {
namespace {

constexpr std::string_view kPrefix = "user.weightfs.";

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ","));
}

// "model.safetensors:1024:4096", ranges after one another with commas.
std::string SourceText(const IndexedSet& index, const TensorInfo& tensor) {
  std::string text;
  for (const SourceRange& range : tensor.data) {
    if (!text.empty()) text += ',';
    text += fmt::format("{}:{}:{}", index.index.objects()[range.object],
                        range.offset, range.length);
  }
  return text;
}

}  // namespace

std::vector<std::string> Vfs::Impl::XattrNames(const NodeId& id) const {
  std::vector<std::string> names;
  const auto add = [&](std::string_view name) {
    names.push_back(std::string(kPrefix) + std::string(name));
  };
  if (id.kind == NodeKind::kRoot) {
    add("repo");
    add("commit");
  } else if (id.kind == NodeKind::kRepoFile) {
    const ContentId& content = repo_.snapshot().files[id.ordinal].id;
    if (content.kind == ContentId::Kind::kSha256) add("sha256");
    if (content.kind == ContentId::Kind::kGit) add("git");
    add("commit");
    add("cached");
    add("verified");
  } else if (id.kind == NodeKind::kTensorFile) {
    add("name");
    add("dtype");
    add("shape");
    add("source");
  }
  return names;
}

Result<std::string> Vfs::Impl::Xattr(const NodeId& id, std::string_view name,
                                     const IndexedSet* index) {
  const Error absent(Code::kNotFound, "no such attribute");
  bool known = false;
  for (const std::string& shown : XattrNames(id)) known |= shown == name;
  if (!known) return absent;
  name.remove_prefix(kPrefix.size());

  const Snapshot& snapshot = repo_.snapshot();
  if (name == "repo") return snapshot.repo;
  if (name == "commit") return snapshot.commit;
  if (id.kind == NodeKind::kRepoFile) {
    if (name == "sha256" || name == "git") {
      return snapshot.files[id.ordinal].id.value;
    }
    if (name == "cached") {
      return fmt::format("{:.4g}",
                         repo_.OpenFile(id.ordinal)->CachedFraction());
    }
    if (name == "verified") {
      return std::string(repo_.IsVerified(id.ordinal) ? "1" : "0");
    }
  }
  if (id.kind == NodeKind::kTensorFile && index != nullptr) {
    const TensorInfo& tensor = index->index.tensors()[id.ordinal];
    if (name == "name") return tensor.name;
    if (name == "dtype") return std::string(DTypeName(tensor.dtype));
    if (name == "shape") return ShapeText(tensor.shape);
    if (name == "source") return SourceText(*index, tensor);
  }
  return absent;
}

void Vfs::ListXattrs(OpId op, uint64_t node,
                     Done<std::vector<std::string>> done) {
  using Names = std::vector<std::string>;
  const NodeId id = UnpackNode(node);
  impl_->WithIndex<Names>(op, id, std::move(done),
                          [this, id](OpId answered, const Impl::IndexPtr&,
                                     const Done<Names>& reply) {
                            impl_->Reply<Names>(answered, reply,
                                                impl_->XattrNames(id));
                          });
}

void Vfs::GetXattr(OpId op, uint64_t node, std::string_view name,
                   Done<std::string> done) {
  const NodeId id = UnpackNode(node);
  // The kernel asks for security.* all the time: answered from memory.
  if (!name.starts_with(kPrefix)) {
    return impl_->Reply<std::string>(
        op, done, Error(Code::kNotFound, "no such attribute"));
  }
  impl_->WithIndex<std::string>(
      op, id, std::move(done),
      [this, id, asked = std::string(name)](OpId answered,
                                            const Impl::IndexPtr& index,
                                            const Done<std::string>& reply) {
        if (asked != "user.weightfs.cached" &&
            asked != "user.weightfs.verified") {
          return impl_->Reply<std::string>(
              answered, reply, impl_->Xattr(id, asked, index.get()));
        }
        // May open the file in the cache.
        impl_->OnPool<std::string>(answered, reply, [this, id, asked] {
          return impl_->Xattr(id, asked, nullptr);
        });
      });
}

}  // namespace weightfs
