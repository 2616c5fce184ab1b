// The cache folder: whose it is, what is in it, and disks that are full or
// read-only.

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>

#include "cache/object_cache.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/sizes.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

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

// As a full disk, for an ordinary user.
TEST_F(CacheFolderTest, AFolderThatMayNotGrowIsRead) {
  OpenFile(kSmall);
  ASSERT_OK(PutPattern(*file_, 0));
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{0, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const auto opened = Open();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, before);
  ASSERT_OK(opened);
  const auto file = (*opened)->OpenObject(kEndpoint, Sha256Id(), kSmall);
  ASSERT_OK(file);
  EXPECT_THAT(Read(**file, 0, kG), IsOkAndHolds(Pattern(0, kG)));
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

    // Nor does the probe of a process that opens the folder then: what is
    // cached can be read.
    {
      const UniqueFd rest(::open((mount + "/rest").c_str(),
                                 O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
      while (::write(rest.get(), &rest, 1) == 1) {
      }
      ASSERT_EQ(errno, ENOSPC);
    }
    file->reset();
    auto again = ObjectCache::Open(mount);
    ASSERT_OK(again);
    file = (*again)->OpenObject(kEndpoint, Sha256Id(), 16 * kG);
    ASSERT_OK(file);
    EXPECT_THAT(Read(**file, 0, kG), IsOkAndHolds(Pattern(0, kG)));
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
