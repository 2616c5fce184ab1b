#include "tools/mount_registry.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class MountRegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name =
        std::filesystem::temp_directory_path() / "weightfs-reg-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    top_ = name;
    folder_ = top_ / "run" / "weightfs";
  }
  void TearDown() override { std::filesystem::remove_all(top_); }

  static MountRecord Mine(const std::string& mountpoint) {
    MountRecord record;
    record.pid = ::getpid();
    record.start_time = ProcessStartTime(record.pid).value_or(0);
    record.machine = MachineId();
    record.started = 1700000000;
    record.mountpoint = mountpoint;
    record.source = "org/name@v1";
    record.repo = "org/name";
    record.commit = std::string(40, 'a');
    record.log_file = "/l";
    record.cache_folder = "/c";
    return record;
  }

  size_t Files() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }

  std::filesystem::path top_;
  std::filesystem::path folder_;
};

TEST_F(MountRegistryTest, RecordsSurviveTheRoundTripWithAnyBytes) {
  MountRecord record = Mine("/mnt/new\nline %41 \x01 = ü\xff");
  EXPECT_EQ(ParseRecord(FormatRecord(record)), record);
}

TEST_F(MountRegistryTest, RefusesRecordsCutAtAnyPlace) {
  const std::string text = FormatRecord(Mine("/mnt/x"));
  const MountRecord whole = *ParseRecord(text);
  for (size_t length = 0; length < text.size(); ++length) {
    const auto record = ParseRecord(text.substr(0, length));
    // A cut between lines may leave a record, never another daemon's.
    if (record.has_value()) {
      EXPECT_EQ(record->pid, whole.pid) << length;
      EXPECT_EQ(record->mountpoint, whole.mountpoint) << length;
    }
  }
}

TEST_F(MountRegistryTest, RefusesWhatIsNoRecord) {
  EXPECT_EQ(ParseRecord(""), std::nullopt);
  EXPECT_EQ(ParseRecord("weightfs-mount 2\npid=1\nmountpoint=/x\n"),
            std::nullopt);
  EXPECT_EQ(ParseRecord("weightfs-mount 1\npid=x\nmountpoint=/x\n"),
            std::nullopt);
  EXPECT_EQ(ParseRecord("weightfs-mount 1\npid=-1\nmountpoint=/x\n"),
            std::nullopt);
  EXPECT_EQ(ParseRecord("weightfs-mount 1\npid=1\nmountpoint=%4\n"),
            std::nullopt);
  EXPECT_EQ(ParseRecord("weightfs-mount 1\npid=1\nnonsense\n"), std::nullopt);
  EXPECT_NE(ParseRecord("weightfs-mount 1\npid=1\nnewer=1\nmountpoint=/x\n"),
            std::nullopt);
}

TEST_F(MountRegistryTest, ListsWhatWasAddedUntilItIsRemoved) {
  MountRegistry registry(folder_);
  EXPECT_THAT(registry.List(), IsEmpty());
  const MountRecord record = Mine("/mnt/x");
  ASSERT_OK(registry.Add(record));
  EXPECT_THAT(registry.List(), ElementsAre(record));
  EXPECT_EQ(registry.Find("/mnt/x"), record);
  EXPECT_EQ(registry.Find("/mnt"), std::nullopt);
  EXPECT_EQ(Files(), 1u);
  registry.Remove(record);
  EXPECT_THAT(registry.List(), IsEmpty());
  EXPECT_EQ(Files(), 0u);
}

TEST_F(MountRegistryTest, FolderIsItsOwnersAlone) {
  ASSERT_OK(MountRegistry(folder_).Add(Mine("/mnt/x")));
  struct stat attr {};
  ASSERT_EQ(::stat(folder_.c_str(), &attr), 0);
  EXPECT_EQ(attr.st_mode & 0777, 0700u);
}

TEST_F(MountRegistryTest, TrustsNoFolderThatOthersWriteTo) {
  MountRegistry registry(folder_);
  ASSERT_OK(registry.Add(Mine("/mnt/x")));
  ASSERT_EQ(::chmod(folder_.c_str(), 0777), 0);
  EXPECT_THAT(registry.List(), IsEmpty());
  EXPECT_THAT(registry.Add(Mine("/mnt/y")), HasCode(Code::kDenied));
  ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
  EXPECT_EQ(registry.List().size(), 1u);
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give a folder away";
  ASSERT_EQ(::chown(folder_.c_str(), 65534, 65534), 0);
  EXPECT_THAT(registry.List(), IsEmpty());
}

TEST_F(MountRegistryTest, SweepsDaemonsThatAreGone) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  MountRecord record = Mine("/mnt/x");
  record.pid = child;
  MountRegistry registry(folder_);
  ASSERT_OK(registry.Add(record));
  EXPECT_THAT(registry.List(), IsEmpty());
  EXPECT_EQ(Files(), 0u);
}

TEST_F(MountRegistryTest, IsNotFooledByAReusedPid) {
  MountRecord record = Mine("/mnt/x");
  record.start_time -= 1;
  MountRegistry registry(folder_);
  ASSERT_OK(registry.Add(record));
  EXPECT_THAT(registry.List(), IsEmpty());
}

TEST_F(MountRegistryTest, LeavesOtherMachinesRecordsAlone) {
  MountRecord record = Mine("/mnt/x");
  record.machine = "another/pid:[1]";
  MountRegistry registry(folder_);
  ASSERT_OK(registry.Add(record));
  EXPECT_THAT(registry.List(), IsEmpty());
  EXPECT_EQ(Files(), 1u);
}

TEST_F(MountRegistryTest, FailsWhereItCannotWrite) {
  std::ofstream(top_ / "run") << "a file";
  EXPECT_THAT(MountRegistry(folder_).Add(Mine("/mnt/x")), HasCode(Code::kIo));
  EXPECT_THAT(MountRegistry(folder_).List(), IsEmpty());
}

TEST(ProcessStartTimeTest, KnowsOnlyLivingProcesses) {
  EXPECT_TRUE(ProcessStartTime(::getpid()).has_value());
  EXPECT_TRUE(ProcessStartTime(1).has_value());
  EXPECT_FALSE(ProcessStartTime(0x7ffffffe).has_value());
}

TEST(ProcessStartTimeTest, AProcessThatNobodyWaitedForIsGone) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(0);
  siginfo_t info{};
  // Until it is a zombie, which it then stays.
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT),
            0);
  EXPECT_FALSE(ProcessStartTime(child).has_value());
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

TEST(MountSlugTest, IsAFileNameOfItsOwn) {
  EXPECT_THAT(MountSlug("/mnt/gpt2"),
              ::testing::MatchesRegex("gpt2-[0-9a-f]{8}"));
  EXPECT_NE(MountSlug("/mnt/gpt2"), MountSlug("/srv/gpt2"));
  EXPECT_THAT(MountSlug("/mnt/a b\n"),
              ::testing::MatchesRegex("a_b_-[0-9a-f]{8}"));
  EXPECT_LE(MountSlug("/" + std::string(255, 'x')).size(), 80u);
}

}  // namespace
}  // namespace weightfs
