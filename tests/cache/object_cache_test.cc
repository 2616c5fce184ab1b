#include "cache/object_cache.h"

#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "tests/cache/cache_fixture.h"
#include "tests/cache/evictor_double.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr uint64_t kG = kGranuleSize;
// Three granules, the last one short.
constexpr uint64_t kSmall = 2 * kG + 1000;

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

// --- Pins -----------------------------------------------------------------

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
  EvictorDouble evictor(ObjectFolder(), Sha256Id(), kSmall);
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
  EvictorDouble evictor(ObjectFolder(), Sha256Id(), kSmall);
  ASSERT_TRUE(evictor.Evict(0));
  FaultyDisk lying_disk;
  auto other = ObjectCache::Open(folder(), lying_disk);
  ASSERT_OK(other);
  auto others_file = (*other)->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(others_file);
  lying_disk.tear_next_write = true;
  ASSERT_OK(PutPattern(**others_file, 0));
  ASSERT_TRUE(file_->Has(0));
  EXPECT_FALSE(TryRead(*file_, 0, kG));
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kStale));
}

// --- Damage on disk -------------------------------------------------------

class DamageTest : public ObjectCacheTest {
 protected:
  void MakeFull() {
    OpenFile(kSmall);
    PutAll(*file_);
    Restart();
  }
  // The object is set aside and made anew, and works.
  void ExpectMadeAnew() {
    OpenFile(kSmall);
    EXPECT_EQ(file_->CachedFraction(), 0);
    EXPECT_EQ(CountBad(), 1);
    PutAll(*file_);
    EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
  }
};

TEST_F(DamageTest, AMetaThatIsShortOrLongIsNotTrusted) {
  for (const uint64_t size : {0, 1, 255, 256, 4095, 4097, 8192}) {
    MakeFull();
    fs::resize_file(MetaPath(), size);
    ExpectMadeAnew();
  }
}

TEST_F(DamageTest, AMetaWithAFixedBitFlippedIsNotTrusted) {
  for (const uint64_t offset : {0, 8, 12, 23, 24, 47, 72, 80, 111, 120}) {
    MakeFull();
    FlipBit(MetaPath(), offset);
    ExpectMadeAnew();
    if (HasFailure()) FAIL() << "at offset " << offset;
  }
}

TEST_F(DamageTest, AnUnknownOrPoisonedStateIsNotTrusted) {
  for (const char state : {'\x02', '\x03', '\x7f'}) {
    MakeFull();
    std::fstream meta(MetaPath(), std::ios::in | std::ios::out);
    meta.seekp(128);
    meta.put(state);
    meta.close();
    ExpectMadeAnew();
  }
}

TEST_F(DamageTest, DataOfAnotherLengthIsNotTrusted) {
  for (const uint64_t size : {uint64_t{0}, kG, kSmall - 1, kSmall + 1}) {
    MakeFull();
    fs::resize_file(DataPath(), size);
    ExpectMadeAnew();
  }
}

TEST_F(DamageTest, MissingFilesAreMadeAnew) {
  MakeFull();
  fs::remove(DataPath());
  ExpectMadeAnew();
  MakeFull();
  fs::remove(MetaPath());
  ExpectMadeAnew();
  MakeFull();
  fs::remove_all(ObjectFolder());
  OpenFile(kSmall);
  EXPECT_EQ(file_->CachedFraction(), 0);
}

TEST_F(DamageTest, ThingsThatAreNoObjectAreSetAside) {
  MakeFull();
  fs::remove_all(ObjectFolder());
  std::ofstream(ObjectFolder()) << "a file";
  ExpectMadeAnew();
  MakeFull();
  fs::remove_all(ObjectFolder());
  fs::create_directory_symlink("/", ObjectFolder());
  ExpectMadeAnew();
  MakeFull();
  fs::remove(MetaPath());
  fs::create_symlink("data", MetaPath());
  ExpectMadeAnew();
  MakeFull();
  fs::remove(DataPath());
  ASSERT_EQ(::mkfifo(DataPath().c_str(), 0600), 0);
  ExpectMadeAnew();
}

TEST_F(DamageTest, AnotherSizeIsAnotherObject) {
  MakeFull();
  OpenFile(kSmall + 1);
  EXPECT_EQ(file_->CachedFraction(), 0);
  EXPECT_EQ(CountBad(), 1);
}

TEST_F(DamageTest, AnObjectThatWasMovedUnderAnotherIdIsNotTrusted) {
  MakeFull();
  const ContentId other = Sha256Id('b');
  fs::create_directories(fs::path(ObjectFolder(other)).parent_path());
  fs::copy(ObjectFolder(), ObjectFolder(other), fs::copy_options::recursive);
  OpenFile(kSmall, other);
  EXPECT_EQ(file_->CachedFraction(), 0);
}

TEST_F(DamageTest, WhatWasRemovedWhileOpenIsMadeAnewAtTheNextOpen) {
  OpenFile(kSmall);
  PutAll(*file_);
  fs::remove_all(ObjectFolder());
  EXPECT_THAT(Read(*file_, 0, kSmall), IsOkAndHolds(Pattern(0, kSmall)));
  const auto again = cache_->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(again);
  EXPECT_NE(again->get(), file_.get());
  EXPECT_FALSE((*again)->Has(0));
}

TEST_F(DamageTest, DataTruncatedWhileOpenIsAbsentAndNotMadeLongerAgain) {
  OpenFile(kSmall);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kSmall));
  fs::resize_file(DataPath(), 1000);
  EXPECT_THAT(Read(*file_, 500, 1000), HasCode(Code::kStale));
  EXPECT_FALSE(TryRead(*file_, 0, 10));
  EXPECT_THAT(PutPattern(*file_, 2), HasCode(Code::kStale));
  EXPECT_EQ(fs::file_size(DataPath()), 1000);
  EXPECT_EQ(file_->CachedFraction(), 0);
  ExpectMadeAnew();
}

TEST_F(DamageTest, ATruncatedObjectIsNotMadeLongerByAPutEither) {
  OpenFile(kSmall);
  ASSERT_OK(PutPattern(*file_, 0));
  fs::resize_file(DataPath(), 1000);
  EXPECT_THAT(PutPattern(*file_, 2), HasCode(Code::kStale));
  EXPECT_EQ(fs::file_size(DataPath()), 1000);
  EXPECT_FALSE(file_->Has(0));
}

TEST_F(DamageTest, MetaTruncatedWhileOpenDoesNotKill) {
  const uint64_t size = uint64_t{1} << 33;  // meta of several pages
  OpenFile(size);
  const uint64_t last = size / kG - 1;
  ASSERT_OK(PutPattern(*file_, 0));
  ASSERT_OK(PutPattern(*file_, last));
  ASSERT_OK(Read(*file_, 0, kG));
  fs::resize_file(MetaPath(), 4096);
  EXPECT_FALSE(file_->Has(last));
  EXPECT_FALSE(file_->Has(0)) << "one bad page makes all of it untrusted";
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kStale));
  EXPECT_FALSE(TryRead(*file_, 0, kG));
  EXPECT_THAT(PutPattern(*file_, 0), HasCode(Code::kStale));
  EXPECT_THAT(Read(*file_, 0, kG), HasCode(Code::kStale));
  EXPECT_EQ(file_->CachedFraction(), 0);
  file_.reset();
  OpenFile(size);
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(Read(*file_, 0, kG), IsOkAndHolds(Pattern(0, kG)));
}

TEST_F(DamageTest, OnlyTheLastBadObjectIsKept) {
  for (int i = 0; i < 3; ++i) {
    MakeFull();
    FlipBit(MetaPath(), 3);
    ExpectMadeAnew();
  }
}

// --- The folder -----------------------------------------------------------

class CacheFolderTest : public ObjectCacheTest {
 protected:
  std::string Text(const std::string& name) const {
    std::ifstream file(folder() + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  Result<std::unique_ptr<ObjectCache>> Open() {
    cache_.reset();
    return ObjectCache::Open(folder());
  }
};

TEST_F(CacheFolderTest, IsMadeForTheUserAlone) {
  struct stat status {};
  ASSERT_EQ(::stat(folder().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
  EXPECT_EQ(Text("version"), "weightfs cache 1\n");
  EXPECT_THAT(
      Text("CACHEDIR.TAG"),
      testing::StartsWith("Signature: 8a477f597d28d172789f06886806bc55\n"));
  OpenFile(10);
  EXPECT_EQ(Text(NamespacePath(kEndpoint) + "/namespace"),
            std::string(kEndpoint) + "\n");
  const std::string deep = temp_.path() + "/a/b/c";
  EXPECT_OK(ObjectCache::Open(deep));
}

TEST_F(CacheFolderTest, RefusesOthersToWrite) {
  ASSERT_EQ(::chmod(folder().c_str(), 0770), 0);
  EXPECT_THAT(Open(), HasCode(Code::kDenied));
  ASSERT_EQ(::chmod(folder().c_str(), 0702), 0);
  EXPECT_THAT(Open(), HasCode(Code::kDenied));
  ASSERT_EQ(::chmod(folder().c_str(), 0755), 0);
  EXPECT_OK(Open());
}

TEST_F(CacheFolderTest, RefusesAnotherUsersFolder) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give a folder away";
  ASSERT_EQ(::chown(folder().c_str(), 12345, 12345), 0);
  const auto opened = Open();
  EXPECT_THAT(opened, HasCode(Code::kDenied));
  EXPECT_THAT(opened, HasMessage(HasSubstr("12345")));
}

TEST_F(CacheFolderTest, RefusesAFileAndNothing) {
  const std::string file = temp_.path() + "/file";
  std::ofstream(file) << "x";
  EXPECT_THAT(ObjectCache::Open(file), HasCode(Code::kInvalid));
  EXPECT_THAT(ObjectCache::Open(""), HasCode(Code::kInvalid));
  EXPECT_FALSE(ObjectCache::Open(file + "/below").has_value());
}

TEST_F(CacheFolderTest, RefusesAnotherVersion) {
  for (const char* text : {"weightfs cache 2\n", "something else\n"}) {
    std::ofstream(folder() + "/version") << text;
    EXPECT_THAT(Open(), HasCode(Code::kUnsupported));
    EXPECT_EQ(Text("version"), text);
  }
}

TEST_F(CacheFolderTest, WritesAVersionThatACrashLeftEmpty) {
  for (const size_t zeros : {0, 17}) {
    std::ofstream(folder() + "/version") << std::string(zeros, '\0');
    EXPECT_OK(Open());
    EXPECT_EQ(Text("version"), "weightfs cache 1\n");
  }
}

TEST_F(CacheFolderTest, RemovesOldLeftoversOnly) {
  const std::string old_one = folder() + "/tmp/1-1-1";
  const std::string new_one = folder() + "/tmp/1-1-2";
  fs::create_directories(old_one);
  std::ofstream(old_one + "/data") << "x";
  std::ofstream(new_one) << "x";
  const auto hours_ago =
      fs::file_time_type::clock::now() - std::chrono::hours(2);
  fs::last_write_time(old_one, hours_ago);
  EXPECT_OK(Open());
  EXPECT_FALSE(fs::exists(old_one));
  EXPECT_TRUE(fs::exists(new_one));
}

TEST_F(CacheFolderTest, ANamespaceOfThatHashButAnotherNameIsRefused) {
  OpenFile(10);
  Restart();
  std::ofstream(folder() + "/" + NamespacePath(kEndpoint) + "/namespace")
      << "https://other.test\n";
  EXPECT_THAT(cache_->OpenObject(kEndpoint, Sha256Id(), 10),
              HasCode(Code::kUnsupported));
}

TEST_F(CacheFolderTest, TooManyOpenFilesIsAClearError) {
  OpenFile(kSmall);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit tight{0, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  const auto other = cache_->OpenObject(kEndpoint, Sha256Id('b'), kSmall);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_THAT(other, HasCode(Code::kIo));
  EXPECT_THAT(other, HasMessage(HasSubstr("Too many open files")));
  EXPECT_OK(cache_->OpenObject(kEndpoint, Sha256Id('b'), kSmall));
}

// A real full disk: a file system of 1 MiB in memory.
TEST_F(CacheFolderTest, ARealFullDiskLeavesGranulesAbsent) {
  const std::string mount = temp_.path() + "/tmpfs";
  fs::create_directory(mount);
  if (::mount("none", mount.c_str(), "tmpfs", 0, "size=1m,mode=700") != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs (needs root)";
  }
  {
    auto small = ObjectCache::Open(mount);
    ASSERT_OK(small);
    auto file = (*small)->OpenObject(kEndpoint, Sha256Id(), 16 * kG);
    ASSERT_OK(file);
    uint64_t kept = 0;
    for (uint64_t g = 0; g < 16; ++g) {
      const auto put = PutPattern(**file, g);
      EXPECT_EQ(put.has_value(), (*file)->Has(g));
      if (!put.has_value()) {
        EXPECT_THAT(put, HasCode(Code::kNoSpace));
        continue;
      }
      ++kept;
      EXPECT_THAT(Read(**file, g * kG, kG), IsOkAndHolds(Pattern(g * kG, kG)));
    }
    EXPECT_GE(kept, 4);
    EXPECT_LT(kept, 8);
    EXPECT_THAT(
        (*small)->OpenObject(kEndpoint, Sha256Id('b'), uint64_t{1} << 40),
        HasCode(Code::kNoSpace));
    // The entries need no space of their own: no SIGBUS on a full disk.
    EXPECT_EQ((*file)->CachedFraction(), static_cast<double>(kept) / 16);
  }
  EXPECT_EQ(::umount2(mount.c_str(), MNT_DETACH), 0);
}

TEST_F(CacheFolderTest, AReadOnlyDiskIsAClearError) {
  const std::string mount = temp_.path() + "/ro";
  fs::create_directory(mount);
  if (::mount("none", mount.c_str(), "tmpfs", 0, "size=1m,mode=700") != 0) {
    GTEST_SKIP() << "cannot mount a tmpfs (needs root)";
  }
  {
    auto cache = ObjectCache::Open(mount);
    ASSERT_OK(cache);
    ASSERT_OK((*cache)->OpenObject(kEndpoint, Sha256Id(), kSmall));
    ASSERT_EQ(::mount("none", mount.c_str(), nullptr, MS_REMOUNT | MS_RDONLY,
                      nullptr),
              0);
    for (const char digit : {'a', 'b'}) {
      const auto file =
          (*cache)->OpenObject(kEndpoint, Sha256Id(digit), kSmall);
      EXPECT_THAT(file, HasCode(Code::kIo));
      EXPECT_THAT(file, HasMessage(HasSubstr("Read-only file system")));
    }
    EXPECT_THAT(ObjectCache::Open(mount), HasCode(Code::kIo));
  }
  EXPECT_EQ(::umount2(mount.c_str(), MNT_DETACH), 0);
}

TEST(CachePathsTest, AnyTextMakesASafeFileName) {
  EXPECT_EQ(FileNameFor("main"), "main");
  EXPECT_EQ(FileNameFor("v1.0-rc_2"), "v1.0-rc_2");
  EXPECT_EQ(FileNameFor("refs/pr/1"), "refs%2Fpr%2F1");
  EXPECT_EQ(FileNameFor(".."), "%2E.");
  EXPECT_EQ(FileNameFor("."), "%2E");
  EXPECT_EQ(FileNameFor(""), "%");
  EXPECT_EQ(FileNameFor("%"), "%25");
  EXPECT_EQ(FileNameFor(std::string_view("a\0b\n\xff", 5)), "a%00b%0A%FF");
  const std::string long_a = FileNameFor(std::string(1000, '/') + "a");
  const std::string long_b = FileNameFor(std::string(1000, '/') + "b");
  EXPECT_NE(long_a, long_b);
  EXPECT_LE(long_a.size(), 200);
  EXPECT_EQ(FileNameFor(std::string(200, 'x')).size(), 200);
}

}  // namespace
}  // namespace weightfs
