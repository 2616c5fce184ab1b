// How much at once, and how fast: the policies, and the fetcher that has them.

#include "cache/traffic.h"

#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A clock and a counter of bytes for a Concurrency.
class ConcurrencyTest : public ::testing::Test {
 protected:
  // So many bytes per second, for a while.
  void Run(double rate, milliseconds time, bool full = true) {
    for (milliseconds passed{0}; passed < time; passed += milliseconds(50)) {
      concurrency_.OnLook(now_, fetched_, full);
      now_ += milliseconds(50);
      fetched_ += static_cast<uint64_t>(rate / 20);
    }
    concurrency_.OnLook(now_, fetched_, full);
  }

  Concurrency concurrency_{16, 48};
  Clock::Time now_ = Clock::System().Now();
  uint64_t fetched_ = 0;
};

TEST_F(ConcurrencyTest, GrowsWhileMoreBringMore) {
  for (int i = 0; i < 20; ++i) {
    Run(1e6 * static_cast<double>(concurrency_.limit()), Concurrency::kPeriod);
  }
  EXPECT_EQ(concurrency_.limit(), 48u);
}

TEST_F(ConcurrencyTest, AStepThatBringsNothingIsTakenBack) {
  Run(1e8, Concurrency::kPeriod);
  EXPECT_EQ(concurrency_.limit(), 24u);
  Run(1e8, Concurrency::kPeriod);
  EXPECT_EQ(concurrency_.limit(), 16u);
  Run(1e8, seconds(5));
  EXPECT_EQ(concurrency_.limit(), 16u);  // and not tried again at once
  Run(1e8, seconds(6));
  EXPECT_GE(concurrency_.limit(), 16u);
}

TEST_F(ConcurrencyTest, IsNotMeasuredWhereTheLimitIsNotReached) {
  for (int i = 0; i < 100; ++i) {
    Run(1e8, milliseconds(200));
    Run(1e8, milliseconds(50), false);
  }
  EXPECT_EQ(concurrency_.limit(), 16u);
}

TEST_F(ConcurrencyTest, IsHalvedByARefusalAndComesBack) {
  concurrency_.OnRefused(now_);
  concurrency_.OnRefused(now_);  // of the same moment
  EXPECT_EQ(concurrency_.limit(), 8u);
  for (int i = 0; i < 10; ++i) {
    now_ += seconds(2);
    concurrency_.OnRefused(now_);
  }
  EXPECT_EQ(concurrency_.limit(), 1u);
  now_ += Concurrency::kRest;
  for (int i = 0; i < 30; ++i) {
    Run(1e6 * static_cast<double>(concurrency_.limit()), Concurrency::kPeriod);
  }
  EXPECT_GT(concurrency_.limit(), 8u);
}

TEST(RateLimitTest, SpreadsFetchesOverTime) {
  RateLimit rate(1000);
  const auto now = Clock::System().Now();
  EXPECT_LE(rate.next(), now);
  rate.OnStart(now, 500);
  EXPECT_EQ(rate.next(), now + milliseconds(500));
  rate.OnStart(now + milliseconds(500), 1000);
  EXPECT_EQ(rate.next(), now + milliseconds(1500));
  // What was not used is not saved up.
  rate.OnStart(now + seconds(10), 1000);
  EXPECT_EQ(rate.next(), now + seconds(11));
  EXPECT_EQ(rate.LargestFetch(10, 4000), 250u);
  EXPECT_EQ(rate.LargestFetch(300, 4000), 300u);
}

TEST(RateLimitTest, NoneLimitsNothing) {
  RateLimit rate(0);
  rate.OnStart(Clock::System().Now(), UINT64_MAX);
  EXPECT_EQ(rate.next(), Clock::Time());
  EXPECT_EQ(rate.LargestFetch(1, 4000), 4000u);
}

class TrafficTest : public FetcherTest {};

TEST_F(TrafficTest, ARateHoldsFetchesBack) {
  options_.max_rate = 1;  // byte per second
  options_.min_split = kG;
  Open(8 * kG);
  auto first = Read(0, 4 * kG);
  auto second = Read(4 * kG, kG);
  EXPECT_THAT(Ranges(), ElementsAre("0+1"));
  origin_.Finish(0);
  EXPECT_THAT(Ranges(1), IsEmpty());
  object_->CancelRead(first->id);
  object_->CancelRead(second->id);
}

TEST_F(TrafficTest, ARefusalHalvesWhatIsAskedAtOnce) {
  options_.connections = 4;
  options_.max_request = kG;
  Open(64 * kG);
  auto reading = Read(0, 12 * kG);
  EXPECT_EQ(origin_.starts().size(), 4u);
  origin_.Refuse(0, 429);
  // Two at once from now on: three run, so that one more has to end first.
  origin_.Finish(1);
  EXPECT_EQ(origin_.starts().size(), 4u);
  origin_.FinishAll(2);
  EXPECT_TRUE(IsRight(reading));
}

// The disk takes nothing.
class SlowDiskTest : public FetcherTest {
 protected:
  SlowDiskTest() {
    options_.connections = 4;
    options_.max_request = kG;
    options_.max_unwritten_bytes = 2 * kG;
    options_.max_backlog_bytes = 4 * kG;
  }
  void OpenSlow() {
    Open(64 * kG);
    cache_->OnPut([&](uint64_t) {
      gate_.Pass();
      return Result<>();
    });
    object_->Prefetch(0, 20 * kG);
    origin_.FinishAll();
  }
};

TEST_F(SlowDiskTest, HoldsBackWhatNobodyWaitsFor) {
  OpenSlow();
  EXPECT_THAT(Ranges(), ElementsAre("0+1", "1+1", "2+1", "3+1"));
  EXPECT_EQ(fetcher_->stats().bytes_not_kept, 0u);
  gate_.Open();
  cache_->WaitForGranules(1);
  const auto until = Clock::System().Now() + seconds(60);
  while (object_->CachedFraction() < 20.0 / 64) {
    ASSERT_LT(Clock::System().Now(), until);
    origin_.FinishAll();
  }
  EXPECT_EQ(origin_.starts().size(), 20u);
}

TEST_F(SlowDiskTest, WhatWasReadMakesRoom) {
  OpenSlow();
  gate_.WaitForWaiters(2);  // two are being written, two wait
  EXPECT_TRUE(IsRight(Read(2 * kG, kG)));
  EXPECT_EQ(fetcher_->stats().bytes_not_kept, kG);
  EXPECT_THAT(Ranges(4), ElementsAre("4+1"));
  origin_.FinishAll();
  // Of what is read in parts only the end makes room.
  EXPECT_TRUE(IsRight(Read(3 * kG, 100)));
  EXPECT_EQ(fetcher_->stats().bytes_not_kept, kG);
  EXPECT_TRUE(IsRight(Read(3 * kG + 100, kG)));
  EXPECT_GE(fetcher_->stats().bytes_not_kept, 2 * kG);
}

TEST(EfficientBytesTest, ALongWayIsWorthLargerFetches) {
  Pace pace;
  EXPECT_EQ(pace.EfficientBytes(4 * kMiB, 8 * kMiB), 4 * kMiB);
  for (int i = 0; i < 50; ++i) {
    pace.OnEnd(milliseconds(20), 4 * kMiB, milliseconds(40));
  }
  EXPECT_NEAR(static_cast<double>(pace.EfficientBytes(kMiB, 99 * kMiB)),
              6.0 * kMiB, 0.2 * kMiB);
  EXPECT_EQ(pace.EfficientBytes(kMiB, 4 * kMiB), 4 * kMiB);
}

}  // namespace
}  // namespace weightfs
