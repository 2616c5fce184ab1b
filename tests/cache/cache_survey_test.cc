// What is cached of a file, and taking it away.

#include "cache/cache_survey.h"

#include <algorithm>

#include "cache/content_hash.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kSurveyedSize = 3 * kG + 77;

class CacheSurveyTest : public ObjectCacheTest {
 protected:
  void SetUp() override {
    ObjectCacheTest::SetUp();
    ContentHash hash(ContentId::Kind::kSha256, kSurveyedSize);
    hash.Add(Pattern(0, kSurveyedSize));
    info_ = {"f", kSurveyedSize, {ContentId::Kind::kSha256, hash.Finish()}};
    auto survey = CacheSurvey::Open(folder(), disk_);
    ASSERT_OK(survey);
    survey_ = std::move(*survey);
  }
  void TearDown() override {
    survey_.reset();
    ObjectCacheTest::TearDown();
  }

  std::vector<bool> Look(const std::string& name_space = kEndpoint) {
    return survey_->Look(name_space, info_).granules;
  }
  void Promote() {
    const std::vector<uint32_t> generations = {file_->Generation(0)};
    ASSERT_OK(file_->Promote(generations));
  }
  static bool All(const std::vector<bool>& granules) {
    return !granules.empty() &&
           std::find(granules.begin(), granules.end(), false) == granules.end();
  }
  static bool None(const std::vector<bool>& granules) {
    return std::find(granules.begin(), granules.end(), true) == granules.end();
  }

  FileInfo info_;
  std::unique_ptr<CacheSurvey> survey_;
};

TEST_F(CacheSurveyTest, TellsWhichGranulesAreThere) {
  EXPECT_THAT(Look(), ElementsAre(false, false, false, false));
  EXPECT_FALSE(std::filesystem::exists(ObjectFolder(info_.id)));
  OpenFile(kSurveyedSize, info_.id);
  ASSERT_OK(PutPattern(*file_, 1));
  ASSERT_OK(PutPattern(*file_, 3));
  EXPECT_THAT(Look(), ElementsAre(false, true, false, true));
  EXPECT_FALSE(survey_->Look(kEndpoint, info_).verified);
}

TEST_F(CacheSurveyTest, AMirrorsFileIsNobodyElsesUntilItIsVerified) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  EXPECT_TRUE(None(Look(kMirror)));
  Promote();
  EXPECT_TRUE(All(Look(kMirror)));
  EXPECT_TRUE(survey_->Look(kMirror, info_).verified);
}

// As a killed evictor leaves it (cache/LAYOUT.md, "Crash cases").
TEST_F(CacheSurveyTest, AFileThatIsVerifiedNoMoreIsNotEverybodys) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  Promote();
  file_.reset();
  const std::string meta = folder() + "/" + VerifiedPath(info_.id) + "/meta";
  const UniqueFd fd(::open(meta.c_str(), O_RDWR | O_CLOEXEC));
  const uint32_t no = 0;
  ASSERT_EQ(::pwrite(fd.get(), &no, sizeof(no), 132), 4);
  EXPECT_TRUE(None(Look(kMirror)));
}

TEST_F(CacheSurveyTest, WhatIsPoisonedIsNotThere) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  file_->Poison();
  EXPECT_TRUE(None(Look()));
}

TEST_F(CacheSurveyTest, WhatTheCacheDoesNotKeepIsNotThere) {
  info_.id = {ContentId::Kind::kStat, "1:2:3"};
  EXPECT_TRUE(Look().empty());
  info_.id = Sha256Id();
  info_.size = uint64_t{1} << 50;
  EXPECT_TRUE(Look().empty());
  EXPECT_EQ(survey_->Drop(kEndpoint, info_).kept, 0u);
  EXPECT_THAT(CacheSurvey::Open(folder() + "/absent"),
              HasCode(Code::kNotFound));
  EXPECT_FALSE(std::filesystem::exists(folder() + "/absent"));
}

TEST_F(CacheSurveyTest, DropsAFileThatNobodyUsesAsAWhole) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  file_.reset();
  const auto dropped = survey_->Drop(kEndpoint, info_);
  EXPECT_GE(dropped.freed, kSurveyedSize);
  EXPECT_EQ(dropped.kept, 0u);
  EXPECT_FALSE(std::filesystem::exists(ObjectFolder(info_.id)));
  EXPECT_EQ(survey_->Drop(kEndpoint, info_).freed, 0u);
}

TEST_F(CacheSurveyTest, DropsAVerifiedFile) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  Promote();
  file_.reset();
  EXPECT_GE(survey_->Drop(kMirror, info_).freed, kSurveyedSize);
  EXPECT_TRUE(None(Look()));
}

TEST_F(CacheSurveyTest, DropsNothingOfAnotherOrigins) {
  OpenFile(kSurveyedSize, info_.id);
  PutAll(*file_);
  EXPECT_EQ(survey_->Drop(kMirror, info_).freed, 0u);
  EXPECT_TRUE(All(Look()));
}

// As of a mount that has it open and reads nothing at this moment.
TEST_F(CacheSurveyTest, DropsTheBytesOfAFileThatIsOpen) {
  for (const bool verified : {false, true}) {
    Restart();
    OpenFile(kSurveyedSize, info_.id);
    PutAll(*file_);
    if (verified) Promote();
    const auto dropped = survey_->Drop(kEndpoint, info_);
    EXPECT_GE(dropped.freed, kSurveyedSize);
    EXPECT_EQ(dropped.kept, 0u);
    EXPECT_EQ(dropped.why, "");
    EXPECT_TRUE(None(Look()));
    EXPECT_THAT(Read(*file_, 0, kSurveyedSize), HasCode(Code::kStale));
    EXPECT_FALSE(file_->verified());
    // And it is put and read as before.
    PutAll(*file_);
    EXPECT_OK(Read(*file_, 0, kSurveyedSize));
    file_.reset();
    survey_->Drop(kEndpoint, info_);
  }
}

TEST_F(CacheSurveyTest, WhatIsPinnedStaysAndIsCounted) {
  for (const bool verified : {false, true}) {
    Restart();
    OpenFile(kSurveyedSize, info_.id);
    PutAll(*file_);
    if (verified) Promote();
    {
      const auto pin = file_->Pin(0, 1);
      ASSERT_OK(pin);
      const auto dropped = survey_->Drop(kEndpoint, info_);
      EXPECT_EQ(dropped.freed, 0u);
      EXPECT_GE(dropped.kept, kSurveyedSize);
      EXPECT_EQ(dropped.why, "");
      EXPECT_TRUE(All(Look()));
    }
    EXPECT_GE(survey_->Drop(kEndpoint, info_).freed, kSurveyedSize);
    file_.reset();
    survey_->Drop(kEndpoint, info_);
  }
}

// Only the slab that is in use stays.
TEST_F(CacheSurveyTest, OtherSlabsOfAFileInUseGo) {
  info_.id = Sha256Id('b');
  info_.size = kSlabSize + kG;
  OpenFile(info_.size, info_.id);
  const uint64_t second = kSlabSize / kG;
  ASSERT_OK(PutPattern(*file_, 0));
  ASSERT_OK(PutPattern(*file_, second));
  const auto pin = file_->Pin(kSlabSize, 1);
  ASSERT_OK(pin);
  const auto dropped = survey_->Drop(kEndpoint, info_);
  EXPECT_GE(dropped.freed, kG);
  EXPECT_GE(dropped.kept, kG);
  EXPECT_FALSE(Look()[0]);
  EXPECT_TRUE(Look()[second]);
}

}  // namespace
}  // namespace weightfs
