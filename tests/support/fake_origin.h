// FakeOrigin: an origin whose every fetch is a test's to play: what bytes come
// when, and how it ends. It records each StartFetch and CancelFetch.
//
// Two ways to play it. By hand: WaitForStarts(), then Give() and End() from the
// test's thread. Or by a script that runs for each fetch on threads of its own
// (`Play`). CancelFetch ends a fetch that is played by hand with kCancelled at
// once, from a thread of its own, unless HangOnCancel().
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_FAKE_ORIGIN_H_
#define WEIGHTFS_TESTS_SUPPORT_FAKE_ORIGIN_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/origin.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

// The bytes of every file of a FakeOrigin: a function of path and offset.
std::vector<std::byte> FakeBytes(const std::string& path, uint64_t offset,
                                 uint64_t length);

class FakeOrigin final : public Origin {
 public:
  struct Start {
    FetchId id = 0;
    std::string path;
    uint64_t offset = 0;
    uint64_t length = 0;
    bool cancelled = false;
    bool ended = false;
  };
  // How a scripted fetch goes: chunks of `chunk` bytes, `give` bytes at most
  // (more than asked for: too much is given), then `result`.
  struct Plot {
    uint64_t give = UINT64_MAX;
    uint64_t chunk = 16 * 1024;
    Result<> result;
  };
  using Script = std::function<Plot(const Start&)>;

  explicit FakeOrigin(std::string cache_namespace = "https://fake.test");
  ~FakeOrigin() override;

  FileInfo AddFile(const std::string& path, uint64_t size);
  // From now on fetches run by `script`, on `threads` threads.
  void Play(size_t threads, Script script) EXCLUDES(mutex_);
  void HangOnCancel() EXCLUDES(mutex_);
  // Called before the test looks at the starts or plays one: waits for those
  // that are on their way here. To be set before fetches.
  void BeforeLook(std::function<void()> settle) { settle_ = std::move(settle); }

  // All starts so far, in order.
  std::vector<Start> starts() const EXCLUDES(mutex_);
  // Waits until there are `count` starts at least, a minute at most.
  std::vector<Start> WaitForStarts(size_t count) EXCLUDES(mutex_);
  void WaitForCancels(size_t count) EXCLUDES(mutex_);

  // By hand, on the caller's thread. `index`: of the start. Give returns what
  // the sink said.
  bool Give(size_t index, uint64_t bytes) EXCLUDES(mutex_);
  bool GiveRaw(size_t index, std::span<const std::byte> bytes) EXCLUDES(mutex_);
  void End(size_t index, Result<> result) EXCLUDES(mutex_);
  // An answer of this status without bytes, worth a retry.
  void Refuse(size_t index, int status) EXCLUDES(mutex_);
  // All that is left, and the end.
  void Finish(size_t index) EXCLUDES(mutex_);
  // Finishes fetches from `index` on until none is open.
  void FinishAll(size_t index = 0) EXCLUDES(mutex_);

  const std::string& name() const override { return name_; }
  const std::string& cache_namespace() const override {
    return cache_namespace_;
  }
  Result<std::shared_ptr<const Snapshot>> List() override EXCLUDES(mutex_);
  FetchId StartFetch(const FileInfo& file, uint64_t offset, uint64_t length,
                     std::shared_ptr<FetchSink> sink) override EXCLUDES(mutex_);
  void CancelFetch(FetchId id) override EXCLUDES(mutex_);

 private:
  struct Fetch {
    Start start;
    uint64_t given = 0;
    std::shared_ptr<FetchSink> sink;  // null once ended
  };

  void RunScript(const std::shared_ptr<Fetch>& fetch, const Script& script)
      EXCLUDES(mutex_);
  bool IsCancelled(const Fetch& fetch) EXCLUDES(mutex_);
  std::shared_ptr<FetchSink> TakeSink(Fetch& fetch) EXCLUDES(mutex_);

  const std::string name_ = "https://fake.test/org/name";
  const std::string cache_namespace_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<FileInfo> files_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Fetch>> fetches_ GUARDED_BY(mutex_);
  Script script_ GUARDED_BY(mutex_);
  bool hang_on_cancel_ GUARDED_BY(mutex_) = false;
  std::function<void()> settle_ = [] {};
  std::unique_ptr<WorkerPool> players_;  // set by Play, before fetches
  WorkerPool canceller_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_FAKE_ORIGIN_H_
