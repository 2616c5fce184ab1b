// The FUSE adapter before a kernel that does as the test says: exact answers,
// each request answered once, whatever races or hangs.

#include <atomic>
#include <future>
#include <random>

#include "formats/base/log.h"
#include "fs/node_id.h"
#include "tests/fs/fuse_fixture.h"

namespace weightfs {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using ::testing::Contains;
using ::testing::HasSubstr;

// Lines of the log, from when it is made.
class LogLines {
 public:
  LogLines() { SetLogSink(&Take, LogLevel::kInfo); }
  ~LogLines() { SetLogSink(nullptr, LogLevel::kInfo); }
  LogLines(const LogLines&) = delete;
  LogLines& operator=(const LogLines&) = delete;
  static std::vector<std::string> All() {
    MutexLock lock(mutex());
    return lines();
  }

 private:
  static Mutex& mutex() {
    static Mutex m;
    return m;
  }
  static std::vector<std::string>& lines() {
    static std::vector<std::string> all;
    return all;
  }
  static void Take(LogLevel, std::string_view line) {
    MutexLock lock(mutex());
    lines().emplace_back(line);
  }
};

TEST_F(FuseTest, InitAsksForWhatWorksAndNoMore) {
  Start();
  const auto init = init_.As<fuse_init_out>();
  EXPECT_EQ(init.max_write, kMaxRequest);
  EXPECT_EQ(init.max_background, kMaxBackground);
  // No direct reads that cannot be interrupted.
  EXPECT_EQ(init.flags & FUSE_ASYNC_DIO, 0u);
  EXPECT_EQ(init.flags & FUSE_AUTO_INVAL_DATA, 0u);
}

TEST_F(FuseTest, LooksUpOpensReadsAndReleases) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  const auto attr =
      kernel_->Ask(FUSE_GETATTR, node, FakeKernel::Bytes(fuse_getattr_in{}))
          .As<fuse_attr_out>()
          .attr;
  EXPECT_EQ(attr.size, kSize);
  EXPECT_EQ(attr.mode, S_IFREG | 0444u);
  EXPECT_EQ(attr.nlink, 1u);
  const auto open =
      kernel_->Ask(FUSE_OPEN, node, FakeKernel::Bytes(fuse_open_in{}));
  EXPECT_EQ(open.error, 0);
  const uint64_t handle = open.As<fuse_open_out>().fh;
  for (const auto& [offset, size] : std::vector<std::pair<uint64_t, uint32_t>>{
           {0, 1}, {0, kSize}, {77, 4096}, {kSize - 1, 4096}, {kSize / 2, 0}}) {
    const auto answer =
        kernel_->Wait(kernel_->SendRead(node, offset, size, handle));
    EXPECT_EQ(answer.error, 0);
    EXPECT_EQ(answer.body, Text(offset, size)) << offset << "+" << size;
  }
  fuse_release_in release{};
  release.fh = handle;
  EXPECT_EQ(kernel_->Ask(FUSE_RELEASE, node, FakeKernel::Bytes(release)).error,
            0);
}

TEST_F(FuseTest, LargeReadsAreAnsweredWhereTheirBytesLie) {
  KeepData();
  cache_.file->AllowTryLend();
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  ASSERT_EQ(kernel_->Wait(kernel_->SendRead(node, 0, 1)).error, 0);  // opens it
  const size_t copies = cache_.file->tries() + cache_.file->reads();
  for (const auto& [offset, size] : std::vector<std::pair<uint64_t, uint32_t>>{
           {0, kSize}, {77, 128 << 10}, {kSize - (40 << 10), 64 << 10}}) {
    const auto answer = kernel_->Wait(kernel_->SendRead(node, offset, size));
    EXPECT_EQ(answer.error, 0);
    EXPECT_EQ(answer.body, Text(offset, size)) << offset << "+" << size;
  }
  EXPECT_EQ(cache_.file->tries() + cache_.file->reads(), copies);
  Settle();
  EXPECT_EQ(cache_.file->pins(), 0u);
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 5, 100)).body, Text(5, 100));
  EXPECT_EQ(cache_.file->tries() + cache_.file->reads(), copies + 1);
}

TEST_F(FuseTest, ReadsPastTheEndAreEmpty) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  for (const uint64_t offset :
       {kSize, kSize + 1, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{0}}) {
    const auto answer = kernel_->Wait(kernel_->SendRead(node, offset, 4096));
    EXPECT_EQ(answer.error, 0) << offset;
    EXPECT_EQ(answer.body, "") << offset;
  }
}

TEST_F(FuseTest, WhatWasNeverGivenOutIsRefused) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  // Handles.
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 0, 10, 4711)).error, EBADF);
  fuse_read_in listing{};
  listing.fh = 4711;
  listing.size = 4096;
  EXPECT_EQ(kernel_->Ask(FUSE_READDIR, FUSE_ROOT_ID, FakeKernel::Bytes(listing))
                .error,
            EBADF);
  fuse_release_in release{};
  release.fh = 4711;
  EXPECT_EQ(kernel_->Ask(FUSE_RELEASE, node, FakeKernel::Bytes(release)).error,
            0);
  // Nodes.
  for (const uint64_t strange :
       {node + (uint64_t{1} << 40), uint64_t{0xdeadbeef}, ~uint64_t{0}}) {
    EXPECT_NE(kernel_->Wait(kernel_->SendRead(strange, 0, 10)).error, 0);
    EXPECT_NE(
        kernel_
            ->Ask(FUSE_GETATTR, strange, FakeKernel::Bytes(fuse_getattr_in{}))
            .error,
        0);
    EXPECT_NE(kernel_->Ask(FUSE_LOOKUP, strange, FakeKernel::Name("x")).error,
              0);
  }
  // A folder's bytes, a file's entries, more than was agreed on.
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(FUSE_ROOT_ID, 0, 10)).error,
            EINVAL);
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 0, 2 * kMaxRequest)).error,
            EINVAL);
}

TEST_F(FuseTest, OperationsThatItLacksAreNotImplemented) {
  Start();
  fuse_mkdir_in mkdir{};
  EXPECT_EQ(kernel_
                ->Ask(FUSE_MKDIR, FUSE_ROOT_ID,
                      FakeKernel::Bytes(mkdir) + FakeKernel::Name("new"))
                .error,
            ENOSYS);
  EXPECT_EQ(
      kernel_->Ask(FUSE_UNLINK, FUSE_ROOT_ID, FakeKernel::Name("x")).error,
      ENOSYS);
  EXPECT_EQ(kernel_->Ask(9999, FUSE_ROOT_ID, std::string(64, '\0')).error,
            ENOSYS);
  EXPECT_EQ(kernel_->Ask(0, FUSE_ROOT_ID, std::string(64, '\0')).error, ENOSYS);
}

TEST_F(FuseTest, ForgetsAreNotAnswered) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  const size_t before = kernel_->AllAnswers();
  std::vector<uint64_t> sent;
  for (int i = 0; i < 2000; ++i) {
    fuse_forget_in forget{};
    forget.nlookup = static_cast<uint64_t>(i);
    // Nodes that exist, and those that never did.
    sent.push_back(kernel_->Send(FUSE_FORGET,
                                 i % 2 == 0 ? node : 77'777u + unsigned(i),
                                 FakeKernel::Bytes(forget)));
  }
  fuse_batch_forget_in batch{};
  batch.count = 100;
  std::string arguments = FakeKernel::Bytes(batch);
  for (uint64_t i = 0; i < 100; ++i) {
    arguments += FakeKernel::Bytes(fuse_forget_one{node + i, 1});
  }
  sent.push_back(kernel_->Send(FUSE_BATCH_FORGET, 0, arguments));
  Settle();
  EXPECT_EQ(kernel_->AllAnswers(), before);
  for (const uint64_t unique : sent) EXPECT_EQ(kernel_->Answers(unique), 0u);
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 0, 10)).body, Text(0, 10));
}

TEST_F(FuseTest, AnInterruptEndsAReadThatHangsOnce) {
  Start();
  const uint64_t node = kernel_->Find("repo/hung.bin");
  const uint64_t read = kernel_->SendRead(node, 0, 4096);
  while (vfs_->parked() == 0) std::this_thread::yield();
  EXPECT_EQ(kernel_->Answers(read), 0u);
  for (int i = 0; i < 5; ++i) Interrupt(read);
  EXPECT_EQ(kernel_->Wait(read).error, EINTR);
  Interrupt(read);
  Settle();
  EXPECT_EQ(kernel_->Answers(read), 1u);
  EXPECT_EQ(vfs_->parked(), 0u);
  EXPECT_EQ(state_->requests.totals().waiting, 0u);
}

TEST_F(FuseTest, AnInterruptMayComeBeforeItsRequest) {
  Start();
  const uint64_t node = kernel_->Find("repo/hung.bin");
  // The workers may see them in any order; the end is the same.
  for (int i = 0; i < 50; ++i) {
    const uint64_t unique = kernel_->NextUnique();
    fuse_read_in read{};
    read.size = 4096;
    Interrupt(unique);
    kernel_->SendAs(unique, FUSE_READ, node, FakeKernel::Bytes(read));
    // An interrupt that was put by and then overtaken is refused; the kernel
    // sends it again then.
    while (kernel_->Answers(unique) == 0) {
      if (kernel_->Answers(unique | 1) > 0) Interrupt(unique);
      std::this_thread::yield();
    }
    EXPECT_EQ(kernel_->Wait(unique).error, EINTR);
  }
}

TEST_F(FuseTest, AnInterruptOfNothingDoesNothing) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  for (const uint64_t unique : {uint64_t{0}, uint64_t{4}, ~uint64_t{1}}) {
    Interrupt(unique);
    EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 5, 10)).body, Text(5, 10));
  }
}

TEST_F(FuseTest, InterruptsThatRaceWithAnswersLeaveOneAnswer) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  const uint64_t hung = kernel_->Find("repo/hung.bin");
  std::mt19937_64 random(20240611);
  std::vector<std::pair<uint64_t, uint64_t>> reads;  // and their offsets
  for (int i = 0; i < 1000; ++i) {
    const uint64_t offset = random() % (kSize - 4096);
    const bool hangs = i % 4 == 0;
    reads.emplace_back(kernel_->SendRead(hangs ? hung : node, offset, 4096),
                       offset);
    if (hangs || random() % 2 == 0) Interrupt(reads.back().first);
  }
  for (const auto& [unique, offset] : reads) {
    // Those whose interrupt came first are interrupted again.
    while (kernel_->Answers(unique) == 0) {
      Interrupt(unique);
      Settle();
    }
    const auto answer = kernel_->Wait(unique);
    if (answer.error == 0) {
      EXPECT_EQ(answer.body, Text(offset, 4096));
    } else {
      EXPECT_EQ(answer.error, EINTR);
    }
  }
  Settle();
  for (const auto& [unique, offset] : reads) {
    EXPECT_EQ(kernel_->Answers(unique), 1u);
  }
  EXPECT_EQ(state_->requests.totals().waiting, 0u);
}

TEST_F(FuseTest, AnswersThatTheKernelRefusesAreNotSentTwice) {
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  const uint64_t meta = kernel_->Find(".weightfs/index.json");
  for (const int error : {ENOENT, EAGAIN, EIO, ENODEV}) {
    std::vector<uint64_t> sent;
    kernel_->RefuseAnswers(error, 4);
    sent.push_back(kernel_->SendRead(node, 0, 4096));
    sent.push_back(kernel_->Send(FUSE_OPENDIR, FUSE_ROOT_ID,
                                 FakeKernel::Bytes(fuse_open_in{})));
    sent.push_back(
        kernel_->Send(FUSE_OPEN, meta, FakeKernel::Bytes(fuse_open_in{})));
    sent.push_back(
        kernel_->Send(FUSE_LOOKUP, FUSE_ROOT_ID, FakeKernel::Name("repo")));
    for (const uint64_t unique : sent) kernel_->Wait(unique);
    Settle();
    for (const uint64_t unique : sent) EXPECT_EQ(kernel_->Answers(unique), 1u);
    // Whose opener never heard of it is closed, by the thread that answered.
    EXPECT_TRUE(HandlesAreClosed()) << error;
  }
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 9, 9)).body, Text(9, 9));
}

TEST_F(FuseTest, DestroyLeavesRequestsInFlightToBeAnswered) {
  Start();
  const uint64_t node = kernel_->Find("repo/hung.bin");
  const uint64_t read = kernel_->SendRead(node, 0, 4096);
  while (vfs_->parked() == 0) std::this_thread::yield();
  EXPECT_EQ(kernel_->Ask(FUSE_DESTROY, 0).error, 0);
  EXPECT_EQ(kernel_->Answers(read), 0u);
  vfs_->Shutdown();
  EXPECT_EQ(kernel_->Wait(read).error, EIO);
  EXPECT_TRUE(state_->requests.WaitIdle(std::chrono::minutes(1)));
  EXPECT_EQ(kernel_->Answers(read), 1u);
}

TEST_F(FuseTest, FailAllAnswersEachOnce) {
  Start();
  const uint64_t node = kernel_->Find("repo/hung.bin");
  std::vector<uint64_t> reads;
  for (uint64_t i = 0; i < 20; ++i) {
    reads.push_back(kernel_->SendRead(node, i * 4096, 4096));
  }
  while (vfs_->parked() < 20) std::this_thread::yield();
  const auto totals = state_->requests.totals();
  EXPECT_EQ(totals.waiting, 20u);
  EXPECT_GT(totals.oldest_seconds, 0);
  state_->requests.FailAll();
  vfs_->Shutdown();  // answers them, too, in vain
  for (const uint64_t unique : reads) {
    EXPECT_EQ(kernel_->Wait(unique).error, EIO);
  }
  EXPECT_TRUE(state_->requests.WaitIdle(std::chrono::minutes(1)));
  for (const uint64_t unique : reads) EXPECT_EQ(kernel_->Answers(unique), 1u);
}

// --- the watchdog ---

class FuseWatchdogTest : public FuseTest {
 protected:
  // So that only the watchdog can end a request.
  static VfsOptions Patient() {
    return {.read_timeout = hours(1), .metadata_timeout = hours(1)};
  }
  static RequestTimes Times(milliseconds all) {
    RequestTimes times;
    times.read = times.metadata = all;
    times.grace = milliseconds(0);
    return times;
  }
  // Of a request.
  void WaitForLogLine(const std::string& part) {
    for (;;) {
      for (const std::string& line : LogLines::All()) {
        if (line.find(part) != std::string::npos) return;
      }
      std::this_thread::yield();
    }
  }

  const LogLines log_;
};

TEST_F(FuseWatchdogTest, AnswersWhatIsOlderThanItsDeadline) {
  Start(Times(milliseconds(100)), Patient());
  const uint64_t node = kernel_->Find("repo/hung.bin");
  const uint64_t read = kernel_->SendRead(node, 4096, 8192);
  EXPECT_EQ(kernel_->Wait(read).error, EIO);
  WaitForLogLine(
      "not answered by its deadline, given up op=read path=repo/hung.bin");
  EXPECT_THAT(LogLines::All(),
              Contains(::testing::AllOf(HasSubstr("range=[4096, +8192)"),
                                        HasSubstr("waits_for=memory"))));
  // What it left behind ends, and answers nobody.
  while (vfs_->parked() > 0) std::this_thread::yield();
  Settle();
  EXPECT_EQ(kernel_->Answers(read), 1u);
  EXPECT_EQ(state_->requests.totals().late, 1u);
  EXPECT_EQ(state_->requests.totals().waiting, 0u);
}

TEST_F(FuseWatchdogTest, AnswersWhileThePoolIsStarved) {
  Start(Times(milliseconds(100)), Patient());
  const uint64_t node = kernel_->Find("repo/data.bin");
  for (int i = 0; i < 8; ++i) pool_.Submit([this] { gate_.Pass(); });
  gate_.WaitForWaiters(8);
  const uint64_t read = kernel_->SendRead(node, 0, 4096);
  EXPECT_EQ(kernel_->Wait(read).error, EIO);
  WaitForLogLine("waits_for=a thread that may use the disk");
  gate_.Open();
  while (vfs_->parked() > 0) std::this_thread::yield();
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 1, 4096)).body,
            Text(1, 4096));
  EXPECT_EQ(kernel_->Answers(read), 1u);
}

TEST_F(FuseWatchdogTest, AReadThatIsStuckInTheCacheComesFromTheOrigin) {
  KeepData();
  fetcher_options_.disk_patience = milliseconds(20);
  RequestTimes times;
  times.resident = milliseconds(20);
  Start(times);
  const uint64_t node = kernel_->Find("repo/data.bin");
  // Opens it; the next reads need not wait.
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 0, 4096)).body,
            Text(0, 4096));
  cache_.file->OnPin([this] { gate_.Pass(); });
  cache_.file->OnLook([this] { gate_.Pass(); });
  // More than there are workers.
  std::vector<uint64_t> reads;
  for (uint64_t i = 0; i < 12; ++i) {
    reads.push_back(kernel_->SendRead(node, i * 4096 + 1, 4096));
  }
  for (uint64_t i = 0; i < 12; ++i) {
    const auto answer = kernel_->Wait(reads[i]);
    EXPECT_EQ(answer.error, 0);
    EXPECT_EQ(answer.body, Text(i * 4096 + 1, 4096));
  }
  WaitForLogLine("the cache does not answer, reading without it op=read");
  EXPECT_GT(origin_.fetched(), 0u);
  // Metadata is answered meanwhile.
  EXPECT_EQ(
      kernel_->Ask(FUSE_GETATTR, node, FakeKernel::Bytes(fuse_getattr_in{}))
          .error,
      0);
  // The stuck threads come back, and answer nobody twice.
  gate_.Open();
  Settle();
  EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 7, 4096)).body,
            Text(7, 4096));
  for (const uint64_t unique : reads) EXPECT_EQ(kernel_->Answers(unique), 1u);
  EXPECT_EQ(vfs_->parked(), 0u);
}

TEST_F(FuseWatchdogTest, AFileThatTheCacheDoesNotOpenComesFromTheOrigin) {
  KeepData();
  cache_.on_open = [this] { gate_.Pass(); };
  fetcher_options_.disk_patience = milliseconds(20);
  Start();
  const uint64_t node = kernel_->Find("repo/data.bin");
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, i * 50'000, 4096)).body,
              Text(i * 50'000, 4096));
  }
  gate_.Open();
  // And is opened once it does.
  do {
    EXPECT_EQ(kernel_->Wait(kernel_->SendRead(node, 3, 4096)).body,
              Text(3, 4096));
  } while (repo_->FindOpenFile(1) == nullptr);
}

TEST_F(FuseWatchdogTest, AnIndexThatNeverComesIsGivenUp) {
  origin_.Hang("model.safetensors");
  Start(Times(milliseconds(100)), Patient());
  const uint64_t raw = kernel_->Find("tensors/raw");
  const uint64_t list =
      kernel_->Send(FUSE_OPENDIR, raw, FakeKernel::Bytes(fuse_open_in{}));
  EXPECT_EQ(kernel_->Wait(list).error, EIO);
  WaitForLogLine("waits_for=the index of model.safetensors");
  Settle();
  EXPECT_EQ(kernel_->Answers(list), 1u);
}

}  // namespace
}  // namespace weightfs
