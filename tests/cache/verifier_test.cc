// The background check of whole-file hashes.

#include "cache/verifier.h"

#include <gmock/gmock.h>

#include <thread>

#include "cache/content_hash.h"
#include "formats/base/clock.h"
#include "tests/cache/cache_fixture.h"
#include "tests/cache/test_evictor.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

constexpr uint64_t kVerifiedSize = 20 * kG + 77;

class VerifierTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    ContentHash hash(ContentId::Kind::kSha256, kVerifiedSize);
    hash.Add(Pattern(0, kVerifiedSize));
    info_ = {"model.safetensors",
             kVerifiedSize,
             {ContentId::Kind::kSha256, hash.Finish()}};
    OpenFile(kVerifiedSize, info_.id);
    verifier_.SetOnWrong([this](const FileInfo& file) {
      MutexLock lock(mutex_);
      wrong_.push_back(file.path);
      changed_.NotifyAll();
    });
  }
  void TearDown() override {
    verifier_.Stop();
    ObjectCacheTest::TearDown();
  }

  // Polls, since a promotion tells nobody; it is counted once it is made.
  bool BecomesVerified() {
    const auto until = Clock::System().Now() + std::chrono::seconds(30);
    while ((!file_->verified() || verifier_.stats().verified == 0) &&
           Clock::System().Now() < until) {
      verifier_.Nudge();
      std::this_thread::yield();
    }
    return file_->verified();
  }
  bool BecomesSealed() {
    const auto until = Clock::System().Now() + std::chrono::seconds(30);
    while (verifier_.stats().sealed == 0 && Clock::System().Now() < until) {
      verifier_.Nudge();
      std::this_thread::yield();
    }
    return verifier_.stats().sealed == 1;
  }
  void WaitForHashed(uint64_t bytes) {
    const auto until = Clock::System().Now() + std::chrono::seconds(30);
    while (verifier_.stats().hashed_bytes < bytes &&
           Clock::System().Now() < until) {
      verifier_.Nudge();
      std::this_thread::yield();
    }
    ASSERT_GE(verifier_.stats().hashed_bytes, bytes);
  }

  FileInfo info_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> wrong_ GUARDED_BY(mutex_);
  Verifier verifier_;
};

TEST_F(VerifierTest, FollowsAFileAsItComesAndReadsItOnce) {
  verifier_.Watch(info_, file_);
  verifier_.Watch(info_, file_);
  for (uint64_t g = 0; g < 10; ++g) ASSERT_OK(PutPattern(*file_, g));
  WaitForHashed(10 * kG);
  EXPECT_FALSE(file_->verified());
  // The last ones first: the frontier waits.
  for (uint64_t g = 20; g >= 10; --g) ASSERT_OK(PutPattern(*file_, g));
  EXPECT_TRUE(BecomesVerified());
  EXPECT_EQ(verifier_.stats().hashed_bytes, kVerifiedSize);
  EXPECT_EQ(verifier_.stats().verified, 1);
}

TEST_F(VerifierTest, AFileThatIsWholeAlreadyIsChecked) {
  PutAll(*file_);
  verifier_.Watch(info_, file_);
  EXPECT_TRUE(BecomesVerified());
}

TEST_F(VerifierTest, SealsWhatItVerifiedWithOneHash) {
  verifier_.Watch(info_, file_);
  PutAll(*file_);
  ASSERT_TRUE(BecomesSealed());
  EXPECT_TRUE(file_->verified());
  EXPECT_EQ(verifier_.stats().hashed_bytes, kVerifiedSize);
  EXPECT_OK(file_->ShareSealed());
}

TEST_F(VerifierTest, HashesAVerifiedFileAgainToSealIt) {
  PutAll(*file_);
  ASSERT_OK(file_->Promote(std::vector<uint32_t>{file_->Generation(0)}));
  verifier_.Watch(info_, file_);
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale)) << "nobody asked";
  verifier_.WatchToSeal(info_, file_);
  ASSERT_TRUE(BecomesSealed());
  EXPECT_EQ(verifier_.stats().hashed_bytes, kVerifiedSize);
  EXPECT_EQ(verifier_.stats().verified, 0);
  EXPECT_OK(file_->ShareSealed());
}

TEST_F(VerifierTest, WhatIsWrongIsNotSealed) {
  for (uint64_t g = 0; g < 20; ++g) ASSERT_OK(PutPattern(*file_, g));
  ASSERT_OK(PutPattern(*file_, 20, 3));
  verifier_.WatchToSeal(info_, file_);
  {
    MutexLock lock(mutex_);
    while (wrong_.empty()) changed_.Wait(mutex_);
  }
  EXPECT_THAT(file_->ShareSealed(), HasCode(Code::kStale));
  EXPECT_EQ(verifier_.stats().sealed, 0);
}

TEST_F(VerifierTest, WrongBytesPoisonTheObject) {
  for (uint64_t g = 0; g < 20; ++g) ASSERT_OK(PutPattern(*file_, g));
  ASSERT_OK(PutPattern(*file_, 20, 3));
  verifier_.Watch(info_, file_);
  {
    MutexLock lock(mutex_);
    while (wrong_.empty()) changed_.Wait(mutex_);
    EXPECT_THAT(wrong_, testing::ElementsAre("model.safetensors"));
  }
  EXPECT_FALSE(file_->IsWhole());
  EXPECT_EQ(verifier_.stats().wrong, 1);
}

TEST_F(VerifierTest, BytesThatWereLostAreHashedAgain) {
  verifier_.Watch(info_, file_);
  for (uint64_t g = 0; g < 10; ++g) ASSERT_OK(PutPattern(*file_, g));
  WaitForHashed(10 * kG);
  TestEvictor evictor(folder(), ObjectPath(kEndpoint, info_.id).value());
  // The Verifier may hold the pin.
  while (!evictor.Evict(0)) std::this_thread::yield();
  PutAll(*file_);
  EXPECT_TRUE(BecomesVerified());
  EXPECT_GE(verifier_.stats().hashed_bytes, kVerifiedSize + 10 * kG);
}

TEST_F(VerifierTest, KeepsNothingOpenAndStopsAtOnce) {
  ASSERT_OK(PutPattern(*file_, 0));
  verifier_.Watch(info_, file_);
  const std::weak_ptr<CacheFile> weak = file_;
  file_.reset();
  const auto until = Clock::System().Now() + std::chrono::seconds(30);
  while (!weak.expired() && Clock::System().Now() < until) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(weak.expired());
  verifier_.Stop();
  verifier_.Stop();
}

}  // namespace
}  // namespace weightfs
