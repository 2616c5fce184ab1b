// What was fetched for later and is in the cache stays in memory until its
// reader came.

#include <latch>
#include <thread>

#include "cache/unread_bytes.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

class FetcherUnreadTest : public FetcherTest {
 protected:
  // Waits until the pool is through with what it was asked for so far: once all
  // of its threads are here at once, none of them is in a task.
  void AwaitPool() {
    auto together = std::make_shared<std::latch>(kPoolThreads + 1);
    for (int i = 0; i < kPoolThreads; ++i) {
      ASSERT_TRUE(pool_.Submit([together] { together->arrive_and_wait(); }));
    }
    together->arrive_and_wait();
  }
  // Waits until the cache has so many granules, and nothing is being written:
  // a write asks for the next one before it ends.
  void AwaitWritten(size_t granules) {
    cache_->WaitForGranules(granules);
    AwaitPool();
  }
  // Fetches granules for later, until they are in the cache.
  void PrefetchToCache(uint64_t first, uint64_t count) {
    object_->Prefetch(first * kG, count * kG);
    origin_.FinishAll();
    AwaitWritten(count);
  }
  // Waits until what was written so far has lived for its time, and the timers
  // that are due by then ran.
  void AwaitOldAge() {
    std::promise<void> old;
    timers_.At(Clock::System().Now() + UnreadBytes::kLife,
               [&] { old.set_value(); });
    old.get_future().wait();
  }
  // Whether TryRead gives the bytes, and gives the right ones.
  ::testing::AssertionResult Tries(uint64_t offset, uint64_t length) {
    std::vector<std::byte> out(length);
    if (!object_->TryRead(offset, out)) {
      return ::testing::AssertionFailure() << "nothing at " << offset;
    }
    if (out != FakeBytes(info_.path, offset, length)) {
      return ::testing::AssertionFailure() << "wrong bytes at " << offset;
    }
    return ::testing::AssertionSuccess();
  }
  // Whether TryLend gives the bytes, and gives the right ones.
  ::testing::AssertionResult Lends(uint64_t offset, uint64_t length) {
    const auto lent = object_->TryLend(offset, length);
    if (!lent) return ::testing::AssertionFailure() << "nothing at " << offset;
    if (Join(*lent) != FakeBytes(info_.path, offset, length)) {
      return ::testing::AssertionFailure() << "wrong bytes at " << offset;
    }
    return ::testing::AssertionSuccess();
  }
  static std::vector<std::byte> Join(const LentBytes& lent) {
    std::vector<std::byte> all;
    for (const auto& part : lent.parts) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  // How often the cache was asked for bytes.
  size_t CacheReads() const { return cache_->reads() + cache_->tries(); }

 private:
  static constexpr int kPoolThreads = 8;  // FetcherTest::pool_'s
};

TEST_F(FetcherUnreadTest, TryReadIsAnsweredFromMemoryOnce) {
  Open(8 * kG + 77);
  PrefetchToCache(0, 9);
  for (uint64_t g = 0; g < 8; g += 2) EXPECT_TRUE(Tries(g * kG, 2 * kG));
  EXPECT_TRUE(Tries(8 * kG, 77));
  EXPECT_EQ(CacheReads(), 0u);
  // Each byte was taken: now it is the cache that is asked.
  EXPECT_FALSE(Tries(0, kG));
  EXPECT_EQ(cache_->tries(), 1u);
  cache_->AllowTryRead();
  EXPECT_TRUE(Tries(0, 8 * kG + 77));
  EXPECT_EQ(cache_->tries(), 2u);
}

TEST_F(FetcherUnreadTest, WhatIsInMemoryIsLentOnce) {
  Open(8 * kG + 77);
  PrefetchToCache(0, 9);
  EXPECT_TRUE(Lends(5, 2 * kG - 5));
  EXPECT_TRUE(Lends(2 * kG, 6 * kG + 77));
  EXPECT_EQ(CacheReads(), 0u);
  EXPECT_TRUE(Lends(0, 5)) << "the first granule was not all taken";
  EXPECT_FALSE(Lends(0, 5));
  EXPECT_FALSE(Lends(2 * kG, kG));
}

TEST_F(FetcherUnreadTest, WhatIsLentOutlivesTheObject) {
  Open(2 * kG);
  PrefetchToCache(0, 2);
  const auto lent = object_->TryLend(1, kG);
  ASSERT_TRUE(lent);
  object_.reset();
  cache_.reset();
  EXPECT_EQ(Join(*lent), FakeBytes(info_.path, 1, kG));
}

TEST_F(FetcherUnreadTest, WhatTheCacheLendsIsPinned) {
  Open(2 * kG);
  for (const uint64_t g : {0, 1}) Keep(g);
  cache_->OnPin([] { ADD_FAILURE() << "pinned what is not verified"; });
  EXPECT_FALSE(Lends(0, kG));
  cache_->OnPin({});
  cache_->AllowTryLend();
  EXPECT_TRUE(Lends(3, 2 * kG - 3));
  {
    const auto lent = object_->TryLend(0, kG);
    ASSERT_TRUE(lent);
    EXPECT_EQ(cache_->pins(), 1u);
  }
  EXPECT_EQ(cache_->pins(), 0u);
}

TEST_F(FetcherUnreadTest, NothingIsLentOfWhatIsKnownToBeWrong) {
  Open(4 * kG);
  PrefetchToCache(0, 2);
  Keep(2);
  cache_->AllowTryLend();
  EXPECT_TRUE(Lends(0, kG));
  EXPECT_TRUE(Lends(2 * kG, kG));
  cache_->Poison();
  EXPECT_FALSE(Lends(kG, kG));
  EXPECT_FALSE(Lends(2 * kG, kG));
}

TEST_F(FetcherUnreadTest, StartReadIsAnsweredFromMemoryOnce) {
  Open(8 * kG + 77);
  PrefetchToCache(0, 9);
  EXPECT_TRUE(IsRight(Read(0, kG)));
  EXPECT_TRUE(IsRight(Read(kG, 7 * kG + 77)));
  EXPECT_EQ(CacheReads(), 0u);
  EXPECT_TRUE(IsRight(Read(0, 8 * kG + 77)));
  EXPECT_GT(cache_->reads(), 0u);
  EXPECT_EQ(fetcher_->stats().cache_read_failures, 0u);
}

TEST_F(FetcherUnreadTest, APartThatIsReadLeavesItsGranule) {
  Open(4 * kG);
  PrefetchToCache(0, 4);
  EXPECT_TRUE(Tries(0, kG - 1));        // all but the last byte
  EXPECT_TRUE(Tries(kG - 1, 2));        // the last, and the next one's first
  EXPECT_FALSE(Tries(0, 10));           // that one went
  EXPECT_TRUE(Tries(kG + 5, 100));      // the next one stayed
  EXPECT_TRUE(IsRight(Read(kG, 100)));  // as it does here
  EXPECT_EQ(cache_->reads(), 0u);
  EXPECT_TRUE(IsRight(Read(kG + 1, kG)));  // to its end, and one byte more
  EXPECT_EQ(cache_->reads(), 0u);
  EXPECT_FALSE(Tries(2 * kG - 1, 1));
  EXPECT_TRUE(Tries(2 * kG, kG));
}

TEST_F(FetcherUnreadTest, MemoryAndTheCacheServeOneRead) {
  Open(24 * kG);
  for (const uint64_t g : {0, 3, 4, 20, 23}) Keep(g);
  object_->Prefetch(0, 24 * kG);
  origin_.FinishAll();
  AwaitWritten(24);
  EXPECT_TRUE(IsRight(Read(7, 24 * kG - 9)));
  // 0, 3 and 4, 20, and 23; the last one's first bytes do not end it.
  EXPECT_EQ(cache_->reads(), 4u);
}

// TryRead takes all of its bytes from one of the two.
TEST_F(FetcherUnreadTest, WhatMemoryHasOnlyAPartOfIsTheCaches) {
  Open(4 * kG);
  for (const uint64_t g : {0, 2}) Keep(g);
  PrefetchToCache(0, 4);
  EXPECT_FALSE(Tries(0, 2 * kG));
  EXPECT_FALSE(Tries(kG, 2 * kG));
  EXPECT_EQ(cache_->tries(), 2u);
  cache_->AllowTryRead();
  EXPECT_TRUE(Tries(0, 4 * kG));
}

// Nobody comes for it again.
TEST_F(FetcherUnreadTest, WhatAReaderWaitedForIsNotKept) {
  Open(4 * kG);
  auto reading = Read(0, kG);
  auto part = Read(kG, 100);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(IsRight(part));
  AwaitWritten(2);
  EXPECT_FALSE(Tries(0, 10));
  EXPECT_TRUE(Tries(kG + 100, kG - 100));  // the rest is still to come
  EXPECT_FALSE(Tries(kG, kG));
}

TEST_F(FetcherUnreadTest, WhatIsReadWhileItIsWrittenIsNotKept) {
  options_.disk_writes = 3;
  Open(3 * kG);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  object_->Prefetch(0, 3 * kG);
  origin_.FinishAll();
  gate_.WaitForWaiters(3);
  EXPECT_TRUE(Tries(0, kG));
  EXPECT_TRUE(Tries(0, kG));  // until it is in the cache
  EXPECT_TRUE(IsRight(Read(kG, kG)));
  EXPECT_TRUE(Tries(2 * kG, kG - 1));
  gate_.Open();
  AwaitWritten(3);
  EXPECT_EQ(CacheReads(), 0u);
  EXPECT_FALSE(Tries(0, 1));
  EXPECT_FALSE(Tries(kG, 1));
  EXPECT_TRUE(Tries(2 * kG, kG));
}

TEST_F(FetcherUnreadTest, WhatTheCacheDidNotTakeIsNotKept) {
  Open(4 * kG);
  cache_->OnPut([](uint64_t granule) {
    return granule == 1 ? Result<>(Error(Code::kNoSpace, "disk full"))
                        : Result<>();
  });
  object_->Prefetch(0, 4 * kG);
  origin_.FinishAll();
  AwaitWritten(3);
  EXPECT_FALSE(Tries(kG, kG));
  EXPECT_TRUE(Tries(0, kG));
}

TEST_F(FetcherUnreadTest, ItsMemoryIsBounded) {
  options_.max_backlog_bytes = 3 * kG;
  options_.disk_writes = 1;
  Open(8 * kG);
  PrefetchToCache(0, 8);
  for (uint64_t g = 0; g < 5; ++g) EXPECT_FALSE(Tries(g * kG, 1)) << g;
  for (uint64_t g = 5; g < 8; ++g) EXPECT_TRUE(Tries(g * kG, 1)) << g;
}

// What waits for the disk takes room from it.
TEST_F(FetcherUnreadTest, ItsMemoryIsSharedWithWhatIsUnwritten) {
  options_.max_backlog_bytes = 3 * kG;
  Open(8 * kG);
  PrefetchToCache(0, 3);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  auto reading = Read(4 * kG, 2 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  size_t left = 0;
  for (uint64_t g = 0; g < 3; ++g) left += Tries(g * kG, 1) ? 1 : 0;
  EXPECT_EQ(left, 1u);
  gate_.Open();
  cache_->WaitForGranules(5);
}

// Readers' own bytes, which wait for the disk, may be more than its whole
// budget.
TEST_F(FetcherUnreadTest, WhatIsUnwrittenMayLeaveNoRoom) {
  Gate later;
  options_.max_backlog_bytes = 2 * kG;
  options_.disk_writes = 1;
  Open(8 * kG);
  cache_->OnPut([&](uint64_t granule) {
    (granule == 0 ? gate_ : later).Pass();
    return Result<>();
  });
  object_->Prefetch(0, kG);
  origin_.FinishAll();
  gate_.WaitForWaiters(1);
  auto reading = Read(4 * kG, 4 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  gate_.Open();
  later.WaitForWaiters(1);  // the first write is over
  EXPECT_FALSE(Tries(0, 1));
  later.Open();
  AwaitWritten(5);
}

// Those who know that the cache file is wrong must not be given its bytes.
TEST_F(FetcherUnreadTest, APoisonedFileIsNotServed) {
  Open(4 * kG);
  PrefetchToCache(0, 4);
  EXPECT_TRUE(Tries(0, kG));
  cache_->Poison();
  EXPECT_FALSE(Tries(kG, kG));
  EXPECT_FALSE(Tries(2 * kG, 10));
}

TEST_F(FetcherUnreadTest, FilesDoNotMixTheirGranules) {
  Open(4 * kG);
  const FileInfo other_info = origin_.AddFile("other.bin", 4 * kG);
  const auto other_cache = std::make_shared<FakeCacheFile>(4 * kG);
  const auto other = fetcher_->OpenObject(other_info, other_cache);
  object_->Prefetch(0, 2 * kG);
  other->Prefetch(kG, 2 * kG);
  origin_.FinishAll();
  other_cache->WaitForGranules(2);
  AwaitWritten(2);
  std::vector<std::byte> out(kG);
  EXPECT_FALSE(other->TryRead(0, out));
  EXPECT_TRUE(other->TryRead(kG, out));
  EXPECT_EQ(out, FakeBytes("other.bin", kG, kG));
  EXPECT_TRUE(Tries(kG, kG));
  EXPECT_FALSE(Tries(2 * kG, kG));
}

// The last who had the file open went; its granules are in memory still.
TEST_F(FetcherUnreadTest, AFileThatIsClosedLeavesNoTrace) {
  options_.max_backlog_bytes = 4 * kG;
  Open(4 * kG);
  PrefetchToCache(0, 4);
  object_.reset();
  // Threads let go of it soon; memory would not by then.
  const auto until = Clock::System().Now() + UnreadBytes::kLife / 2;
  while (cache_.use_count() > 1) {
    ASSERT_LT(Clock::System().Now(), until) << "memory keeps the file open";
    std::this_thread::yield();
  }
  object_ = fetcher_->OpenObject(info_, cache_);
  EXPECT_FALSE(Tries(0, kG));
  // Others come into its room.
  info_ = origin_.AddFile("other.bin", 4 * kG);
  cache_ = std::make_shared<FakeCacheFile>(4 * kG);
  object_ = fetcher_->OpenObject(info_, cache_);
  PrefetchToCache(0, 4);
  EXPECT_TRUE(Tries(0, 4 * kG));
}

TEST_F(FetcherUnreadTest, StopKeepsNothing) {
  Open(4 * kG);
  PrefetchToCache(0, 3);
  EXPECT_TRUE(Tries(2 * kG, 1));
  fetcher_->Stop();
  EXPECT_FALSE(Tries(0, kG));
  cache_->AllowTryRead();
  EXPECT_TRUE(Tries(0, 3 * kG));
}

TEST_F(FetcherUnreadTest, WhatIsWrittenWhileItStopsIsNotKept) {
  Open(8 * kG);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  object_->Prefetch(0, 2 * kG);
  origin_.FinishAll();
  gate_.WaitForWaiters(2);
  auto reading = Read(4 * kG, kG);
  std::jthread stop([&] { fetcher_->Stop(); });
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));  // it stops
  gate_.Open();
  stop.join();
  EXPECT_EQ(object_->CachedFraction(), 0.25);
  EXPECT_FALSE(Tries(0, kG));
  EXPECT_FALSE(Tries(kG, kG));
}

// A reader that is right behind the fetches: what it tried in vain is still in
// memory when it waits for the rest.
TEST_F(FetcherUnreadTest, WhatWasTriedInVainStays) {
  Open(8 * kG);
  PrefetchToCache(0, 3);
  const size_t fetches = origin_.starts().size();
  auto rest = Read(3 * kG, kG);  // is on its way
  origin_.WaitForStarts(fetches + 1);
  EXPECT_FALSE(Tries(0, 4 * kG));
  auto reading = Read(0, 4 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(IsRight(rest));
  EXPECT_EQ(cache_->reads(), 0u);
}

// Two who share a granule: the one who takes its end came first.
TEST_F(FetcherUnreadTest, AGranulesBeginMayBeReadAfterItsEnd) {
  Open(4 * kG);
  PrefetchToCache(0, 4);
  EXPECT_TRUE(Tries(kG / 2, kG));
  EXPECT_TRUE(Tries(0, kG / 2));
}

// All of it: what goes last as well.
TEST_F(FetcherUnreadTest, WhatNobodyCameForIsTheSystemsAgain) {
  Open(64 * kG);
  PrefetchToCache(0, 64);
  EXPECT_TRUE(Tries(63 * kG, 1));
  AwaitOldAge();
  EXPECT_FALSE(Tries(63 * kG, 1));
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
}

// As above, where nothing was ever fetched for later.
TEST_F(FetcherUnreadTest, WhatReadersWaitedForIsTheSystemsAgain) {
  Open(64 * kG);
  auto reading = Read(0, 64 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  AwaitWritten(64);
  EXPECT_GT(ByteBuffer::IdleBytes(), 0u);
  AwaitOldAge();
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
}

// Each byte right, whoever reads what while it comes and goes.
TEST_F(FetcherUnreadTest, ManyReadersGetTheRightBytes) {
  options_.max_backlog_bytes = 16 * kG;
  Open(128 * kG);
  cache_->AllowTryRead();
  origin_.Play(4, [](const FakeOrigin::Start&) { return FakeOrigin::Plot(); });
  object_->Prefetch(0, 128 * kG);
  constexpr uint64_t kReaders = 4;
  std::vector<std::vector<std::shared_ptr<Reading>>> readings(kReaders);
  std::vector<std::jthread> threads;
  for (uint64_t t = 0; t < kReaders; ++t) {
    threads.emplace_back([this, t, &started = readings[t]] {
      std::vector<std::byte> out(kG);
      for (uint64_t i = t; i < 254; i += kReaders) {
        const uint64_t offset = i * kG / 2;
        if (object_->TryRead(offset, out)) {
          EXPECT_EQ(out, FakeBytes(info_.path, offset, kG)) << offset;
          continue;
        }
        started.push_back(std::make_shared<Reading>(offset, kG));
        Reading& reading = *started.back();
        object_->StartRead(offset, reading.out(), {}, reading.Done());
        EXPECT_TRUE(reading.Is(info_.path));
      }
    });
  }
  threads.clear();
  fetcher_->Stop();  // no `done` runs any more
}

}  // namespace
}  // namespace weightfs
