// The cache's limits: who is evicted, who is not, and that they hold.

#include "cache/cache_space.h"

#include <gmock/gmock.h>

#include <fstream>

#include "cache/slab_evictor.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

class CacheSpaceTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ASSERT_FALSE(temp_.path().empty());
    disk_.skip_mapping_sync = true;
  }

  void Start(const CacheLimits& limits) {
    file_.reset();
    cache_.reset();
    auto cache = ObjectCache::Open(folder(), limits, disk_);
    ASSERT_OK(cache);
    cache_ = std::move(cache).value();
  }

  // As `du` counts.
  uint64_t Used() {
    auto opened = CacheFolder::OpenPlain(folder());
    EXPECT_OK(opened);
    return CacheSpace(**opened, disk_, {}).UsedBytes();
  }

  // Says that the object was last used so many minutes ago.
  void Age(const ContentId& id, uint64_t size, uint32_t minutes) {
    const UniqueFd fd(
        ::open((ObjectFolder(id) + "/meta").c_str(), O_RDWR | O_CLOEXEC));
    auto meta = MetaFile::Open(fd.get(), id, size, "meta");
    ASSERT_OK(meta);
    for (uint64_t slab = 0; slab < (*meta)->layout().slabs; ++slab) {
      (*meta)->Touch(slab, (*meta)->Recency(slab) - minutes);
    }
  }

  bool Exists(const ContentId& id) const {
    return std::filesystem::exists(ObjectFolder(id));
  }
};

TEST_F(CacheSpaceTest, StaysInItsLimitWhileMoreIsWritten) {
  constexpr uint64_t kLimit = 8 * kMiB;
  constexpr uint64_t kSize = 70 * kMiB + 5;  // two slabs
  Start({.max_bytes = kLimit});
  OpenFile(kSize);
  for (uint64_t g = 0; g * kG < kSize; ++g) {
    ASSERT_OK(PutPattern(*file_, g)) << g;
    ASSERT_LE(Used(), kLimit) << g;
    ASSERT_TRUE(file_->Has(g));
  }
  uint64_t present = 0;
  for (uint64_t g = 0; g * kG < kSize; ++g) {
    const uint64_t length = std::min(kG, kSize - g * kG);
    const auto bytes = Read(*file_, g * kG, length);
    if (!bytes.has_value()) {
      ASSERT_THAT(bytes, HasCode(Code::kStale));
      continue;
    }
    ++present;
    ASSERT_EQ(*bytes, Pattern(g * kG, length)) << "WRONG BYTES in " << g;
  }
  // Most of the limit is made use of.
  EXPECT_GT(present * kG, kLimit / 2);
  EXPECT_GT(cache_->stats().evicted_bytes, kSize - kLimit);
}

TEST_F(CacheSpaceTest, TwoProcessesStayInOneLimit) {
  constexpr uint64_t kLimit = 6 * kMiB;
  constexpr uint64_t kSize = 24 * kMiB;
  Start({.max_bytes = kLimit});
  auto other = ObjectCache::Open(folder(), {.max_bytes = kLimit});
  ASSERT_OK(other);
  OpenFile(kSize);
  auto others_file = (*other)->OpenObject(kEndpoint, Sha256Id('b'), kSize);
  ASSERT_OK(others_file);
  uint64_t kept = 0;
  for (uint64_t g = 0; g * kG < kSize; ++g) {
    kept += PutPattern(*file_, g).has_value() ? 1 : 0;
    kept += PutPattern(**others_file, g).has_value() ? 1 : 0;
    ASSERT_LE(Used(), kLimit) << g;
  }
  EXPECT_GT(kept * kG, kSize);
}

TEST_F(CacheSpaceTest, TheLeastRecentlyUsedGoesFirst) {
  constexpr uint64_t kSize = 4 * kMiB;
  Start({});
  for (const char digit : {'a', 'b', 'c'}) {
    OpenFile(kSize, Sha256Id(digit));
    PutAll(*file_);
  }
  Age(Sha256Id('a'), kSize, 10);
  Age(Sha256Id('b'), kSize, 30);
  Age(Sha256Id('c'), kSize, 20);
  Start({.max_bytes = Used() - 3 * kMiB});
  cache_->Trim();
  const auto fraction = [&](char digit) {
    OpenFile(kSize, Sha256Id(digit));
    return file_->CachedFraction();
  };
  EXPECT_LT(fraction('b'), 0.5);
  EXPECT_EQ(fraction('a'), 1);
  EXPECT_GE(fraction('c'), 0.5);
}

TEST_F(CacheSpaceTest, APinnedSlabStaysAndOthersAreNotKept) {
  constexpr uint64_t kSize = 12 * kMiB;
  Start({.max_bytes = 6 * kMiB});
  OpenFile(kSize);
  ASSERT_OK(PutPattern(*file_, 0));
  const auto pin = file_->Pin(0, 1);
  ASSERT_OK(pin);
  uint64_t kept = 1;
  Result<> last;
  for (uint64_t g = 1; g * kG < kSize; ++g) {
    last = PutPattern(*file_, g);
    if (last.has_value()) ++kept;
    ASSERT_LE(Used(), 6 * kMiB);
  }
  EXPECT_THAT(last, HasCode(Code::kNoSpace));
  EXPECT_LE(kept * kG, 6 * kMiB);
  for (uint64_t g = 0; g < kept; ++g) {
    EXPECT_THAT(Read(*file_, g * kG, kG), IsOkAndHolds(Pattern(g * kG, kG)));
  }
}

TEST_F(CacheSpaceTest, LeavesTheDiskWhatItMust) {
  Start({});
  OpenFile(4 * kMiB);
  PutAll(*file_);
  // More than this disk has: all goes, and nothing is kept.
  Start({.keep_free = uint64_t{1} << 60});
  cache_->Trim();
  EXPECT_FALSE(Exists(Sha256Id()));
  EXPECT_THAT(cache_->OpenObject(kEndpoint, Sha256Id(), 10),
              HasCode(Code::kNoSpace));
}

TEST_F(CacheSpaceTest, WhatWasSetAsideGoesBeforeAll) {
  Start({});
  OpenFile(kMiB);
  PutAll(*file_);
  file_.reset();
  FlipBit(MetaPath(), 20);
  OpenFile(kMiB);  // sets the bad one aside
  PutAll(*file_);
  ASSERT_EQ(CountBad(), 1);
  Start({.max_bytes = Used() - kMiB / 2});
  cache_->Trim();
  EXPECT_EQ(CountBad(), 0);
  OpenFile(kMiB);
  EXPECT_EQ(file_->CachedFraction(), 1);
}

TEST_F(CacheSpaceTest, AnEmptyObjectIsRemovedUnlessItIsOpen) {
  Start({});
  OpenFile(kMiB, Sha256Id('b'));
  PutAll(*file_);
  OpenFile(kMiB, Sha256Id('a'));
  PutAll(*file_);
  auto other = ObjectCache::Open(folder(), {.keep_free = uint64_t{1} << 60});
  ASSERT_OK(other);
  (*other)->Trim();
  EXPECT_TRUE(Exists(Sha256Id('a'))) << "somebody has it open";
  EXPECT_FALSE(Exists(Sha256Id('b')));
  EXPECT_EQ(file_->CachedFraction(), 0);
  ASSERT_OK(PutPattern(*file_, 1));  // still of use
  EXPECT_THAT(Read(*file_, kG, kG), IsOkAndHolds(Pattern(kG, kG)));
}

TEST_F(CacheSpaceTest, ADiskWithoutHolesLosesWholeObjects) {
  Start({});
  for (const char digit : {'a', 'b'}) {
    OpenFile(4 * kMiB, Sha256Id(digit));
    PutAll(*file_);
  }
  auto held = file_;  // of 'b'
  disk_.punch_error = EOPNOTSUPP;
  auto other = ObjectCache::Open(folder(), {.max_bytes = Used() - kMiB}, disk_);
  ASSERT_OK(other);
  (*other)->Trim();
  EXPECT_FALSE(Exists(Sha256Id('a')));
  EXPECT_TRUE(Exists(Sha256Id('b')));
  // Its entries went before the hole failed: absent, and written anew.
  EXPECT_THAT(Read(*held, 0, kG), HasCode(Code::kStale));
  ASSERT_OK(PutPattern(*held, 0));
  EXPECT_THAT(Read(*held, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(CacheSpaceTest, EntriesThatCannotBeSyncedKeepTheirBytes) {
  Start({});
  OpenFile(4 * kMiB);
  PutAll(*file_);
  disk_.sync_error = EIO;
  bool punched = false;
  disk_.before_punch = [&] { punched = true; };
  auto opened = CacheFolder::OpenPlain(folder());
  ASSERT_OK(opened);
  auto evictor = SlabEvictor::Open(**opened, disk_,
                                   ObjectPath(kEndpoint, Sha256Id()).value());
  ASSERT_OK(evictor);
  EXPECT_THAT((*evictor)->Evict(0), HasCode(Code::kIo));
  EXPECT_FALSE(punched) << "an old entry could name a hole";
  disk_.before_punch = nullptr;
}

TEST_F(CacheSpaceTest, FreesNoMoreOfASlabThanIsWanted) {
  Start({});
  OpenFile(8 * kMiB);
  PutAll(*file_);
  auto opened = CacheFolder::OpenPlain(folder());
  ASSERT_OK(opened);
  auto evictor = SlabEvictor::Open(**opened, disk_,
                                   ObjectPath(kEndpoint, Sha256Id()).value());
  ASSERT_OK(evictor);
  EXPECT_THAT((*evictor)->Evict(0, 3 * kG), IsOkAndHolds(3 * kG));
  for (uint64_t g = 0; g < 64; ++g) {
    EXPECT_EQ(file_->Has(g), g >= 3) << g;
  }
  EXPECT_THAT(Read(*file_, 3 * kG, kG), IsOkAndHolds(Pattern(3 * kG, kG)));
  EXPECT_THAT((*evictor)->Evict(0), IsOkAndHolds(61 * kG));
  EXPECT_THAT((*evictor)->Evict(0), IsOkAndHolds(0u));
}

// No bytes of an entry are ever seen as the zeros of a hole.
TEST_F(CacheSpaceTest, NoReaderSeesTheHole) {
  Start({});
  OpenFile(kMiB);
  PutAll(*file_);
  bool refused = false;
  disk_.before_punch = [&] {
    // The evictor is between the entries and the hole.
    refused = !Read(*file_, 0, kG).has_value() && !TryRead(*file_, 0, 10);
  };
  auto opened = CacheFolder::OpenPlain(folder());
  ASSERT_OK(opened);
  auto evictor = SlabEvictor::Open(**opened, disk_,
                                   ObjectPath(kEndpoint, Sha256Id()).value());
  ASSERT_OK(evictor);
  ASSERT_OK((*evictor)->Evict(0));
  EXPECT_TRUE(refused);
  disk_.before_punch = nullptr;
}

}  // namespace
}  // namespace weightfs
