// Child processes, the watchdog, output files: what commands do with the
// system.

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <string>

#include "tests/support/matchers.h"
#include "tools/child.h"
#include "tools/daemon.h"
#include "tools/log_sink.h"
#include "tools/output.h"
#include "tools/secrets.h"
#include "tools/watchdog.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file),
          std::istreambuf_iterator<char>()};
}

class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name =
        std::filesystem::temp_directory_path() / "weightfs-out-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  std::filesystem::path folder_;
};

TEST(RunInChildTest, ReturnsWhatTheChildWrote) {
  const auto output =
      RunInChild(seconds(30), [](const auto& write) { write("hello"); });
  ASSERT_OK(output);
  EXPECT_EQ(output->text, "hello");
  EXPECT_FALSE(output->timed_out);
}

TEST(RunInChildTest, GivesUpAChildThatHangs) {
  const auto output = RunInChild(milliseconds(50), [](const auto& write) {
    write("before");
    while (true) ::pause();
  });
  ASSERT_OK(output);
  EXPECT_TRUE(output->timed_out);
  EXPECT_EQ(output->text, "before");
}

TEST(RunProgramTest, TellsExitCodeAndErrors) {
  const auto output =
      RunProgram({"sh", "-c", "echo wrong >&2; exit 3"}, seconds(30));
  ASSERT_OK(output);
  EXPECT_EQ(output->exit_code, 3);
  EXPECT_EQ(output->error_text, "wrong\n");
}

TEST(RunProgramTest, MissingProgramIsNotFound) {
  EXPECT_THAT(RunProgram({"weightfs-no-such-program"}, seconds(30)),
              HasCode(Code::kNotFound));
}

TEST(RunProgramTest, KillsAProgramThatHangs) {
  const auto output = RunProgram({"sleep", "1000"}, milliseconds(50));
  ASSERT_OK(output);
  EXPECT_EQ(output->exit_code, -1);
}

// What a process that runs `body` aside ends with: its wait status.
int StatusOf(const std::function<int(const Leave& leave)>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(RunAside(body));
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(RunAsideTest, EndsAsTheChildDoes) {
  const int returned = StatusOf([](const Leave&) { return 7; });
  EXPECT_TRUE(WIFEXITED(returned));
  EXPECT_EQ(WEXITSTATUS(returned), 7);
  const int killed = StatusOf([](const Leave&) {
    ::signal(SIGPIPE, SIG_DFL);
    ::raise(SIGPIPE);
    return 0;
  });
  EXPECT_TRUE(WIFSIGNALED(killed));
  EXPECT_EQ(WTERMSIG(killed), SIGPIPE);
}

TEST(RunAsideTest, WaitsForNobodyWhoLeft) {
  // Keeps a copy of the child's pipe and of its standard files, as a thread
  // does that cannot be ended.
  const auto began = std::chrono::steady_clock::now();
  const int left = StatusOf([](const Leave& leave) {
    if (::fork() == 0) {
      ::poll(nullptr, 0, 20'000);
      ::_exit(0);
    }
    leave(6);
    return 0;
  });
  EXPECT_TRUE(WIFEXITED(left));
  EXPECT_EQ(WEXITSTATUS(left), 6);
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
}

TEST(RunAsideTest, ForwardsASignalToWhoEndsByItself) {
  std::array<int, 2> ready{};
  ASSERT_EQ(::pipe(ready.data()), 0);
  const pid_t process = ::fork();
  ASSERT_GE(process, 0);
  if (process == 0) {
    ::_exit(RunAside(
        [&](const Leave&) {
          sigset_t signals;
          sigemptyset(&signals);
          sigaddset(&signals, SIGINT);
          ::sigprocmask(SIG_BLOCK, &signals, nullptr);
          (void)!::write(ready[1], "r", 1);
          int signal = 0;
          ::sigwait(&signals, &signal);
          return 40 + signal;
        },
        AsideSignals::kForwarded));
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  // The handler is set after the fork, so that it may not be there yet.
  int status = -1;
  for (int i = 0; i < 3'000 && ::waitpid(process, &status, WNOHANG) == 0; ++i) {
    if (i == 100) ::kill(process, SIGINT);
    ::poll(nullptr, 0, 10);
  }
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 40 + SIGINT);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(WatchdogTest, FiresWhenTheEndTakesTooLong) {
  std::promise<void> fired;
  ShutdownWatchdog watchdog(milliseconds(10), [&] { fired.set_value(); });
  watchdog.Arm();
  EXPECT_EQ(fired.get_future().wait_for(seconds(30)),
            std::future_status::ready);
}

TEST(WatchdogTest, IsQuietUnlessArmedAndInTime) {
  bool fired = false;
  {
    ShutdownWatchdog unarmed(milliseconds(0), [&] { fired = true; });
    ShutdownWatchdog in_time(seconds(3600), [&] { fired = true; });
    in_time.Arm();
  }
  EXPECT_FALSE(fired);
}

int passed_on = 0;
void CountSignal(int) { ++passed_on; }

TEST(WatchdogTest, IsArmedBySignalsWhichGoOnToTheirHandler) {
  struct sigaction before {};
  struct sigaction action {};
  action.sa_handler = CountSignal;
  ASSERT_EQ(::sigaction(SIGTERM, &action, &before), 0);
  std::promise<void> fired;
  {
    ShutdownWatchdog watchdog(milliseconds(10), [&] { fired.set_value(); });
    const ArmOnSignals arm(watchdog);
    std::raise(SIGTERM);
    EXPECT_EQ(fired.get_future().wait_for(seconds(30)),
              std::future_status::ready);
  }
  EXPECT_EQ(passed_on, 1);
  std::raise(SIGTERM);
  EXPECT_EQ(passed_on, 2);
  ::sigaction(SIGTERM, &before, nullptr);
}

TEST(SecretsTest, TokensLeaveTheEnvironment) {
  std::string before = "HF_TOKEN=hf_abc";
  ASSERT_EQ(::putenv(before.data()), 0);
  WipeTokenVariables();
  EXPECT_STREQ(::getenv("HF_TOKEN"), "");
  EXPECT_EQ(before, "HF_TOKEN=" + std::string(6, '\0'));  // where it lay
  ::unsetenv("HF_TOKEN");
}

TEST(SecretsTest, AHiddenProcessIsHiddenAndStillWorks) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::geteuid() == 0 && ::setuid(65534) != 0) ::_exit(2);
    HideProcess();
    rlimit core{};
    ::getrlimit(RLIMIT_CORE, &core);
    // As the cache opens a file once more.
    const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    const std::string again = "/proc/self/fd/" + std::to_string(file.get());
    const UniqueFd opened(::open(again.c_str(), O_RDONLY | O_CLOEXEC));
    const bool well = ::prctl(PR_GET_DUMPABLE) == 0 && core.rlim_max == 0 &&
                      CountOpenFiles() > 2 && opened.valid();
    ::_exit(well ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(FolderTest, OutputFileAppearsWhole) {
  const std::string path = folder_ / "out";
  {
    auto file = OutputFile::Create(path);
    ASSERT_OK(file);
    ASSERT_OK(WriteAll(file->fd(), std::as_bytes(std::span("bytes", 5))));
    EXPECT_FALSE(std::filesystem::exists(path));
    ASSERT_OK(file->Commit());
  }
  EXPECT_EQ(ReadFile(path), "bytes");
  EXPECT_THAT(Names(), ElementsAre("out"));
}

TEST_F(FolderTest, OutputFileThatFailedLeavesTheOldOne) {
  const std::string path = folder_ / "out";
  std::ofstream(path) << "old";
  ::chmod(path.c_str(), 0640);
  {
    auto file = OutputFile::Create(path);
    ASSERT_OK(file);
    ASSERT_OK(WriteAll(file->fd(), std::as_bytes(std::span("half", 4))));
  }
  EXPECT_EQ(ReadFile(path), "old");
  EXPECT_THAT(Names(), ElementsAre("out"));
  auto file = OutputFile::Create(path);
  ASSERT_OK(file);
  ASSERT_OK(file->Commit());
  struct stat attr {};
  ASSERT_EQ(::stat(path.c_str(), &attr), 0);
  EXPECT_EQ(attr.st_mode & 0777, 0640u);
}

TEST_F(FolderTest, OutputToADeviceIsWrittenAsItIs) {
  auto file = OutputFile::Create("/dev/null");
  ASSERT_OK(file);
  EXPECT_OK(file->Commit());
  EXPECT_THAT(OutputFile::Create(folder_), HasCode(Code::kInvalid));
  EXPECT_THAT(OutputFile::Create(folder_ / "absent" / "x"), HasCode(Code::kIo));
}

TEST_F(FolderTest, LogFollowsItsNameAndIsItsOwnersAlone) {
  const std::string path = folder_ / "deep" / "x.log";
  ASSERT_OK(InstallLog({.file = path, .least = LogLevel::kInfo}));
  std::string teed;
  SetLogTee([&](std::string_view line) { teed += line; });
  LogDebug("below the level");
  LogInfo("one {}", 1);
  LogWarning("two");
  SetLogTee(nullptr);
  LogWarning("three");
  SetLogSink(nullptr, LogLevel::kInfo);
  const std::string text = ReadFile(path);
  EXPECT_THAT(text, ::testing::ContainsRegex("info \\[[0-9]+\\] one 1\n"));
  EXPECT_THAT(text, ::testing::ContainsRegex("warning \\[[0-9]+\\] three\n"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("below")));
  EXPECT_EQ(teed, "two");
  struct stat attr {};
  ASSERT_EQ(::stat(path.c_str(), &attr), 0);
  EXPECT_EQ(attr.st_mode & 0777, 0600u);
}

// As on a disk that stops answering, and goes on.
TEST_F(FolderTest, LinesWaitForALogThatDoesNotTakeThem) {
  const std::string path = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const UniqueFd reader(
      ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_OK(InstallLog({.file = path}));
  const std::string text(1000, 'x');
  const auto began = std::chrono::steady_clock::now();
  // More than a pipe holds, and than is kept.
  for (int i = 0; i < 2'000; ++i) LogInfo("{} line {}.", text, i);
  // Not 200 ms for each of a thousand.
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(30));
  std::string got;
  pollfd ready{reader.get(), POLLIN, 0};
  while (got.find("lines in time") == std::string::npos &&
         ::poll(&ready, 1, 10'000) > 0) {
    std::array<char, 65536> buffer{};
    const ssize_t n = ::read(reader.get(), buffer.data(), buffer.size());
    if (n > 0) got.append(buffer.data(), static_cast<size_t>(n));
  }
  SetLogSink(nullptr, LogLevel::kInfo);
  // Those that were kept, in order, and how many were not.
  int kept = 0;
  for (size_t at = 0; (at = got.find(fmt::format(" line {}.\n", kept), at)) !=
                      std::string::npos;
       ++kept) {
  }
  EXPECT_GT(kept, 500);
  EXPECT_THAT(got, HasSubstr(fmt::format("did not take {} lines in time",
                                         2'000 - kept)));
}

TEST_F(FolderTest, AnOvergrownLogIsSetAside) {
  const std::string path = folder_ / "x.log";
  std::ofstream(path) << "old";
  std::filesystem::resize_file(path, (16 << 20) + 1);
  ASSERT_OK(InstallLog({.file = path}));
  SetLogSink(nullptr, LogLevel::kInfo);
  EXPECT_EQ(std::filesystem::file_size(path), 0u);
  EXPECT_TRUE(std::filesystem::exists(path + ".1"));
}

TEST_F(FolderTest, LogThatCannotBeWrittenIsAnError) {
  std::ofstream(folder_ / "file") << "x";
  EXPECT_THAT(InstallLog({.file = folder_ / "file" / "x.log"}),
              HasMessage(HasSubstr("--log-file")));
}

}  // namespace
}  // namespace weightfs
