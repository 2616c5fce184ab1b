// Whole-file hashes: who may see an object before they were checked and after,
// what happens when bytes are lost or wrong; sealed descriptors; claims.

#include <gmock/gmock.h>
#include <sys/mman.h>

#include "cache/content_hash.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

constexpr uint64_t kTrustedSize = 3 * kG + 77;

ContentId IdOf(uint64_t size, uint64_t seed = 0,
               ContentId::Kind kind = ContentId::Kind::kSha256) {
  ContentHash hash(kind, size);
  hash.Add(Pattern(0, size, seed));
  return {kind, hash.Finish()};
}

class TrustTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    disk_.skip_mapping_sync = true;
    OpenFile(kTrustedSize, id_);
  }

  Result<std::shared_ptr<CacheFile>> OpenAs(const char* name_space) {
    return cache_->OpenObject(name_space, id_, kTrustedSize);
  }
  std::vector<uint32_t> Generations() const { return {file_->Generation(0)}; }
  void Promote() { ASSERT_OK(file_->Promote(Generations())); }
  std::string Verified() const { return folder() + "/" + VerifiedPath(id_); }
  std::string Claimed() const { return ObjectFolder(id_); }
  // Relative to the cache folder.
  bool Evict(const std::string& object) {
    TestEvictor evictor(folder(), object, disk_);
    const bool evicted = evictor.valid() && evictor.Evict(0);
    auto opened = CacheFolder::OpenPlain(folder());
    SlabEvictor::Open(**opened, disk_, object).value()->Demote();
    return evicted;
  }

  const ContentId id_ = IdOf(kTrustedSize);
};

TEST(ContentHashTest, IsWhatSha256AndGitSay) {
  const std::string text = "hello\n";
  const auto bytes = std::as_bytes(std::span(text));
  ContentHash sha256(ContentId::Kind::kSha256, text.size());
  sha256.Add(bytes.first(2));
  sha256.Add(bytes.subspan(2));
  EXPECT_EQ(sha256.added(), 6);
  EXPECT_EQ(sha256.Finish(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
  ContentHash git(ContentId::Kind::kGit, text.size());
  git.Add(bytes);
  EXPECT_EQ(git.Finish(), "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST_F(TrustTest, ClaimedBytesAreTheClaimersAlone) {
  PutAll(*file_);
  const auto other = OpenAs(kMirror);
  ASSERT_OK(other);
  EXPECT_FALSE((*other)->Has(0));
  EXPECT_FALSE(file_->verified());
}

TEST_F(TrustTest, AVerifiedObjectIsEverybodys) {
  PutAll(*file_);
  Promote();
  EXPECT_TRUE(file_->verified());
  EXPECT_TRUE(std::filesystem::exists(Verified() + "/data"));
  EXPECT_FALSE(std::filesystem::exists(Claimed()));
  const auto other = OpenAs(kMirror);
  ASSERT_OK(other);
  EXPECT_TRUE((*other)->verified());
  EXPECT_THAT(Read(**other, 0, kTrustedSize),
              IsOkAndHolds(Pattern(0, kTrustedSize)));
  Restart();
  OpenFile(kTrustedSize, id_);
  EXPECT_TRUE(file_->verified());
  EXPECT_EQ(file_->CachedFraction(), 1);
}

TEST_F(TrustTest, AnIncompleteObjectIsNotPromoted) {
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(file_->Promote(Generations()), HasCode(Code::kStale));
  EXPECT_FALSE(file_->verified());
}

TEST_F(TrustTest, BytesThatChangedSinceTheyWereHashedAreNotPromoted) {
  PutAll(*file_);
  const auto before = Generations();
  ASSERT_TRUE(Evict(ObjectPath(kEndpoint, id_).value()));
  PutAll(*file_);
  EXPECT_THAT(file_->Promote(before), HasCode(Code::kStale));
  EXPECT_FALSE(file_->verified());
  Promote();
}

// Whoever refills an evicted object is not trusted by others any more.
TEST_F(TrustTest, EvictionTakesTheVerificationBack) {
  PutAll(*file_);
  Promote();
  const auto other = OpenAs(kMirror);
  ASSERT_OK(other);
  ASSERT_OK(Read(**other, 0, 10));
  ASSERT_TRUE(Evict(VerifiedPath(id_)));
  EXPECT_FALSE(file_->verified());
  EXPECT_FALSE(std::filesystem::exists(Verified()));
  EXPECT_TRUE(std::filesystem::exists(Claimed() + "/data"));
  // Other bytes under the claim: they are the claimer's alone.
  for (uint64_t g = 0; g < 4; ++g) ASSERT_OK(PutPattern(*file_, g, 9));
  EXPECT_THAT(Read(*file_, 0, 10), IsOkAndHolds(Pattern(0, 10, 9)));
  EXPECT_FALSE((*other)->IsWhole());
  EXPECT_FALSE((*other)->Has(0));
  EXPECT_THAT(Read(**other, 0, 10), HasCode(Code::kStale));
  EXPECT_FALSE(TryRead(**other, 0, 10));
  EXPECT_FALSE(PutPattern(**other, 0).has_value());
  const auto again = OpenAs(kMirror);
  ASSERT_OK(again);
  EXPECT_TRUE((*again)->IsWhole());
  EXPECT_FALSE((*again)->Has(0));
}

TEST_F(TrustTest, DamageTakesTheVerificationBack) {
  PutAll(*file_);
  Promote();
  file_.reset();
  FlipBit(Verified() + "/data", kG + 5);
  OpenFile(kTrustedSize, id_);
  EXPECT_TRUE(file_->verified());
  EXPECT_THAT(Read(*file_, kG, 10), HasCode(Code::kStale));
  EXPECT_FALSE(file_->verified());
  // The next to open it finds it where it belongs.
  ASSERT_OK(PutPattern(*file_, 1));
  Restart();
  const auto other = OpenAs(kMirror);
  ASSERT_OK(other);
  EXPECT_FALSE((*other)->Has(0));
  OpenFile(kTrustedSize, id_);
  EXPECT_EQ(file_->CachedFraction(), 1);
  EXPECT_FALSE(std::filesystem::exists(Verified()));
  Promote();
  EXPECT_TRUE(std::filesystem::exists(Verified()));
}

TEST_F(TrustTest, APoisonedObjectIsUsedByNobody) {
  PutAll(*file_);
  auto second = ObjectCache::Open(folder());
  ASSERT_OK(second);
  auto seconds_file = (*second)->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(seconds_file);
  ASSERT_OK(Read(**seconds_file, 0, 10));
  file_->Poison();
  for (CacheFile* file : {file_.get(), seconds_file->get()}) {
    EXPECT_FALSE(file->IsWhole());
    EXPECT_FALSE(file->Has(0));
    EXPECT_FALSE(TryRead(*file, 0, 10));
    EXPECT_THAT(Read(*file, 0, 10), HasCode(Code::kStale));
  }
  auto anew = (*second)->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(anew);
  EXPECT_TRUE((*anew)->IsWhole());
  EXPECT_EQ((*anew)->CachedFraction(), 0);
}

TEST_F(TrustTest, TheCopyThatIsNotNeededGoes) {
  PutAll(*file_);
  auto mirrors = OpenAs(kMirror);
  ASSERT_OK(mirrors);
  PutAll(**mirrors);
  Promote();
  ASSERT_OK((*mirrors)->Promote({{(*mirrors)->Generation(0)}}));
  EXPECT_TRUE((*mirrors)->verified());
  const std::string copy =
      folder() + "/" + ObjectPath(kMirror, id_).value() + "/data";
  EXPECT_TRUE(std::filesystem::exists(copy)) << "it is open";
  mirrors->reset();
  mirrors = OpenAs(kMirror);
  ASSERT_OK(mirrors);
  EXPECT_FALSE(std::filesystem::exists(copy));
  EXPECT_THAT(Read(**mirrors, 0, kTrustedSize),
              IsOkAndHolds(Pattern(0, kTrustedSize)));
}

TEST_F(TrustTest, ASharedDescriptorHoldsThePin) {
  PutAll(*file_);
  auto shared = file_->Share();
  ASSERT_OK(shared);
  std::vector<std::byte> bytes(kTrustedSize);
  ASSERT_EQ(::pread(shared->get(), bytes.data(), kTrustedSize, 0),
            static_cast<ssize_t>(kTrustedSize));
  EXPECT_EQ(bytes, Pattern(0, kTrustedSize));
  EXPECT_EQ(::write(shared->get(), bytes.data(), 1), -1);
  const std::string object = ObjectPath(kEndpoint, id_).value();
  TestEvictor evictor(folder(), object, disk_);
  ASSERT_TRUE(evictor.valid());
  EXPECT_FALSE(evictor.Evict(0));
  // A mapping is enough.
  void* mapped =
      ::mmap(nullptr, kTrustedSize, PROT_READ, MAP_SHARED, shared->get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  shared->Reset();
  EXPECT_FALSE(evictor.Evict(0));
  EXPECT_EQ(std::memcmp(mapped, bytes.data(), kTrustedSize), 0);
  ::munmap(mapped, kTrustedSize);
  EXPECT_TRUE(evictor.Evict(0));
  EXPECT_THAT(file_->Share(), HasCode(Code::kStale)) << "not sealed any more";
}

TEST_F(TrustTest, OnlyWholeAndRightBytesAreShared) {
  ASSERT_OK(PutPattern(*file_, 0));
  EXPECT_THAT(file_->Share(), HasCode(Code::kStale));
  for (uint64_t g = 1; g < 4; ++g) ASSERT_OK(PutPattern(*file_, g, 5));
  EXPECT_THAT(file_->Share(), HasCode(Code::kCorrupt));
  EXPECT_FALSE(file_->IsWhole());
}

TEST_F(TrustTest, NothingIsSharedThatTheDiskMayLose) {
  PutAll(*file_);
  disk_.sync_error = EIO;
  EXPECT_THAT(file_->Share(), HasCode(Code::kIo));
  disk_.sync_error = 0;
  EXPECT_OK(file_->Share());
}

// What a failed sync told of is told by nobody again: a reader that trusted its
// hashes would give what is on the disk now.
TEST_F(TrustTest, AFailedSyncIsALoss) {
  PutAll(*file_);
  ASSERT_THAT(Read(*file_, 0, kTrustedSize), IsOk());
  const uint64_t before = file_->losses();
  disk_.sync_error = EIO;
  EXPECT_THAT(file_->Share(), HasCode(Code::kIo));
  EXPECT_GT(file_->losses(), before);
  FlipBit(Claimed() + "/data", 100);
  EXPECT_THAT(Read(*file_, 0, kTrustedSize), HasCode(Code::kStale))
      << "a hash from before the loss was trusted";
}

TEST_F(TrustTest, WhatWasHashedIsSealedAsItIs) {
  const auto always = [] { return true; };
  PutAll(*file_);
  const std::vector<uint32_t> generations = {file_->Generation(0)};
  const uint64_t losses = file_->losses();
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
  ASSERT_OK(file_->Seal(generations, losses, always));
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale)) << "not verified";
  ASSERT_OK(file_->Promote(generations));
  auto shared = file_->ShareSealed();
  ASSERT_OK(shared);
  std::vector<std::byte> bytes(kTrustedSize);
  ASSERT_EQ(::pread(shared->get(), bytes.data(), kTrustedSize, 0),
            static_cast<ssize_t>(kTrustedSize));
  EXPECT_EQ(bytes, Pattern(0, kTrustedSize));
  TestEvictor evictor(folder(), VerifiedPath(id_), disk_);
  ASSERT_TRUE(evictor.valid());
  EXPECT_FALSE(evictor.Evict(0));
  shared->Reset();
  EXPECT_TRUE(evictor.Evict(0));
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
  // Those of before prove nothing of what is there now.
  PutAll(*file_);
  EXPECT_THAT(file_->Seal(generations, losses, always), HasCode(Code::kStale));
  EXPECT_THAT(file_->Promote(generations), HasCode(Code::kStale));
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
}

TEST_F(TrustTest, NothingIsSealedThatTheDiskLost) {
  const auto always = [] { return true; };
  PutAll(*file_);
  const std::vector<uint32_t> generations = {file_->Generation(0)};
  const uint64_t losses = file_->losses();
  ASSERT_OK(file_->Promote(generations));
  disk_.lost_writes = EIO;
  EXPECT_THAT(file_->Seal(generations, losses, always), HasCode(Code::kIo));
  disk_.write_out_error = EIO;
  EXPECT_THAT(file_->Seal(generations, file_->losses(), always),
              HasCode(Code::kIo));
  disk_.write_out_error = 0;
  EXPECT_THAT(file_->Seal(generations, losses, always), HasCode(Code::kIo))
      << "the hash is from before the loss";
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
  EXPECT_THAT(file_->Seal(generations, file_->losses(), [] { return false; }),
              HasCode(Code::kCancelled));
  ASSERT_OK(file_->Seal(generations, file_->losses(), always));
  EXPECT_OK(file_->ShareSealed());
}

// A granule that is found bad takes the seal along: nobody would hash it.
TEST_F(TrustTest, AWipedGranuleBreaksTheSeal) {
  PutAll(*file_);
  const std::vector<uint32_t> generations = {file_->Generation(0)};
  const uint64_t losses = file_->losses();
  ASSERT_OK(file_->Promote(generations));
  ASSERT_OK(file_->Seal(generations, losses, [] { return true; }));
  ASSERT_OK(file_->ShareSealed());
  FlipBit(folder() + "/" + VerifiedPath(id_) + "/data", 100);
  auto second = ObjectCache::Open(folder());
  ASSERT_OK(second);
  auto other = (*second)->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(other);
  EXPECT_THAT(Read(**other, 0, kTrustedSize), HasCode(Code::kStale));
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
  EXPECT_THAT(file_->Share(), HasCode(Code::kStale));
}

class LendTest : public TrustTest {
 protected:
  // Whether it lends bytes, and those that were put.
  bool Lends(uint64_t offset, uint64_t length) {
    const auto pin = file_->Pin(offset, length);
    if (!pin.has_value()) return false;
    const auto lent = file_->TryLend(offset, length);
    const auto put = Pattern(offset, length);
    return !lent.empty() &&
           std::equal(lent.begin(), lent.end(), put.begin(), put.end());
  }
};

TEST_F(LendTest, LendsWhatIsSealedAndHashedHere) {
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kTrustedSize));
  EXPECT_FALSE(Lends(0, kG)) << "the disk may lose it";
  ASSERT_OK(file_->Share());
  EXPECT_TRUE(Lends(0, kG));
  EXPECT_TRUE(Lends(kG - 1, 2));
  EXPECT_TRUE(Lends(7, kTrustedSize - 7));
  EXPECT_TRUE(file_->TryLend(1, kTrustedSize).empty());
  EXPECT_FALSE(Lends(kG, 0));
  Restart();
  OpenFile(kTrustedSize, id_);
  EXPECT_FALSE(Lends(0, kG)) << "not hashed by this process";
  ASSERT_OK(Read(*file_, 0, 1));
  EXPECT_TRUE(Lends(0, kG));
  EXPECT_FALSE(Lends(0, kG + 1));
}

TEST_F(LendTest, LendsNothingThatIsNotInMemory) {
  PutAll(*file_);
  ASSERT_OK(file_->Share());
  ASSERT_TRUE(Lends(0, kTrustedSize));
  disk_.cold = true;
  EXPECT_FALSE(Lends(0, kG));
  disk_.cold = false;
  // The kernel says so, too.
  std::filesystem::resize_file(Claimed() + "/data", kG);
  EXPECT_TRUE(Lends(0, kG));
  EXPECT_FALSE(Lends(kG, kG));
}

TEST_F(LendTest, LendsNothingThatWasLost) {
  PutAll(*file_);
  ASSERT_OK(file_->Share());
  ASSERT_TRUE(Lends(0, kG));
  disk_.lost_writes = EIO;
  EXPECT_FALSE(Lends(0, kG));
  EXPECT_FALSE(Lends(0, kG)) << "the hash was not forgotten";
  ASSERT_OK(Read(*file_, 0, kG));
  EXPECT_TRUE(Lends(0, kG));
  file_->Poison();
  EXPECT_FALSE(Lends(0, kG));
}

TEST_F(LendTest, WhatIsLentIsNotEvicted) {
  PutAll(*file_);
  ASSERT_OK(file_->Share());
  TestEvictor evictor(folder(), ObjectPath(kEndpoint, id_).value(), disk_);
  ASSERT_TRUE(evictor.valid());
  {
    const auto pin = file_->Pin(0, kG);
    ASSERT_OK(pin);
    ASSERT_FALSE(file_->TryLend(0, kG).empty());
    EXPECT_FALSE(evictor.Evict(0));
  }
  EXPECT_TRUE(evictor.Evict(0));
  EXPECT_FALSE(Lends(0, kG));
  // Fetched again, but nobody sealed it.
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kTrustedSize));
  EXPECT_FALSE(Lends(0, kG));
}

// A seal of another boot means nothing.
TEST_F(TrustTest, ASealIsOfThisBoot) {
  PutAll(*file_);
  ASSERT_OK(file_->Share());
  const std::string meta = Claimed() + "/meta";
  file_.reset();
  FlipBit(meta, 140);  // the boot id
  OpenFile(kTrustedSize, id_);
  ASSERT_OK(Read(*file_, 0, kTrustedSize));
  EXPECT_TRUE(file_->TryLend(0, kG).empty()) << "lent by another boot's seal";
  FlipBit(Claimed() + "/data", 100);
  EXPECT_FALSE(file_->Share().has_value()) << "it was not hashed again";
}

TEST_F(TrustTest, ClaimsKeepOtherProcessesFromFetching) {
  auto second = ObjectCache::Open(folder());
  ASSERT_OK(second);
  auto other = (*second)->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(other);
  EXPECT_EQ(file_->Claim(1, 2), 2);
  EXPECT_EQ((*other)->Claim(0, 4), 1);
  EXPECT_EQ((*other)->Claim(1, 3), 0);
  EXPECT_EQ((*other)->Claim(3, 1), 1);
  EXPECT_TRUE((*other)->ClaimedElsewhere(1));
  EXPECT_FALSE((*other)->ClaimedElsewhere(0));
  EXPECT_TRUE(file_->ClaimedElsewhere(0));
  file_->Unclaim(1, 1);
  EXPECT_EQ((*other)->Claim(1, 2), 1);
  other->reset();
  EXPECT_FALSE(file_->ClaimedElsewhere(0));
  EXPECT_EQ(file_->Claim(0, 4), 4);
}

TEST_F(TrustTest, OpensOfOneProcessShareTheirClaims) {
  auto again = cache_->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(again);
  EXPECT_EQ(file_->Claim(0, 2), 2);
  EXPECT_FALSE((*again)->ClaimedElsewhere(0, 4));
  EXPECT_EQ((*again)->Claim(0, 4), 4);
}

TEST_F(TrustTest, AClaimIsToldAsItIsClaimed) {
  auto second = ObjectCache::Open(folder());
  ASSERT_OK(second);
  auto other = (*second)->OpenObject(kEndpoint, id_, kTrustedSize);
  ASSERT_OK(other);
  EXPECT_EQ(file_->Claim(1, 3), 3);
  EXPECT_EQ((*other)->ClaimedElsewhere(2), (GranuleRun{1, 3}));
  EXPECT_EQ((*other)->ClaimedElsewhere(0, 2), (GranuleRun{1, 3}));
  EXPECT_EQ((*other)->ClaimedElsewhere(0, 1), GranuleRun{});
  file_->Unclaim(1, 1);
  EXPECT_EQ((*other)->ClaimedElsewhere(0, 4), (GranuleRun{2, 2}));
}

TEST_F(TrustTest, DeathReleasesAClaim) {
  std::array<int, 2> ready{};
  ASSERT_EQ(::pipe(ready.data()), 0);
  {
    Child child([&] {
      auto cache = ObjectCache::Open(folder());
      auto file = (*cache)->OpenObject(kEndpoint, id_, kTrustedSize);
      if ((*file)->Claim(0, 4) != 4) return 1;
      if (::write(ready[1], "x", 1) != 1) return 1;
      ::pause();
      return 0;
    });
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    EXPECT_EQ(file_->Claim(0, 4), 0);
    child.Kill();
  }
  EXPECT_EQ(file_->Claim(0, 4), 4);
  ::close(ready[0]);
  ::close(ready[1]);
}

}  // namespace
}  // namespace weightfs
