#include "fs/readahead.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

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

TEST(ReadaheadTest, TheFirstPageOfATensorStartsItThoughItComesSecond) {
  Readahead readahead;
  const uint64_t size = 1000 * kMiB;
  const ByteRange tensor{100 * kMiB, 200 * kMiB};
  EXPECT_EQ(readahead.OnRead(1, size, {101 * kMiB, kMiB}, tensor).length, 0u);
  EXPECT_EQ(readahead.OnRead(1, size, {100 * kMiB, kMiB}, tensor),
            (ByteRange{102 * kMiB, Readahead::kTensorWindow}));
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

// Into one neighbour may be by chance, or the kernel's reading ahead.
TEST(ReadaheadTest, AWindowEndsWithItsTensorUntilTwoWereCrossed) {
  Readahead readahead;
  const uint64_t size = 100 * kMiB;
  const ByteRange first{0, 2 * kMiB};
  const ByteRange second{2 * kMiB, 2 * kMiB};
  const ByteRange third{4 * kMiB, 2 * kMiB};
  readahead.OnRead(1, size, {0, kMiB / 2}, first);
  ByteRange ahead = readahead.OnRead(1, size, {kMiB / 2, kMiB}, first);
  EXPECT_EQ(ahead.offset + ahead.length, 2 * kMiB);
  readahead.OnRead(1, size, {kMiB * 3 / 2, kMiB / 2}, first);
  ahead = readahead.OnRead(1, size, {2 * kMiB, kMiB}, second);
  EXPECT_EQ(ahead.offset + ahead.length, 4 * kMiB);
  readahead.OnRead(1, size, {3 * kMiB, kMiB}, second);
  ahead = readahead.OnRead(1, size, {4 * kMiB, kMiB}, third);
  EXPECT_GT(ahead.offset + ahead.length, 6 * kMiB);
}

// Who comes from the header reads the file: the next tensor is on its way
// before the first one ends, but no more of it than a quarter of what was read.
TEST(ReadaheadTest, AReaderFromTheHeaderFindsTheSecondTensorOnItsWay) {
  Readahead readahead;
  const uint64_t header = 2048;
  const uint64_t tensor = 64 * kMiB;
  const uint64_t size = header + 4 * tensor;
  const auto extent = [&](uint64_t offset) {
    if (offset < header) return ByteRange{0, header};
    return ByteRange{header + (offset - header) / tensor * tensor, tensor};
  };
  uint64_t fetched = 0;
  for (uint64_t at = 0; at + kMiB < tensor; at += kMiB / 8) {
    const ByteRange ahead =
        readahead.OnRead(1, size, {at, kMiB / 8},
                         {extent(at), extent(at + kMiB / 8 - 1).offset, false});
    if (ahead.length > 0) fetched = ahead.offset + ahead.length;
    EXPECT_LE(fetched,
              std::max(header + tensor + (at + kMiB / 8) / 4, at + 32 * kMiB));
  }
  EXPECT_GE(fetched, header + tensor + 8 * kMiB);
  EXPECT_LE(fetched, header + tensor + 16 * kMiB);
}

TEST(ReadaheadTest, AStreamThatBeganInATensorEndsThereAtFirst) {
  Readahead readahead;
  const uint64_t size = 200 * kMiB;
  const ByteRange tensor{10 * kMiB, 64 * kMiB};
  uint64_t fetched = 0;
  for (uint64_t at = 10 * kMiB; at < 74 * kMiB; at += kMiB) {
    const ByteRange ahead = readahead.OnRead(1, size, {at, kMiB}, tensor);
    if (ahead.length > 0) fetched = ahead.offset + ahead.length;
  }
  EXPECT_EQ(fetched, 74 * kMiB);
}

// The kernel asks for what lies around a page, and reads on beyond a tensor.
TEST(ReadaheadTest, WhatTheKernelReadsBeyondATensorStartsNothing) {
  Readahead readahead;
  const uint64_t size = 100 * kMiB;
  const ByteRange before{9 * kMiB, kMiB};
  const ByteRange tensor{10 * kMiB, kMiB};
  const ByteRange after{11 * kMiB, kMiB};
  const uint64_t k64 = 64 << 10;
  readahead.OnRead(1, size, {10 * kMiB - k64, 2 * k64},
                   {before, tensor.offset, false});
  const ByteRange ahead =
      readahead.OnRead(1, size, {10 * kMiB + k64, 2 * k64}, tensor);
  EXPECT_EQ(ahead.offset + ahead.length, 11 * kMiB);
  EXPECT_EQ(readahead
                .OnRead(1, size, {11 * kMiB - k64, 2 * k64},
                        {tensor, after.offset, false})
                .length,
            0u);
  EXPECT_EQ(readahead.OnRead(1, size, {11 * kMiB + k64, 2 * k64}, after).length,
            kMiB - 3 * k64);
}

// A tensor read whole by page, its first and last ones shared with others; the
// kernel's requests come in any order.
class WholeTensorTest : public testing::Test {
 protected:
  static constexpr uint64_t kPage = 4096;

  static Readahead::Extents In(ByteRange read) {
    // As the tree does: a page that goes on into a tensor is read for it.
    return {ExtentAt(read.offset + kPage - 1),
            ExtentAt(read.offset + read.length - 1).offset, false};
  }
  static ByteRange ExtentAt(uint64_t offset) {
    return {(offset - 8) / kTensor * kTensor + 8, kTensor};
  }

  static constexpr uint64_t kTensor = 10 * kMiB;
  static constexpr uint64_t kSize = 8 + 100 * kTensor;
  static constexpr uint64_t kBegin = 57 * kTensor;  // of its first page
  static constexpr uint64_t kEnd = kBegin + kTensor + kPage;
};

TEST_F(WholeTensorTest, ItsLastPageDoesNotStartTheNext) {
  Readahead readahead;
  uint64_t fetched = 0;
  for (uint64_t at = kBegin; at < kEnd; at += kMiB) {
    const ByteRange read{at, std::min(kMiB, kEnd - at)};
    fetched += readahead.OnRead(1, kSize, read, In(read)).length;
  }
  EXPECT_EQ(fetched, kTensor + 8 - kMiB);
}

TEST_F(WholeTensorTest, RequestsOutOfOrderCrossNothing) {
  Readahead readahead;
  const ByteRange touch{kBegin, kPage};
  EXPECT_EQ(readahead.OnRead(1, kSize, touch, In(touch)).length,
            kTensor + 8 - kPage);
  std::vector<uint64_t> order(kTensor / kMiB);
  std::iota(order.begin(), order.end(), 0);
  std::swap(order[order.size() - 1], order[order.size() - 2]);
  for (const uint64_t piece : order) {
    const ByteRange read{kBegin + kPage + piece * kMiB, kMiB};
    EXPECT_EQ(readahead.OnRead(1, kSize, read, In(read)).length, 0u) << piece;
  }
}

// What each file of tensors/ shows is near nothing but its very neighbour.
TEST(ReadaheadTest, TensorFilesInNoOrderAreNoStream) {
  Readahead readahead;
  const uint64_t size = 1000 * kMiB;
  for (uint64_t i = 0; i < 500; ++i) {
    const uint64_t at = (i * 7919 % 1000) * kMiB + 16;
    EXPECT_EQ(
        readahead.OnRead(1, size, {at, kMiB - 16}, {{at, kMiB - 16}, at, true})
            .length,
        0u);
  }
}

constexpr uint64_t kPiece = 128 << 10;

// Of one file: what it was told to fetch, and whether it was told to twice.
class Asked {
 public:
  void Add(ByteRange range) {
    if (range.length == 0) return;
    bytes_ += range.length;
    largest_ = std::max(largest_, range.length);
    const uint64_t end = range.offset + range.length;
    auto after = ends_.lower_bound(range.offset + 1);
    while (after != ends_.end() && after->second < end) {
      twice_ +=
          std::min(end, after->first) - std::max(range.offset, after->second);
      ++after;
    }
    ends_.emplace(end, range.offset);
  }
  uint64_t bytes() const { return bytes_; }
  uint64_t largest() const { return largest_; }  // at once
  uint64_t twice() const { return twice_; }      // bytes

 private:
  uint64_t bytes_ = 0;
  uint64_t largest_ = 0;
  uint64_t twice_ = 0;
  std::multimap<uint64_t, uint64_t> ends_;  // and begins
};

// As where every rank of a job reads its own part of one file. What can be
// fetched ahead at once is one for all, so that each has its share.
TEST(ReadaheadTest, ManyStreamsOfOneFileShareTheWindow) {
  constexpr uint64_t kStreams = 32;
  constexpr uint64_t kApart = 1000 * kMiB;
  constexpr uint64_t kShare = Readahead::kLargestWindow / kStreams;
  const uint64_t size = kStreams * kApart;
  const ByteRange whole{0, size};
  Readahead readahead;
  std::vector<Asked> asked(kStreams);
  for (uint64_t at = 0; at < 32 * kMiB; at += kPiece) {
    for (uint64_t stream = 0; stream < kStreams; ++stream) {
      const uint64_t from = stream * kApart + at;
      const ByteRange ahead = readahead.OnRead(1, size, {from, kPiece}, whole);
      asked[stream].Add(ahead);
      if (ahead.length == 0) continue;
      EXPECT_GT(ahead.offset, from) << "stream " << stream;
      EXPECT_LE(ahead.offset + ahead.length, from + kPiece + kShare);
    }
  }
  for (uint64_t stream = 0; stream < kStreams; ++stream) {
    EXPECT_GE(asked[stream].largest(), kShare / 2) << "stream " << stream;
    EXPECT_GT(asked[stream].bytes(), 32 * kMiB) << "stream " << stream;
    EXPECT_EQ(asked[stream].twice(), 0u) << "stream " << stream;
  }
  // Who is left alone has all of it.
  uint64_t ends = 0;
  for (uint64_t at = 32 * kMiB; at < 500 * kMiB; at += kPiece) {
    const ByteRange ahead = readahead.OnRead(1, size, {at, kPiece}, whole);
    if (ahead.length > 0) ends = ahead.offset + ahead.length - at - kPiece;
  }
  EXPECT_EQ(ends, Readahead::kLargestWindow);
}

TEST(ReadaheadTest, WhatWasRefusedIsAskedForAgain) {
  Readahead readahead;
  const uint64_t size = 1000 * kMiB;
  const ByteRange whole{0, size};
  ByteRange ahead;
  uint64_t at = 0;
  for (; at < 32 * kMiB; at += kMiB) {
    const ByteRange more = readahead.OnRead(1, size, {at, kMiB}, whole);
    if (more.length > 0) ahead = more;
  }
  const uint64_t taken = ahead.length / 4;
  readahead.Refused(1, ahead, taken);
  // Not at once, but soon.
  EXPECT_EQ(readahead.OnRead(1, size, {at, kMiB / 2}, whole).length, 0u);
  const ByteRange again =
      readahead.OnRead(1, size, {at + kMiB / 2, kMiB}, whole);
  EXPECT_EQ(again.offset, std::max(ahead.offset + taken, at + 3 * kMiB / 2));
  EXPECT_GE(again.offset + again.length, ahead.offset + ahead.length);
  // Of another file, or of a window of before: nobody's.
  readahead.Refused(2, again, 0);
  readahead.Refused(1, ahead, 0);
  EXPECT_EQ(
      readahead.OnRead(1, size, {at + 3 * kMiB / 2, 2 * kMiB}, whole).length,
      0u);
}

// The stream that nobody went on with for longest makes room for a new one.
TEST(ReadaheadTest, MoreStreamsThanAreFollowedForgetTheOldest) {
  Readahead readahead;
  constexpr uint64_t kApart = 100 * kMiB;
  const uint64_t size = (Readahead::kStreams + 1) * kApart;
  // Whether it fetches more, which it does for streams that it knows.
  const auto reads = [&](uint64_t stream, uint64_t piece) {
    const ByteRange read{stream * kApart + piece * kPiece, kPiece};
    return readahead.OnRead(1, size, read, ByteRange{0, size}).length > 0;
  };
  for (uint64_t i = 0; i < Readahead::kStreams; ++i) {
    EXPECT_FALSE(reads(i, 0)) << i;
  }
  EXPECT_TRUE(reads(0, 1));
  EXPECT_FALSE(reads(Readahead::kStreams, 0));  // in place of the second
  EXPECT_TRUE(reads(2, 1));
  EXPECT_TRUE(reads(Readahead::kStreams, 1));
  EXPECT_FALSE(reads(1, 1));  // in place of the fourth
  EXPECT_FALSE(reads(3, 1));
}

// Threads that take the next piece of a tensor each: what one does is some
// megabytes before or behind what another does.
class SharedTensorTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kTensor = 1000 * kMiB;
  static constexpr uint64_t kWithin = 16 * kMiB;
  static constexpr int kThreads = 16;
  const ByteRange tensor_{kMiB, kTensor};
  const uint64_t size_ = kMiB + kTensor;

  ByteRange ReadPiece(Readahead& readahead, uint64_t piece) const {
    return readahead.OnRead(1, size_, {tensor_.offset + piece * kPiece, kPiece},
                            tensor_);
  }
  // The order of the tensor's pieces; the first is its first.
  static std::vector<uint64_t> Shuffled() {
    std::mt19937_64 random(1);
    std::vector<uint64_t> order(kTensor / kPiece);
    std::iota(order.begin(), order.end(), uint64_t{0});
    const size_t group = kWithin / kPiece;
    for (size_t i = 0; i < order.size(); i += group) {
      std::shuffle(
          order.begin() + static_cast<ptrdiff_t>(std::max(i, size_t{1})),
          order.begin() +
              static_cast<ptrdiff_t>(std::min(i + group, order.size())),
          random);
    }
    return order;
  }
};

TEST_F(SharedTensorTest, ThreadsThatShareATensorAreOneStream) {
  Readahead readahead;
  Asked asked;
  uint64_t most = 0;                        // one past the last byte read
  uint64_t last = tensor_.offset + kPiece;  // and asked for
  uint64_t largest = 0;
  for (const uint64_t piece : Shuffled()) {
    const ByteRange ahead = ReadPiece(readahead, piece);
    most = std::max(most, tensor_.offset + (piece + 1) * kPiece);
    asked.Add(ahead);
    if (ahead.length == 0) continue;
    EXPECT_EQ(ahead.offset, last) << "no gap, nothing twice";
    last = ahead.offset + ahead.length;
    largest = std::max(largest, last - most);
  }
  EXPECT_EQ(asked.twice(), 0u);
  EXPECT_EQ(asked.bytes(), kTensor - kPiece);
  EXPECT_EQ(largest, Readahead::kLargestWindow);
}

TEST_F(SharedTensorTest, RealThreadsAskForNothingTwice) {
  // None falls further behind the others than one can be.
  constexpr uint64_t kAtOnce = kWithin / kPiece / kThreads;
  for (int round = 0; round < 20; ++round) {
    Readahead readahead;
    Asked asked;
    asked.Add(ReadPiece(readahead, 0));
    std::atomic<uint64_t> next = 1;
    std::vector<std::vector<ByteRange>> ahead(kThreads);
    std::barrier together(kThreads);
    std::vector<std::jthread> threads;
    for (auto& mine : ahead) {
      threads.emplace_back([&] {
        for (bool more = true; more;) {
          for (uint64_t n = 0; n < kAtOnce; ++n) {
            const uint64_t piece = next++;
            more = piece < kTensor / kPiece;
            if (!more) break;
            mine.push_back(ReadPiece(readahead, piece));
          }
          together.arrive_and_wait();
        }
        together.arrive_and_drop();
      });
    }
    threads.clear();
    for (const auto& ranges : ahead) {
      for (const ByteRange range : ranges) asked.Add(range);
    }
    EXPECT_EQ(asked.twice(), 0u) << "round " << round;
    EXPECT_EQ(asked.bytes(), kTensor - kPiece) << "round " << round;
  }
}

// One thread that is far behind the others is no part of their stream.
TEST_F(SharedTensorTest, ALateThreadMovesNoWindow) {
  Readahead readahead;
  for (uint64_t piece = 0; piece < 400 * kMiB / kPiece; ++piece) {
    ReadPiece(readahead, piece);
  }
  const uint64_t far = (400 * kMiB - 2 * Readahead::kStraggling) / kPiece;
  EXPECT_EQ(ReadPiece(readahead, far).length, 0u);
  const ByteRange ahead = ReadPiece(readahead, far + 1);
  EXPECT_EQ(ahead.offset, tensor_.offset + (far + 2) * kPiece);
  EXPECT_EQ(ahead.length, Readahead::kFirstWindow);
}

// Its window counts bytes that were read, and not how far they are apart.
TEST_F(SharedTensorTest, RandomReadsInAHugeTensorFetchLittle) {
  constexpr uint64_t kPage = 4096;
  Readahead readahead;
  std::mt19937_64 random(7);
  const ByteRange first =
      readahead.OnRead(1, size_, {tensor_.offset, kPage}, tensor_);
  EXPECT_EQ(first.length, Readahead::kTensorWindow);
  uint64_t fetched = 0;
  constexpr uint64_t kReads = 500;
  for (uint64_t i = 0; i < kReads; ++i) {
    const uint64_t page = random() % (kTensor / kPage);
    fetched +=
        readahead
            .OnRead(1, size_, {tensor_.offset + page * kPage, kPage}, tensor_)
            .length;
  }
  EXPECT_LE(fetched, 8 * kMiB);
}

}  // namespace
}  // namespace weightfs
