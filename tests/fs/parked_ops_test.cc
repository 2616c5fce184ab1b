#include "fs/parked_ops.h"

#include <future>
#include <thread>

#include "tests/support/matchers.h"

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

}  // namespace
}  // namespace weightfs
