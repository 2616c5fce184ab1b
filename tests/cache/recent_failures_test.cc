#include "cache/recent_failures.h"

#include <thread>

#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Duration = RecentFailures::Duration;
using ::testing::HasSubstr;

TEST(RecentFailuresTest, RemembersARangeForAWhile) {
  RecentFailures failures(seconds(1));
  const Clock::Time now{std::chrono::hours(1)};
  failures.Add(100, 200, now, Duration::max(), Error(Code::kStale, "gone"));
  EXPECT_EQ(failures.Find(0, 100, now, seconds(1)), nullptr);
  EXPECT_EQ(failures.Find(200, 300, now, seconds(1)), nullptr);
  const Error* error = failures.Find(150, 151, now, Duration::max());
  ASSERT_NE(error, nullptr);
  EXPECT_EQ(error->code(), Code::kStale);
  EXPECT_TRUE(error->told_before());
  EXPECT_NE(failures.Find(0, 101, now + milliseconds(999), {}), nullptr);
  EXPECT_EQ(failures.Find(0, 101, now + seconds(1), {}), nullptr);
}

TEST(RecentFailuresTest, WhoWaitsLongerIsNotTold) {
  RecentFailures failures(seconds(1));
  const Clock::Time now{std::chrono::hours(1)};
  failures.Add(0, 9, now, seconds(8), Error(Code::kUnavailable, "late"));
  EXPECT_NE(failures.Find(0, 9, now, seconds(1)), nullptr);
  EXPECT_NE(failures.Find(0, 9, now, milliseconds(8'050)), nullptr);
  EXPECT_EQ(failures.Find(0, 9, now, seconds(10)), nullptr);
  EXPECT_EQ(failures.Find(0, 9, now, Duration::max()), nullptr);
}

TEST(RecentFailuresTest, ForgetsWhatCameAfterAllAndTheOldest) {
  RecentFailures failures(seconds(1));
  const Clock::Time now{std::chrono::hours(1)};
  const Error error(Code::kStale, "x");
  failures.Add(0, 9, now, Duration::max(), error);
  failures.Forget(8, 20);
  EXPECT_EQ(failures.Find(0, 9, now, {}), nullptr);
  for (uint64_t i = 0; i <= RecentFailures::kMost; ++i) {
    failures.Add(i, i + 1, now, Duration::max(), error);
  }
  EXPECT_EQ(failures.Find(0, 1, now, {}), nullptr);
  EXPECT_NE(failures.Find(1, 2, now, {}), nullptr);
  RecentFailures none(seconds(0));
  none.Add(0, 9, now, Duration::max(), error);
  EXPECT_EQ(none.Find(0, 9, now, {}), nullptr);
}

TEST(RecentFailuresTest, AddsUpWhatWasWaitedForARange) {
  RecentFailures failures(seconds(1));
  const Clock::Time now{std::chrono::hours(1)};
  EXPECT_EQ(failures.Waited(0, 100, now), Duration::zero());
  failures.AddWait(10, 20, now, seconds(5));
  failures.AddWait(15, 20, now, seconds(7));
  failures.AddWait(18, 20, now, seconds(6));
  EXPECT_EQ(failures.Waited(0, 10, now), Duration::zero());
  EXPECT_EQ(failures.Waited(20, 30, now), Duration::zero());
  EXPECT_EQ(failures.Waited(14, 15, now), seconds(5));
  EXPECT_EQ(failures.Waited(14, 30, now), seconds(7));
  EXPECT_EQ(failures.Find(10, 20, now, {}), nullptr);
  EXPECT_EQ(failures.Waited(0, 30, now + milliseconds(999)), seconds(7));
  EXPECT_EQ(failures.Waited(0, 30, now + seconds(1)), Duration::zero());
  failures.AddWait(10, 20, now, seconds(5));
  failures.Forget(19, 30);
  EXPECT_EQ(failures.Waited(0, 30, now), Duration::zero());
}

class FailedReadTest : public FetcherTest {
 protected:
  static Clock::Time In(milliseconds time) {
    return Clock::System().Now() + time;
  }
};

// The kernel asks again for the page whose read-ahead failed.
TEST_F(FailedReadTest, ADeadlineIsNotWaitedForTwice) {
  Open(8 * kG);
  EXPECT_THAT(Read(0, 2 * kG, In(milliseconds(300)))->Wait(),
              HasCode(Code::kUnavailable));
  const auto begin = Clock::System().Now();
  const auto again = Read(kG, 10, In(milliseconds(300)))->Wait();
  EXPECT_LT(Clock::System().Now() - begin, milliseconds(250));
  EXPECT_THAT(again, HasCode(Code::kUnavailable));
  EXPECT_TRUE(again.error().told_before());
  // Neither others' bytes nor those who wait longer are concerned.
  auto patient = Read(0, 10);
  auto other = Read(4 * kG, 10, In(seconds(60)));
  origin_.WaitForStarts(2);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(patient));
  EXPECT_TRUE(IsRight(other));
  EXPECT_TRUE(IsRight(Read(0, 10, In(milliseconds(300)))));
}

TEST_F(FailedReadTest, ManyWhoEndTogetherAreToldOnceEach) {
  constexpr uint64_t kReaders = 600;
  Open(kReaders * kG);
  const Clock::Time deadline = In(milliseconds(300));
  std::vector<std::shared_ptr<Reading>> readings;
  for (uint64_t i = 0; i < kReaders; ++i) {
    readings.push_back(Read(i * kG, 10, deadline));
  }
  for (const auto& reading : readings) {
    EXPECT_THAT(reading->Wait(), HasCode(Code::kUnavailable));
  }
  for (uint64_t i = 0; i < kReaders; ++i) {
    const auto again = Read(i * kG, 10, In(milliseconds(300)))->Wait();
    ASSERT_FALSE(again.has_value());
    ASSERT_TRUE(again.error().told_before()) << i;
  }
}

TEST_F(FailedReadTest, OnlyWhatIsMissingFails) {
  Open(8 * kG);
  Keep(0);
  auto reading = Read(0, 2 * kG);
  origin_.WaitForStarts(1);
  origin_.End(0, Error(Code::kStale, "HTTP 416"));
  const auto result = reading->Wait();
  EXPECT_THAT(result, HasCode(Code::kStale));
  EXPECT_THAT(result, HasMessage(HasSubstr("tier https://fake.test/org/name")));
  EXPECT_THAT(result, HasMessage(HasSubstr("1 attempts")));
  EXPECT_FALSE(result.error().told_before());
  EXPECT_TRUE(IsRight(Read(0, kG)));
  EXPECT_THAT(Read(kG, 1)->Wait(), HasCode(Code::kStale));
  EXPECT_EQ(origin_.starts().size(), 1u);
}

// As a process that is killed while others wait for the same page: each of them
// asks in turn.
TEST_F(FailedReadTest, WhatAnInterruptedReadWaitedCountsForTheNext) {
  for (const bool cached : {true, false}) {
    cached ? Open(8 * kG) : OpenWithoutCache(8 * kG);
    const auto begin = Clock::System().Now();
    Result<> result;
    for (int i = 0; i < 8; ++i) {
      auto reading = Read(0, kG, In(milliseconds(600)));
      std::this_thread::sleep_for(milliseconds(200));
      object_->CancelRead(reading->id);
      result = reading->Wait();
      if (result.error().code() != Code::kCancelled) break;
    }
    EXPECT_THAT(result, HasCode(Code::kUnavailable));
    EXPECT_LT(Clock::System().Now() - begin, milliseconds(1'200));
    // Bytes that came meanwhile are served.
    auto other = Read(0, 10);
    origin_.FinishAll();
    EXPECT_TRUE(IsRight(other));
    if (!cached) continue;
    EXPECT_TRUE(IsRight(Read(5, 10, In(milliseconds(600)))));
  }
}

TEST_F(FailedReadTest, WithoutACacheToo) {
  OpenWithoutCache(8 * kG);
  auto reading = Read(0, 2 * kG);
  origin_.WaitForStarts(1);
  origin_.End(0, Error(Code::kStale, "changed"));
  EXPECT_THAT(reading->Wait(), HasCode(Code::kStale));
  EXPECT_THAT(Read(kG, 1)->Wait(), HasCode(Code::kStale));
  EXPECT_EQ(origin_.starts().size(), 1u);
}

TEST_F(FailedReadTest, IsTriedAgainAWhileLater) {
  options_.failure_memory = milliseconds(20);
  Open(8 * kG);
  auto reading = Read(0, kG);
  origin_.WaitForStarts(1);
  origin_.End(0, Error(Code::kStale, "changed"));
  EXPECT_THAT(reading->Wait(), HasCode(Code::kStale));
  const auto until = In(seconds(20));
  while (origin_.starts().size() < 2 && Clock::System().Now() < until) {
    reading = Read(0, kG);
    if (origin_.starts().size() < 2) (void)reading->Wait();
  }
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

}  // namespace
}  // namespace weightfs
