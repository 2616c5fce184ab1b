#include "tools/mount_table.h"

#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::string_view kTable =
    "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "40 21 0:50 / /mnt/a\\040b ro,nosuid - fuse.weightfs weightfs "
    "ro,user_id=1000,group_id=1000\n"
    "41 21 0:51 / /mnt/back\\134slash\\011tab ro shared:3 master:1 - "
    "fuse.weightfs weightfs ro,user_id=0,group_id=0\n"
    "42 40 0:52 / /mnt/a\\040b rw - tmpfs tmpfs rw\n";

TEST(MountInfoTest, ReadsPathsTypesAndUsers) {
  const auto table = ParseMountInfo(kTable);
  EXPECT_THAT(
      table,
      ElementsAre(MountEntry{"/", "ext4", std::nullopt},
                  MountEntry{"/mnt/a b", "fuse.weightfs", 1000},
                  MountEntry{"/mnt/back\\slash\ttab", "fuse.weightfs", 0},
                  MountEntry{"/mnt/a b", "tmpfs", std::nullopt}));
}

TEST(MountInfoTest, LeavesOutWhatCannotBeParsed) {
  EXPECT_THAT(ParseMountInfo(""), IsEmpty());
  EXPECT_THAT(ParseMountInfo("\n\n"), IsEmpty());
  EXPECT_THAT(ParseMountInfo("1 2 3 4 5"), IsEmpty());
  EXPECT_THAT(ParseMountInfo("1 2 0:1 / /x rw shared:1 -"), IsEmpty());
  // A mountpoint of "-" does not end the optional fields.
  EXPECT_THAT(ParseMountInfo("1 2 0:1 / /- rw - ext4 d rw"),
              ElementsAre(MountEntry{"/-", "ext4", std::nullopt}));
}

TEST(MountInfoTest, KeepsWhatIsNoEscape) {
  EXPECT_THAT(
      ParseMountInfo("1 2 0:1 / /a\\9\\04\\777x\\04 rw - t s o"),
      ElementsAre(MountEntry{"/a\\9\\04\\777x\\04", "t", std::nullopt}));
}

TEST(MountInfoTest, RefusesUserIdsThatAreNoNumbers) {
  EXPECT_THAT(ParseMountInfo("1 2 0:1 / /x rw - t s user_id=1x"),
              ElementsAre(MountEntry{"/x", "t", std::nullopt}));
}

TEST(MountTableTest, FindsTheTopmostMount) {
  const auto table = ParseMountInfo(kTable);
  const MountEntry* found = FindMount(table, "/mnt/a b");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->type, "tmpfs");
  EXPECT_EQ(FindMount(table, "/mnt"), nullptr);
}

TEST(MountTableTest, FindsTheMountThatHoldsAPath) {
  const auto table = ParseMountInfo(kTable);
  const MountEntry* found = FindWeightfsAbove(table, "/mnt/a b/repo/x");
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->mountpoint, "/mnt/a b");
  EXPECT_EQ(FindWeightfsAbove(table, "/mnt/a bc"), nullptr);
}

TEST(MountTableTest, ReadsThisMachines) {
  const auto table = ReadMountTable();
  ASSERT_OK(table);
  EXPECT_NE(FindMount(*table, "/proc"), nullptr);
}

TEST(IsWithinTest, ComparesWholeComponents) {
  EXPECT_TRUE(IsWithin("/a/b", "/a/b"));
  EXPECT_TRUE(IsWithin("/a/b/c", "/a/b"));
  EXPECT_TRUE(IsWithin("/a", "/"));
  EXPECT_FALSE(IsWithin("/a/bc", "/a/b"));
  EXPECT_FALSE(IsWithin("/a", "/a/b"));
}

class ResolveMountpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name =
        std::filesystem::temp_directory_path() / "weightfs-mp-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = std::filesystem::canonical(name);
    std::filesystem::create_directory(folder_ / "real");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

TEST_F(ResolveMountpointTest, ResolvesFoldersAndKeepsTheLastName) {
  const std::string real = folder_ / "real";
  EXPECT_THAT(ResolveMountpoint(real), IsOkAndHolds(real));
  EXPECT_THAT(ResolveMountpoint(real + "//"), IsOkAndHolds(real));
  EXPECT_THAT(ResolveMountpoint(real + "/../real/."), IsOkAndHolds(real));
  EXPECT_THAT(ResolveMountpoint(folder_ / "absent"),
              IsOkAndHolds((folder_ / "absent").string()));
  EXPECT_THAT(ResolveMountpoint("/"), IsOkAndHolds(std::string("/")));
  EXPECT_THAT(ResolveMountpoint(folder_ / "absent" / "x"),
              HasCode(Code::kInvalid));
}

TEST_F(ResolveMountpointTest, FollowsLinks) {
  const std::string real = folder_ / "real";
  std::filesystem::create_symlink("real", folder_ / "link");
  std::filesystem::create_symlink(folder_, folder_ / "real" / "up");
  std::filesystem::create_symlink("loop", folder_ / "loop");
  EXPECT_THAT(ResolveMountpoint(folder_ / "link"), IsOkAndHolds(real));
  EXPECT_THAT(ResolveMountpoint(folder_ / "real/up/real"), IsOkAndHolds(real));
  EXPECT_THAT(ResolveMountpoint(folder_ / "loop"), HasCode(Code::kInvalid));
}

TEST(ProbeMountTest, SeesALiveFileSystem) {
  EXPECT_EQ(ProbeMount("/proc", std::chrono::seconds(30)), MountState::kLive);
}

}  // namespace
}  // namespace weightfs
