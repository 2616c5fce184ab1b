// Single flight between processes: what a fetcher does about granules that
// another process claims, and what it claims itself.

#include <future>

#include "cache/fetcher.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class FetcherSharingTest : public FetcherTest {
 protected:
  FetcherSharingTest() {
    // Tests that want an end to the patience say so.
    options_.claim_patience = hours(1);
    options_.claim_limit = hours(1);
  }

  template <typename Condition>
  ::testing::AssertionResult Comes(Condition condition) {
    const auto until = Clock::System().Now() + std::chrono::seconds(60);
    while (!condition()) {
      if (Clock::System().Now() > until) return ::testing::AssertionFailure();
      std::this_thread::sleep_for(milliseconds(1));
    }
    return ::testing::AssertionSuccess();
  }
  // The fetcher holds exactly these claims, now or soon.
  ::testing::AssertionResult Claims(const std::set<uint64_t>& granules) {
    if (Comes([&] { return cache_->claimed() == granules; })) {
      return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure()
           << ::testing::PrintToString(cache_->claimed());
  }
  // Another process fetches and publishes it.
  void OtherPublishes(uint64_t granule) {
    Keep(granule);
    cache_->UnclaimForOther(granule, 1);
  }
};

TEST_F(FetcherSharingTest, WaitsForWhatAnotherProcessFetches) {
  Open(8 * kG);
  cache_->ClaimForOther(0, 8);
  auto first = Read(0, 4 * kG);
  EXPECT_THAT(Ranges(), IsEmpty());
  auto second = Read(3 * kG + 5, kG);
  EXPECT_THAT(Ranges(), IsEmpty());
  for (uint64_t g = 0; g < 4; ++g) OtherPublishes(g);
  EXPECT_TRUE(IsRight(first));
  EXPECT_FALSE(second->ended());  // granule 4 is still to come
  OtherPublishes(4);
  EXPECT_TRUE(IsRight(second));
  EXPECT_THAT(Ranges(), IsEmpty());
  EXPECT_EQ(fetcher_->stats().waits_for_others, 2u);
  EXPECT_EQ(fetcher_->stats().granules_from_others, 5u);
  EXPECT_EQ(fetcher_->stats().bytes_fetched, 0u);
  EXPECT_THAT(cache_->claimed(), IsEmpty());
}

TEST_F(FetcherSharingTest, FetchesAroundWhatAnotherProcessFetches) {
  Open(8 * kG);
  Keep(6);
  cache_->ClaimForOther(2, 2);
  auto reading = Read(0, 8 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+2", "7+1", "4+2"));
  EXPECT_TRUE(Claims({0, 1, 4, 5, 7}));
  origin_.FinishAll();
  EXPECT_FALSE(reading->ended());
  OtherPublishes(2);
  OtherPublishes(3);
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(fetcher_->stats().bytes_fetched, 5 * kG);
}

TEST_F(FetcherSharingTest, FetchesOnceTheOtherGaveUp) {
  Open(8 * kG);
  cache_->ClaimForOther(0, 8);
  auto reading = Read(0, 8 * kG);
  EXPECT_THAT(Ranges(), IsEmpty());
  OtherPublishes(0);
  cache_->UnclaimForOther(1, 7);
  origin_.WaitForStarts(1);
  EXPECT_THAT(Ranges(), ElementsAre("1+7"));
  EXPECT_TRUE(Claims({1, 2, 3, 4, 5, 6, 7}));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherSharingTest, FetchesAnywayWhatAStoppedProcessClaims) {
  options_.claim_patience = milliseconds(20);
  Open(32 * kG);
  cache_->ClaimForOther(0, 8);
  cache_->ClaimForOther(16, 8);
  auto reading = Read(0, 4 * kG);
  origin_.WaitForStarts(1);
  EXPECT_THAT(Ranges(), ElementsAre("0+4"));
  EXPECT_THAT(cache_->claimed(), IsEmpty());
  EXPECT_EQ(fetcher_->stats().waits_for_others, 1u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  // None of the claims that it held then is waited for again,
  auto next = Read(4 * kG, 4 * kG);
  auto far = Read(18 * kG, 2 * kG);
  object_->Prefetch(20 * kG, 2 * kG);
  EXPECT_THAT(Ranges(1), ElementsAre("4+4", "18+2", "20+2"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(next));
  EXPECT_TRUE(IsRight(far));
  EXPECT_EQ(fetcher_->stats().waits_for_others, 1u);
  // but one is that it works on again.
  OtherPublishes(16);
  auto moving = Read(17 * kG, kG);
  Settle();
  EXPECT_EQ(fetcher_->stats().waits_for_others, 2u);
  OtherPublishes(17);
  EXPECT_TRUE(Comes([&] {
    origin_.FinishAll();  // if the patience was over before
    return moving->ended();
  }));
  EXPECT_TRUE(IsRight(moving));
}

TEST_F(FetcherSharingTest, WaitsWhileTheOtherMakesProgress) {
  options_.claim_patience = milliseconds(1500);
  Open(8 * kG);
  cache_->ClaimForOther(0, 8);
  auto reading = Read(7 * kG, kG);
  // What is waited for does not come within the patience.
  for (uint64_t g = 0; g < 7; ++g) {
    const auto until = Clock::System().Now() + milliseconds(250);
    while (Clock::System().Now() < until) std::this_thread::yield();
    OtherPublishes(g);
  }
  EXPECT_THAT(Ranges(), IsEmpty());
  OtherPublishes(7);
  EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(Ranges(), IsEmpty());
}

TEST_F(FetcherSharingTest, WaitsNoLongerThanTheLimit) {
  options_.claim_limit = milliseconds(20);
  Open(4 * kG);
  cache_->ClaimForOther(0, 4);
  auto reading = Read(0, kG);
  origin_.WaitForStarts(1);
  EXPECT_EQ(fetcher_->stats().waits_for_others, 1u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherSharingTest, WaitsForAThirdOfADeadlineAtMost) {
  Open(4 * kG);
  cache_->ClaimForOther(0, 4);
  auto calm = Read(0, kG);
  const auto deadline = Clock::System().Now() + std::chrono::seconds(30);
  auto hurried = Read(0, kG, Clock::System().Now() + milliseconds(3000));
  origin_.WaitForStarts(1);  // long before the hour is over
  EXPECT_LT(Clock::System().Now(), deadline);
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(hurried));
  EXPECT_TRUE(IsRight(calm));
}

TEST_F(FetcherSharingTest, LooksAgainOnceItHasTheClaim) {
  Open(8 * kG);
  cache_->OnClaim([&] {  // somebody has just published these
    Keep(0);
    Keep(3);
  });
  auto reading = Read(0, 6 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("1+2", "4+2"));
  EXPECT_TRUE(Claims({1, 2, 4, 5}));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherSharingTest, AWaitIsCancelledAtOnce) {
  Open(8 * kG);
  cache_->ClaimForOther(0, 8);
  auto first = Read(0, 2 * kG);
  auto second = Read(kG, 2 * kG);
  EXPECT_THAT(Ranges(), IsEmpty());
  object_->CancelRead(first->id);
  EXPECT_THAT(first->Wait(), HasCode(Code::kCancelled));
  EXPECT_FALSE(second->ended());
  object_->CancelRead(second->id);
  EXPECT_THAT(second->Wait(), HasCode(Code::kCancelled));
  // Nobody wants it when the other gives up.
  cache_->UnclaimForOther(0, 8);
  auto third = Read(7 * kG, kG);
  EXPECT_THAT(Ranges(), ElementsAre("7+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(third));
}

TEST_F(FetcherSharingTest, PrefetchLeavesOutWhatAnotherProcessFetches) {
  options_.connections = 4;
  Open(16 * kG);
  cache_->ClaimForOther(2, 12);
  object_->Prefetch(0, 16 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+2", "14+2"));
  auto demand = Read(2 * kG, kG);
  Settle();
  EXPECT_EQ(fetcher_->stats().waits_for_others, 1u);
  OtherPublishes(2);
  EXPECT_TRUE(IsRight(demand));
  origin_.FinishAll();
  EXPECT_THAT(Ranges(), ElementsAre("0+2", "14+2"));
  // What prefetch left out counts for nothing: there is room for the next.
  cache_->UnclaimForOther(3, 11);
  object_->Prefetch(0, 16 * kG);
  origin_.FinishAll();
  cache_->WaitForGranules(16);
}

TEST_F(FetcherSharingTest, WaitsTakeNoConnection) {
  options_.connections = 1;
  Open(64 * kG);
  cache_->ClaimForOther(0, 60);
  std::vector<std::shared_ptr<Reading>> waiting;
  for (uint64_t g = 0; g < 60; g += 4) waiting.push_back(Read(g * kG, kG));
  auto reading = Read(62 * kG, kG);
  EXPECT_THAT(Ranges(), ElementsAre("62+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  for (uint64_t g = 0; g < 60; ++g) OtherPublishes(g);
  for (const auto& r : waiting) EXPECT_TRUE(IsRight(r));
}

TEST_F(FetcherSharingTest, StopEndsWaits) {
  Open(8 * kG);
  cache_->ClaimForOther(0, 4);
  auto waiting = Read(0, 4 * kG);
  auto fetching = Read(4 * kG, 4 * kG);
  EXPECT_TRUE(Claims({4, 5, 6, 7}));
  EXPECT_THAT(Ranges(), ElementsAre("4+4"));
  const auto before = Clock::System().Now();
  fetcher_->Stop();
  EXPECT_LT(Clock::System().Now() - before, std::chrono::seconds(2));
  EXPECT_THAT(waiting->Wait(), HasCode(Code::kCancelled));
  EXPECT_THAT(fetching->Wait(), HasCode(Code::kCancelled));
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, AClaimGoesWithEachGranuleThatIsPublished) {
  Open(8 * kG);
  auto reading = Read(0, 4 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+4"));
  EXPECT_TRUE(Claims({0, 1, 2, 3}));
  cache_->OnPut([&](uint64_t g) {
    EXPECT_TRUE(cache_->claimed().contains(g));
    return Result<>();
  });
  ASSERT_TRUE(origin_.Give(0, kG + 10));
  EXPECT_TRUE(Claims({1, 2, 3}));
  origin_.Finish(0);
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, AClaimIsHeldAcrossRetriesAndGoesWithAFailure) {
  Open(8 * kG);
  auto reading = Read(0, 4 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+4"));
  ASSERT_TRUE(origin_.Give(0, kG));
  EXPECT_TRUE(Claims({1, 2, 3}));
  origin_.End(0, Error(Code::kUnavailable, "reset"));
  origin_.WaitForStarts(2);
  EXPECT_THAT(cache_->claimed(), ElementsAre(1, 2, 3));
  origin_.End(1, Error(Code::kDenied, "no"));
  EXPECT_THAT(reading->Wait(), HasCode(Code::kDenied));
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, AClaimGoesWithItsLastReader) {
  Open(32 * kG);
  auto reading = Read(0, 16 * kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+8", "8+8"));
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, AClaimGoesWithWhatCannotBeKept) {
  options_.max_unwritten_bytes = kG;
  Open(8 * kG);
  cache_->OnPut([&](uint64_t) -> Result<> {
    gate_.Pass();
    return Error(Code::kNoSpace, "disk full");
  });
  auto reading = Read(0, 4 * kG);
  origin_.Finish(0);
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(Claims({0}));
  gate_.Open();
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, AClaimThatHangsHoldsUpNoFetch) {
  options_.disk_patience = milliseconds(20);
  Open(16 * kG);
  cache_->OnClaim([&] { gate_.Pass(); });
  for (uint64_t g = 0; g < 8; ++g) {
    auto reading = Read(2 * g * kG, kG);
    origin_.WaitForStarts(g + 1);
    origin_.Finish(g);
    EXPECT_TRUE(IsRight(reading));
  }
  EXPECT_THAT(cache_->claimed(), IsEmpty());
  gate_.Open();
  // What the call gets that nobody waits for any more is given back.
  auto reading = Read(kG, kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(Claims({}));
}

TEST_F(FetcherSharingTest, APoolThatStopsAnswersWhoAsks) {
  Open(8 * kG);
  pool_.Stop();
  auto reading = Read(0, kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  origin_.FinishAll();
  fetcher_->Stop();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(cache_->claimed(), IsEmpty());
}

// Each with open files of its own, as two processes have them.
TEST(FetchersSharingTest, TwoFetchersOnOneFolderFetchAFileOnce) {
  constexpr uint64_t kSize = 300 * kG + 1234;
  struct Reader {
    FakeOrigin origin;
    TimerQueue timers{"timers"};
    WorkerPool pool{"pool", 8};
    std::unique_ptr<ObjectCache> cache;
    std::unique_ptr<Fetcher> fetcher;
    std::shared_ptr<Object> object;
  };
  const TempFolder temp;
  std::array<Reader, 2> readers;
  for (auto& reader : readers) {
    auto cache = ObjectCache::Open(temp.path() + "/cache");
    ASSERT_OK(cache);
    reader.cache = std::move(cache).value();
    FetcherOptions options;
    options.claim_patience = hours(1);  // however slow the machine is
    options.claim_limit = hours(1);
    reader.fetcher =
        Fetcher::Create(reader.origin, reader.timers, reader.pool, options);
    const FileInfo info = reader.origin.AddFile("model.bin", kSize);
    auto file = reader.cache->OpenObject(kEndpoint, Sha256Id(), kSize);
    ASSERT_OK(file);
    reader.object = reader.fetcher->OpenObject(info, std::move(file).value());
    reader.origin.Play(6, [](const auto&) { return FakeOrigin::Plot{}; });
  }
  auto read_all = [](Reader& reader, uint64_t window) {
    for (uint64_t at = 0; at < kSize; at += window) {
      reader.object->Prefetch(at, 4 * window);
      Reading reading(at, std::min(window, kSize - at));
      reader.object->StartRead(at, reading.out(), {Clock::Time::max()},
                               reading.Done());
      ASSERT_TRUE(reading.Is("model.bin"));
    }
  };
  std::jthread other([&] { read_all(readers[1], 7 * kG + 99); });
  read_all(readers[0], 8 * kG);
  other.join();
  uint64_t fetched = 0;
  for (auto& reader : readers) {
    reader.fetcher->Stop();
    fetched += reader.fetcher->stats().bytes_fetched;
    reader.pool.Stop();
  }
  EXPECT_EQ(fetched, kSize);
}

}  // namespace
}  // namespace weightfs
