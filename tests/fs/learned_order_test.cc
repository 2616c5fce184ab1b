// The order in which readers touch tensors: recorded, and followed.

#include "fs/learned_order.h"

#include <string>
#include <thread>

#include "cache/object_cache.h"
#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kHeaderSize = 4096;
constexpr uint64_t kTensor = 8 * kMiB;
constexpr uint32_t kTensors = 64;
// Files 0 and 1 have tensors, one after the other behind a header; 2 has no
// index; 3 is small.
constexpr uint64_t kShard = kHeaderSize + kTensors * kTensor;
constexpr uint64_t kPlain = 100 * kMiB;

uint64_t OffsetOf(uint32_t tensor) { return kHeaderSize + tensor * kTensor; }
FileRun Tensor(uint32_t file, uint32_t tensor) {
  return {file, OffsetOf(tensor), kTensor};
}

class LearnedOrderTest : public ::testing::Test {
 protected:
  static std::vector<FileInfo> Files() {
    return {{"a", kShard, {}},
            {"b", kShard, {}},
            {"c", kPlain, {}},
            {"d", kMiB - 1, {}}};
  }
  static ByteRange ExtentAt(uint32_t file, uint64_t offset) {
    if (file > 1) return {0, Files()[file].size};
    if (offset < kHeaderSize) return {0, offset};
    const uint64_t tensor = (offset - kHeaderSize) / kTensor;
    return {kHeaderSize + tensor * kTensor, kTensor};
  }

  std::vector<FileRun> Read(uint32_t file, uint64_t offset,
                            uint64_t length = 128 << 10) {
    return order_.OnRead(file, {offset, length}, ExtentAt(file, offset));
  }
  std::vector<FileRun> Touch(uint32_t file, uint32_t tensor) {
    return Read(file, OffsetOf(tensor));
  }
  // Before the index of a file is there.
  void ReadEarly(uint32_t file, uint64_t offset) {
    order_.OnRead(file, {offset, 4096}, {0, Files()[file].size});
  }
  std::vector<FileRun> Collect() { return order_.Collect(ExtentAt); }

  // Tensors 0, 17, 34, … of file 0, none of which follow each other.
  static std::vector<FileRun> Shuffled(uint32_t count = kTensors) {
    std::vector<FileRun> order;
    for (uint32_t i = 0; i < count; ++i) {
      order.push_back(Tensor(0, i * 17 % kTensors));
    }
    return order;
  }
  static uint32_t TensorAt(uint32_t i) { return i * 17 % kTensors; }

  LearnedOrder order_{Files()};
};

// --- recording ---

TEST_F(LearnedOrderTest, RecordsTensorsInTheOrderOfTheirFirstTouch) {
  Touch(0, 5);
  Touch(1, 2);
  Read(0, OffsetOf(5) + kMiB);
  Touch(0, 3);
  Read(1, OffsetOf(2) + 5 * kMiB);
  Touch(0, 5);
  EXPECT_EQ(order_.touches(), 3u);
  EXPECT_THAT(Collect(), ElementsAre(Tensor(0, 5), Tensor(1, 2), Tensor(0, 3)));
}

// However the reads of several threads mix, and wherever in a tensor they are.
TEST_F(LearnedOrderTest, TheRecordFollowsFromTouchesAlone) {
  LearnedOrder other(Files());
  for (uint32_t t : {5u, 9u, 2u}) Touch(0, t);
  for (uint64_t at = 0; at < kTensor; at += kMiB) {
    for (uint32_t t : {2u, 9u, 5u}) Read(0, OffsetOf(t) + at);
  }
  for (uint32_t t : {5u, 9u, 2u}) {
    for (uint64_t at = kTensor; at > 0; at -= kMiB) {
      const uint64_t offset = OffsetOf(t) + at - kMiB;
      other.OnRead(0, {offset, kMiB}, ExtentAt(0, offset));
    }
  }
  EXPECT_EQ(Collect(), other.Collect(ExtentAt));
}

TEST_F(LearnedOrderTest, NeighboursBecomeOneRun) {
  for (uint32_t t = 3; t < 9; ++t) Touch(0, t);
  EXPECT_THAT(Collect(), ElementsAre(FileRun{0, OffsetOf(3), 6 * kTensor}));
}

TEST_F(LearnedOrderTest, AFileWithoutAnIndexIsRecordedInBlocks) {
  Read(2, 40 * kMiB);
  Read(2, 99 * kMiB);
  Read(2, 41 * kMiB);
  EXPECT_THAT(Collect(), ElementsAre(FileRun{2, 32 * kMiB, 16 * kMiB},
                                     FileRun{2, 96 * kMiB, 4 * kMiB}));
}

TEST_F(LearnedOrderTest, HeadersAndSmallFilesAreNotRecorded) {
  Read(0, 0);
  Read(0, 100);
  Read(3, 0);
  EXPECT_EQ(order_.touches(), 0u);
  EXPECT_THAT(Collect(), IsEmpty());
}

TEST_F(LearnedOrderTest, WhatWasReadBeforeTheIndexWasThereIsTensorsAllTheSame) {
  ReadEarly(0, 0);
  ReadEarly(0, OffsetOf(1));
  ReadEarly(0, OffsetOf(0) + kMiB);
  Touch(0, 7);
  Touch(0, 1);
  EXPECT_THAT(Collect(), ElementsAre(Tensor(0, 1), Tensor(0, 0), Tensor(0, 7)));
}

TEST_F(LearnedOrderTest, TheRecordIsBounded) {
  constexpr uint64_t kSize = uint64_t{1} << 40;
  LearnedOrder order({{"big", kSize, {}}});
  const auto extent_at = [](uint32_t, uint64_t offset) {
    return ByteRange{offset / kMiB * kMiB, kMiB};
  };
  // Backwards, so that no two become one.
  for (uint64_t i = 0; i < 2 * LearnedOrder::kMaxTouches; ++i) {
    const uint64_t offset = kSize - 2 * (i + 1) * kMiB;
    order.OnRead(0, {offset, 4096}, extent_at(0, offset));
  }
  EXPECT_EQ(order.touches(), LearnedOrder::kMaxTouches);
  EXPECT_EQ(order.Collect(extent_at).size(), SnapshotStore::kMaxOrderRuns);
}

TEST_F(LearnedOrderTest, SizesThatNobodyHasAreNotFollowed) {
  LearnedOrder order({{"a", uint64_t{INT64_MAX}, {}}, {"b", kShard, {}}});
  order.OnRead(0, {uint64_t{1} << 60, 4096}, {0, uint64_t{INT64_MAX}});
  order.OnRead(1, {kHeaderSize, 4096}, {kHeaderSize, kTensor});
  order.OnRead(2, {0, 4096}, {0, 4096});
  EXPECT_EQ(order.touches(), 1u);
}

TEST_F(LearnedOrderTest, WithoutFilesItDoesNothing) {
  LearnedOrder order({});
  EXPECT_THAT(order.OnRead(0, {0, 4096}, {0, 4096}), IsEmpty());
  EXPECT_EQ(order.touches(), 0u);
}

TEST_F(LearnedOrderTest, ManyThreadsMayTellOfReads) {
  order_.Learn(Shuffled());
  std::vector<std::jthread> threads;
  for (uint32_t file : {0u, 1u}) {
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([this, file] {
        for (uint32_t t = 0; t < kTensors; ++t) {
          Touch(file, t);
          Read(file, OffsetOf(t) + kMiB);
        }
      });
    }
  }
  threads.clear();
  EXPECT_EQ(order_.touches(), 2 * kTensors);
}

// --- what is kept of an earlier mount ---

TEST_F(LearnedOrderTest, ANewOrderReplacesTheKeptOne) {
  order_.Learn({Tensor(0, 1), Tensor(0, 5), Tensor(0, 3)});
  Touch(0, 3);
  Touch(0, 1);
  Touch(0, 5);
  EXPECT_THAT(Collect(), ElementsAre(Tensor(0, 3), Tensor(0, 1), Tensor(0, 5)));
}

TEST_F(LearnedOrderTest, WhatWasNotTouchedAgainStaysBehindIt) {
  order_.Learn({Tensor(0, 1), Tensor(0, 9), Tensor(0, 5), Tensor(0, 3)});
  Touch(0, 3);
  Touch(0, 1);
  EXPECT_THAT(Collect(), ElementsAre(Tensor(0, 3), Tensor(0, 1), Tensor(0, 9),
                                     Tensor(0, 5)));
}

TEST_F(LearnedOrderTest, ALookAtOneTensorDoesNotReplaceALoadersOrder) {
  order_.Learn(Shuffled());
  Touch(0, 44);
  Touch(1, 0);
  EXPECT_THAT(Collect(), IsEmpty());
}

// --- following ---

TEST_F(LearnedOrderTest, NothingIsFetchedBeforeSomebodyFollowsTheOrder) {
  order_.Learn(Shuffled());
  EXPECT_THAT(Read(0, 0), IsEmpty());
  EXPECT_THAT(Touch(0, TensorAt(0)), IsEmpty());
  EXPECT_THAT(Read(0, OffsetOf(TensorAt(0)) + kMiB), IsEmpty());
}

TEST_F(LearnedOrderTest, TheSecondTensorInOrderStartsIt) {
  order_.Learn(Shuffled());
  Touch(0, TensorAt(0));
  // The rest of this one first.
  constexpr uint64_t kRead = 128 << 10;
  EXPECT_THAT(Touch(0, TensorAt(1)),
              ElementsAre(FileRun{0, OffsetOf(TensorAt(1)) + kRead,
                                  LearnedOrder::kFirstWindow}));
}

TEST_F(LearnedOrderTest, AReaderInOrderGetsAllOfItInOrderAndNothingTwice) {
  const auto kept = Shuffled();
  order_.Learn(kept);
  std::vector<FileRun> asked;
  uint64_t ahead = 0;  // most bytes before they were read
  uint64_t read = 0;
  uint64_t fetched = 0;
  for (uint32_t i = 0; i < kTensors; ++i) {
    for (uint64_t at = 0; at < kTensor; at += kMiB) {
      for (const FileRun& run : Read(0, OffsetOf(TensorAt(i)) + at, kMiB)) {
        asked.push_back(run);
        fetched += run.length;
      }
      read += kMiB;
      ahead =
          std::max(ahead, fetched + kTensor + kMiB - std::min(read, fetched));
    }
  }
  // All but the first and what started it.
  EXPECT_EQ(fetched, (kTensors - 1) * kTensor - kMiB);
  EXPECT_LE(ahead, LearnedOrder::kLargestWindow + 2 * kTensor);
  // As one stream it is the kept order.
  size_t i = 1;
  uint64_t at = kMiB;
  for (const FileRun& run : asked) {
    ASSERT_LT(i, kept.size());
    EXPECT_EQ(run.file, kept[i].file);
    EXPECT_EQ(run.offset, kept[i].offset + at);
    at += run.length;
    ASSERT_LE(at, kTensor);
    if (at == kTensor) {
      ++i;
      at = 0;
    }
  }
}

TEST_F(LearnedOrderTest, WindowsGrowWithEachTensorInOrder) {
  order_.Learn(Shuffled());
  Touch(0, TensorAt(0));
  uint64_t last = 0;
  for (uint32_t i = 1; i < 8; ++i) {
    uint64_t bytes = 0;
    for (const FileRun& run : Touch(0, TensorAt(i))) bytes += run.length;
    last = std::max(last, bytes);
    EXPECT_LE(bytes, LearnedOrder::kLargestWindow);
  }
  EXPECT_GT(last, LearnedOrder::kFirstWindow);
}

// Loaders read several tensors at a time, and never twice alike.
TEST_F(LearnedOrderTest, ReadersThatOvertakeEachOtherStillFollow) {
  order_.Learn(Shuffled());
  uint64_t fetched = 0;
  for (uint32_t i = 0; i < kTensors; ++i) {
    // 0 1 3 2 5 4 …
    const uint32_t swapped = i < 2 ? i : i ^ 1;
    for (const FileRun& run : Touch(0, TensorAt(swapped))) {
      fetched += run.length;
    }
  }
  EXPECT_GT(fetched, (kTensors - 8) * kTensor);
}

TEST_F(LearnedOrderTest, AReaderInReverseFetchesNothing) {
  order_.Learn(Shuffled());
  for (uint32_t i = kTensors; i-- > 0;) {
    EXPECT_THAT(Touch(0, TensorAt(i)), IsEmpty());
  }
}

TEST_F(LearnedOrderTest, AReaderWhoLeavesTheOrderEndsIt) {
  order_.Learn(Shuffled(32));
  Touch(0, TensorAt(0));
  EXPECT_THAT(Touch(0, TensorAt(1)), ::testing::SizeIs(1));
  // In no order that is known: three may be somebody else's.
  for (uint32_t i = 0; i < 4; ++i) EXPECT_THAT(Touch(1, 5 * i), IsEmpty());
  // It goes on there, once two follow each other again.
  EXPECT_THAT(Touch(0, TensorAt(2)), ::testing::Not(IsEmpty()));
  for (uint32_t i = 4; i < 8; ++i) EXPECT_THAT(Touch(1, 5 * i), IsEmpty());
  EXPECT_THAT(Touch(0, TensorAt(20)), IsEmpty());
  EXPECT_THAT(Touch(0, TensorAt(25)), IsEmpty());
  EXPECT_THAT(Touch(0, TensorAt(26)), ::testing::Not(IsEmpty()));
}

TEST_F(LearnedOrderTest, TheNextFileComesInOrder) {
  order_.Learn({Tensor(0, 9), Tensor(0, 3), Tensor(1, 7)});
  Touch(0, 9);
  std::vector<FileRun> asked;
  for (uint64_t at = 0; at < kTensor; at += kMiB) {
    for (const FileRun& run : Read(0, OffsetOf(3) + at, kMiB)) {
      asked.push_back(run);
    }
  }
  ASSERT_THAT(asked, ::testing::Not(IsEmpty()));
  EXPECT_EQ(asked.back().file, 1u);
  EXPECT_GE(asked.back().end(), OffsetOf(7) + LearnedOrder::kFirstWindow / 2);
}

TEST_F(LearnedOrderTest, BlocksOfAFileWithoutAnIndexAreFollowed) {
  order_.Learn({{2, 80 * kMiB, 16 * kMiB}, {2, 0, 32 * kMiB}});
  Read(2, 80 * kMiB);
  EXPECT_THAT(Read(2, 0),
              ElementsAre(FileRun{2, 128 << 10, LearnedOrder::kFirstWindow}));
}

// An order may have been made up: what it names is only ever fetched ahead.
TEST_F(LearnedOrderTest, AnOrderOfOtherFilesIsHarmless) {
  order_.Learn({{9, 0, kMiB}, {0, 0, kShard}});
  for (uint32_t i = 0; i < kTensors; ++i) EXPECT_THAT(Touch(0, i), IsEmpty());
}

}  // namespace
}  // namespace weightfs
