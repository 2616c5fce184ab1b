// MemoryOrigin: an origin over memory, with a model in it; it can be held back.
//
// Thread-safety: fetches are safe for concurrent use; the rest is for setting
// up.

#ifndef WEIGHTFS_TESTS_FS_MEMORY_ORIGIN_H_
#define WEIGHTFS_TESTS_FS_MEMORY_ORIGIN_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cache/origin.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

class MemoryOrigin final : public Origin {
 public:
  void Add(const std::string& path, std::string bytes) {
    FileInfo file;
    file.path = path;
    file.size = bytes.size();
    file.id.value = path;
    snapshot_->files.push_back(file);
    bytes_[path] = std::move(bytes);
  }
  // Fetches of `path` are never answered but by CancelFetch.
  void Hang(const std::string& path) { hung_ = path; }
  // Fetches from `offset` of a file or later are answered once so many wait for
  // it, of as many files.
  void Gather(uint64_t offset, size_t files) {
    MutexLock lock(mutex_);
    gather_from_ = offset;
    gather_ = files;
  }
  void Break(const std::string& path, Code code) {
    MutexLock lock(mutex_);
    broken_[path] = code;
  }
  void Repair() {
    MutexLock lock(mutex_);
    broken_.clear();
  }
  uint64_t fetched() const { return fetched_; }
  // What it says may be cached, under this namespace.
  void SetNamespace(std::string name) { namespace_ = std::move(name); }

  const std::string& name() const override { return name_; }
  const std::string& cache_namespace() const override { return namespace_; }
  Result<std::shared_ptr<const Snapshot>> List() override {
    std::sort(snapshot_->files.begin(), snapshot_->files.end(),
              [](const auto& a, const auto& b) { return a.path < b.path; });
    return std::shared_ptr<const Snapshot>(snapshot_);
  }
  FetchId StartFetch(const FileInfo& file, uint64_t offset, uint64_t length,
                     std::shared_ptr<FetchSink> sink) override {
    const FetchId id = next_++;
    if (file.path == hung_) {
      MutexLock lock(mutex_);
      waiting_[id] = std::move(sink);
      return id;
    }
    std::vector<std::function<void()>> answers = Together(
        file.path, offset, [this, path = file.path, offset, length, sink] {
          Answer(path, offset, length, *sink);
        });
    for (auto& answer : answers) pool_.Submit(std::move(answer));
    return id;
  }
  void CancelFetch(FetchId id) override {
    std::shared_ptr<FetchSink> sink;
    {
      MutexLock lock(mutex_);
      auto it = waiting_.find(id);
      if (it == waiting_.end()) return;
      sink = std::move(it->second);
      waiting_.erase(it);
    }
    pool_.Submit(
        [sink] { sink->OnDone(Error(Code::kCancelled, "cancelled")); });
  }

 private:
  // What can be answered now that `answer` is there.
  std::vector<std::function<void()>> Together(const std::string& path,
                                              uint64_t offset,
                                              std::function<void()> answer) {
    MutexLock lock(mutex_);
    if (offset < gather_from_) return {std::move(answer)};
    gathered_paths_.insert(path);
    gathered_.push_back(std::move(answer));
    if (gathered_paths_.size() < gather_) return {};
    return std::exchange(gathered_, {});
  }
  void Answer(const std::string& path, uint64_t offset, uint64_t length,
              FetchSink& sink) {
    {
      MutexLock lock(mutex_);
      if (auto it = broken_.find(path); it != broken_.end()) {
        return sink.OnDone(Error(it->second, path + " is broken"));
      }
    }
    fetched_ += length;
    const std::string& bytes = bytes_.at(path);
    sink.OnData(std::as_bytes(std::span(bytes).subspan(offset, length)));
    sink.OnDone({});
  }

  const std::string name_ = "memory";
  std::string namespace_;
  std::shared_ptr<Snapshot> snapshot_ = std::make_shared<Snapshot>();
  std::map<std::string, std::string> bytes_;
  std::string hung_;
  std::atomic<FetchId> next_ = 1;
  std::atomic<uint64_t> fetched_ = 0;
  Mutex mutex_;
  std::map<std::string, Code> broken_ GUARDED_BY(mutex_);
  uint64_t gather_from_ GUARDED_BY(mutex_) = UINT64_MAX;
  size_t gather_ GUARDED_BY(mutex_) = 0;
  std::set<std::string> gathered_paths_ GUARDED_BY(mutex_);
  std::vector<std::function<void()>> gathered_ GUARDED_BY(mutex_);
  std::map<FetchId, std::shared_ptr<FetchSink>> waiting_ GUARDED_BY(mutex_);
  WorkerPool pool_{"origin", 2};
};

inline std::string Model(const std::string& header, size_t data) {
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) {
    file[static_cast<size_t>(i)] =
        static_cast<char>(header.size() >> (8 * i) & 0xff);
  }
  file += header;
  for (size_t i = 0; i < data; ++i) file += static_cast<char>(i * 31 % 251);
  return file;
}

inline constexpr char kHeader[] =
    R"({"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b/c":{"dtype":"F4","shape":[4],"data_offsets":[24,26]}})";

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_FS_MEMORY_ORIGIN_H_
