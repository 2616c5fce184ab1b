#include "cache/object_cache.h"

#include <sys/stat.h>

#include <algorithm>

#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

// Three granules, the last one short.

TEST_F(ObjectCacheTest, GivesBackWhatWasPut) {
  OpenFile(kSmall);
  EXPECT_FALSE(file_->Has(0));
  EXPECT_EQ(file_->CachedFraction(), 0);
  ASSERT_OK(PutPattern(*file_, 2));
  EXPECT_TRUE(file_->Has(2));
  EXPECT_FALSE(file_->Has(1));
  EXPECT_DOUBLE_EQ(file_->CachedFraction(), 1000.0 / kSmall);
  EXPECT_THAT(Read(*file_, 2 * kG, 1000), IsOkAndHolds(Pattern(2 * kG, 1000)));
  EXPECT_THAT(Read(*file_, 2 * kG - 1, 2), HasCode(Code::kStale));
  PutAll(*file_);
  EXPECT_EQ(file_->CachedFraction(), 1);
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
  for (const uint64_t offset : {uint64_t{1}, kG - 1, kG, kG + 7}) {
    EXPECT_THAT(Read(*file_, offset, kG), IsOkAndHolds(Pattern(offset, kG)));
  }
}

TEST_F(ObjectCacheTest, KeepsBytesOverARestart) {
  OpenFile(kSmall);
  PutAll(*file_);
  Restart();
  OpenFile(kSmall);
  EXPECT_EQ(file_->CachedFraction(), 1);
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

TEST_F(ObjectCacheTest, AnEmptyObjectIsAllThere) {
  OpenFile(0);
  EXPECT_EQ(file_->CachedFraction(), 1);
  EXPECT_FALSE(file_->Has(0));
  EXPECT_THAT(Read(*file_, 0, 0), IsOk());
  EXPECT_TRUE(TryRead(*file_, 0, 0));
  EXPECT_THAT(file_->Put(0, {}), HasCode(Code::kInvalid));
  Restart();
  OpenFile(0);
}

TEST_F(ObjectCacheTest, RefusesRangesOutsideTheObject) {
  OpenFile(kSmall);
  PutAll(*file_);
  EXPECT_THAT(file_->Pin(kSmall, 1), HasCode(Code::kInvalid));
  EXPECT_THAT(file_->Pin(1, UINT64_MAX), HasCode(Code::kInvalid));
  std::vector<std::byte> out(2);
  EXPECT_THAT(file_->Read(kSmall - 1, out), HasCode(Code::kInvalid));
  EXPECT_FALSE(file_->TryRead(kSmall - 1, out));
  EXPECT_THAT(file_->Put(3, out), HasCode(Code::kInvalid));
  EXPECT_THAT(file_->Put(2, Pattern(2 * kG, 999)), HasCode(Code::kInvalid));
  EXPECT_FALSE(file_->Has(3));
  EXPECT_FALSE(file_->Has(UINT64_MAX));
}

TEST_F(ObjectCacheTest, TryReadNeedsAHashedGranuleInMemory) {
  OpenFile(kSmall);
  PutAll(*file_);
  EXPECT_FALSE(TryRead(*file_, 10, 100)) << "not hashed by a read yet";
  ASSERT_OK(Read(*file_, 10, 100));
  if (!TryRead(*file_, 10, 100)) {
    // Some file systems refuse RWF_NOWAIT altogether.
    GTEST_SKIP() << "no RWF_NOWAIT on " << folder();
  }
  EXPECT_TRUE(TryRead(*file_, 0, kG));
  EXPECT_FALSE(TryRead(*file_, kG - 1, 2)) << "granule 1 is not hashed";
  disk_.cold = true;
  EXPECT_FALSE(TryRead(*file_, 10, 100));
  disk_.cold = false;
  disk_.lost_writes = EIO;
  EXPECT_FALSE(TryRead(*file_, 10, 100));
  EXPECT_FALSE(TryRead(*file_, 10, 100)) << "the hash was not forgotten";
}

TEST_F(ObjectCacheTest, HashesAGranuleOnce) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kSmall));
  const uint64_t reads = disk_.reads();
  ASSERT_OK(Read(*file_, 5, kSmall - 10));
  EXPECT_EQ(disk_.reads(), reads + 1) << "one read for a run of granules";
}

TEST_F(ObjectCacheTest, RefetchesWhenABitFlipped) {
  OpenFile(kSmall);
  PutAll(*file_);
  Restart();
  FlipBit(DataPath(), kG + 12345);
  OpenFile(kSmall);
  EXPECT_THAT(Read(*file_, kG + 1, 10), HasCode(Code::kStale));
  EXPECT_FALSE(file_->Has(1));
  EXPECT_EQ(cache_->stats().bad_granules, 1);
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
  ASSERT_OK(PutPattern(*file_, 1));
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
  EXPECT_EQ(cache_->stats().bad_granules, 1);
}

TEST_F(ObjectCacheTest, PutRepairsAGranuleThatNobodyReadYet) {
  OpenFile(kSmall);
  PutAll(*file_);
  Restart();
  FlipBit(DataPath(), 0);
  OpenFile(kSmall);
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(ObjectCacheTest, AFlipOfTheReadAloneIsReadAgain) {
  OpenFile(kSmall);
  PutAll(*file_);
  disk_.flip_next_read = true;
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(ObjectCacheTest, ATornWriteIsNeverServed) {
  OpenFile(kSmall);
  disk_.tear_next_write = true;
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(Read(*file_, 100, 10), HasCode(Code::kStale));
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(ObjectCacheTest, ShortWritesAreContinued) {
  OpenFile(kSmall);
  disk_.short_writes = 1000;
  PutAll(*file_);
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

TEST_F(ObjectCacheTest, AFullDiskLeavesGranulesAbsent) {
  OpenFile(kSmall);
  ASSERT_OK(PutPattern(*file_, 0));
  disk_.write_error = ENOSPC;
  EXPECT_THAT(PutPattern(*file_, 1), HasCode(Code::kNoSpace));
  EXPECT_FALSE(file_->Has(1));
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
  EXPECT_EQ(cache_->stats().write_failures, 1);
  disk_.allocate_error = ENOSPC;
  EXPECT_THAT(cache_->OpenObject(kEndpoint, Sha256Id('b'), kSmall),
              HasCode(Code::kNoSpace));
  disk_.allocate_error = 0;
  EXPECT_THAT(cache_->OpenObject(kEndpoint, Sha256Id('b'), kSmall),
              HasCode(Code::kNoSpace));
  EXPECT_FALSE(fs::exists(ObjectFolder(Sha256Id('b'))));
  EXPECT_TRUE(fs::is_empty(folder() + "/tmp")) << "half an object was left";
  disk_.write_error = 0;
  ASSERT_OK(PutPattern(*file_, 1));
  ASSERT_OK(cache_->OpenObject(kEndpoint, Sha256Id('b'), kSmall));
}

TEST_F(ObjectCacheTest, IoErrorsAreToldAndHealed) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kG));
  disk_.read_error = EIO;
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kIo));
  EXPECT_THAT(Read(*file_, kG, kG), HasCode(Code::kIo));
  disk_.write_error = EIO;
  EXPECT_THAT(PutPattern(*file_, 0), HasCode(Code::kIo));
  disk_.write_error = 0;
  const uint64_t writes = disk_.writes();
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_EQ(disk_.writes(), writes + 1) << "the bad place was not rewritten";
  disk_.read_error = 0;
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

// A write-back that fails lets the kernel drop the bytes, so that what this
// process hashed in memory is not what the disk gives later.
TEST_F(ObjectCacheTest, HashesAgainAfterWriteBackFailed) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kSmall));
  FlipBit(DataPath(), 77);
  disk_.lost_writes = EIO;
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kStale));
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

TEST_F(ObjectCacheTest, PutOfBytesThatAreThereWritesNothing) {
  OpenFile(kSmall);
  PutAll(*file_);
  const uint64_t writes = disk_.writes();
  PutAll(*file_);
  EXPECT_EQ(disk_.writes(), writes);
}

TEST_F(ObjectCacheTest, PublishedBytesAreNotOverwritten) {
  OpenFile(kSmall);
  PutAll(*file_);
  EXPECT_THAT(PutPattern(*file_, 0, /*seed=*/1), HasCode(Code::kCorrupt));
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

TEST_F(ObjectCacheTest, OneProcessSeesWhatAnotherPublishes) {
  auto other = ObjectCache::Open(folder());
  ASSERT_OK(other);
  OpenFile(kSmall);
  auto others_file = (*other)->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(others_file);
  ASSERT_OK(PutPattern(**others_file, 1));
  EXPECT_TRUE(file_->Has(1));
  EXPECT_THAT(Read(*file_, kG, kG), IsOkAndHolds(Pattern(kG, kG)));
}

TEST_F(ObjectCacheTest, OpensAnObjectOnceInOneProcess) {
  OpenFile(kSmall);
  const size_t fds = CountFds();
  const auto again = cache_->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(again);
  EXPECT_EQ(again->get(), file_.get());
  EXPECT_EQ(CountFds(), fds);
}

TEST_F(ObjectCacheTest, NamespacesAndIdsAreKeptApart) {
  OpenFile(kSmall);
  PutAll(*file_);
  const auto elsewhere =
      cache_->OpenObject("https://mirror.test", Sha256Id(), kSmall);
  ASSERT_OK(elsewhere);
  EXPECT_FALSE((*elsewhere)->Has(0));
  const ContentId git{ContentId::Kind::kGit, std::string(40, 'a')};
  const auto by_git = cache_->OpenObject(kEndpoint, git, kSmall);
  ASSERT_OK(by_git);
  EXPECT_FALSE((*by_git)->Has(0));
}

TEST_F(ObjectCacheTest, RefusesIdsThatAreNotPlainHex) {
  using Kind = ContentId::Kind;
  const auto open = [&](Kind kind, std::string value) {
    return cache_->OpenObject(kEndpoint, {kind, std::move(value)}, 10);
  };
  EXPECT_THAT(open(Kind::kStat, std::string(64, 'a')), HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kSha256, ""), HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kSha256, std::string(40, 'a')),
              HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kGit, std::string(64, 'a')), HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kSha256, std::string(64, 'A')),
              HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kGit, "../../../../../../../../../../../../../x"),
              HasCode(Code::kInvalid));
  EXPECT_THAT(open(Kind::kSha256, std::string(63, 'a') + "\n"),
              HasCode(Code::kInvalid));
  EXPECT_THAT(cache_->OpenObject("", Sha256Id(), 10), HasCode(Code::kInvalid));
}

TEST_F(ObjectCacheTest, RefusesSizesThatAListingCannotMean) {
  EXPECT_THAT(cache_->OpenObject(kEndpoint, Sha256Id(), UINT64_MAX),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(
      cache_->OpenObject(kEndpoint, Sha256Id(), (uint64_t{4} << 40) + 1),
      HasCode(Code::kUnsupported));
}

TEST_F(ObjectCacheTest, AnObjectTakesLittleSpaceUntilItIsFilled) {
  OpenFile(uint64_t{1} << 35);
  struct stat status {};
  ASSERT_EQ(::stat(DataPath().c_str(), &status), 0);
  EXPECT_EQ(status.st_size, off_t{1} << 35);
  EXPECT_LT(status.st_blocks, 64);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  ASSERT_EQ(::stat(MetaPath().c_str(), &status), 0);
  EXPECT_GE(status.st_blocks * 512, status.st_size) << "meta is preallocated";
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  ASSERT_EQ(::stat(ObjectFolder().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
}

class PinTest : public ObjectCacheTest {
 protected:
  // An evictor's attempt on one slab, on a description of its own.
  int LockExclusively(uint64_t slab) {
    if (!evictor_.valid()) {
      evictor_.Reset(::open(DataPath().c_str(), O_RDWR | O_CLOEXEC));
    }
    return SetOfdLock(evictor_.get(), F_WRLCK, slab * kSlabSize, kSlabSize);
  }
  void Unlock(uint64_t slab) {
    ASSERT_EQ(SetOfdLock(evictor_.get(), F_UNLCK, slab * kSlabSize, kSlabSize),
              0);
  }
  void TearDown() override {
    evictor_.Reset();
    ObjectCacheTest::TearDown();
  }
  UniqueFd evictor_;
};

TEST_F(PinTest, APinKeepsAnEvictorAway) {
  OpenFile(3 * kSlabSize);
  {
    const auto pin = file_->Pin(kSlabSize - 1, 2);
    ASSERT_OK(pin);
    EXPECT_EQ(LockExclusively(0), -EAGAIN);
    EXPECT_EQ(LockExclusively(1), -EAGAIN);
    EXPECT_EQ(LockExclusively(2), 0) << "a slab that nobody pinned";
    Unlock(2);
  }
  EXPECT_EQ(LockExclusively(0), 0);
  EXPECT_EQ(LockExclusively(1), 0);
}

TEST_F(PinTest, ASlabIsPinnedUntilItsLastPinGoes) {
  OpenFile(2 * kSlabSize);
  auto first = file_->Pin(0, 10);
  auto second = file_->Pin(0, kSlabSize + 1);
  ASSERT_OK(first);
  ASSERT_OK(second);
  *first = SlabPin();
  EXPECT_EQ(LockExclusively(0), -EAGAIN);
  SlabPin moved = std::move(*second);
  EXPECT_EQ(LockExclusively(1), -EAGAIN);
  moved = SlabPin();
  EXPECT_EQ(LockExclusively(0), 0);
  EXPECT_EQ(LockExclusively(1), 0);
}

TEST_F(PinTest, APinKeepsItsFileOpen) {
  OpenFile(kSmall);
  auto pin = file_->Pin(0, 1);
  ASSERT_OK(pin);
  file_.reset();
  EXPECT_EQ(LockExclusively(0), -EAGAIN);
  *pin = SlabPin();
  EXPECT_EQ(LockExclusively(0), 0);
}

TEST_F(PinTest, ASlabThatIsBeingEvictedCountsAsAbsent) {
  OpenFile(2 * kSlabSize);
  ASSERT_OK(PutPattern(*file_, 0));
  ASSERT_EQ(LockExclusively(0), 0);
  EXPECT_THAT(file_->Pin(0, 10), HasCode(Code::kStale));
  EXPECT_THAT(file_->Pin(kSlabSize - 1, 2), HasCode(Code::kStale));
  EXPECT_THAT(PutPattern(*file_, 1), HasCode(Code::kStale));
  EXPECT_FALSE(file_->Has(1));
  // The pin of both slabs failed as a whole.
  EXPECT_EQ(LockExclusively(1), 0);
  Unlock(1);
  Unlock(0);
  EXPECT_OK(file_->Pin(0, 10));
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(PinTest, APutHoldsTheSlabWhileItWrites) {
  OpenFile(kSmall);
  int before = 0;
  int after = 0;
  disk_.before_write = [&] { before = LockExclusively(0); };
  disk_.after_write = [&] { after = LockExclusively(0); };
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_EQ(before, -EAGAIN);
  EXPECT_EQ(after, -EAGAIN);
  EXPECT_EQ(LockExclusively(0), 0);
}

// Seen by a reader that hashed the granule before.
TEST_F(PinTest, AnEvictedGranuleIsAbsentNotZeros) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kSmall));
  TestEvictor evictor(folder(), ObjectPath(kEndpoint, Sha256Id()).value());
  ASSERT_TRUE(evictor.valid());
  ASSERT_TRUE(evictor.Evict(0));
  EXPECT_THAT(Read(*file_, 0, kSmall), HasCode(Code::kStale));
  EXPECT_FALSE(TryRead(*file_, 0, 10));
  PutAll(*file_);
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
}

// What another process published after an eviction is hashed again, although
// this one hashed the granule before.
TEST_F(PinTest, HashesAgainAfterAnEviction) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kSmall));
  TestEvictor evictor(folder(), ObjectPath(kEndpoint, Sha256Id()).value());
  ASSERT_TRUE(evictor.Evict(0));
  FaultyDisk lying_disk;
  auto other = ObjectCache::Open(folder(), {}, lying_disk);
  ASSERT_OK(other);
  auto others_file = (*other)->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(others_file);
  lying_disk.tear_next_write = true;
  ASSERT_OK(PutPattern(**others_file, 0));
  ASSERT_TRUE(file_->Has(0));
  EXPECT_FALSE(TryRead(*file_, 0, kG));
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kStale));
}

}  // namespace
}  // namespace weightfs
