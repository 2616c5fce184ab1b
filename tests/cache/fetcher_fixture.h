// What the tests of the fetcher share: an object over a FakeOrigin and a
// FakeCacheFile, and reads whose end can be waited for.

#ifndef WEIGHTFS_TESTS_CACHE_FETCHER_FIXTURE_H_
#define WEIGHTFS_TESTS_CACHE_FETCHER_FIXTURE_H_

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/fetcher.h"
#include "tests/support/fake_cache_file.h"
#include "tests/support/fake_origin.h"
#include "tests/support/gate.h"
#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

namespace weightfs {

// A read that was started. It must live until it ended.
class Reading {
 public:
  Reading(uint64_t offset, uint64_t length)
      : offset_(offset), bytes_(length), end_(promise_.get_future()) {}

  std::span<std::byte> out() { return bytes_; }
  Object::Done Done() {
    return [this](Result<> result) {
      ASSERT_EQ(++ends_, 1) << "done ran twice";
      promise_.set_value(std::move(result));
    };
  }
  bool ended() const { return ends_ > 0; }
  // Waits for the end, a minute at most.
  Result<> Wait() {
    if (end_.wait_for(std::chrono::minutes(1)) != std::future_status::ready) {
      ADD_FAILURE() << "a read did not end";
      std::abort();  // its memory is still in use
    }
    return end_.get();
  }
  // Waits; OK and the right bytes.
  ::testing::AssertionResult Is(const std::string& path) {
    const auto result = Wait();
    if (!result.has_value()) {
      return ::testing::AssertionFailure() << result.error().ToString();
    }
    if (bytes_ != FakeBytes(path, offset_, bytes_.size())) {
      return ::testing::AssertionFailure() << "wrong bytes at " << offset_;
    }
    return ::testing::AssertionSuccess();
  }

  ReadId id = 0;

 private:
  const uint64_t offset_;
  std::vector<std::byte> bytes_;
  std::atomic<int> ends_{0};
  std::promise<Result<>> promise_;
  std::future<Result<>> end_;
};

class FetcherTest : public ::testing::Test {
 protected:
  FetcherTest() {
    // Hands play slowly; only some tests want it.
    options_.stall_patience = std::chrono::hours(1);
    options_.slow_patience = std::chrono::hours(1);
    options_.most_connections = 0;   // as many as at first
    options_.max_ahead_request = 0;  // as others
    options_.first_backoff = std::chrono::milliseconds(1);
    options_.max_backoff = std::chrono::milliseconds(4);
    options_.seed = 42;
    origin_.BeforeLook([this] { Settle(); });
  }
  ~FetcherTest() override {
    gate_.Open();
    if (fetcher_) fetcher_->Stop();
    pool_.Stop();
  }

  // A file with a cache, in whole granules or bytes.
  void Open(uint64_t size) {
    Make();
    info_ = origin_.AddFile("model.bin", size);
    cache_ = std::make_shared<FakeCacheFile>(size);
    object_ = fetcher_->OpenObject(info_, cache_);
  }
  void OpenWithoutCache(uint64_t size) {
    Make();
    info_ = origin_.AddFile("model.bin", size);
    object_ = fetcher_->OpenObject(info_, nullptr);
  }
  // Waits until every fetch that was decided on has reached the origin.
  void Settle() {
    const auto until = Clock::System().Now() + std::chrono::seconds(60);
    while (fetcher_ && fetcher_->stats().claiming > 0) {
      ASSERT_LT(Clock::System().Now(), until) << "a claim is not answered";
      std::this_thread::yield();
    }
  }
  void Make() {
    if (!fetcher_)
      fetcher_ = Fetcher::Create(origin_, timers_, pool_, options_);
  }

  std::shared_ptr<Reading> Read(uint64_t offset, uint64_t length,
                                Clock::Time deadline = Clock::Time::max()) {
    return ReadOf(*object_, offset, length, deadline);
  }
  std::shared_ptr<Reading> ReadOf(Object& object, uint64_t offset,
                                  uint64_t length,
                                  Clock::Time deadline = Clock::Time::max()) {
    auto reading = std::make_shared<Reading>(offset, length);
    reading->id =
        object.StartRead(offset, reading->out(), {deadline}, reading->Done());
    readings_.push_back(reading);
    return reading;
  }
  ::testing::AssertionResult IsRight(const std::shared_ptr<Reading>& reading) {
    return reading->Is(info_.path);
  }
  // The cache has this granule.
  void Keep(uint64_t granule) {
    const uint64_t begin = granule * kG;
    const uint64_t length = std::min(kG, info_.size - begin);
    ASSERT_OK(cache_->Put(granule, FakeBytes(info_.path, begin, length)));
  }
  // "offset+length" of the starts, from the n-th on, in granules.
  std::vector<std::string> Ranges(size_t from = 0) {
    std::vector<std::string> ranges;
    const auto starts = origin_.starts();
    for (size_t i = from; i < starts.size(); ++i) {
      EXPECT_EQ(starts[i].offset % kG, 0u);
      ranges.push_back(fmt::format("{}+{}", starts[i].offset / kG,
                                   (starts[i].length + kG - 1) / kG));
    }
    return ranges;
  }

  Gate gate_;  // outlives the pool's threads that pass it
  FakeOrigin origin_;
  FetcherOptions options_;
  std::vector<std::shared_ptr<Reading>> readings_;  // outlive the pool
  TimerQueue timers_{"timers"};
  WorkerPool pool_{"pool", 8};
  std::unique_ptr<Fetcher> fetcher_;
  FileInfo info_;
  std::shared_ptr<FakeCacheFile> cache_;
  std::shared_ptr<Object> object_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_FETCHER_FIXTURE_H_
