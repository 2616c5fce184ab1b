#include "formats/base/byte_buffer.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/matchers.h"
#include "tests/support/sizes.h"

#if defined(__SANITIZE_ADDRESS__)
#define WEIGHTFS_SEES_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIGHTFS_SEES_POISON 1
#endif
#endif
#ifdef WEIGHTFS_SEES_POISON
#include <sanitizer/asan_interface.h>
#endif

namespace weightfs {
namespace {

constexpr size_t kKiB = 1024;

void FillBuffer(const ByteBuffer& buffer, int value) {
  std::ranges::fill(buffer.span(), static_cast<std::byte>(value));
}

bool BufferIsFullOf(const ByteBuffer& buffer, int value) {
  return std::ranges::all_of(buffer.span(), [value](std::byte byte) {
    return byte == static_cast<std::byte>(value);
  });
}

// What is idle is the whole process's: each test begins and ends with none.
class ByteBufferTest : public ::testing::Test {
 protected:
  ByteBufferTest() { ByteBuffer::ReleaseIdle(); }
  ~ByteBufferTest() override { ByteBuffer::ReleaseIdle(); }
};

// The system's own memory would be full of zeros.
TEST_F(ByteBufferTest, WhatWasFreedIsUsedAgain) {
  const std::byte* before = nullptr;
  {
    const ByteBuffer buffer(128 * kKiB);
    before = buffer.data();
    FillBuffer(buffer, 7);
  }
  EXPECT_EQ(ByteBuffer::IdleBytes(), 128 * kKiB);
  const ByteBuffer again(128 * kKiB);
  EXPECT_EQ(again.data(), before);
  EXPECT_TRUE(BufferIsFullOf(again, 7));
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
  // It is nobody else's.
  const ByteBuffer other(128 * kKiB);
  EXPECT_NE(other.data(), again.data());
}

TEST_F(ByteBufferTest, ABufferOfAnotherSizeIsUsedWhereItIsLargeEnough) {
  { const ByteBuffer buffer(100 * kKiB); }
  EXPECT_EQ(ByteBuffer::IdleBytes(), 128 * kKiB);
  const ByteBuffer larger(kMiB);
  EXPECT_EQ(ByteBuffer::IdleBytes(), 128 * kKiB);
  FillBuffer(larger, 1);
  const ByteBuffer same(128 * kKiB);
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
  FillBuffer(same, 2);
  EXPECT_TRUE(BufferIsFullOf(larger, 1));
}

TEST_F(ByteBufferTest, EverySizeCanBeWrittenToItsEnd) {
  std::vector<ByteBuffer> buffers;
  const std::vector<size_t> sizes = {1,          64 * kKiB,  64 * kKiB + 1,
                                     100 * kKiB, 128 * kKiB, 128 * kKiB + 1,
                                     300 * kKiB, kMiB,       kMiB + 1,
                                     3 * kMiB};
  for (int round = 0; round < 2; ++round) {  // new, and used again
    for (const size_t size : sizes) {
      buffers.emplace_back(size);
      ASSERT_EQ(buffers.back().size(), size);
      ASSERT_EQ(buffers.back().span().size(), size);
      FillBuffer(buffers.back(), static_cast<int>(buffers.size()));
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_TRUE(BufferIsFullOf(buffers[i], static_cast<int>(i + 1)))
          << sizes[i] << " bytes";
    }
    buffers.clear();
  }
  // Those between, by powers of two; the others went back at once.
  EXPECT_EQ(ByteBuffer::IdleBytes(), (3 * 128 + 256 + 512) * kKiB + kMiB);
}

TEST_F(ByteBufferTest, NoBytesNeedNoMemory) {
  { const ByteBuffer buffer(0); }
  { const ByteBuffer buffer; }
  EXPECT_EQ(ByteBuffer(0).data(), nullptr);
  EXPECT_EQ(ByteBuffer().size(), 0u);
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
}

TEST_F(ByteBufferTest, AMoveLeavesTheSourceEmpty) {
  ByteBuffer first(128 * kKiB);
  FillBuffer(first, 3);
  const std::byte* const data = first.data();
  ByteBuffer second(std::move(first));
  // NOLINTBEGIN(bugprone-use-after-move): that is what is looked at
  EXPECT_EQ(first.data(), nullptr);
  EXPECT_EQ(first.size(), 0u);
  EXPECT_EQ(second.data(), data);
  ByteBuffer third;
  third = std::move(second);
  EXPECT_EQ(second.data(), nullptr);
  EXPECT_EQ(second.size(), 0u);
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.size(), 128 * kKiB);
  EXPECT_TRUE(BufferIsFullOf(third, 3));
  third = ByteBuffer();
  EXPECT_EQ(ByteBuffer::IdleBytes(), 128 * kKiB);  // given back once
}

TEST_F(ByteBufferTest, NoMoreThanTheMostIsKept) {
  {
    std::vector<ByteBuffer> buffers;
    for (size_t i = 0; i < ByteBuffer::kMostIdle / kMiB + 3; ++i) {
      buffers.emplace_back(kMiB);
    }
    EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
  }
  EXPECT_EQ(ByteBuffer::IdleBytes(), ByteBuffer::kMostIdle);
  { const ByteBuffer small(128 * kKiB); }
  EXPECT_EQ(ByteBuffer::IdleBytes(), ByteBuffer::kMostIdle);
}

TEST_F(ByteBufferTest, WhatIsIdleCanBeGivenBack) {
  const ByteBuffer used(128 * kKiB);
  FillBuffer(used, 5);
  {
    const ByteBuffer small(128 * kKiB);
    const ByteBuffer middle(512 * kKiB);
    const ByteBuffer large(kMiB);
  }
  EXPECT_EQ(ByteBuffer::IdleBytes(), (128 + 512 + 1024) * kKiB);
  ByteBuffer::ReleaseIdle();
  EXPECT_EQ(ByteBuffer::IdleBytes(), 0u);
  EXPECT_TRUE(BufferIsFullOf(used, 5));
  const ByteBuffer fresh(kMiB);
  EXPECT_TRUE(BufferIsFullOf(fresh, 0));  // as the system gives it
}

#ifdef WEIGHTFS_SEES_POISON
TEST_F(ByteBufferTest, WhatIsIdleIsNobodys) {
  ByteBuffer buffer(100 * kKiB);
  std::byte* const data = buffer.data();
  EXPECT_EQ(__asan_region_is_poisoned(data, 100 * kKiB), nullptr);
  buffer = ByteBuffer();
  EXPECT_TRUE(__asan_address_is_poisoned(data));
  EXPECT_TRUE(__asan_address_is_poisoned(data + 100 * kKiB - 1));
  const ByteBuffer again(100 * kKiB);
  EXPECT_EQ(again.data(), data);
  EXPECT_EQ(__asan_region_is_poisoned(data, 100 * kKiB), nullptr);
}
#endif

// No two threads ever have the same memory.
TEST_F(ByteBufferTest, ManyThreadsShareNoBuffer) {
  constexpr int kThreads = 8;
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 1; t <= kThreads; ++t) {
      threads.emplace_back([t, &wrong] {
        for (size_t round = 0; round < 200; ++round) {
          const ByteBuffer first((round % 3 + 1) * 100 * kKiB);
          const ByteBuffer second(128 * kKiB);
          FillBuffer(first, t);
          FillBuffer(second, -t);
          std::this_thread::yield();
          if (!BufferIsFullOf(first, t)) ++wrong;
          if (!BufferIsFullOf(second, -t)) ++wrong;
          if (round % 50 == 0) ByteBuffer::ReleaseIdle();
        }
      });
    }
  }
  EXPECT_EQ(wrong, 0);
  // Of each thread two of 128 KiB, one of 256 and one of 512.
  EXPECT_LE(ByteBuffer::IdleBytes(), kThreads * kMiB);
}

}  // namespace
}  // namespace weightfs
