#include "fs/parked_ops.h"

#include <future>
#include <thread>

#include "fs/readahead.h"
#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

class ParkedOpsTest : public ::testing::Test {
 protected:
  static TimerQueue::Time In(milliseconds time) {
    return std::chrono::steady_clock::now() + time;
  }
  ParkedOps::Waiter Record(std::function<void()> abort = nullptr) {
    return {[] { return std::string("a test"); },
            [this](const Error& error) { failed_.push_back(error.code()); },
            std::move(abort)};
  }

  TimerQueue timers_{"test"};
  ParkedOps ops_{timers_};
  std::vector<Code> failed_;
};

// As where a read's patience counts from the last byte that came.
TEST_F(ParkedOpsTest, ADeadlineMovesAsItsWaiterSays) {
  const auto last = In(milliseconds(60));
  int asked = 0;
  std::promise<TimerQueue::Time> failed;
  ParkedOps::Waiter waiter;
  waiter.where = [] { return std::string("a test"); };
  waiter.fail = [&](const Error&) {
    failed.set_value(std::chrono::steady_clock::now());
  };
  waiter.until = [&] {
    ++asked;
    return std::min(last, In(milliseconds(25)));
  };
  const OpId op = ops_.Reserve();
  ASSERT_TRUE(ops_.Park(op, In(milliseconds(1)), std::move(waiter)));
  EXPECT_GE(failed.get_future().get(), last);
  EXPECT_GE(asked, 2);
  EXPECT_FALSE(ops_.Until(op).has_value());
}

TEST_F(ParkedOpsTest, OnlyOneTakesAnOp) {
  const OpId op = ops_.Reserve();
  EXPECT_TRUE(ops_.Park(op, In(std::chrono::hours(1)), Record()));
  EXPECT_TRUE(ops_.Take(op));
  EXPECT_FALSE(ops_.Take(op));
  ops_.Interrupt(op);
  EXPECT_TRUE(failed_.empty());
}

TEST_F(ParkedOpsTest, AnInterruptFailsAndAborts) {
  bool aborted = false;
  const OpId op = ops_.Reserve();
  ops_.Park(op, In(std::chrono::hours(1)), Record([&] { aborted = true; }));
  ops_.Interrupt(op);
  EXPECT_THAT(failed_, ::testing::ElementsAre(Code::kCancelled));
  EXPECT_TRUE(aborted);
  EXPECT_EQ(ops_.size(), 0u);
}

// Once it is answered, others ask for what it waited for.
TEST_F(ParkedOpsTest, AnInterruptEndsTheWorkBeforeItAnswers) {
  bool answered_first = false;
  const OpId op = ops_.Reserve();
  ops_.Park(op, In(std::chrono::hours(1)),
            Record([&] { answered_first = !failed_.empty(); }));
  ops_.Interrupt(op);
  EXPECT_FALSE(answered_first);
  EXPECT_THAT(failed_, ::testing::ElementsAre(Code::kCancelled));
}

TEST_F(ParkedOpsTest, AnInterruptBeforeParkingIsRemembered) {
  const OpId op = ops_.Reserve();
  ops_.Interrupt(op);
  EXPECT_FALSE(ops_.Park(op, In(std::chrono::hours(1)), Record()));
  EXPECT_THAT(failed_, ::testing::ElementsAre(Code::kCancelled));
}

TEST_F(ParkedOpsTest, AnInterruptBetweenTwoParksIsRemembered) {
  const OpId op = ops_.Reserve();
  ops_.Park(op, In(std::chrono::hours(1)), Record());
  EXPECT_TRUE(ops_.Unpark(op));
  ops_.Interrupt(op);
  EXPECT_TRUE(failed_.empty());
  EXPECT_FALSE(ops_.Park(op, In(std::chrono::hours(1)), Record()));
  EXPECT_THAT(failed_, ::testing::ElementsAre(Code::kCancelled));
}

TEST_F(ParkedOpsTest, ASecondParkGoesOnFromTheFirstsStart) {
  const OpId op = ops_.Reserve();
  const auto started = ops_.Started(op);
  EXPECT_EQ(ops_.WaitsFor(op), "its handler");
  ops_.Park(op, In(std::chrono::hours(1)), Record());
  EXPECT_EQ(ops_.WaitsFor(op), "a test");
  while (std::chrono::steady_clock::now() == started) {
  }
  EXPECT_TRUE(ops_.Unpark(op));
  EXPECT_EQ(ops_.Started(op), started);
  ops_.Release(op);
}

TEST_F(ParkedOpsTest, ADeadlineEndsTheOp) {
  const OpId op = ops_.Reserve();
  std::promise<Error> failed;
  ops_.Park(
      op, In(milliseconds(1)),
      {[] { return std::string("a test"); },
       [&](Error error) { failed.set_value(std::move(error)); }, nullptr});
  const Error error = failed.get_future().get();
  EXPECT_EQ(error.code(), Code::kUnavailable);
  EXPECT_THAT(error.message(), ::testing::HasSubstr("waits for a test"));
  EXPECT_FALSE(ops_.Take(op));
}

TEST_F(ParkedOpsTest, ShutdownEndsAllAndLaterOnesToo) {
  const OpId first = ops_.Reserve();
  const OpId later = ops_.Reserve();
  ops_.Park(first, In(std::chrono::hours(1)), Record());
  ops_.Shutdown();
  EXPECT_FALSE(ops_.Park(later, In(std::chrono::hours(1)), Record()));
  EXPECT_EQ(failed_.size(), 2u);
}

TEST_F(ParkedOpsTest, RacingAnswersAnswerOnce) {
  for (int round = 0; round < 2000; ++round) {
    std::atomic<int> answers = 0;
    const OpId op = ops_.Reserve();
    std::jthread interrupt([&] { ops_.Interrupt(op); });
    ops_.Park(op, In(std::chrono::hours(1)),
              {nullptr, [&](const Error&) { ++answers; }, nullptr});
    if (ops_.Take(op)) ++answers;
    interrupt.join();
    ASSERT_EQ(answers, 1) << "round " << round;
  }
}

TEST(ReadaheadTest, TheFirstReadOfAStreamFetchesNothingMore) {
  Readahead readahead;
  const ByteRange whole{0, 1000 * kMiB};
  EXPECT_EQ(readahead.OnRead(1, 1000 * kMiB, {0, 4096}, whole).length, 0u);
}

TEST(ReadaheadTest, WindowsDoubleWhileReadsGoOn) {
  Readahead readahead;
  const ByteRange whole{0, 1000 * kMiB};
  uint64_t fetched = 0;
  uint64_t largest = 0;
  for (uint64_t at = 0; at < 400 * kMiB; at += kMiB) {
    const ByteRange ahead = readahead.OnRead(1, 1000 * kMiB, {at, kMiB}, whole);
    if (ahead.length == 0) continue;
    EXPECT_GE(ahead.offset, fetched) << "nothing is asked for twice";
    fetched = ahead.offset + ahead.length;
    largest = std::max(largest, fetched - at - kMiB);
  }
  EXPECT_EQ(largest, Readahead::kLargestWindow);
}

TEST(ReadaheadTest, AFewSmallReadsOpenASmallWindow) {
  Readahead readahead;
  const ByteRange whole{0, 1000 * kMiB};
  uint64_t fetched = 0;
  for (uint64_t at = 0; at < kMiB; at += kMiB / 8) {
    fetched += readahead.OnRead(1, 1000 * kMiB, {at, kMiB / 8}, whole).length;
  }
  EXPECT_GT(fetched, 0u);
  EXPECT_LE(fetched, 3 * kMiB);
}

TEST(ReadaheadTest, RandomSmallReadsFetchNothing) {
  Readahead readahead;
  const ByteRange whole{0, 1000 * kMiB};
  for (uint64_t i = 0; i < 500; ++i) {
    const uint64_t at = (i * 7919 % 1000) * kMiB;
    EXPECT_EQ(readahead.OnRead(1, 1000 * kMiB, {at, 4096}, whole).length, 0u);
  }
}

TEST(ReadaheadTest, TheFirstPageOfATensorStartsIt) {
  Readahead readahead;
  const uint64_t size = 1000 * kMiB;
  // The page begins before it.
  const ByteRange tensor{10 * kMiB + 8, 5 * kMiB};
  EXPECT_EQ(readahead.OnRead(1, size, {10 * kMiB, 4096}, tensor),
            (ByteRange{10 * kMiB + 4096, 5 * kMiB + 8 - 4096}));
  // Its middle does not, nor does what is read whole.
  const ByteRange other{100 * kMiB + 8, 5 * kMiB};
  EXPECT_EQ(readahead.OnRead(1, size, {102 * kMiB, 4096}, other).length, 0u);
  const ByteRange small{200 * kMiB + 8, 1000};
  EXPECT_EQ(readahead.OnRead(1, size, {200 * kMiB, 4096}, small).length, 0u);
}

TEST(ReadaheadTest, AHugeTensorIsNotStartedWhole) {
  Readahead readahead;
  const ByteRange tensor{kMiB, 900 * kMiB};
  EXPECT_EQ(readahead.OnRead(1, 1000 * kMiB, {kMiB, 4096}, tensor),
            (ByteRange{kMiB + 4096, Readahead::kTensorWindow}));
  Readahead small(8 * kMiB);
  EXPECT_EQ(small.OnRead(1, 1000 * kMiB, {kMiB, 4096}, tensor).length,
            8 * kMiB);
}

TEST(ReadaheadTest, AWindowEndsWithItsTensorUntilOneWasCrossed) {
  Readahead readahead;
  const uint64_t size = 100 * kMiB;
  const ByteRange first{0, 2 * kMiB};
  const ByteRange second{2 * kMiB, 2 * kMiB};
  readahead.OnRead(1, size, {0, kMiB / 2}, first);
  ByteRange ahead = readahead.OnRead(1, size, {kMiB / 2, kMiB}, first);
  EXPECT_EQ(ahead.offset + ahead.length, 2 * kMiB);
  readahead.OnRead(1, size, {kMiB * 3 / 2, kMiB / 2}, first);
  ahead = readahead.OnRead(1, size, {2 * kMiB, kMiB}, second);
  EXPECT_GT(ahead.offset + ahead.length, 4 * kMiB);
}

}  // namespace
}  // namespace weightfs
