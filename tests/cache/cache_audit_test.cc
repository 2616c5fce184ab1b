// CacheAudit: what is cached, against what it must be.

#include "cache/cache_audit.h"

#include <gmock/gmock.h>

#include "cache/content_hash.h"
#include "cache/meta_file.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using State = CacheAudit::State;
using testing::HasSubstr;
using testing::SizeIs;

constexpr uint64_t kAuditedSize = 3 * kG + 77;

ContentId IdOf(uint64_t size, ContentId::Kind kind) {
  ContentHash hash(kind, size);
  hash.Add(Pattern(0, size));
  return {kind, hash.Finish()};
}

class CacheAuditTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    disk_.skip_mapping_sync = true;
  }

  std::unique_ptr<CacheAudit> Audit() {
    on_bytes_ = 0;
    auto audit = CacheAudit::Open(
        folder(), [this](uint64_t bytes) { on_bytes_ += bytes; }, disk_);
    EXPECT_OK(audit);
    return std::move(audit).value();
  }
  CacheAudit::Verdict CheckAs(const char* name_space) {
    return Audit()->CheckFile(name_space, {"model.bin", kAuditedSize, id_});
  }
  CacheAudit::Verdict Check() { return CheckAs(kEndpoint); }
  // All that is cached has this state.
  void ExpectObjects(size_t count, State state) {
    const auto audit = Audit();
    const auto objects = audit->Objects();
    EXPECT_THAT(objects, SizeIs(count));
    for (const auto& object : objects) {
      EXPECT_EQ(audit->CheckObject(object).state, state) << object.path;
    }
  }
  // As another process does, behind the back of this one's open files.
  void FlipCachedBit(uint64_t offset) {
    FlipBit(ObjectFolder(id_) + "/data", offset);
  }

  const ContentId id_ = IdOf(kAuditedSize, ContentId::Kind::kSha256);
  uint64_t on_bytes_ = 0;
};

TEST_F(CacheAuditTest, AWholeObjectIsOkAndBecomesVerified) {
  for (const auto kind : {ContentId::Kind::kSha256, ContentId::Kind::kGit}) {
    const ContentId id = IdOf(kAuditedSize, kind);
    OpenFile(kAuditedSize, id);
    PutAll(*file_);
    const auto found = Audit()->CheckFile(kEndpoint, {"f", kAuditedSize, id});
    EXPECT_EQ(found.state, State::kOk) << found.why;
    EXPECT_EQ(found.cached_bytes, kAuditedSize);
    EXPECT_EQ(on_bytes_, kAuditedSize);
    EXPECT_TRUE(file_->verified());
    EXPECT_EQ(Audit()->CheckFile(kMirror, {"f", kAuditedSize, id}).state,
              State::kOk);
  }
  ExpectObjects(2, State::kOk);
}

TEST_F(CacheAuditTest, WhatIsNotCachedIsMissingAndNotMade) {
  EXPECT_EQ(Check().state, State::kMissing);
  EXPECT_FALSE(std::filesystem::exists(ObjectFolder(id_)));
  OpenFile(kAuditedSize, id_);  // made, and empty
  EXPECT_EQ(Check().state, State::kMissing);
  EXPECT_THAT(CacheAudit::Open(folder() + "/absent", [](uint64_t) {}),
              HasCode(Code::kNotFound));
  EXPECT_FALSE(std::filesystem::exists(folder() + "/absent"));
}

TEST_F(CacheAuditTest, APartIsPartial) {
  OpenFile(kAuditedSize, id_);
  ASSERT_OK(PutPattern(*file_, 1));
  ASSERT_OK(PutPattern(*file_, 3));
  const auto found = Check();
  EXPECT_EQ(found.state, State::kPartial);
  EXPECT_EQ(found.cached_bytes, kG + 77);
  ExpectObjects(1, State::kPartial);
}

TEST_F(CacheAuditTest, AnEmptyFileNeedsNoBytes) {
  const auto audit = Audit();
  const ContentId nothing = IdOf(0, ContentId::Kind::kGit);
  EXPECT_EQ(audit->CheckFile(kEndpoint, {"f", 0, nothing}).state, State::kOk);
  EXPECT_EQ(audit->CheckFile(kEndpoint, {"f", 0, id_}).state, State::kWrong);
}

// Not even by what this process hashed before.
TEST_F(CacheAuditTest, AFlippedBitIsFoundAndItsGranuleDropped) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  ASSERT_OK(Read(*file_, 0, kAuditedSize));
  FlipCachedBit(2 * kG + 5);
  const auto found = Check();
  EXPECT_EQ(found.state, State::kWrong);
  EXPECT_THAT(found.why, HasSubstr("1 piece of 128 KiB"));
  EXPECT_EQ(found.cached_bytes, kAuditedSize - kG);
  EXPECT_FALSE(file_->Has(2));
  EXPECT_TRUE(file_->Has(1));
  EXPECT_THAT(Read(*file_, 2 * kG, 10), HasCode(Code::kStale));
  EXPECT_EQ(Check().state, State::kPartial);
  ASSERT_OK(PutPattern(*file_, 2));
  EXPECT_EQ(Check().state, State::kOk);
}

TEST_F(CacheAuditTest, AFlippedBitOfAPartIsFound) {
  OpenFile(kAuditedSize, id_);
  ASSERT_OK(PutPattern(*file_, 0));
  ASSERT_OK(PutPattern(*file_, 1));
  FlipCachedBit(17);
  EXPECT_EQ(Check().state, State::kWrong);
  EXPECT_FALSE(file_->Has(0));
  EXPECT_EQ(Check().state, State::kPartial);
}

TEST_F(CacheAuditTest, ADamagedObjectIsNotEverybodysAnyMore) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  ASSERT_EQ(Check().state, State::kOk);
  FlipBit(folder() + "/" + VerifiedPath(id_) + "/data", 3 * kG + 1);
  EXPECT_EQ(CheckAs(kMirror).state, State::kWrong);
  EXPECT_FALSE(file_->verified());
  EXPECT_TRUE(std::filesystem::exists(ObjectFolder(id_) + "/data"));
  EXPECT_EQ(CheckAs(kMirror).state, State::kMissing);
  EXPECT_EQ(Check().state, State::kPartial);
}

// Bytes that were wrong when they came: each matches its entry.
TEST_F(CacheAuditTest, BytesOfAnotherFileAreDroppedAsAWhole) {
  OpenFile(kAuditedSize, id_);
  for (uint64_t g = 0; g < 4; ++g) ASSERT_OK(PutPattern(*file_, g, 9));
  const auto found = Check();
  EXPECT_EQ(found.state, State::kWrong);
  EXPECT_THAT(found.why, HasSubstr("the hash of its bytes is "));
  EXPECT_THAT(found.why, HasSubstr("dropped"));
  EXPECT_FALSE(file_->IsWhole());
  EXPECT_FALSE(file_->Has(0));
  EXPECT_EQ(Check().state, State::kMissing);
  ExpectObjects(0, State::kMissing);
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  EXPECT_EQ(Check().state, State::kOk);
}

TEST_F(CacheAuditTest, WhatAnotherOriginClaimsDoesNotCount) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  EXPECT_EQ(CheckAs(kMirror).state, State::kMissing);
  EXPECT_FALSE(file_->verified());
  ExpectObjects(1, State::kOk);
}

TEST_F(CacheAuditTest, AnObjectThatCannotBeUsedIsSetAside) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  file_.reset();
  FlipBit(ObjectFolder(id_) + "/meta", 17);  // the size
  const auto found = Check();
  EXPECT_EQ(found.state, State::kWrong);
  EXPECT_THAT(found.why, HasSubstr("meta: "));
  EXPECT_EQ(Check().state, State::kMissing);

  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  std::filesystem::resize_file(ObjectFolder(id_) + "/data", kG);
  ExpectObjects(1, State::kWrong);
  ExpectObjects(0, State::kWrong);
}

TEST_F(CacheAuditTest, AnObjectUnderAnotherNamespaceIsSetAside) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  const auto stolen = folder() + "/" + ObjectPath(kMirror, id_).value();
  std::filesystem::create_directories(
      std::filesystem::path(stolen).parent_path());
  std::filesystem::rename(ObjectFolder(id_), stolen);
  EXPECT_EQ(CheckAs(kMirror).state, State::kWrong);
  EXPECT_FALSE(file_->IsWhole());
  EXPECT_EQ(CheckAs(kMirror).state, State::kMissing);
}

TEST_F(CacheAuditTest, WhatTheDiskDoesNotGiveIsWrong) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  disk_.read_error = EIO;
  EXPECT_EQ(Check().state, State::kWrong);
  disk_.read_error = 0;
  EXPECT_EQ(Check().state, State::kMissing);
}

// Wrong once only: a read that went wrong on the way, not the bytes.
TEST_F(CacheAuditTest, AReadThatWentWrongOnceIsRepeated) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  disk_.flip_next_read = true;
  EXPECT_EQ(Check().state, State::kOk);
}

TEST_F(CacheAuditTest, ASlabThatIsBeingEvictedIsPassedBy) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  const UniqueFd evictor(
      ::open((ObjectFolder(id_) + "/data").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(SetOfdLock(evictor.get(), F_WRLCK, 0, kSlabSize), 0);
  EXPECT_EQ(Check().state, State::kMissing);
  EXPECT_EQ(on_bytes_, kAuditedSize);
  EXPECT_TRUE(file_->Has(0));
}

TEST_F(CacheAuditTest, NothingIsEvictedWhileItIsChecked) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  TestEvictor evictor(folder(), ObjectPath(kEndpoint, id_).value(), disk_);
  ASSERT_TRUE(evictor.valid());
  size_t tried = 0;
  const auto audit = CacheAudit::Open(
      folder(),
      [&](uint64_t) {
        ++tried;
        EXPECT_FALSE(evictor.Evict(0));
      },
      disk_);
  ASSERT_OK(audit);
  EXPECT_EQ((*audit)->CheckFile(kEndpoint, {"f", kAuditedSize, id_}).state,
            State::kOk);
  EXPECT_EQ(tried, 4);
}

TEST_F(CacheAuditTest, ACheckIsNoUse) {
  OpenFile(kAuditedSize, id_);
  PutAll(*file_);
  ASSERT_EQ(Check().state, State::kOk);
  const UniqueFd meta(
      ::open((folder() + "/" + VerifiedPath(id_) + "/meta").c_str(),
             O_RDWR | O_CLOEXEC));
  const uint32_t old = 7;  // minutes; see cache/LAYOUT.md
  ASSERT_EQ(::pwrite(meta.get(), &old, sizeof(old), kMetaHeaderSize), 4);
  EXPECT_EQ(Check().state, State::kOk);
  uint32_t recency = 0;
  ASSERT_EQ(::pread(meta.get(), &recency, sizeof(recency), kMetaHeaderSize), 4);
  EXPECT_EQ(recency, old);
}

}  // namespace
}  // namespace weightfs
