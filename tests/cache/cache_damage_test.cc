// Objects that were damaged on disk, before they are opened and while they are.

#include <sys/stat.h>

#include <fstream>

#include "cache/object_cache.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

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

// Else it would be another namespace's, of whom nothing is trusted: the object
// could not be kept ever again.
TEST_F(DamageTest, AMetaWithAnotherOwnerIsNotTrusted) {
  for (const uint64_t offset : {152, 159}) {
    MakeFull();
    FlipBit(MetaPath(), offset);
    ExpectMadeAnew();
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

}  // namespace
}  // namespace weightfs
