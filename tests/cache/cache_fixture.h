// What the cache's tests share: a cache folder, objects of known bytes, child
// processes, and a check that no file descriptor is left over.

#ifndef WEIGHTFS_TESTS_CACHE_CACHE_FIXTURE_H_
#define WEIGHTFS_TESTS_CACHE_CACHE_FIXTURE_H_

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_paths.h"
#include "cache/object_cache.h"
#include "cache/slab_locks.h"
#include "formats/base/unique_fd.h"
#include "tests/support/faulty_disk.h"
#include "tests/support/matchers.h"

namespace weightfs {

inline constexpr char kEndpoint[] = "https://hub.test";
inline constexpr char kMirror[] = "https://mirror.test";

// Bytes of an object, a function of their offsets; other ones for each `seed`.
inline std::vector<std::byte> Pattern(uint64_t offset, uint64_t length,
                                      uint64_t seed = 0) {
  std::vector<std::byte> bytes(length + 16);
  const uint64_t first = offset / 8;
  for (uint64_t i = 0; i < bytes.size() / 8; ++i) {
    const uint64_t word =
        (first + i + 1) * 0x9E3779B97F4A7C15ULL + seed * 77777;
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  bytes.erase(bytes.begin(),
              bytes.begin() + static_cast<ptrdiff_t>(offset % 8));
  bytes.resize(length);
  return bytes;
}

inline ContentId Sha256Id(char digit = 'a') {
  return {ContentId::Kind::kSha256, std::string(64, digit)};
}

inline size_t CountFds() {
  const std::filesystem::directory_iterator fds("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(fds), end(fds)));
}

class TempFolder {
 public:
  explicit TempFolder(const std::string& base = ::testing::TempDir()) {
    std::string name = base + "/weightfs-cache-XXXXXX";
    if (::mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~TempFolder() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A process that runs `body` and exits with what it returns. Forked while no
// thread of the test runs.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    std::fflush(nullptr);  // or the child might write it again
    pid_ = ::fork();
    if (pid_ == 0) ::_exit(body());
  }
  ~Child() {
    if (pid_ > 0) Kill();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  // The exit status, or minus the signal that ended it.
  int Wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
  }
  int Kill() {
    ::kill(pid_, SIGKILL);
    return Wait();
  }

 private:
  pid_t pid_ = -1;
};

class ObjectCacheTest : public ::testing::Test {
 protected:
  ObjectCacheTest() : fds_before_(CountFds()) {}

  void SetUp() override {
    ASSERT_FALSE(temp_.path().empty());
    Restart();
  }
  void TearDown() override {
    file_.reset();
    cache_.reset();
    EXPECT_EQ(CountFds(), fds_before_) << "file descriptors were left open";
  }

  std::string folder() const { return temp_.path() + "/cache"; }

  // A new cache object on the folder, as a restarted process has it.
  void Restart() {
    file_.reset();
    cache_.reset();
    auto cache = ObjectCache::Open(folder(), {}, disk_);
    ASSERT_OK(cache);
    cache_ = std::move(cache).value();
  }

  void OpenFile(uint64_t size, const ContentId& id = Sha256Id()) {
    auto file = cache_->OpenObject(kEndpoint, id, size);
    ASSERT_OK(file);
    file_ = std::move(file).value();
  }

  static Result<> PutPattern(CacheFile& file, uint64_t granule,
                             uint64_t seed = 0) {
    const uint64_t start = granule * kGranuleSize;
    const uint64_t length = std::min(kGranuleSize, file.size() - start);
    return file.Put(granule, Pattern(start, length, seed));
  }
  static void PutAll(CacheFile& file) {
    for (uint64_t g = 0; g * kGranuleSize < file.size(); ++g) {
      ASSERT_OK(PutPattern(file, g));
    }
  }

  // Pins and reads.
  static Result<std::vector<std::byte>> Read(CacheFile& file, uint64_t offset,
                                             uint64_t length) {
    ASSIGN_OR_RETURN(const SlabPin pin, file.Pin(offset, length));
    std::vector<std::byte> out(length);
    RETURN_IF_ERROR(file.Read(offset, out));
    return out;
  }
  static bool TryRead(CacheFile& file, uint64_t offset, uint64_t length) {
    const auto pin = file.Pin(offset, length);
    std::vector<std::byte> out(length);
    return pin.has_value() && file.TryRead(offset, out) &&
           out == Pattern(offset, length);
  }

  std::string ObjectFolder(const ContentId& id = Sha256Id()) const {
    return folder() + "/" + ObjectPath(kEndpoint, id).value();
  }
  std::string DataPath() const { return ObjectFolder() + "/data"; }
  std::string MetaPath() const { return ObjectFolder() + "/meta"; }

  // Flips a bit of a file behind the cache's back.
  static void FlipBit(const std::string& path, uint64_t offset) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    std::byte byte{};
    ASSERT_EQ(::pread(fd.get(), &byte, 1, static_cast<off_t>(offset)), 1);
    byte ^= std::byte{0x10};
    ASSERT_EQ(::pwrite(fd.get(), &byte, 1, static_cast<off_t>(offset)), 1);
  }

  // What lies beside the object's folder and was set aside.
  size_t CountBad() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(
             std::filesystem::path(ObjectFolder()).parent_path())) {
      if (entry.path().string().find(".bad-") != std::string::npos) ++count;
    }
    return count;
  }

  const size_t fds_before_;
  TempFolder temp_;
  FaultyDisk disk_;
  std::unique_ptr<ObjectCache> cache_;
  std::shared_ptr<CacheFile> file_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_CACHE_FIXTURE_H_
