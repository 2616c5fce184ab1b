#include "cache/local/local_origin.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "cache/fetcher.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/origin_contract.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void WriteFile(const fs::path& path, std::string_view content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

class LocalHost final : public OriginHost {
 public:
  void Serve(const std::map<std::string, std::string>& files) override {
    for (const auto& [path, content] : files) {
      WriteFile(temp_.path() + "/" + path, content);
    }
    origin_ = CreateLocalOrigin(temp_.path()).value();
  }
  Origin& origin() override { return *origin_; }

 private:
  TempFolder temp_;
  std::unique_ptr<Origin> origin_;
};

INSTANTIATE_TEST_SUITE_P(Local, OriginContractTest,
                         ::testing::Values([]() -> std::unique_ptr<OriginHost> {
                           return std::make_unique<LocalHost>();
                         }));

class LocalOriginTest : public ::testing::Test {
 protected:
  LocalOriginTest() : fds_before_(CountFds()) {}
  void TearDown() override {
    origin_.reset();
    EXPECT_EQ(CountFds(), fds_before_) << "file descriptors were left open";
  }

  fs::path At(const std::string& path) const { return folder_ / path; }
  void Write(const std::string& path, std::string_view content) {
    WriteFile(At(path), content);
  }
  void Mount(const std::string& path = "") {
    auto origin = CreateLocalOrigin(At(path).string());
    ASSERT_OK(origin);
    origin_ = std::move(origin).value();
    snapshot_ = origin_->List().value();
  }
  std::vector<std::string> Paths() const {
    std::vector<std::string> paths;
    for (const FileInfo& file : snapshot_->files) paths.push_back(file.path);
    return paths;
  }
  Result<std::string> Fetch(const std::string& path) {
    const FileInfo* file = snapshot_->Find(path);
    if (file == nullptr) return Error(Code::kNotFound, path);
    return FetchRange(*origin_, *file, 0, file->size);
  }

  const size_t fds_before_;
  TempFolder temp_;
  const fs::path folder_ = fs::path(temp_.path()) / "model";
  std::unique_ptr<Origin> origin_;
  std::shared_ptr<const Snapshot> snapshot_;
};

TEST_F(LocalOriginTest, ListsRegularFilesSorted) {
  Write("b", "bb");
  Write("a/z", "");
  Write("a.txt", "1");
  Write("a/b/c", "123");
  Mount();
  EXPECT_THAT(Paths(), ElementsAre("a.txt", "a/b/c", "a/z", "b"));
  EXPECT_EQ(snapshot_->repo, fs::canonical(folder_));
  EXPECT_EQ(snapshot_->revision, "");
  EXPECT_FALSE(snapshot_->restricted);
  EXPECT_EQ(origin_->name(), fs::canonical(folder_));
  EXPECT_EQ(origin_->cache_namespace(), "");
  EXPECT_EQ(snapshot_->files[0].id.kind, ContentId::Kind::kStat);
}

TEST_F(LocalOriginTest, FollowsLinksToFilesOnly) {
  WriteFile(temp_.path() + "/blobs/4711", "blob");
  WriteFile(temp_.path() + "/elsewhere/file", "x");
  fs::create_directories(folder_);
  fs::create_symlink("../blobs/4711", At("model.safetensors"));
  fs::create_symlink("../elsewhere", At("folder"));
  fs::create_symlink("nowhere", At("dangling"));
  fs::create_symlink(".", At("loop"));
  Mount();
  EXPECT_THAT(Paths(), ElementsAre("model.safetensors"));
  EXPECT_THAT(Fetch("model.safetensors"), IsOkAndHolds("blob"));
}

TEST_F(LocalOriginTest, TellsWhatIsNotForEverybody) {
  const auto restricted = [this](const std::string& path = "") {
    Mount(path);
    return snapshot_->restricted;
  };
  const auto set_mode = [this](const std::string& path, int mode) {
    fs::permissions(At(path), static_cast<fs::perms>(mode));
  };
  Write("a/b", "1");
  set_mode("a/b", 0644);
  set_mode("a", 0755);
  EXPECT_FALSE(restricted());
  set_mode("a", 0750);
  EXPECT_TRUE(restricted());
  set_mode("a", 0755);
  set_mode("a/b", 0640);
  EXPECT_TRUE(restricted());
  EXPECT_TRUE(restricted("a/b"));
  // A link counts as the file that it leads to.
  set_mode("a/b", 0644);
  Write("../secret", "s");
  fs::create_symlink("../secret", At("link"));
  set_mode("../secret", 0600);
  EXPECT_TRUE(restricted());
  set_mode("../secret", 0644);
  EXPECT_FALSE(restricted());
}

TEST_F(LocalOriginTest, LeavesOutGitAndSpecialFiles) {
  Write("kept", "1");
  Write(".gitattributes", "2");
  Write(".git/config", "3");
  Write("sub/.git/config", "3");
  ASSERT_EQ(::mkfifo(At("fifo").c_str(), 0600), 0);
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  At("sock").string().copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address),
                   sizeof(address)),
            0);
  Mount();
  EXPECT_THAT(Paths(), ElementsAre(".gitattributes", "kept"));
  EXPECT_THAT(CreateLocalOrigin(At("fifo")), HasCode(Code::kInvalid));
  EXPECT_THAT(CreateLocalOrigin(At("sock")), HasCode(Code::kInvalid));
}

TEST_F(LocalOriginTest, TakesNamesThatAreNotUtf8) {
  Write("caf\xe9.bin", "latin");
  Write("\x01\n", "control");
  Mount();
  EXPECT_THAT(Fetch("caf\xe9.bin"), IsOkAndHolds("latin"));
  EXPECT_THAT(Fetch("\x01\n"), IsOkAndHolds("control"));
}

TEST_F(LocalOriginTest, WalksFoldersDeeperThanAPathMayBe) {
  const std::string name(200, 'd');
  fs::create_directories(folder_);
  UniqueFd at(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int depth = 0; depth < 30; ++depth) {  // 6,000 bytes
    ASSERT_EQ(::mkdirat(at.get(), name.c_str(), 0700), 0);
    at.Reset(
        ::openat(at.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at.valid());
  }
  Write("top", "1");
  at.Reset();
  Mount();
  EXPECT_THAT(Paths(), ElementsAre("top"));
}

TEST_F(LocalOriginTest, ListsOneFileAlone) {
  Write("other", "no");
  Write("one.bin", "yes");
  Mount("one.bin");
  EXPECT_THAT(Paths(), ElementsAre("one.bin"));
  EXPECT_EQ(snapshot_->repo, fs::canonical(At("one.bin")));
  EXPECT_THAT(Fetch("one.bin"), IsOkAndHolds("yes"));
  fs::create_symlink("one.bin", At("link.bin"));
  Mount("link.bin");
  EXPECT_THAT(Paths(), ElementsAre("link.bin"));
  EXPECT_THAT(Fetch("link.bin"), IsOkAndHolds("yes"));
}

TEST_F(LocalOriginTest, TellsWhyAPathCannotBeMounted) {
  EXPECT_THAT(CreateLocalOrigin(At("nothing")), HasCode(Code::kNotFound));
  Write("file", "1");
  EXPECT_THAT(CreateLocalOrigin(At("file/x")), HasCode(Code::kNotFound));
  if (::geteuid() != 0) {
    fs::create_directories(At("shut"));
    fs::permissions(At("shut"), fs::perms::none);
    EXPECT_THAT(CreateLocalOrigin(At("shut")), HasCode(Code::kDenied));
    Mount();
    EXPECT_THAT(Paths(), ElementsAre("file"));
    fs::permissions(At("shut"), fs::perms::owner_all);
  }
}

TEST_F(LocalOriginTest, TheCommitFollowsTheFiles) {
  Write("a", "1");
  Mount();
  const std::string before = snapshot_->commit;
  EXPECT_EQ(before.size(), 40u);
  Mount();
  EXPECT_EQ(snapshot_->commit, before);
  Write("b", "1");
  Mount();
  EXPECT_NE(snapshot_->commit, before);
}

TEST_F(LocalOriginTest, AChangedFileIsStale) {
  Write("a", "before");
  Mount();
  EXPECT_THAT(Fetch("a"), IsOkAndHolds("before"));
  Write("a", "after!");
  // Not left to the clock's grain.
  fs::last_write_time(
      At("a"), fs::file_time_type::clock::now() + std::chrono::seconds(10));
  EXPECT_THAT(Fetch("a"),
              AllOf(HasCode(Code::kStale),
                    HasMessage(HasSubstr("changed since it was mounted"))));
}

TEST_F(LocalOriginTest, AShorterFileIsStale) {
  Write("a", "before");
  Mount();
  fs::resize_file(At("a"), 2);
  EXPECT_THAT(Fetch("a"), HasMessage(HasSubstr("2 bytes, was 6")));
}

TEST_F(LocalOriginTest, AFileThatIsGoneOrReplacedIsStale) {
  for (const char* name : {"gone", "dir", "fifo", "link", "other"}) {
    Write(name, "before");
  }
  Write("sub/file", "before");
  WriteFile(temp_.path() + "/outside", "before");
  Mount();
  for (const char* name : {"gone", "dir", "fifo", "link", "other"}) {
    fs::remove(At(name));
  }
  fs::rename(At("sub"), At("elsewhere"));
  fs::create_directories(At("dir"));
  ASSERT_EQ(::mkfifo(At("fifo").c_str(), 0600), 0);
  fs::create_symlink("../outside", At("link"));
  fs::copy_file(temp_.path() + "/outside", At("other"));
  for (const char* name : {"gone", "dir", "fifo", "link", "other"}) {
    EXPECT_THAT(Fetch(name), HasCode(Code::kStale)) << name;
  }
  EXPECT_THAT(Fetch("sub/file"), HasCode(Code::kStale));
}

TEST_F(LocalOriginTest, AFileReplacedWhileOpenIsStale) {
  Write("a", "before");
  Mount();
  EXPECT_THAT(Fetch("a"), IsOkAndHolds("before"));
  Write("new", "after!");
  fs::rename(At("new"), At("a"));
  EXPECT_THAT(Fetch("a"), HasCode(Code::kStale));
}

TEST_F(LocalOriginTest, ARangeOutsideTheFileIsInvalid) {
  Write("a", "123");
  Mount();
  EXPECT_THAT(FetchRange(*origin_, snapshot_->files[0], 2, 2),
              HasCode(Code::kInvalid));
  EXPECT_THAT(FetchRange(*origin_, snapshot_->files[0], 0, 0),
              HasCode(Code::kInvalid));
}

TEST_F(LocalOriginTest, KeepsFewFilesOpen) {
  for (int i = 0; i < 200; ++i) Write("f" + std::to_string(i), "x");
  Mount();
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 200; ++i) {
      ASSERT_THAT(Fetch("f" + std::to_string(i)), IsOkAndHolds("x"));
    }
  }
  EXPECT_LE(CountFds(), fds_before_ + 70);
}

TEST_F(LocalOriginTest, TellsAnUnreadableFile) {
  if (::geteuid() == 0) GTEST_SKIP() << "root reads everything";
  Write("a", "123");
  fs::permissions(At("a"), fs::perms::none);
  Mount();
  EXPECT_THAT(Fetch("a"), HasCode(Code::kDenied));
}

TEST_F(LocalOriginTest, ServesReadsThroughAFetcher) {
  const auto content = Pattern(0, 3'000'001);
  Write("model.bin",
        {reinterpret_cast<const char*>(content.data()), content.size()});
  Mount();
  TimerQueue timers("timers");
  WorkerPool pool("pool", 4);
  auto fetcher = Fetcher::Create(*origin_, timers, pool, {});
  auto object = fetcher->OpenObject(snapshot_->files[0], nullptr);
  EXPECT_EQ(object->CachedFraction(), 1.0);
  ObjectSource source(object, std::chrono::minutes(1));
  for (const auto& [offset, length] :
       std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 3'000'001}, {5, 4096}, {3'000'000, 1}, {131'071, 262'146}}) {
    std::vector<std::byte> out(length);
    ASSERT_OK(source.ReadAt(offset, out));
    EXPECT_EQ(out, Pattern(offset, length));
  }
  fs::remove(At("model.bin"));
  std::vector<std::byte> out(10);
  EXPECT_THAT(source.ReadAt(0, out), HasCode(Code::kStale));
  EXPECT_EQ(fetcher->stats().retries, 0u);
  fetcher->Stop();
}

}  // namespace
}  // namespace weightfs
