#include <atomic>
#include <chrono>
#include <future>

#include "formats/base/byte_reader.h"
#include "formats/base/byte_source.h"
#include "formats/base/checked.h"
#include "formats/base/timer_queue.h"
#include "formats/base/worker_pool.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;

std::vector<std::byte> Bytes(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

Result<int> Half(int value) {
  if (value % 2 != 0) return MakeError(Code::kInvalid, "{} is odd", value);
  return value / 2;
}

Result<int> Quarter(int value) {
  ASSIGN_OR_RETURN(const int half, Half(value));
  return Half(half);
}

Result<> CheckQuarter(int value) {
  RETURN_IF_ERROR(Quarter(value));
  return {};
}

TEST(ResultTest, MacrosPassValuesAndErrors) {
  EXPECT_THAT(Quarter(12), IsOkAndHolds(3));
  EXPECT_THAT(Quarter(6), HasCode(Code::kInvalid));
  EXPECT_THAT(CheckQuarter(7), HasMessage("7 is odd"));
  EXPECT_OK(CheckQuarter(8));
}

TEST(ErrorTest, ContextGoesBeforeTheMessage) {
  Error error(Code::kCorrupt, "bad magic");
  error.AddContext("a.bin").AddContext("org/name");
  EXPECT_EQ(error.ToString(), "Corrupt: org/name: a.bin: bad magic");
}

TEST(CheckedTest, OverflowIsTold) {
  EXPECT_EQ(CheckedAdd(UINT64_MAX, 1), std::nullopt);
  EXPECT_EQ(CheckedAdd(UINT64_MAX - 1, 1), UINT64_MAX);
  EXPECT_EQ(CheckedMul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(CheckedMul(3, 5), 15u);
  EXPECT_TRUE(RangeFits(3, 4, 7));
  EXPECT_FALSE(RangeFits(3, 5, 7));
  EXPECT_FALSE(RangeFits(UINT64_MAX, 2, 7));
  EXPECT_EQ(AlignUp(65, 64), 128u);
}

TEST(ByteReaderTest, ReadsLittleEndianAndStopsAtTheEnd) {
  const auto bytes = Bytes({1, 2, 3, 4, 'a', 'b', 0xff});
  ByteReader reader("test", bytes);
  EXPECT_THAT(reader.Read<uint32_t>("x"), IsOkAndHolds(0x04030201u));
  EXPECT_THAT(reader.String("s", 2), IsOkAndHolds("ab"));
  EXPECT_THAT(reader.Read<uint16_t>("y"), HasCode(Code::kCorrupt));
  EXPECT_THAT(reader.Bytes("z", UINT64_MAX),
              HasMessage(HasSubstr("z at offset 6")));
  EXPECT_EQ(reader.remaining(), 1u);
  EXPECT_OK(reader.Skip("w", 1));
  EXPECT_THAT(reader.Skip("w", 1), HasCode(Code::kCorrupt));
}

TEST(MemorySourceTest, ReadsWithinItsBounds) {
  MemorySource source("m", Bytes({1, 2, 3}));
  std::vector<std::byte> out(2);
  EXPECT_OK(source.ReadAt(1, out));
  EXPECT_EQ(out, Bytes({2, 3}));
  EXPECT_THAT(source.ReadAt(2, out), HasCode(Code::kInvalid));
}

TEST(WorkerPoolTest, RunsTasksAndDropsThemAfterStop) {
  WorkerPool pool("test", 2);
  std::promise<void> ran;
  EXPECT_TRUE(pool.Submit([&] { ran.set_value(); }));
  ran.get_future().wait();
  pool.Stop();
  EXPECT_FALSE(pool.Submit([] { FAIL() << "ran after Stop"; }));
}

TEST(TimerQueueTest, RunsInOrderOfTimeAndNotAfterCancel) {
  TimerQueue timers("test");
  std::promise<void> last;
  std::vector<int> order;  // written by the one timer thread
  const auto now = std::chrono::steady_clock::now();
  timers.At(now + std::chrono::milliseconds(20), [&] {
    order.push_back(2);
    last.set_value();
  });
  timers.At(now + std::chrono::milliseconds(10), [&] { order.push_back(1); });
  const auto cancelled = timers.At(now + std::chrono::milliseconds(15),
                                   [&] { order.push_back(9); });
  EXPECT_TRUE(timers.Cancel(cancelled));
  EXPECT_FALSE(timers.Cancel(cancelled));
  last.get_future().wait();
  timers.Stop();
  EXPECT_THAT(order, ::testing::ElementsAre(1, 2));
}

}  // namespace
}  // namespace weightfs
