// A FetchSink that collects what comes, for tests of origins.

#ifndef WEIGHTFS_TESTS_SUPPORT_COLLECTING_SINK_H_
#define WEIGHTFS_TESTS_SUPPORT_COLLECTING_SINK_H_

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>

#include "cache/origin.h"
#include "formats/base/mutex.h"

namespace weightfs {

// A sink that remembers; waits for the end.
class CollectingSink final : public FetchSink {
 public:
  // Stops the fetch once it has `limit` bytes or more.
  explicit CollectingSink(uint64_t limit = std::numeric_limits<uint64_t>::max())
      : limit_(limit) {}

  bool OnData(std::span<const std::byte> data) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(ends_, 0) << "data after the end";
    EXPECT_FALSE(stopped_) << "data after the sink stopped";
    for (std::byte byte : data) bytes_.push_back(static_cast<char>(byte));
    changed_.NotifyAll();
    stopped_ = bytes_.size() >= limit_;
    return !stopped_;
  }
  void OnDone(Result<> result) override {
    MutexLock lock(mutex_);
    EXPECT_EQ(++ends_, 1) << "a second end";
    result_ = std::move(result);
    changed_.NotifyAll();
  }

  Result<> Wait() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (ends_ == 0) changed_.Wait(mutex_);
    return result_;
  }
  void WaitForBytes(uint64_t count) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (bytes_.size() < count && ends_ == 0) changed_.Wait(mutex_);
  }
  std::string bytes() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return bytes_;
  }
  bool done() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return ends_ != 0;
  }

 private:
  const uint64_t limit_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::string bytes_ GUARDED_BY(mutex_);
  bool stopped_ GUARDED_BY(mutex_) = false;
  int ends_ GUARDED_BY(mutex_) = 0;
  Result<> result_ GUARDED_BY(mutex_);
};

// Fetches a range and waits.
inline Result<std::string> FetchRange(Origin& origin, const FileInfo& file,
                                      uint64_t offset, uint64_t length) {
  auto sink = std::make_shared<CollectingSink>();
  origin.StartFetch(file, offset, length, sink);
  RETURN_IF_ERROR(sink->Wait());
  return sink->bytes();
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_COLLECTING_SINK_H_
