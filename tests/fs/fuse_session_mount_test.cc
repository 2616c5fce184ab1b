// A session on the real kernel, served by a process of its own: what becomes of
// a file's pages, and of who waits for them when that process is killed.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "formats/base/unique_fd.h"
#include "fs/fuse/session.h"
#include "tests/fs/memory_origin.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

constexpr size_t kPageSize = 4096;
constexpr char kServes = 'r';
constexpr char kDropped = 'd';

// Serves until it is killed. What comes by `orders` is the place of a file in
// the snapshot, whose pages are to go once a read was asked for.
[[noreturn]] void RunDaemon(const std::string& mountpoint, int orders) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  MemoryOrigin origin;
  origin.Add("data.bin", std::string(4 * kPageSize, 'x'));
  origin.Add("hung.bin", std::string(4 * kPageSize, 'y'));
  origin.Hang("hung.bin");
  TimerQueue timers("timers");
  WorkerPool pool("pool", 8);
  WorkerPool indexers("index", 2);
  const auto fetcher = Fetcher::Create(origin, timers, pool, {});
  auto repo = Repo::Open({&origin, fetcher.get(), nullptr, &indexers}, {});
  if (!repo.has_value()) ::_exit(2);
  Vfs vfs(**repo, pool, timers, {});
  FuseOptions options;
  options.mountpoint = mountpoint;
  options.times.read = options.times.metadata = std::chrono::minutes(5);
  options.no_passthrough = "none of it here";
  auto session = FuseSession::Mount(vfs, options);
  if (!session.has_value()) ::_exit(3);
  std::thread([&vfs, orders, s = session->get()] {
    for (char file = 0; ::read(orders, &file, 1) == 1;) {
      while (s->requests().reads == 0) std::this_thread::yield();
      for (const uint64_t node : vfs.NodesOfFile(static_cast<uint32_t>(file))) {
        s->Invalidate(node);
      }
      if (::write(orders, &kDropped, 1) != 1) break;
    }
  }).detach();
  static_cast<void>((*session)->Serve([&](const FuseSettings&) {
    if (::write(orders, &kServes, 1) != 1) ::_exit(4);
  }));
  ::_exit(0);
}

class FuseSessionMountTest : public ::testing::Test {
 protected:
  FuseSessionMountTest() {
    if (::geteuid() != 0) return;
    std::string folder = ::testing::TempDir() + "weightfs-session-XXXXXX";
    if (::mkdtemp(folder.data()) == nullptr) std::abort();
    mountpoint_ = folder;
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      std::abort();
    }
    daemon_ = ::fork();
    if (daemon_ == 0) {
      ::close(ends[0]);
      RunDaemon(mountpoint_, ends[1]);
    }
    ::close(ends[1]);
    orders_.Reset(ends[0]);
  }
  ~FuseSessionMountTest() override {
    if (mountpoint_.empty()) return;
    Kill();
    Abort();
    std::filesystem::remove(mountpoint_);
  }
  // Where a test fails, others may wait for the mount for ever.
  void Abort() const { ::umount2(mountpoint_.c_str(), MNT_FORCE | MNT_DETACH); }
  void SetUp() override {
    if (mountpoint_.empty()) GTEST_SKIP() << "needs root, to abort mounts";
    ASSERT_EQ(Answer(), kServes) << "the mount failed";
  }

  // 0 when the daemon is gone.
  char Answer() {
    char answer = 0;
    return ::read(orders_.get(), &answer, 1) == 1 ? answer : '\0';
  }
  // `file`: its place among all, by name.
  void StartToDrop(char file) {
    ASSERT_EQ(::write(orders_.get(), &file, 1), 1);
  }
  UniqueFd Open(const std::string& name) const {
    return UniqueFd(
        ::open((mountpoint_ + "/repo/" + name).c_str(), O_RDONLY | O_CLOEXEC));
  }
  // False if it is not through with that in time.
  bool Kill() {
    if (daemon_ <= 0) return true;
    ::kill(daemon_, SIGKILL);
    const bool ended =
        Comes([this] { return ::waitpid(daemon_, nullptr, WNOHANG) != 0; });
    daemon_ = 0;
    return ended;
  }
  // The daemon's thread that waits in the kernel and can't be interrupted.
  std::string Uninterruptible() const {
    for (const auto& task : std::filesystem::directory_iterator(
             "/proc/" + std::to_string(daemon_) + "/task")) {
      std::ifstream file(task.path() / "stat");
      const std::string text(std::istreambuf_iterator<char>(file), {});
      const size_t end = text.rfind(')');
      if (end != std::string::npos && text.substr(end, 3) == ") D") {
        return task.path();
      }
    }
    return "";
  }
  // The same one each time it is looked: not for a moment only.
  bool StaysUninterruptible() const {
    const std::string first = Uninterruptible();
    for (int i = 0; i < 100 && !first.empty(); ++i) {
      if (Uninterruptible() != first) return false;
    }
    return !first.empty();
  }
  template <class Condition>
  static bool Comes(Condition condition) {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::yield();
    }
    return true;
  }

  std::string mountpoint_;
  pid_t daemon_ = 0;
  UniqueFd orders_;
};

// A file's first page, and whether the kernel has it.
class PageOf {
 public:
  explicit PageOf(int fd)
      : memory_(::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, fd, 0)) {}
  ~PageOf() { ::munmap(memory_, kPageSize); }
  PageOf(const PageOf&) = delete;
  PageOf& operator=(const PageOf&) = delete;
  char Touch() const { return *static_cast<volatile char*>(memory_); }
  bool IsResident() const {
    unsigned char resident = 0;
    EXPECT_EQ(::mincore(memory_, kPageSize, &resident), 0);
    return (resident & 1) != 0;
  }

 private:
  void* const memory_;
};

TEST_F(FuseSessionMountTest, PagesGoFromAnOpenFileAndItsMapping) {
  const UniqueFd fd = Open("data.bin");
  const PageOf page(fd.get());
  EXPECT_EQ(page.Touch(), 'x');
  EXPECT_TRUE(page.IsResident());
  StartToDrop(0);
  EXPECT_EQ(Answer(), kDropped);
  EXPECT_FALSE(page.IsResident());
  EXPECT_EQ(page.Touch(), 'x');
  // Whoever opens it later finds them.
  EXPECT_TRUE(Open("data.bin").valid());
  EXPECT_TRUE(page.IsResident());
}

TEST_F(FuseSessionMountTest, PagesGoFromAMountThatHasNoPathAnyMore) {
  const UniqueFd fd = Open("data.bin");
  const PageOf page(fd.get());
  EXPECT_EQ(page.Touch(), 'x');
  ASSERT_EQ(::umount2(mountpoint_.c_str(), MNT_DETACH), 0);
  EXPECT_TRUE(page.IsResident());
  StartToDrop(0);
  EXPECT_EQ(Answer(), kDropped);
  EXPECT_FALSE(page.IsResident());
  EXPECT_EQ(page.Touch(), 'x');
}

TEST_F(FuseSessionMountTest, AKilledDaemonWhosePagesAreWaitedForEnds) {
  const UniqueFd fd = Open("hung.bin");
  ASSERT_TRUE(fd.valid());
  auto read = std::async(std::launch::async, [&] {
    char byte = 0;
    return ::pread(fd.get(), &byte, 1, 0) < 0 ? errno : 0;
  });
  // The page is locked until its read is answered, which it never is.
  StartToDrop(1);
  EXPECT_TRUE(Comes([this] { return StaysUninterruptible(); }));
  EXPECT_TRUE(Kill());
  EXPECT_EQ(read.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  Abort();
  EXPECT_NE(read.get(), 0);
}

}  // namespace
}  // namespace weightfs
