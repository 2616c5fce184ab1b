// A fetch that readers wait for takes along what is to be fetched behind it.

#include <thread>

#include "cache/pace.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

// One connection, so that there is more demand than connections.
class FetcherFollowTest : public FetcherTest {
 protected:
  FetcherFollowTest() { options_.connections = 1; }

  // Fetches granules at the file's end until it is well worth while to ask for
  // `least` at once: so much that a few fetches more do not change that. How
  // long they take is measured here too, as the most and as the least that the
  // fetcher may have seen.
  void LearnPace(uint64_t least) {
    const uint64_t length = std::min(options_.max_request, options_.min_split);
    for (uint64_t i = 1; Granules(slowest_, UINT64_MAX) < 4 * least; ++i) {
      ASSERT_LT(i, 15u) << "what this machine does takes too long";
      const auto before = Now();
      auto reading = Read(info_.size - i * length, length);
      const auto started = AwaitStart(learned_ + 1);
      // A way of so many milliseconds.
      while (Now() < started + milliseconds(20)) std::this_thread::yield();
      GiveAll(learned_++, before, started);
      ASSERT_TRUE(IsRight(reading));
    }
  }
  // Granules that are worth while to ask for at once: no fewer, and no more.
  uint64_t Slowest() const { return Granules(slowest_, options_.max_request); }
  uint64_t Fastest() const { return Granules(fastest_, options_.max_request); }

  // Holds the connection.
  void Block() {
    blocked_before_ = Now();
    blocker_ = Read(kBlocker * kG, kG);
    blocked_ = AwaitStart(learned_ + 1);
  }
  void Unblock() {
    GiveAll(learned_, blocked_before_, blocked_);
    ASSERT_TRUE(IsRight(blocker_));
  }
  // The fetches after the one that held the connection.
  std::vector<std::string> After() { return Ranges(learned_ + 1); }

  static constexpr uint64_t kBlocker = 100;  // a granule
  static constexpr uint64_t kSize = 300;     // granules
  size_t learned_ = 0;                       // fetches

 private:
  static Clock::Time Now() { return Clock::System().Now(); }
  Clock::Time AwaitStart(size_t count) {
    origin_.WaitForStarts(count);
    return Now();
  }
  // Gives all of a fetch that started between the two times.
  void GiveAll(size_t index, Clock::Time before, Clock::Time started) {
    const auto start = origin_.starts()[index];
    const auto bytes = FakeBytes(info_.path, start.offset, start.length);
    const auto given = Now();
    origin_.GiveRaw(index, bytes);
    const auto first = Now();
    origin_.End(index, {});
    slowest_.OnEnd(given - started, start.length, Now() - given);
    fastest_.OnEnd(first - before, start.length, milliseconds(0));
  }
  static uint64_t Granules(const Pace& pace, uint64_t most) {
    return pace.EfficientBytes(kG, most) / kG;
  }

  Pace slowest_;
  Pace fastest_;
  std::shared_ptr<Reading> blocker_;
  Clock::Time blocked_before_{};
  Clock::Time blocked_{};
};

TEST_F(FetcherFollowTest, TakesAlongWhatIsWorthWhile) {
  options_.max_request = 64 * kG;
  Open(kSize * kG);
  LearnPace(2);
  Block();
  object_->Prefetch(10 * kG, 80 * kG);
  auto first = Read(10 * kG, kG);
  auto second = Read(200 * kG, kG);
  Unblock();
  const uint64_t before = fetcher_->stats().bytes_fetched;
  const auto start = origin_.WaitForStarts(learned_ + 2).back();
  EXPECT_EQ(start.offset, 10 * kG);
  EXPECT_GT(start.length, kG);
  EXPECT_GE(start.length, Slowest() * kG);
  EXPECT_LE(start.length, Fastest() * kG);
  // Its waiter goes before the rest comes.
  EXPECT_TRUE(origin_.Give(learned_ + 1, kG));
  EXPECT_TRUE(IsRight(first));
  EXPECT_FALSE(origin_.starts()[learned_ + 1].ended);
  origin_.Finish(learned_ + 1);
  // And the next who waits comes before what is fetched for later.
  EXPECT_THAT(Ranges(learned_ + 2), ElementsAre("200+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(second));
  // Each once.
  EXPECT_EQ(fetcher_->stats().bytes_fetched, before + (80 + 1) * kG);
}

TEST_F(FetcherFollowTest, NoMoreThanARequestMayBe) {
  options_.max_request = 3 * kG;
  Open(kSize * kG);
  LearnPace(3);
  Block();
  object_->Prefetch(10 * kG, 20 * kG);
  auto first = Read(10 * kG, kG);
  auto second = Read(13 * kG, 2 * kG);
  auto third = Read(20 * kG, 3 * kG);
  Unblock();
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(first));
  EXPECT_TRUE(IsRight(second));
  EXPECT_TRUE(IsRight(third));
  EXPECT_THAT(After(), ElementsAre("10+3", "13+3", "20+3", "16+3", "19+1",
                                   "23+3", "26+3", "29+1"));
}

// Nothing is known of the way yet: no fetch is worth more than another.
TEST_F(FetcherFollowTest, BeforeThePaceIsKnownNothingIsTakenAlong) {
  options_.connections = 2;  // one of them for demand
  Open(kSize * kG);
  auto blocker = Read(kBlocker * kG, kG);
  object_->Prefetch(10 * kG, 3 * kG);
  auto reading = Read(10 * kG, kG);
  EXPECT_THAT(Ranges(), ElementsAre("100+1", "10+1"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(blocker));
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherFollowTest, OnlyWhatFollowsAtOnceIsTakenAlong) {
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  Keep(31);
  Block();
  object_->Prefetch(11 * kG, kG);      // one between
  object_->Prefetch(30 * kG, 4 * kG);  // but for 31, which is there
  object_->Prefetch(49 * kG, kG);      // just before
  auto alone = Read(5 * kG, kG);
  auto gap = Read(9 * kG, kG);
  auto cached = Read(30 * kG, kG);
  auto after = Read(50 * kG, kG);
  Unblock();
  origin_.FinishAll();
  for (const auto& r : {alone, gap, cached, after}) EXPECT_TRUE(IsRight(r));
  EXPECT_THAT(After(), ElementsAre("5+1", "9+1", "30+1", "50+1", "11+1", "32+2",
                                   "49+1"));
}

// What is wanted is more than a request may be: its last part has room.
TEST_F(FetcherFollowTest, TheEndOfARunTakesAlongWhatFollows) {
  options_.max_request = 4 * kG;
  Open(kSize * kG);
  LearnPace(4);
  Block();
  object_->Prefetch(10 * kG, 20 * kG);
  auto reading = Read(10 * kG, 6 * kG);
  Unblock();
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(After(), ElementsAre("10+4", "14+4", "18+4", "22+4", "26+4"));
}

// Each of two who wait is answered by a fetch of his own.
TEST_F(FetcherFollowTest, WhatIsWantedIsNotTakenAlong) {
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  Block();
  object_->Prefetch(10 * kG, 6 * kG);
  auto first = Read(10 * kG, kG);
  auto second = Read(13 * kG, kG);
  Unblock();
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(first));
  EXPECT_TRUE(IsRight(second));
  EXPECT_THAT(After(), ElementsAre("10+3", "13+3"));
}

// A read that is spread over free connections: nothing follows any part of it
// but the last.
TEST_F(FetcherFollowTest, OnlyTheLastPartOfAReadTakesAlongWhatFollows) {
  options_.connections = 8;  // two of them for demand
  options_.min_split = 2 * kG;
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  for (uint64_t i = 0; i < 6; ++i) Read((kBlocker + 2 * i) * kG, kG);
  object_->Prefetch(10 * kG, 14 * kG);
  auto reading = Read(10 * kG, 4 * kG);
  EXPECT_THAT(Ranges(learned_ + 6), ElementsAre("10+2", "12+8"));
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
}

TEST_F(FetcherFollowTest, WithoutRoomForItNothingIsTakenAlong) {
  options_.max_backlog_bytes = 0;
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  Block();
  object_->Prefetch(10 * kG, 20 * kG);
  auto reading = Read(10 * kG, kG);
  Unblock();
  origin_.FinishAll();
  EXPECT_TRUE(IsRight(reading));
  EXPECT_THAT(After(), ElementsAre("10+1"));
}

// What comes along with others takes room too: else it comes in vain.
TEST_F(FetcherFollowTest, WhatIsTakenAlongCountsAsComing) {
  options_.connections = 2;
  options_.max_request = 8 * kG;
  options_.max_backlog_bytes = 8 * kG;
  options_.max_unwritten_bytes = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  cache_->WaitForGranules(learned_ * 8);
  cache_->OnPut([&](uint64_t) {
    gate_.Pass();
    return Result<>();
  });
  Block();
  object_->Prefetch(10 * kG, 8 * kG);
  object_->Prefetch(30 * kG, 8 * kG);
  object_->Prefetch(50 * kG, 8 * kG);
  auto first = Read(10 * kG, kG);
  auto second = Read(30 * kG, kG);
  auto third = Read(50 * kG, kG);
  Unblock();
  EXPECT_THAT(After(), ElementsAre("10+8", "30+1"));
  origin_.FinishAll();
  for (const auto& r : {first, second, third}) EXPECT_TRUE(IsRight(r));
}

TEST_F(FetcherFollowTest, WhatWasTakenAlongIsFetchedThoughItsReaderWent) {
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  Block();
  object_->Prefetch(10 * kG, 8 * kG);
  auto reading = Read(10 * kG, kG);
  Unblock();
  origin_.WaitForStarts(learned_ + 2);
  object_->CancelRead(reading->id);
  EXPECT_THAT(reading->Wait(), HasCode(Code::kCancelled));
  EXPECT_FALSE(origin_.starts()[learned_ + 1].cancelled);
  // A later reader of what comes along waits for that same fetch.
  auto later = Read(13 * kG, kG);
  ASSERT_TRUE(origin_.Give(learned_ + 1, 4 * kG));
  EXPECT_TRUE(IsRight(later));
  origin_.FinishAll();
  EXPECT_THAT(After(), ElementsAre("10+8"));
}

// What is on its way already is not taken along, and demand is not either.
TEST_F(FetcherFollowTest, WhatNobodyWaitsForStillComesInRunsOfItsOwn) {
  options_.connections = 2;  // one of them for demand
  options_.max_request = 8 * kG;
  Open(kSize * kG);
  LearnPace(8);
  object_->Prefetch(10 * kG, 20 * kG);
  EXPECT_THAT(Ranges(learned_), ElementsAre("10+8"));
  auto inside = Read(22 * kG, kG);
  EXPECT_THAT(Ranges(learned_ + 1), ElementsAre("22+8"));
  auto before = Read(9 * kG, kG);
  origin_.FinishAll(learned_);
  EXPECT_TRUE(IsRight(inside));
  EXPECT_TRUE(IsRight(before));
  EXPECT_THAT(Ranges(learned_), ElementsAre("10+8", "22+8", "9+1", "18+4"));
}

}  // namespace
}  // namespace weightfs
