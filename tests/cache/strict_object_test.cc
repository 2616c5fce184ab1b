// Reads that are held back until the whole file is verified.

#include "cache/strict_object.h"

#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <optional>
#include <thread>

#include "cache/cache_space.h"
#include "cache/content_hash.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr uint64_t kStrictSize = 20 * kG + 77;
constexpr milliseconds kLong{30'000};

// What a Fetcher's object does, one granule at a time.
class FakeObject final : public Object {
 public:
  // How the fetch of a granule ends; nothing: not before it is cancelled.
  using Plot = std::function<std::optional<Result<>>(uint64_t granule)>;

  FakeObject(FileInfo file, Plot plot)
      : info_(std::move(file)), plot_(std::move(plot)) {}

  const FileInfo& info() const override { return info_; }
  bool TryRead(uint64_t, std::span<std::byte>) override { return false; }
  ReadId StartRead(uint64_t offset, std::span<std::byte>, const ReadOptions&,
                   Done done) override {
    const auto ended = plot_(offset / kG);
    if (ended) {
      done(*ended);
      return 1;
    }
    MutexLock lock(mutex_);
    hanging_ = std::move(done);
    return 1;
  }
  void CancelRead(ReadId) override {
    Done done;
    {
      MutexLock lock(mutex_);
      done = std::exchange(hanging_, nullptr);
    }
    if (!done) return;
    ++cancels;
    done(Error(Code::kCancelled, "cancelled"));
  }
  std::string WaitsFor(ReadId) const override { return "a fake"; }
  uint64_t Prefetch(uint64_t, uint64_t length) override { return length; }
  double CachedFraction() const override { return 0; }

  std::atomic<int> cancels{0};

 private:
  const FileInfo info_;
  const Plot plot_;
  Mutex mutex_;
  Done hanging_ GUARDED_BY(mutex_);
};

// A read that was started; it must live until it ended.
class Reading {
 public:
  Reading(Object& object, uint64_t offset, uint64_t length,
          milliseconds patience)
      : offset_(offset), bytes_(length) {
    id = object.StartRead(
        offset, bytes_, ReadOptions{Clock::System().Now() + patience},
        [this](Result<> result) { promise_.set_value(std::move(result)); });
  }
  bool ended() {
    return end_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }
  Result<> Wait() {
    if (end_.wait_for(std::chrono::minutes(1)) != std::future_status::ready) {
      ADD_FAILURE() << "a read did not end";
      std::abort();  // its memory is still in use
    }
    return end_.get();
  }
  bool right() const { return bytes_ == Pattern(offset_, bytes_.size()); }

  ReadId id = 0;

 private:
  const uint64_t offset_;
  std::vector<std::byte> bytes_;
  std::promise<Result<>> promise_;
  std::future<Result<>> end_ = promise_.get_future();
};

class StrictObjectTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    disk_.skip_mapping_sync = true;
    ContentHash hash(ContentId::Kind::kSha256, kStrictSize);
    hash.Add(Pattern(0, kStrictSize));
    info_ = {
        "model.bin", kStrictSize, {ContentId::Kind::kSha256, hash.Finish()}};
    OpenFile(kStrictSize, info_.id);
    timers_.emplace("wfs-timer");
    pool_.emplace("wfs-pool", 2);
    verifier_.emplace();
    Restrict(UINT64_MAX);
  }
  void TearDown() override {
    strict_.reset();
    object_.reset();
    verifier_.reset();
    timers_.reset();
    pool_.reset();
    ObjectCacheTest::TearDown();
  }

  void Restrict(uint64_t largest) {
    strict_.emplace(StrictReads::Parts{.timers = &*timers_,
                                       .pool = &*pool_,
                                       .verifier = &*verifier_,
                                       .largest = largest});
  }
  void Wrap(FakeObject::Plot plot) {
    inner_ = std::make_shared<FakeObject>(info_, std::move(plot));
    object_ = strict_->Wrap(inner_, file_, [this] { return Reopened(); });
    verifier_->Watch(info_, file_);
  }
  // The verifier has let go of a file that is right.
  void AwaitSealed() {
    const auto until = Clock::System().Now() + kLong;
    while (verifier_->stats().sealed == 0 && Clock::System().Now() < until) {
      std::this_thread::yield();
    }
    ASSERT_EQ(verifier_->stats().sealed, 1u);
  }
  // Each granule is fetched at once and kept.
  FakeObject::Plot Fetches(uint64_t seed = 0) {
    return [this, seed](uint64_t g) {
      ++fetched_;
      return std::optional(PutPattern(*file_, g, seed));
    };
  }
  std::shared_ptr<Object> Reopened() {
    MutexLock lock(mutex_);
    return reopened_;
  }
  static FakeObject::Plot Hangs() {
    return [](uint64_t) { return std::nullopt; };
  }

  FileInfo info_;
  std::optional<TimerQueue> timers_;
  std::optional<WorkerPool> pool_;
  std::optional<Verifier> verifier_;
  std::optional<StrictReads> strict_;
  std::shared_ptr<FakeObject> inner_;
  std::shared_ptr<Object> object_;
  Mutex mutex_;
  std::shared_ptr<Object> reopened_ GUARDED_BY(mutex_);
  std::atomic<int> fetched_{0};
};

TEST_F(StrictObjectTest, AReadFetchesAllAndWaitsForTheHash) {
  std::atomic<bool> stop_at_last = true;
  Wrap([&](uint64_t g) -> std::optional<Result<>> {
    if (g == 20 && stop_at_last) return Error(Code::kUnavailable, "not yet");
    return PutPattern(*file_, g);
  });
  Reading read(*object_, 5, 3 * kG, kLong);
  while (!file_->Has(19)) std::this_thread::yield();
  EXPECT_FALSE(read.ended());
  std::vector<std::byte> out(10);
  EXPECT_FALSE(object_->TryRead(0, out));
  EXPECT_FALSE(object_->TryLend(0, 10));
  stop_at_last = false;
  ASSERT_OK(read.Wait());
  EXPECT_TRUE(read.right());
  EXPECT_TRUE(file_->verified());
  EXPECT_TRUE(object_->TryRead(0, out));
  EXPECT_EQ(out, Pattern(0, 10));
  AwaitSealed();
  const auto lent = object_->TryLend(5, kG);
  ASSERT_TRUE(lent);
  ASSERT_EQ(lent->parts.size(), 1u);
  EXPECT_THAT(lent->parts[0], testing::ElementsAreArray(Pattern(5, kG)));
}

TEST_F(StrictObjectTest, WhatLostBytesIsHeldBackAgain) {
  Wrap(Fetches());
  ASSERT_OK(Reading(*object_, 0, 10, kLong).Wait());
  AwaitSealed();
  TestEvictor evictor(folder(), VerifiedPath(info_.id), disk_);
  ASSERT_TRUE(evictor.valid() && evictor.Evict(0));
  // Other bytes come, which nobody checked yet.
  for (uint64_t g = 0; g < 20; ++g) ASSERT_OK(PutPattern(*file_, g, 9));
  std::vector<std::byte> out(10);
  EXPECT_FALSE(object_->TryRead(0, out));
  EXPECT_FALSE(object_->TryLend(0, 10));
  Reading read(*object_, 0, 10, kLong);
  while (!file_->Has(20)) std::this_thread::yield();
  while (file_->IsWhole()) std::this_thread::yield();  // wrong: poisoned
  EXPECT_FALSE(read.ended());
  strict_->Stop();
  EXPECT_THAT(read.Wait(), HasCode(Code::kCancelled));
}

TEST_F(StrictObjectTest, AReadGoesOnWithTheFileOpenedAnew) {
  Wrap(Fetches(9));
  Reading read(*object_, kG, 10, kLong);
  while (file_->IsWhole()) std::this_thread::yield();
  OpenFile(kStrictSize, info_.id);
  auto inner = std::make_shared<FakeObject>(info_, Fetches());
  verifier_->Watch(info_, file_);
  EXPECT_FALSE(read.ended());
  {
    MutexLock lock(mutex_);
    reopened_ = strict_->Wrap(inner, file_, [] { return nullptr; });
  }
  ASSERT_OK(read.Wait());
  EXPECT_TRUE(read.right());
  MutexLock lock(mutex_);
  reopened_.reset();
}

// A second of fetching, and never so long without a granule.
TEST_F(StrictObjectTest, AReadWaitsAsLongAsBytesCome) {
  Wrap([&](uint64_t g) -> std::optional<Result<>> {
    ++fetched_;
    return PutPattern(*file_, g);
  });
  const auto start = Clock::System().Now();
  const auto deadline = start + milliseconds(500);
  Reading read(*object_, 0, 10, milliseconds(500));
  while (fetched_ < 15) std::this_thread::yield();
  EXPECT_GT(object_->Until(read.id, deadline), deadline);
  ASSERT_OK(read.Wait());
  EXPECT_TRUE(read.right());
  EXPECT_GT(Clock::System().Now(), deadline);
}

TEST_F(StrictObjectTest, NothingComesAndTheReadsEnd) {
  Wrap(Hangs());
  Reading first(*object_, 0, 10, milliseconds(200));
  Reading second(*object_, kG, 10, milliseconds(200));
  const auto result = first.Wait();
  ASSERT_THAT(result, HasCode(Code::kUnavailable));
  EXPECT_THAT(result.error().message(), HasSubstr("model.bin bytes 0-9"));
  EXPECT_THAT(second.Wait(), HasCode(Code::kUnavailable));
  // The kernel's own repetition waits for nothing.
  Reading again(*object_, 0, 10, kLong);
  EXPECT_THAT(again.Wait(), HasCode(Code::kUnavailable));
  while (inner_->cancels == 0) std::this_thread::yield();
}

TEST_F(StrictObjectTest, ACancelledReadEndsAtOnce) {
  Wrap(Hangs());
  Reading read(*object_, 0, 10, kLong);
  EXPECT_THAT(object_->WaitsFor(read.id), HasSubstr("hash of the whole file"));
  object_->CancelRead(read.id);
  EXPECT_THAT(read.Wait(), HasCode(Code::kCancelled));
  object_->CancelRead(read.id);
}

TEST_F(StrictObjectTest, AnErrorThatNoRetryMendsIsTold) {
  Wrap([](uint64_t) { return Result<>(Error(Code::kDenied, "gated")); });
  Reading read(*object_, 0, 10, kLong);
  EXPECT_THAT(read.Wait(), HasCode(Code::kDenied));
}

TEST_F(StrictObjectTest, ACacheThatKeepsNothingIsTold) {
  Wrap([](uint64_t) { return Result<>(); });
  Reading read(*object_, 0, 10, kLong);
  const auto result = read.Wait();
  ASSERT_THAT(result, HasCode(Code::kNoSpace));
  EXPECT_THAT(result.error().message(), HasSubstr("--cache-size"));
}

TEST_F(StrictObjectTest, AFileThatTheCacheCannotHoldIsRefusedAtOnce) {
  Restrict(kStrictSize - 1);
  Wrap(Fetches());
  Reading read(*object_, 0, 10, kLong);
  EXPECT_THAT(read.Wait(), HasCode(Code::kNoSpace));
  EXPECT_EQ(fetched_, 0);
}

TEST_F(StrictObjectTest, AStopEndsReadsAndLaterOnes) {
  Wrap(Hangs());
  Reading read(*object_, 0, 10, kLong);
  strict_->Stop();
  EXPECT_THAT(read.Wait(), HasCode(Code::kCancelled));
  Reading late(*object_, 0, 10, kLong);
  EXPECT_THAT(late.Wait(), HasCode(Code::kCancelled));
}

// An ObjectSource has a limit of its own, which follows.
TEST_F(StrictObjectTest, ASourceWaitsAsLongAsBytesCome) {
  Wrap(Fetches());
  ObjectSource source(object_, milliseconds(200));
  std::vector<std::byte> out(10);
  ASSERT_OK(source.ReadAt(7 * kG, out));
  EXPECT_EQ(out, Pattern(7 * kG, 10));
}

TEST(LargestWholeObjectTest, LeavesTheEvictorItsHeadroom) {
  EXPECT_EQ(LargestWholeObject(UINT64_MAX), UINT64_MAX);
  EXPECT_EQ(LargestWholeObject(0), 0);
  const uint64_t gib = uint64_t{1} << 30;
  const uint64_t most = LargestWholeObject(80 * gib);
  EXPECT_LT(most, 79 * gib);
  EXPECT_GT(most, 78 * gib);
}

}  // namespace
}  // namespace weightfs
