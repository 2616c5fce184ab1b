#include "cache/fetcher.h"

#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(FetcherTest, CollapsesConcurrentReadsOfOneGranule) {
  Open(4 * kG);
  std::vector<std::shared_ptr<Reading>> readings;
  for (uint64_t i = 0; i < 20; ++i) readings.push_back(Read(i * 100, 5000));
  origin_.WaitForStarts(1);
  origin_.Finish(0);
  for (const auto& reading : readings) EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  EXPECT_EQ(fetcher_->stats().bytes_fetched, kG);
}

TEST_F(FetcherTest, FetchesExactlyTheMissingGranules) {
  Open(8 * kG + 77);
  Keep(2);
  Keep(5);
  auto reading = Read(kG + 5, 7 * kG + 70);  // granules 1 to 8
  EXPECT_THAT(Ranges(), ElementsAre("1+1", "3+2", "6+3"));
  EXPECT_EQ(origin_.starts().back().length, 2 * kG + 77);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherTest, AGranuleInFlightIsNotFetchedAgain) {
  Open(8 * kG);
  auto first = Read(2 * kG, 2 * kG);
  auto second = Read(0, 8 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("2+2", "0+2", "4+4"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(first));
  EXPECT_TRUE(IsRight(second));
}

TEST_F(FetcherTest, SpreadsALargeReadOverFreeConnections) {
  options_.connections = 4;
  Open(64 * kG);
  auto reading = Read(0, 64 * kG);  // 8 MiB
  EXPECT_THAT(Ranges(), ElementsAre("0+16", "16+16", "32+16", "48+16"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherTest, NoRequestIsLongerThanAllowed) {
  options_.connections = 2;
  options_.max_request = 8 * kG;
  Open(40 * kG);
  auto reading = Read(0, 40 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(Ranges(), ElementsAre("0+8", "8+8", "16+8", "24+8", "32+8"));
}

TEST_F(FetcherTest, MergesAdjacentReadsThatWaitForAConnection) {
  options_.connections = 1;
  Open(16 * kG);
  auto blocker = Read(15 * kG, 1);
  auto first = Read(0, kG);
  auto second = Read(kG, kG);
  auto third = Read(2 * kG, kG);
  EXPECT_THAT(Ranges(), ElementsAre("15+1"));
  origin_.FinishAll();
  EXPECT_THAT(Ranges(), ElementsAre("15+1", "0+3"));
  for (const auto& r : {blocker, first, second, third}) EXPECT_TRUE(IsRight(r));
}

TEST_F(FetcherTest, AnswersEachWaiterBeforeTheFlightEnds) {
  Open(32 * kG);
  auto head = Read(0, 100);
  auto whole = Read(kG, 3 * kG);
  auto inside = Read(2 * kG, 10);
  origin_.WaitForStarts(2);
  ASSERT_TRUE(origin_.Give(1, 2 * kG));  // granules 1 and 2
  EXPECT_TRUE(IsRight(inside));
  EXPECT_FALSE(whole->ended());
  EXPECT_FALSE(head->ended());
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(whole));
  EXPECT_TRUE(IsRight(head));
}

TEST_F(FetcherTest, ServesWhatIsBeingWrittenFromMemory) {
  Open(2 * kG);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  auto first = Read(0, kG);
  origin_.Finish(0);
  EXPECT_TRUE(IsRight(first));
  gate_.WaitForWaiters(1);
  EXPECT_TRUE(IsRight(Read(50, 1000)));
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  EXPECT_EQ(cache_->reads(), 0u);
  gate_.Open();
  cache_->WaitForGranules(1);
}

TEST_F(FetcherTest, ReadsWhatTheCacheHasFromIt) {
  Open(20 * kG);
  for (uint64_t g = 0; g < 20; ++g) Keep(g);
  EXPECT_TRUE(IsRight(Read(7, 20 * kG - 9)));
  EXPECT_EQ(cache_->reads(), 3u);
  EXPECT_THAT(origin_.starts(), IsEmpty());
}

TEST_F(FetcherTest, KeepsWhatItFetched) {
  Open(3 * kG + 1);
  auto reading = Read(0, 3 * kG + 1);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  cache_->WaitForGranules(4);
  EXPECT_EQ(object_->CachedFraction(), 1.0);
  EXPECT_TRUE(IsRight(Read(3 * kG, 1)));
  EXPECT_EQ(origin_.starts().size(), 1u);
}

TEST_F(FetcherTest, WithoutACacheFetchesExactlyTheBytes) {
  OpenWithoutCache(40 * kG);
  auto small = Read(4095, 3);
  auto large = Read(1, 33 * kG);
  auto starts = origin_.starts();
  EXPECT_EQ(starts[0].offset, 4095u);
  EXPECT_EQ(starts[0].length, 3u);
  uint64_t next = 1;
  for (size_t i = 1; i < starts.size(); ++i) {
    EXPECT_EQ(starts[i].offset, next);
    EXPECT_LE(starts[i].length, options_.max_request);
    next += starts[i].length;
  }
  EXPECT_EQ(next, 1 + 33 * kG);
  EXPECT_GT(starts.size(), 2u);
  object_->Prefetch(0, 40 * kG);
  EXPECT_EQ(origin_.starts().size(), starts.size());
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(small));
  EXPECT_TRUE(IsRight(large));
  std::byte byte{};
  EXPECT_FALSE(object_->TryRead(4095, {&byte, 1}));
  EXPECT_EQ(object_->CachedFraction(), 0.0);
}

TEST_F(FetcherTest, EmptyReadsAndFilesNeedNoFetch) {
  Open(0);
  EXPECT_TRUE(IsRight(Read(0, 0)));
  EXPECT_TRUE(object_->TryRead(0, {}));
  object_->Prefetch(0, 100);
  EXPECT_THAT(origin_.starts(), IsEmpty());
}

TEST_F(FetcherTest, AReadPastTheEndIsInvalid) {
  Open(kG);
  EXPECT_THAT(Read(kG - 1, 2)->Wait(), HasCode(Code::kInvalid));
  EXPECT_THAT(Read(UINT64_MAX, 2)->Wait(), HasCode(Code::kInvalid));
}

TEST_F(FetcherTest, TryReadAsksOnlyTheCache) {
  Open(2 * kG);
  Keep(0);
  std::vector<std::byte> out(10);
  EXPECT_FALSE(object_->TryRead(3, out));
  cache_->AllowTryRead();
  EXPECT_TRUE(object_->TryRead(3, out));
  EXPECT_EQ(out, FakeBytes(info_.path, 3, 10));
  EXPECT_FALSE(object_->TryRead(kG, out));
  EXPECT_THAT(origin_.starts(), IsEmpty());
}

TEST_F(FetcherTest, ObjectsOfOneCacheFileShareTheirFlights) {
  Open(2 * kG);
  auto other = fetcher_->OpenObject(info_, cache_);
  auto first = Read(0, 10);
  auto second = ReadOf(*other, 20, 10);
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(first));
  EXPECT_TRUE(IsRight(second));
}

class PrefetchTest : public FetcherTest {
 protected:
  // Four connections, one of them kept for demand, one granule each.
  PrefetchTest() {
    options_.connections = 4;
    options_.max_request = kG;
  }
};

TEST_F(PrefetchTest, DemandGoesFirstAndHasAConnectionFree) {
  Open(64 * kG);
  object_->Prefetch(0, 20 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+1", "1+1", "2+1"));
  auto first = Read(40 * kG, kG);
  EXPECT_THAT(Ranges(3), ElementsAre("40+1"));
  auto second = Read(50 * kG, kG);
  auto third = Read(60 * kG, kG);
  origin_.Finish(0);
  EXPECT_THAT(Ranges(4), ElementsAre("50+1"));
  origin_.Finish(1);
  EXPECT_THAT(Ranges(5), ElementsAre("60+1"));
  origin_.Finish(2);
  EXPECT_THAT(Ranges(6), IsEmpty());  // three of demand, one kept free
  origin_.FinishAll();
  EXPECT_EQ(origin_.starts().size(), 23u);
  for (const auto& r : {first, second, third}) EXPECT_TRUE(IsRight(r));
}

TEST_F(PrefetchTest, PromotesAGranuleInsideAQueuedRun) {
  Open(64 * kG);
  object_->Prefetch(0, 20 * kG);
  auto blocker = Read(40 * kG, kG);
  auto wanted = Read(10 * kG, kG);
  origin_.Finish(0);
  EXPECT_THAT(Ranges(3), ElementsAre("40+1", "10+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(wanted));
  EXPECT_TRUE(IsRight(blocker));
  EXPECT_EQ(origin_.starts().size(), 21u);  // each granule once
}

TEST_F(PrefetchTest, WhatDemandGaveUpIsStillPrefetched) {
  Open(64 * kG);
  object_->Prefetch(0, 20 * kG);
  auto wanted = Read(10 * kG, kG);
  auto running = Read(kG, kG);
  object_->CancelRead(wanted->id);
  object_->CancelRead(running->id);
  EXPECT_THAT(wanted->Wait(), HasCode(Code::kCancelled));
  EXPECT_THAT(running->Wait(), HasCode(Code::kCancelled));
  origin_.FinishAll();
  cache_->WaitForGranules(20);
  EXPECT_EQ(origin_.starts().size(), 20u);
}

TEST_F(PrefetchTest, IsBounded) {
  options_.max_prefetch_bytes = 5 * kG;
  Open(64 * kG);
  EXPECT_EQ(object_->Prefetch(100, 60 * kG), 5 * kG - 100);
  EXPECT_EQ(object_->Prefetch(8 * kG + 1, kG), 0u);
  origin_.FinishAll();
  EXPECT_THAT(Ranges(), ElementsAre("0+1", "1+1", "2+1", "3+1", "4+1"));
  cache_->WaitForGranules(5);
  EXPECT_EQ(object_->Prefetch(0, 7 * kG), 7 * kG);
  origin_.FinishAll();
  EXPECT_THAT(Ranges(5), ElementsAre("5+1", "6+1"));
}

TEST_F(PrefetchTest, FillsTheCacheForLaterReads) {
  Open(8 * kG);
  Keep(3);
  object_->Prefetch(5, 8 * kG);
  origin_.FinishAll();
  cache_->WaitForGranules(8);
  EXPECT_TRUE(IsRight(Read(0, 8 * kG)));
  EXPECT_EQ(origin_.starts().size(), 7u);
}

TEST_F(FetcherTest, CancelBeforeAConnectionIsFreeFetchesNothing) {
  options_.connections = 1;
  Open(8 * kG);
  auto blocker = Read(0, kG);
  auto queued = Read(4 * kG, kG);
  object_->CancelRead(queued->id);
  EXPECT_THAT(queued->Wait(), HasCode(Code::kCancelled));
  object_->CancelRead(queued->id);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(blocker));
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
}

TEST_F(FetcherTest, FetchesThatHangDoNotHoldUpOtherReads) {
  options_.connections = 1;
  options_.stall_patience = std::chrono::milliseconds(1);
  Open(16 * kG);
  std::vector<std::shared_ptr<Reading>> hung;
  for (uint64_t i = 0; i < 4; ++i) hung.push_back(Read(2 * i * kG, kG));
  // Four times as many as there are connections, and no more.
  origin_.WaitForStarts(4);
  auto last = Read(10 * kG, kG);
  EXPECT_EQ(origin_.starts().size(), 4u);
  origin_.Finish(0);
  origin_.WaitForStarts(5);
  origin_.FinishAll();
  for (const auto& reading : hung) EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(IsRight(last));
}

TEST_F(FetcherTest, TheLastCancelEndsALongFlight) {
  Open(32 * kG);
  auto first = Read(0, 8 * kG);
  auto second = Read(kG, kG);
  object_->CancelRead(first->id);
  EXPECT_THAT(first->Wait(), HasCode(Code::kCancelled));
  EXPECT_FALSE(origin_.starts()[0].cancelled);
  object_->CancelRead(second->id);
  EXPECT_THAT(second->Wait(), HasCode(Code::kCancelled));
  origin_.WaitForCancels(1);
  // The range is free for others at once.
  auto third = Read(0, kG);
  origin_.WaitForStarts(2);
  origin_.FinishAll(1);
  EXPECT_TRUE(IsRight(third));
}

TEST_F(FetcherTest, AFlightThatIsNearlyDoneIsKept) {
  Open(32 * kG);
  auto reading = Read(0, 4 * kG);
  ASSERT_TRUE(origin_.Give(0, 2 * kG));
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  EXPECT_FALSE(origin_.starts()[0].cancelled);
  origin_.Finish(0);
  cache_->WaitForGranules(4);
}

TEST_F(FetcherTest, AFlightEndsOnceItsLastWaiterWasAnswered) {
  Open(64 * kG);
  auto head = Read(0, kG);
  auto other = Read(0, 8 * kG);  // granules 1 to 7
  origin_.WaitForStarts(2);
  auto early = Read(kG, kG);
  object_->CancelRead(other->id);
  ASSERT_FALSE(origin_.Give(1, kG));  // early has its bytes; 6 granules left
  EXPECT_TRUE(IsRight(early));
  origin_.WaitForCancels(1);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(head));
}

TEST_F(FetcherTest, CancelWithoutACacheCancelsEachFetch) {
  OpenWithoutCache(40 * kG);
  auto reading = Read(0, 40 * kG);
  const size_t count = origin_.starts().size();
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  origin_.WaitForCancels(count);
  origin_.Give(0, 10);
}

TEST_F(FetcherTest, CancelWhileTheDiskReadsEndsAtOnce) {
  Open(4 * kG);
  Keep(0);
  cache_->OnRead([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  auto reading = Read(0, kG);
  gate_.WaitForWaiters(1);
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  gate_.Open();
}

TEST_F(FetcherTest, AFailingCacheWriteFailsNoRead) {
  Open(4 * kG);
  cache_->OnPut([](uint64_t) { return Error(Code::kNoSpace, "disk full"); });
  auto reading = Read(0, 2 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  fetcher_->Stop();
  EXPECT_EQ(fetcher_->stats().bytes_not_kept, 2 * kG);
}

TEST_F(FetcherTest, WhatWaitsForTheDiskIsBounded) {
  options_.max_unwritten_bytes = 3 * kG;
  Open(16 * kG);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  auto reading = Read(0, 8 * kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(fetcher_->stats().bytes_not_kept, 5 * kG);
  gate_.Open();
  cache_->WaitForGranules(3);
}

TEST_F(FetcherTest, ABadGranuleIsFetchedAgain) {
  Open(8 * kG);
  for (uint64_t g = 0; g < 8; ++g) Keep(g);
  cache_->Spoil(5);
  auto reading = Read(0, 8 * kG);
  origin_.WaitForStarts(1);
  EXPECT_THAT(Ranges(), ElementsAre("5+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(fetcher_->stats().cache_read_failures, 1u);
}

TEST_F(FetcherTest, ADiskThatFailsIsReplacedByTheOrigin) {
  Open(4 * kG);
  for (uint64_t g = 0; g < 4; ++g) Keep(g);
  cache_->OnRead([](uint64_t) { return Error(Code::kIo, "EIO"); });
  auto reading = Read(kG, 2 * kG);
  origin_.WaitForStarts(1);
  EXPECT_THAT(Ranges(), ElementsAre("1+2"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(fetcher_->stats().cache_read_failures, 2u);
}

TEST_F(FetcherTest, ADiskThatHangsIsReplacedByTheOrigin) {
  options_.disk_patience = std::chrono::milliseconds(1);
  Open(8 * kG);
  for (uint64_t g = 0; g < 8; ++g) Keep(g);
  cache_->OnRead([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  for (uint64_t g = 0; g < 8; ++g) {  // twice what may be in the disk
    auto reading = Read(g * kG, kG);
    origin_.WaitForStarts(g + 1);
    origin_.Finish(g);
    EXPECT_TRUE(IsRight(reading));
  }
  gate_.Open();
}

TEST_F(FetcherTest, AHungDiskDoesNotHoldUpADeadline) {
  options_.disk_patience = std::chrono::hours(1);
  Open(kG);
  Keep(0);
  cache_->OnRead([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  auto reading =
      Read(0, kG, Clock::System().Now() + std::chrono::milliseconds(5));
  EXPECT_THAT(reading->Wait(), HasMessage(HasSubstr("tier cache")));
  gate_.Open();
}

TEST_F(FetcherTest, StopEndsEveryReadAndFetch) {
  options_.connections = 2;
  Open(64 * kG);
  Keep(60);
  cache_->OnRead([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  object_->Prefetch(30 * kG, 8 * kG);
  std::vector<std::shared_ptr<Reading>> readings;
  for (uint64_t g = 0; g < 20; g += 2) readings.push_back(Read(g * kG, kG));
  readings.push_back(Read(60 * kG, kG));
  gate_.WaitForWaiters(1);
  const auto before = Clock::System().Now();
  fetcher_->Stop();
  EXPECT_LT(Clock::System().Now() - before, std::chrono::seconds(1));
  for (const auto& reading : readings) {
    EXPECT_TRUE(reading->ended());
    EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  }
  for (const auto& start : origin_.starts()) EXPECT_TRUE(start.ended);
  fetcher_->Stop();
  auto late = Read(0, kG);
  EXPECT_TRUE(late->ended());
  EXPECT_THAT(late->Wait(), HasCode(Code::kCancelled));
  object_->Prefetch(0, kG);
  object_->CancelRead(1);
  gate_.Open();
}

TEST_F(FetcherTest, StopWritesWhatWasFetched) {
  Open(64 * kG);
  auto reading = Read(0, 64 * kG);
  origin_.FinishAll();
  fetcher_->Stop();
  EXPECT_EQ(object_->CachedFraction(), 1.0);
}

TEST_F(FetcherTest, StopLosesNoDoneIfThePoolStoppedFirst) {
  Open(kG);
  auto reading = Read(0, kG);
  pool_.Stop();
  origin_.FinishAll();
  fetcher_->Stop();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherTest, ObjectsOutliveTheirFetcher) {
  Open(2 * kG);
  Keep(0);
  cache_->AllowTryRead();
  fetcher_.reset();
  std::vector<std::byte> out(10);
  EXPECT_TRUE(object_->TryRead(0, out));
  EXPECT_THAT(Read(kG, 10)->Wait(), HasCode(Code::kCancelled));
}

TEST_F(FetcherTest, AReadMayBeStartedAndCancelledInADone) {
  Open(4 * kG);
  auto next = std::make_shared<Reading>(kG, 10);
  readings_.push_back(next);
  auto first = std::make_shared<std::byte>();
  object_->StartRead(
      0, {first.get(), 1}, {}, [this, first, next](const Result<>& result) {
        EXPECT_OK(result);
        next->id = object_->StartRead(kG, next->out(), {}, next->Done());
        object_->CancelRead(next->id);
      });
  origin_.Finish(0);
  EXPECT_THAT(next->Wait(), HasCode(Code::kCancelled));
}

TEST_F(FetcherTest, FilesThatAreMixedUpShareNothing) {
  Open(2 * kG);
  const FileInfo other_info = origin_.AddFile("other.bin", 2 * kG);
  auto other = fetcher_->OpenObject(other_info, cache_);
  auto first = Read(0, 10);
  auto second = ReadOf(*other, 0, 10);
  EXPECT_EQ(origin_.WaitForStarts(2).size(), 2u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(first));
  EXPECT_TRUE(second->Is("other.bin"));
}

TEST_F(FetcherTest, AFetchOutlivesItsObject) {
  Open(4 * kG);
  auto reading = Read(0, 2 * kG);
  object_.reset();
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

}  // namespace
}  // namespace weightfs
