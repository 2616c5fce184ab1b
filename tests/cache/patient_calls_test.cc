// Calls that may never return.

#include "cache/patient_calls.h"

#include <atomic>
#include <optional>

#include "cache/inline_stays.h"
#include "tests/cache/fetcher_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

TEST(PatientCallsTest, WaitsForACallThatEnds) {
  PatientCalls calls("calls", 1, hours(1));
  int ran = 0;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(calls.Run([&] { ++ran; }));
  EXPECT_EQ(ran, 100);
}

TEST(PatientCallsTest, GivesUpACallThatHangsAndRefusesMoreUntilItEnds) {
  Gate gate;
  PatientCalls calls("calls", 2, milliseconds(20));
  auto touched = std::make_shared<std::atomic<bool>>(false);
  EXPECT_FALSE(calls.Run([&gate, touched] {
    gate.Pass();
    *touched = true;
  }));
  EXPECT_TRUE(calls.overdue());
  // At once, though a thread is free.
  EXPECT_FALSE(calls.Run([] { ADD_FAILURE() << "ran"; }));
  gate.Open();
  while (calls.overdue()) std::this_thread::yield();
  EXPECT_TRUE(*touched);
  EXPECT_TRUE(calls.Run([] {}));
}

TEST(PatientCallsTest, ACallThatWasGivenUpBeforeItRanNeverRuns) {
  Gate gate;
  std::atomic<int> refused = 0;
  std::atomic<bool> ran = false;
  {
    PatientCalls calls("calls", 1, milliseconds(50));
    std::jthread first([&] {
      if (!calls.Run([&] { gate.Pass(); })) ++refused;
    });
    gate.WaitForWaiters(1);
    if (!calls.Run([&] { ran = true; })) ++refused;
    first.join();
    EXPECT_EQ(refused, 2);
    gate.Open();
  }
  EXPECT_FALSE(ran);
}

TEST(InlineStaysTest, LetsInOnlySoMany) {
  InlineStays door(hours(1));
  std::vector<std::unique_ptr<InlineStays::Stay>> stays;
  for (size_t i = 0; i < InlineStays::kPlaces; ++i) {
    stays.push_back(std::make_unique<InlineStays::Stay>(door));
    EXPECT_TRUE(stays.back()->inside());
  }
  EXPECT_FALSE(InlineStays::Stay(door).inside());
  stays.pop_back();
  EXPECT_TRUE(InlineStays::Stay(door).inside());
}

TEST(InlineStaysTest, NobodyFollowsOneWhoDoesNotComeOut) {
  InlineStays door(milliseconds(1));
  {
    const InlineStays::Stay stuck(door);
    const auto entered = Clock::System().Now();
    while (Clock::System().Now() < entered + milliseconds(1)) {
    }
    EXPECT_TRUE(stuck.inside());
    EXPECT_FALSE(InlineStays::Stay(door).inside());
  }
  EXPECT_TRUE(InlineStays::Stay(door).inside());
}

TEST_F(FetcherTest, ALookAtACacheThatHangsIsReplacedByTheOrigin) {
  options_.disk_patience = milliseconds(20);
  Open(8 * kG);
  for (uint64_t g = 0; g < 8; ++g) Keep(g);
  cache_->OnLook([&] { gate_.Pass(); });
  for (uint64_t g = 0; g < 8; ++g) {
    auto reading = Read(g * kG, kG);
    origin_.WaitForStarts(g + 1);
    origin_.Finish(g);
    EXPECT_TRUE(IsRight(reading));
  }
  // What nobody waits for is not fetched meanwhile.
  object_->Prefetch(0, 8 * kG);
  EXPECT_EQ(origin_.starts().size(), 8u);
  EXPECT_EQ(object_->CachedFraction(), 0);
  gate_.Open();
}

TEST_F(FetcherTest, ATryReadIsRefusedWhileOneHangs) {
  options_.disk_patience = milliseconds(1);
  Open(kG);
  Keep(0);
  cache_->AllowTryRead();
  std::vector<std::byte> out(kG);
  EXPECT_TRUE(object_->TryRead(0, out));
  cache_->OnPin([&] { gate_.Pass(); });
  std::jthread stuck([&] {
    std::vector<std::byte> other(kG);
    EXPECT_TRUE(object_->TryRead(0, other));
  });
  gate_.WaitForWaiters(1);
  const auto since = Clock::System().Now();
  while (Clock::System().Now() < since + milliseconds(2)) {
  }
  EXPECT_FALSE(object_->TryRead(0, out));  // does not go in
  gate_.Open();
  stuck.join();
  EXPECT_TRUE(object_->TryRead(0, out));
}

}  // namespace
}  // namespace weightfs
