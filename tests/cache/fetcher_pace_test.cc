// Fetches that are much slower than others.

#include "cache/pace.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(PaceTest, NothingIsSlowBeforeOthersEnded) {
  const Pace pace;
  EXPECT_FALSE(pace.IsSlow(hours(1), 0, kMiB));
  EXPECT_FALSE(pace.IsSlow(hours(1), 1, kMiB));
}

TEST(PaceTest, SlowIsSeveralTimesWhatIsUsual) {
  Pace pace;
  // A second for a MiB.
  for (int i = 0; i < 50; ++i) pace.OnEnd(milliseconds(0), kMiB, seconds(1));
  EXPECT_FALSE(pace.IsSlow(seconds(2), kMiB / 2, kMiB));
  EXPECT_TRUE(pace.IsSlow(seconds(5), kMiB / 2, kMiB));
  EXPECT_FALSE(pace.IsSlow(seconds(3), 0, kMiB));
  EXPECT_TRUE(pace.IsSlow(seconds(5), 0, kMiB));
  // Of what is nearly done little is left.
  EXPECT_FALSE(pace.IsSlow(seconds(20), kMiB - 1000, kMiB));
}

TEST(PaceTest, WaitingIsUsualWhereAllWait) {
  Pace pace;
  for (int i = 0; i < 50; ++i) {
    pace.OnEnd(seconds(2), kMiB, milliseconds(1));
  }
  EXPECT_FALSE(pace.IsSlow(seconds(6), 0, kMiB));
  EXPECT_TRUE(pace.IsSlow(seconds(9), 0, kMiB));
}

TEST(PaceTest, WhatEndsWithinASecondIsNotSlow) {
  Pace pace;
  pace.OnEnd(milliseconds(1), 100 * kMiB, milliseconds(10));
  EXPECT_FALSE(pace.IsSlow(milliseconds(900), 0, kMiB));
  EXPECT_FALSE(pace.IsSlow(milliseconds(900), kMiB / 2, kMiB));
  EXPECT_TRUE(pace.IsSlow(milliseconds(1100), 0, kMiB));
}

// A fetch that takes no time, so that the pace is known; then one that hangs.
class FetcherPaceTest : public FetcherTest {
 protected:
  FetcherPaceTest() { options_.slow_patience = milliseconds(1100); }

  void MakeUsual() {
    auto first = Read(0, kMiB);
    origin_.WaitForStarts(1);
    origin_.FinishAll();
    ASSERT_TRUE(IsRight(first));
    before_ = origin_.starts().size();
  }

  size_t before_ = 0;  // fetches
};

TEST_F(FetcherPaceTest, ASlowFetchGoesOnOverAnotherConnection) {
  Open(64 * kG);
  MakeUsual();
  auto reading = Read(32 * kG, kG);
  origin_.WaitForStarts(before_ + 1);
  origin_.Give(before_, 1000);
  // The fetcher breaks it off, and asks for what is left.
  const auto starts = origin_.WaitForStarts(before_ + 2);
  EXPECT_TRUE(starts[before_].cancelled);
  EXPECT_EQ(starts[before_ + 1].offset, 32 * kG + 1000);
  EXPECT_EQ(starts[before_ + 1].length, kG - 1000);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(fetcher_->stats().overtaken, 1u);
}

TEST_F(FetcherPaceTest, ReadsWithoutACacheGoOnToo) {
  OpenWithoutCache(64 * kG);
  MakeUsual();
  auto reading = Read(32 * kG + 7, 5000);
  origin_.WaitForStarts(before_ + 1);
  origin_.Give(before_, 1000);
  const auto starts = origin_.WaitForStarts(before_ + 2);
  EXPECT_EQ(starts[before_ + 1].offset, 32 * kG + 1007);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherPaceTest, WhatIsNotWaitedForMayBeSlow) {
  Open(64 * kG);
  MakeUsual();
  object_->Prefetch(32 * kG, kG);
  origin_.WaitForStarts(before_ + 1);
  // A read of other bytes, which is slow, is what is broken off.
  auto reading = Read(48 * kG, kG);
  const auto starts = origin_.WaitForStarts(before_ + 3);
  EXPECT_FALSE(starts[before_].cancelled);
  EXPECT_TRUE(starts[before_ + 1].cancelled);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherPaceTest, AFlightIsNotBrokenOffForEver) {
  options_.slow_patience = milliseconds(1);
  Open(64 * kG);
  MakeUsual();
  auto reading = Read(32 * kG, kG);
  const auto starts = origin_.WaitForStarts(before_ + 4);
  EXPECT_TRUE(starts[before_ + 2].cancelled);
  // A read that waits as long again is left alone, and gets its bytes.
  auto other = Read(48 * kG, kG);
  origin_.WaitForStarts(before_ + 8);
  EXPECT_FALSE(origin_.starts()[before_ + 3].cancelled);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(IsRight(other));
  EXPECT_EQ(fetcher_->stats().overtaken, 6u);
}

}  // namespace
}  // namespace weightfs
