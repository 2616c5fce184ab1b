#include <random>

#include "cache/fetcher.h"
#include "cache/origin_health.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Error Unavailable() { return Error(Code::kUnavailable, "HTTP 503"); }

class FetcherRetryTest : public FetcherTest {};

TEST_F(FetcherRetryTest, ResumesAtTheByteWhereItBroke) {
  Open(8 * kG);
  auto early = Read(0, 10);
  auto reading = Read(kG, 4 * kG);
  origin_.Give(1, kG + 1234);
  origin_.End(1, Unavailable());
  auto starts = origin_.WaitForStarts(3);
  EXPECT_EQ(starts[2].offset, 2 * kG + 1234);
  EXPECT_EQ(starts[2].length, 3 * kG - 1234);
  origin_.Give(2, 1);
  origin_.End(2, Unavailable());
  starts = origin_.WaitForStarts(4);
  EXPECT_EQ(starts[3].offset, 2 * kG + 1235);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_TRUE(IsRight(early));
  EXPECT_EQ(fetcher_->stats().retries, 2u);
  EXPECT_EQ(fetcher_->stats().bytes_fetched, 5 * kG);
}

TEST_F(FetcherRetryTest, ResumesWithoutACacheToo) {
  OpenWithoutCache(8 * kG);
  auto reading = Read(7, 1000);
  origin_.Give(0, 400);
  origin_.End(0, Unavailable());
  auto starts = origin_.WaitForStarts(2);
  EXPECT_EQ(starts[1].offset, 407u);
  EXPECT_EQ(starts[1].length, 600u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, RetriesUntilTheOriginIsBack) {
  Open(kG);
  auto reading = Read(0, kG);
  for (size_t i = 0; i < 30; ++i) {
    origin_.WaitForStarts(i + 1);
    origin_.End(i, Unavailable());
  }
  origin_.WaitForStarts(31);
  origin_.Finish(30);
  EXPECT_TRUE(IsRight(reading));
}

// A byte is no progress: a server that trickles is not asked again at once.
TEST_F(FetcherRetryTest, WaitsGrowWhileAFlightMakesNoProgress) {
  options_.max_backoff = milliseconds(1000);
  Open(kG);
  auto reading = Read(0, kG);
  const auto before = Clock::System().Now();
  for (size_t i = 0; i < 9; ++i) {
    origin_.WaitForStarts(i + 1);
    origin_.Give(i, 1);
    origin_.End(i, Unavailable());
  }
  origin_.WaitForStarts(10);
  // Parts of 1, 2, 4 … 256 ms, fixed by the seed.
  EXPECT_GE(Clock::System().Now() - before, milliseconds(60));
  origin_.Finish(9);
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, AnEndWithTooFewBytesIsRepeated) {
  Open(kG);
  auto reading = Read(0, kG);
  origin_.Give(0, 5);
  origin_.End(0, {});
  EXPECT_EQ(origin_.WaitForStarts(2)[1].offset, 5u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, TooManyBytesAreRefused) {
  Open(2 * kG);
  auto reading = Read(0, kG);
  ASSERT_TRUE(origin_.Give(0, kG - 3));
  ASSERT_FALSE(origin_.Give(0, 4));
  ASSERT_FALSE(origin_.Give(0, 1));  // not even a byte that would fit
  origin_.End(0, Error(Code::kCancelled, "the sink stopped"));
  auto starts = origin_.WaitForStarts(2);
  EXPECT_EQ(starts[1].offset, kG - 3);
  EXPECT_EQ(starts[1].length, 3u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, BytesAfterTheLastChangeNothing) {
  Open(2 * kG);
  auto reading = Read(0, kG);
  ASSERT_TRUE(origin_.Give(0, kG));
  ASSERT_FALSE(origin_.Give(0, 1));
  origin_.End(0, Error(Code::kCancelled, "the sink stopped"));
  EXPECT_TRUE(IsRight(reading));
  EXPECT_EQ(origin_.starts().size(), 1u);
}

TEST_F(FetcherRetryTest, AFinalErrorFailsItsWaitersAtOnce) {
  options_.failure_memory = milliseconds(0);
  Open(64 * kG);
  size_t index = 0;
  for (Code code : {Code::kDenied, Code::kNotFound, Code::kStale,
                    Code::kCorrupt, Code::kUnsupported, Code::kIo}) {
    auto first = Read(0, 2 * kG);
    auto second = Read(kG, 5);
    auto other = Read(10 * kG, kG);
    origin_.WaitForStarts(index + 2);
    origin_.Give(index, 10);
    origin_.End(index, Error(code, "final"));
    EXPECT_THAT(
        first->Wait(),
        AllOf(HasCode(code), HasMessage(::testing::StartsWith("final, tier"))));
    EXPECT_THAT(second->Wait(), HasCode(code));
    origin_.Give(index + 1, 10);
    EXPECT_FALSE(other->ended());
    origin_.End(index + 1, Error(code, "final"));
    EXPECT_THAT(other->Wait(), HasCode(code));
    index += 2;
  }
  EXPECT_EQ(fetcher_->stats().retries, 0u);
}

TEST_F(FetcherRetryTest, ADeadlineTellsWhatWasTried) {
  Open(8 * kG);
  auto patient = Read(0, 2 * kG);
  auto reading = Read(5, 2 * kG, Clock::System().Now() + milliseconds(200));
  origin_.WaitForStarts(2);  // granules 0 and 1, granule 2
  origin_.End(0, Unavailable());
  origin_.WaitForStarts(3);
  const auto result = reading->Wait();
  EXPECT_THAT(
      result,
      AllOf(HasCode(Code::kUnavailable),
            HasMessage(AllOf(HasSubstr("model.bin bytes 5-262148"),
                             HasSubstr("https://fake.test/org/name"),
                             HasSubstr("HTTP 503"), HasSubstr("3 attempts"),
                             HasSubstr("0.2 s")))));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(patient));
}

TEST_F(FetcherRetryTest, NobodyWaitsNothingIsRetried) {
  Open(64 * kG);
  auto reading = Read(0, 2 * kG);  // short enough to be let run
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  origin_.End(0, Unavailable());
  auto other = Read(50 * kG, kG);
  origin_.WaitForStarts(2);
  EXPECT_THAT(Ranges(), ElementsAre("0+2", "50+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(other));
}

TEST_F(FetcherRetryTest, PrefetchIsGivenUpAfterThreeFailures) {
  options_.connections = 1;
  options_.max_request = kG;
  options_.max_backoff = milliseconds(0);
  options_.connections = 2;
  Open(64 * kG);
  object_->Prefetch(0, kG);
  for (size_t i = 0; i < 3; ++i) {
    origin_.WaitForStarts(i + 1);
    origin_.End(i, Unavailable());
  }
  object_->Prefetch(8 * kG, kG);
  origin_.WaitForStarts(4);
  EXPECT_THAT(Ranges(), ElementsAre("0+1", "0+1", "0+1", "8+1"));
  origin_.FinishAll();
  cache_->WaitForGranules(1);
  // And is as never asked for.
  auto reading = Read(0, kG);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, RetryAfterPausesTheWholeOrigin) {
  Open(64 * kG);
  auto first = Read(0, kG);
  const auto before = Clock::System().Now();
  origin_.End(0, Unavailable().WithRetryAfter(milliseconds(100)));
  auto second = Read(10 * kG, kG);
  auto third = Read(20 * kG, kG);
  auto fourth = Read(30 * kG, kG);
  EXPECT_EQ(origin_.starts().size(), 1u);
  origin_.WaitForStarts(2);
  EXPECT_GE(Clock::System().Now() - before, milliseconds(100));
  // It comes back gently, until a byte is there.
  EXPECT_LE(origin_.WaitForStarts(3).size(), 3u);
  ASSERT_TRUE(origin_.Give(1, 1));
  EXPECT_EQ(origin_.WaitForStarts(5).size(), 5u);
  origin_.FinishAll();
  for (const auto& r : {first, second, third, fourth}) EXPECT_TRUE(IsRight(r));
}

TEST_F(FetcherRetryTest, FailuresAtOnceDoNotMultiplyAttempts) {
  options_.first_backoff = milliseconds(1);
  options_.max_backoff = milliseconds(2);
  Open(640 * kG);
  std::vector<std::shared_ptr<Reading>> readings;
  for (uint64_t i = 0; i < 16; ++i) readings.push_back(Read(i * 20 * kG, kG));
  origin_.WaitForStarts(16);
  for (size_t i = 0; i < 16; ++i) origin_.End(i, Unavailable());
  // Down: probes, two at a time at most, however many flights wait.
  size_t ended = 16;
  for (int round = 0; round < 20; ++round) {
    const size_t started = origin_.WaitForStarts(ended + 1).size();
    ASSERT_LE(started, ended + OriginHealth::kProbes);
    while (ended < started) origin_.End(ended++, Unavailable());
  }
  // Up again with the first byte.
  origin_.WaitForStarts(ended + 1);
  ASSERT_TRUE(origin_.Give(ended, 1));
  for (size_t i = 0; i < 16; ++i) {
    origin_.WaitForStarts(ended + i + 1);
    origin_.Finish(ended + i);
  }
  for (const auto& reading : readings) EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherRetryTest, ADeadlineEndsAReadThatWaitsForARetry) {
  options_.first_backoff = std::chrono::hours(1);
  options_.max_backoff = std::chrono::hours(1);
  Open(kG);
  auto reading = Read(0, kG, Clock::System().Now() + milliseconds(500));
  origin_.End(0, Unavailable());
  EXPECT_THAT(reading->Wait(), HasMessage(HasSubstr("1 attempts")));
  EXPECT_EQ(origin_.starts().size(), 1u);
}

TEST_F(FetcherRetryTest, CancelEndsAReadThatWaitsForARetry) {
  options_.first_backoff = std::chrono::hours(1);
  options_.max_backoff = std::chrono::hours(1);
  Open(64 * kG);
  auto reading = Read(0, kG);
  origin_.End(0, Unavailable());
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  // The range is as never asked for, and one failure pauses nobody else.
  auto again = Read(0, kG);
  EXPECT_EQ(origin_.starts().size(), 2u);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(again));
}

TEST_F(FetcherRetryTest, StopEndsReadsThatWaitForARetryOrAPause) {
  options_.first_backoff = std::chrono::hours(1);
  options_.max_backoff = std::chrono::hours(1);
  Open(64 * kG);
  auto first = Read(0, kG);
  auto second = Read(10 * kG, kG);
  origin_.End(0, Unavailable());
  origin_.End(1, Unavailable().WithRetryAfter(std::chrono::minutes(5)));
  auto third = Read(20 * kG, kG);
  EXPECT_EQ(origin_.starts().size(), 2u);
  fetcher_->Stop();
  for (const auto& reading : {first, second, third}) {
    EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  }
}

TEST_F(FetcherRetryTest, APrefetchThatIsDemandedIsRetriedForItsReader) {
  options_.max_backoff = milliseconds(0);
  Open(64 * kG);
  object_->Prefetch(0, 2 * kG);
  origin_.End(0, Unavailable());
  origin_.WaitForStarts(2);
  auto reading = Read(kG, 10);
  for (size_t i = 1; i < 8; ++i) {
    origin_.WaitForStarts(i + 1);
    origin_.End(i, Unavailable());
  }
  origin_.WaitForStarts(9);
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST(OriginHealthTest, BackoffGrowsIsJitteredAndBounded) {
  OriginHealth health(milliseconds(100), milliseconds(10'000), 7);
  for (int failures = 1; failures < 40; ++failures) {
    const milliseconds cap(
        std::min(10'000, failures < 8 ? 100 << (failures - 1) : 10'000));
    OriginHealth::Wait least = cap;
    OriginHealth::Wait most{};
    for (int i = 0; i < 200; ++i) {
      const auto wait = health.Backoff(failures);
      least = std::min(least, wait);
      most = std::max(most, wait);
    }
    EXPECT_GE(least.count(), 0);
    EXPECT_LE(most, cap);
    EXPECT_LT(least, cap / 5);
    EXPECT_GT(most, cap * 4 / 5);
  }
}

TEST(OriginHealthTest, GoesDownAfterFailuresInARowAndUpWithAByte) {
  OriginHealth health(milliseconds(100), milliseconds(1000), 7);
  Clock::Time now{std::chrono::hours(1)};
  for (int i = 1; i < OriginHealth::kDownAfter; ++i) {
    health.OnFailure(now, 1, Unavailable(), false);
    EXPECT_FALSE(health.down());
  }
  health.OnFailure(now, 1, Unavailable(), true);  // it gave bytes: no count
  EXPECT_FALSE(health.down());
  health.OnFailure(now, 1, Unavailable(), false);
  EXPECT_TRUE(health.down());
  const auto paused = health.paused_until();
  EXPECT_LE(paused, now + milliseconds(100));
  for (int i = 0; i < 100 && now < paused; ++i) {
    health.OnFailure(now, 1, Unavailable(), false);
  }
  EXPECT_EQ(health.paused_until(), paused);  // one burst, one pause
  health.OnBytes(paused - milliseconds(1));  // an old fetch
  EXPECT_TRUE(health.down());
  health.OnBytes(paused);
  EXPECT_FALSE(health.down());
}

// An origin that gives a byte and breaks, over and over.
TEST(OriginHealthTest, BytesWithoutProgressDoNotEndAStreak) {
  OriginHealth health(milliseconds(100), milliseconds(10'000), 7);
  Clock::Time now{std::chrono::hours(1)};
  const Clock::Time begin = now;
  for (int i = 0; i < 100; ++i) {
    now = std::max(now, health.paused_until());
    health.OnBytes(now);
    health.OnFailure(now, 1, Unavailable(), false);
    EXPECT_EQ(health.down(), i + 1 >= OriginHealth::kDownAfter);
  }
  // The pauses grew: their mean is half of 10 s in the end.
  EXPECT_GT(now - begin, std::chrono::seconds(200));
  health.OnProgress(health.paused_until());
  EXPECT_FALSE(health.down());
  health.OnFailure(now, 1, Unavailable(), false);
  EXPECT_FALSE(health.down());
}

TEST(OriginHealthTest, ARetryAfterOfNothingIsNotBelievedForEver) {
  OriginHealth health(milliseconds(100), milliseconds(10'000), 7);
  Clock::Time now{std::chrono::hours(1)};
  const Clock::Time begin = now;
  for (int i = 0; i < 100; ++i) {
    now = std::max(now, health.paused_until());
    health.OnFailure(now, 1, Unavailable().WithRetryAfter(milliseconds(0)),
                     false);
  }
  EXPECT_GT(now - begin, std::chrono::seconds(200));
}

TEST(OriginHealthTest, BelievesARetryAfterWithinReason) {
  OriginHealth health(milliseconds(100), milliseconds(1000), 7);
  const Clock::Time now{std::chrono::hours(1)};
  EXPECT_GE(health.OnFailure(
                now, 1, Unavailable().WithRetryAfter(std::chrono::seconds(30)),
                false),
            std::chrono::seconds(30));
  EXPECT_GE(health.paused_until(), now + std::chrono::seconds(30));
  EXPECT_LE(health.paused_until(), now + milliseconds(30'100));
  health.OnFailure(now, 1,
                   Unavailable().WithRetryAfter(std::chrono::hours(1'000'000)),
                   false);
  EXPECT_LE(health.paused_until(),
            now + OriginHealth::kMaxRetryAfter + milliseconds(100));
  health.OnFailure(now, 1, Unavailable().WithRetryAfter(milliseconds(-5)),
                   false);
  EXPECT_GE(health.paused_until(), now + OriginHealth::kMaxRetryAfter);
}

}  // namespace
}  // namespace weightfs
