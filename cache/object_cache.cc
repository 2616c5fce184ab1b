#include "cache/object_cache.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "cache/cache_folder.h"
#include "cache/cache_paths.h"
#include "cache/open_cache_file.h"
#include "cache/slab_evictor.h"
#include "formats/base/mutex.h"

namespace weightfs {
namespace {

class FolderCache final : public ObjectCache {
 public:
  explicit FolderCache(std::shared_ptr<CacheParts> parts)
      : parts_(std::move(parts)) {}

  const std::string& folder() const override { return folder_.path(); }
  Result<std::shared_ptr<CacheFile>> OpenObject(
      const std::string& cache_namespace, const ContentId& id,
      uint64_t size) override;
  void Trim() override { parts_->space.Trim(); }
  Stats stats() const override {
    return {.write_failures = parts_->write_failures.load(),
            .bad_granules = parts_->bad_granules.load(),
            .evicted_bytes = parts_->space.stats().evicted_bytes};
  }

 private:
  // Null if the object is not open, or not as one wants it.
  std::shared_ptr<OpenCacheFile> FindOpen(const std::string& path,
                                          uint64_t size) EXCLUDES(mutex_);
  // The file itself, or one that another thread opened meanwhile.
  std::shared_ptr<OpenCacheFile> Remember(const std::string& path,
                                          std::shared_ptr<OpenCacheFile> file)
      EXCLUDES(mutex_);
  // Sees to it that the namespace's folder says which namespace it is.
  Result<> NameNamespace(const std::string& cache_namespace) EXCLUDES(mutex_);

  // The verified object, else the one that the namespace claims.
  Result<ObjectFiles> OpenFiles(const ObjectToOpen& object,
                                const std::string& claimed_path);

  const std::shared_ptr<CacheParts> parts_;
  CacheFolder& folder_ = *parts_->folder;
  Mutex mutex_;  // no I/O under it
  std::unordered_map<std::string, std::weak_ptr<OpenCacheFile>> open_
      GUARDED_BY(mutex_);
  size_t prune_at_ GUARDED_BY(mutex_) = 64;
  std::unordered_set<std::string> named_ GUARDED_BY(mutex_);
};

Result<std::shared_ptr<CacheFile>> FolderCache::OpenObject(
    const std::string& cache_namespace, const ContentId& id, uint64_t size) {
  ASSIGN_OR_RETURN(const std::string path, ObjectPath(cache_namespace, id));
  if (size > kMaxObjectSize) {
    return MakeError(Code::kUnsupported,
                     "{}: {} bytes are more than the cache keeps of one object",
                     id.ToString(), size);
  }
  if (auto file = FindOpen(path, size)) return file;
  RETURN_IF_ERROR(NameNamespace(cache_namespace));
  const ObjectToOpen object{.folder = folder_,
                            .disk = parts_->disk,
                            .space = parts_->space,
                            .id = id,
                            .size = size,
                            .owner = NamespaceNumber(cache_namespace)};
  ASSIGN_OR_RETURN(ObjectFiles files, OpenFiles(object, path));
  auto file = std::make_shared<OpenCacheFile>(parts_, std::move(files), id,
                                              object.owner);
  return Remember(path, std::move(file));
}

Result<ObjectFiles> FolderCache::OpenFiles(const ObjectToOpen& object,
                                           const std::string& claimed_path) {
  auto verified = OpenVerifiedFiles(object);
  if (verified.has_value()) {
    // A copy that is not needed any more.
    RemoveUnusedObject(folder_, claimed_path);
    return verified;
  }
  return OpenObjectFiles(object, claimed_path);
}

std::shared_ptr<OpenCacheFile> FolderCache::FindOpen(const std::string& path,
                                                     uint64_t size) {
  std::shared_ptr<OpenCacheFile> file;
  {
    MutexLock lock(mutex_);
    const auto it = open_.find(path);
    if (it != open_.end()) file = it->second.lock();
  }
  if (file == nullptr || file->size() != size || !file->IsUsable()) {
    return nullptr;
  }
  return file;
}

std::shared_ptr<OpenCacheFile> FolderCache::Remember(
    const std::string& path, std::shared_ptr<OpenCacheFile> file) {
  if (auto other = FindOpen(path, file->size())) return other;
  MutexLock lock(mutex_);
  open_[path] = file;
  if (open_.size() >= prune_at_) {
    std::erase_if(open_,
                  [](const auto& item) { return item.second.expired(); });
    prune_at_ = std::max<size_t>(64, 2 * open_.size());
  }
  return file;
}

Result<> FolderCache::NameNamespace(const std::string& cache_namespace) {
  {
    MutexLock lock(mutex_);
    if (named_.contains(cache_namespace)) return {};
  }
  const std::string file = NamespacePath(cache_namespace) + "/namespace";
  const std::string text = cache_namespace + "\n";
  auto found = folder_.ReadFile(file, 64 * 1024);
  // Empty or zeros: the machine stopped before the file was on the disk.
  const bool blank =
      found.has_value() && found->find_first_not_of('\0') == std::string::npos;
  if (!found.has_value() || blank) {
    RETURN_IF_ERROR(folder_.WriteFile(file, text));
  } else if (*found != text) {
    return MakeError(Code::kUnsupported, "{}/{} names another origin",
                     folder_.path(), file);
  }
  MutexLock lock(mutex_);
  named_.insert(cache_namespace);
  return {};
}

}  // namespace

Result<std::unique_ptr<ObjectCache>> ObjectCache::Open(
    const std::string& folder, const CacheLimits& limits, CacheDisk& disk) {
  ASSIGN_OR_RETURN(auto opened, CacheFolder::Open(folder));
  return std::make_unique<FolderCache>(
      std::make_shared<CacheParts>(std::move(opened), disk, limits));
}

}  // namespace weightfs
