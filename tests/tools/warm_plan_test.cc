#include "tools/warm_plan.h"

#include "cache/object_cache.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kG = kGranuleSize;

ContentId Id(char digit) {
  return {ContentId::Kind::kSha256, std::string(64, digit)};
}

class WarmPlannerTest : public ::testing::Test {
 protected:
  WarmPlannerTest() {
    snapshot_.files = {{"a", 10 * kG + 5, Id('a')},
                       {"b", 77, Id('b')},
                       {"c", 77, Id('b')},  // the same bytes
                       {"d", 0, Id('d')},
                       {"e", 4 * kG, Id('e')}};
  }
  Snapshot snapshot_;
};

TEST_F(WarmPlannerTest, EverythingIsThereOnceFileByFile) {
  WarmPlanner planner(snapshot_);
  for (uint32_t i = 0; i < 5; ++i) ASSERT_OK(planner.WantAll(i));
  const WarmPlan plan = planner.Finish();
  EXPECT_THAT(plan.runs, ElementsAre(FileRun{0, 0, 10 * kG + 5},
                                     FileRun{1, 0, 77}, FileRun{4, 0, 4 * kG}));
  EXPECT_EQ(plan.bytes, 14 * kG + 82);
  EXPECT_EQ(plan.files, 3u);
}

TEST_F(WarmPlannerTest, WhatIsPutComesFirstInWholeGranules) {
  WarmPlanner planner(snapshot_);
  ASSERT_OK(planner.WantAll(0));
  ASSERT_OK(planner.WantAll(2));
  planner.Put(2, 70, 7);
  planner.Put(0, 5 * kG + 1, kG);
  planner.Put(0, 4 * kG, 3 * kG);  // in part put already
  planner.Put(4, 0, kG);           // nobody wants it
  const WarmPlan plan = planner.Finish();
  EXPECT_THAT(plan.runs,
              ElementsAre(FileRun{1, 0, 77}, FileRun{0, 5 * kG, 2 * kG},
                          FileRun{0, 4 * kG, kG}, FileRun{0, 0, 4 * kG},
                          FileRun{0, 7 * kG, 3 * kG + 5}));
  EXPECT_EQ(plan.bytes, 10 * kG + 5 + 77);
  EXPECT_EQ(plan.files, 2u);
}

TEST_F(WarmPlannerTest, PartsAreWantedInTheirGranules) {
  WarmPlanner planner(snapshot_);
  ASSERT_OK(planner.Want(0, 10 * kG + 4, 1));
  ASSERT_OK(planner.Want(0, kG - 1, 2));
  ASSERT_OK(planner.Want(0, 3 * kG, 0));
  ASSERT_OK(planner.Want(0, 10 * kG, kG));  // past its end
  EXPECT_THAT(planner.Finish().runs,
              ElementsAre(FileRun{0, 0, 2 * kG}, FileRun{0, 10 * kG, 5}));
}

TEST_F(WarmPlannerTest, SizesThatNobodyHasAreRefused) {
  snapshot_.files = {{"huge", uint64_t{INT64_MAX}, Id('a')}};
  WarmPlanner planner(snapshot_);
  EXPECT_THAT(planner.WantAll(0), HasCode(Code::kUnsupported));
  snapshot_.files.assign(64, {"large", uint64_t{4} << 40, Id('a')});
  for (size_t i = 0; i < 64; ++i) {
    snapshot_.files[i].id.value = fmt::format("{:064x}", i);
  }
  WarmPlanner many(snapshot_);
  Result<> wanted;
  for (uint32_t i = 0; i < 64 && wanted.has_value(); ++i) {
    wanted = many.Want(i, 0, 1);
  }
  EXPECT_THAT(wanted, HasCode(Code::kUnsupported));
}

}  // namespace
}  // namespace weightfs
