// A disk that takes bytes into memory and cannot keep them: a file system in an
// image that is larger than the memory file system that holds it.

#include <sys/mount.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>

#include "tests/cache/cache_fixture.h"

namespace weightfs {
namespace {

using ::testing::AnyOf;

class WritebackMountTest : public ::testing::Test {
 protected:
  static bool Run(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
  }

  void SetUp() override {
    const std::string image = small() + "/image";
    std::filesystem::create_directory(small());
    std::filesystem::create_directory(disk());
    if (::mount("none", small().c_str(), "tmpfs", 0, "size=12m") != 0) {
      GTEST_SKIP() << "cannot mount a tmpfs (needs root)";
    }
    if (!Run("truncate -s 64m " + image) ||
        !Run("mkfs.ext4 -q -O ^has_journal -E nodiscard " + image) ||
        !Run("mount -o loop " + image + " " + disk())) {
      GTEST_SKIP() << "cannot mount an ext4 image (needs loop devices)";
    }
  }
  void TearDown() override {
    ::umount2(disk().c_str(), MNT_DETACH);
    ::umount2(small().c_str(), MNT_DETACH);
  }

  std::string small() const { return temp_.path() + "/small"; }
  std::string disk() const { return temp_.path() + "/disk"; }

  TempFolder temp_;
};

TEST_F(WritebackMountTest, BytesThatTheDiskDroppedAreAbsentNotWrong) {
  constexpr uint64_t kGranules = 250;
  auto cache = ObjectCache::Open(disk() + "/cache");
  ASSERT_OK(cache);
  auto file =
      (*cache)->OpenObject(kEndpoint, Sha256Id(), kGranules * kGranuleSize);
  ASSERT_OK(file);
  const auto read = [&](uint64_t granule) -> Result<bool> {
    const uint64_t offset = granule * kGranuleSize + 5;
    ASSIGN_OR_RETURN(const SlabPin pin, (*file)->Pin(offset, 100));
    std::vector<std::byte> out(100);
    RETURN_IF_ERROR((*file)->Read(offset, out));
    return out == Pattern(offset, 100);
  };
  for (uint64_t g = 0; g < kGranules; ++g) {
    // The kernel may begin to write back, and to fail, at any time.
    const auto put = (*file)->Put(g, Pattern(g * kGranuleSize, kGranuleSize));
    ASSERT_TRUE(put.has_value() || g > 0) << put.error().ToString();
    const auto right = read(g);
    EXPECT_TRUE(!right.has_value() || *right) << "WRONG BYTES in " << g;
  }
  const UniqueFd data(::open(
      (disk() + "/cache/" + ObjectPath(kEndpoint, Sha256Id()).value() + "/data")
          .c_str(),
      O_RDONLY | O_CLOEXEC));
  ASSERT_NE(::fsync(data.get()), 0) << "this disk keeps everything";
  ASSERT_EQ(::posix_fadvise(data.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  uint64_t lost = 0;
  for (uint64_t g = 0; g < kGranules; ++g) {
    const auto right = read(g);
    if (right.has_value()) {
      EXPECT_TRUE(*right) << "WRONG BYTES in granule " << g;
    } else {
      EXPECT_THAT(right, AnyOf(HasCode(Code::kStale), HasCode(Code::kIo)));
      ++lost;
    }
  }
  EXPECT_GT(lost, kGranules / 4);
}

}  // namespace
}  // namespace weightfs
