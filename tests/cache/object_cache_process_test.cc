// The cache under several real processes: they publish and read one object at
// once, and die in the middle of it.

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>

#include "tests/cache/cache_fixture.h"
#include "tests/cache/child_exit.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

constexpr uint64_t kProcessSeed = 20240611;

std::vector<uint64_t> Shuffled(uint64_t count, uint64_t seed) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

class ProcessTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    cache_.reset();  // children open their own
    std::printf("seed %lu\n", kProcessSeed);
  }

  // Whether every granule is absent or right; counts the right ones.
  static bool AllRightOrAbsent(CacheFile& file, uint64_t* right = nullptr) {
    for (uint64_t g = 0; g * kG < file.size(); ++g) {
      const uint64_t length = std::min(kG, file.size() - g * kG);
      const auto bytes = Read(file, g * kG, length);
      if (!bytes.has_value()) {
        if (bytes.error().code() != Code::kStale) return false;
        continue;
      }
      if (*bytes != Pattern(g * kG, length)) return false;
      if (right != nullptr) ++*right;
    }
    return true;
  }

  // Opens the object, writes the granules that are absent and reads the others,
  // in an order of its own, until all of them were read and compared.
  int FillAndCompare(uint64_t size, uint64_t seed) {
    auto cache = ObjectCache::Open(folder());
    if (!cache.has_value()) return kNoCache;
    auto file = (*cache)->OpenObject(kEndpoint, Sha256Id(), size);
    if (!file.has_value()) return kNoObject;
    for (const uint64_t g : Shuffled((size + kG - 1) / kG, seed)) {
      const uint64_t length = std::min(kG, size - g * kG);
      auto bytes = Read(**file, g * kG, length);
      for (int tries = 0; !bytes.has_value(); ++tries) {
        const auto put = PutPattern(**file, g);
        if (tries > 100'000) return kTimeout;
        if (!put.has_value() && put.error().code() != Code::kStale) {
          return kNoPut;
        }
        bytes = Read(**file, g * kG, length);
      }
      if (*bytes != Pattern(g * kG, length)) return kWrongBytes;
    }
    return kFine;
  }
};

TEST_F(ProcessTest, TwoProcessesPublishAndReadOneObject) {
  constexpr uint64_t kSize = kSlabSize + 37 * kG + 5;
  for (uint64_t round = 0; round < 3; ++round) {
    std::filesystem::remove_all(ObjectFolder());
    Child first(
        [&] { return FillAndCompare(kSize, kProcessSeed + 2 * round); });
    Child second(
        [&] { return FillAndCompare(kSize, kProcessSeed + 2 * round + 1); });
    EXPECT_EQ(first.Wait(), kFine);
    EXPECT_EQ(second.Wait(), kFine);
    Restart();
    OpenFile(kSize);
    EXPECT_EQ(file_->CachedFraction(), 1);
    uint64_t right = 0;
    EXPECT_TRUE(AllRightOrAbsent(*file_, &right));
    EXPECT_EQ(right, kSize / kG + 1);
    file_.reset();
    cache_.reset();
  }
}

TEST_F(ProcessTest, ProcessesThatMakeOneObjectAtOnceShareIt) {
  constexpr uint64_t kSize = 4 * kG;
  constexpr uint64_t kChildren = 4;
  for (int round = 0; round < 25; ++round) {
    std::filesystem::remove_all(ObjectFolder());
    std::array<int, 2> gate{};
    ASSERT_EQ(::pipe2(gate.data(), O_CLOEXEC), 0);
    {
      std::vector<std::unique_ptr<Child>> children;
      for (uint64_t i = 0; i < kChildren; ++i) {
        children.push_back(std::make_unique<Child>([&, i]() -> int {
          ::close(gate[1]);
          auto cache = ObjectCache::Open(folder());
          if (!cache.has_value()) return kNoCache;
          char byte = 0;
          if (::read(gate[0], &byte, 1) != 0) return kTimeout;
          auto file = (*cache)->OpenObject(kEndpoint, Sha256Id(), kSize);
          if (!file.has_value()) return kNoObject;
          return PutPattern(**file, i).has_value() ? kFine : kNoPut;
        }));
      }
      ::close(gate[0]);
      ::close(gate[1]);  // opens it
      for (auto& child : children) EXPECT_EQ(child->Wait(), kFine);
    }
    Restart();
    OpenFile(kSize);
    EXPECT_EQ(file_->CachedFraction(), 1) << "one of them wrote elsewhere";
    EXPECT_EQ(CountBad(), 0);
    EXPECT_TRUE(std::filesystem::is_empty(folder() + "/tmp"));
    file_.reset();
    cache_.reset();
  }
}

TEST_F(ProcessTest, ProcessesThatFindABadObjectAtOnceAllGoOn) {
  constexpr uint64_t kSize = 4 * kG;
  for (int round = 0; round < 25; ++round) {
    Restart();
    OpenFile(kSize);
    file_.reset();
    cache_.reset();
    FlipBit(MetaPath(), 20);
    std::vector<std::unique_ptr<Child>> children;
    for (uint64_t i = 0; i < 4; ++i) {
      children.push_back(std::make_unique<Child>(
          [&, i] { return FillAndCompare(kSize, kProcessSeed + i); }));
    }
    for (auto& child : children) EXPECT_EQ(child->Wait(), kFine);
  }
}

// --- Death in the middle ----------------------------------------------------

// Dies at the `n`-th write (the first is the header's), at one of the places
// where a process can: before it, when a part of it is done, after it.
class KillTest : public ProcessTest,
                 public ::testing::WithParamInterface<const char*> {
 protected:
  void ArmKill(FaultyDisk& disk, int n) {
    const std::string place = GetParam();
    const auto die = [n, count = 0]() mutable {
      if (count++ == n) ::kill(::getpid(), SIGKILL);
    };
    if (place == "allocate") disk.before_allocate = die;
    if (place == "before") disk.before_write = die;
    if (place == "after") disk.after_write = die;
    if (place == "part") {
      disk.short_writes = 50'000;  // three writes for each granule
      disk.after_write = die;
    }
  }
};

TEST_P(KillTest, LeavesNoWrongByte) {
  constexpr uint64_t kSize = 3 * kG + 100;
  for (int n = 0; n < 12; ++n) {
    std::filesystem::remove_all(ObjectFolder());
    Child child([&]() -> int {
      FaultyDisk disk;
      ArmKill(disk, n);
      auto cache = ObjectCache::Open(folder(), {}, disk);
      if (!cache.has_value()) return kNoCache;
      auto file = (*cache)->OpenObject(kEndpoint, Sha256Id(), kSize);
      if (!file.has_value()) return kNoObject;
      for (const uint64_t g : {2, 0, 3, 1}) {
        if (!PutPattern(**file, g).has_value()) return kNoPut;
      }
      return kFine;
    });
    const int ended = child.Wait();
    EXPECT_TRUE(ended == -SIGKILL || ended == kFine) << ended;
    if (n == 0) {
      EXPECT_EQ(ended, -SIGKILL);
    }
    Restart();
    OpenFile(kSize);
    uint64_t right = 0;
    EXPECT_TRUE(AllRightOrAbsent(*file_, &right)) << "write " << n;
    if (ended == kFine) {
      EXPECT_EQ(right, 4);
    }
    EXPECT_EQ(cache_->stats().bad_granules, 0) << "published before written";
    EXPECT_EQ(CountBad(), 0) << "half an object was seen";
    PutAll(*file_);
    EXPECT_THAT(Read(*file_, 0, kSize), IsOkAndHolds(Pattern(0, kSize)));
    file_.reset();
    cache_.reset();
  }
}

INSTANTIATE_TEST_SUITE_P(AtEveryBoundary, KillTest,
                         ::testing::Values("allocate", "before", "part",
                                           "after"),
                         [](const auto& place) { return place.param; });

// A writer is killed at random points while this process reads what it
// publishes.
TEST_F(ProcessTest, AWriterThatDiesAnywhereLeavesNoWrongByte) {
  constexpr uint64_t kSize = 40 * kG + 17;
  constexpr int kRounds = 200;
  std::mt19937_64 random(kProcessSeed);
  uint64_t compared = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (round % 4 == 0) std::filesystem::remove_all(ObjectFolder());
    Child writer([&, round] {
      return FillAndCompare(kSize, kProcessSeed + static_cast<uint64_t>(round));
    });
    Restart();
    OpenFile(kSize);
    const uint64_t wait_for = random() % 40;
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::seconds(20);
    uint64_t seen = 0;
    while (seen < wait_for && std::chrono::steady_clock::now() < deadline) {
      const uint64_t before = seen;
      seen = 0;
      for (uint64_t g = 0; g < 40; ++g) seen += file_->Has(g) ? 1 : 0;
      if (seen == before) continue;
      ASSERT_TRUE(AllRightOrAbsent(*file_, &compared)) << "round " << round;
    }
    writer.Kill();
    ASSERT_GE(seen, wait_for) << "the writer published nothing";
    Restart();
    OpenFile(kSize);
    ASSERT_TRUE(AllRightOrAbsent(*file_, &compared)) << "round " << round;
    ASSERT_EQ(cache_->stats().bad_granules, 0);
    file_.reset();
    cache_.reset();
  }
  std::printf("%d kills, %lu granules compared\n", kRounds, compared);
}

// Two processes read and refetch while a third evicts as hard as it can.
TEST_F(ProcessTest, ReadersNeverSeeHolesWhileAnEvictorRuns) {
  constexpr uint64_t kSize = kSlabSize + 20 * kG;
  Restart();
  OpenFile(kSize);
  file_.reset();
  cache_.reset();
  Child evictor([&]() -> int {
    TestEvictor evict(folder(), ObjectPath(kEndpoint, Sha256Id()).value());
    if (!evict.valid()) return kNoObject;
    for (uint64_t slab = 0;; slab = 1 - slab) evict.Evict(slab);
  });
  std::vector<std::unique_ptr<Child>> readers;
  for (uint64_t i = 0; i < 2; ++i) {
    readers.push_back(std::make_unique<Child>([&, i]() -> int {
      auto cache = ObjectCache::Open(folder());
      if (!cache.has_value()) return kNoCache;
      auto file = (*cache)->OpenObject(kEndpoint, Sha256Id(), kSize);
      if (!file.has_value()) return kNoObject;
      std::mt19937_64 random(kProcessSeed + i);
      const uint64_t granules = kSize / kG;
      uint64_t compared = 0;
      for (int n = 0; n < 3000; ++n) {
        // Few granules, near the end of slab 0 and in slab 1: they are often
        // there, and hashed before they are evicted.
        const uint64_t g = granules - 1 - random() % 30;
        const auto pin = (*file)->Pin(g * kG, kG);
        if (!pin.has_value()) continue;
        std::vector<std::byte> out(100 + random() % 5000);
        const uint64_t offset = g * kG + random() % (kG - out.size());
        const bool got = (*file)->TryRead(offset, out) ||
                         (*file)->Read(offset, out).has_value();
        if (got) {
          ++compared;
          if (out != Pattern(offset, out.size())) return kWrongBytes;
        } else {
          static_cast<void>(PutPattern(**file, g));
        }
      }
      return compared > 0 ? kFine : kTimeout;
    }));
  }
  for (auto& reader : readers) EXPECT_EQ(reader->Wait(), kFine);
  EXPECT_EQ(evictor.Kill(), -SIGKILL);
}

}  // namespace
}  // namespace weightfs
