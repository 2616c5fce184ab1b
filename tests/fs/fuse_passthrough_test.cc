// The FUSE adapter passes files through: what the kernel is told, and when what
// is registered for it ends.

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <thread>

#include "tests/fs/fuse_fixture.h"

namespace weightfs {
namespace {

// <linux/fuse.h> has them since 6.9.
constexpr uint32_t kPassthroughFlag2 = 1U << (37 - 32);
constexpr uint32_t kOpenPassthrough = 1U << 7;
struct OpenOut {
  uint64_t fh;
  uint32_t open_flags;
  int32_t backing_id;
};

class FusePassthroughTest : public FuseTest {
 protected:
  class Device final : public Passthrough::Device {
   public:
    explicit Device(std::atomic<int>& registered) : registered_(registered) {}
    int Open(int) override {
      ++registered_;
      return 5;
    }
    void Close(int) override { --registered_; }

   private:
    std::atomic<int>& registered_;
  };

  void SetUp() override {
    if (!kKnowsPassthrough) GTEST_SKIP() << "this libfuse has no passthrough";
    KeepData();
    cache_.file->OnShare([]() -> Result<UniqueFd> {
      std::FILE* file = std::tmpfile();
      UniqueFd fd(::dup(::fileno(file)));
      std::fclose(file);
      return fd;
    });
    flags2_ = kPassthroughFlag2;
    Start();
    state_->passthrough.On(std::make_unique<Device>(registered_));
    ASSERT_TRUE(state_->passthrough.totals().on);
  }
  void Seal() {
    ASSERT_OK(cache_.file->Promote({}));
    ASSERT_OK(cache_.file->Seal({}, 0, [] { return true; }));
  }
  OpenOut Open(uint64_t node) {
    const auto answer =
        kernel_->Ask(FUSE_OPEN, node, FakeKernel::Bytes(fuse_open_in{}));
    EXPECT_EQ(answer.error, 0);
    return answer.As<OpenOut>();
  }
  void Release(uint64_t node) {
    EXPECT_EQ(
        kernel_->Ask(FUSE_RELEASE, node, FakeKernel::Bytes(fuse_release_in{}))
            .error,
        0);
  }
  // Nobody answers that.
  void Forget(uint64_t node, uint64_t lookups) {
    fuse_forget_in forget{};
    forget.nlookup = lookups;
    kernel_->Send(FUSE_FORGET, node, FakeKernel::Bytes(forget));
    Settle();
  }

  std::atomic<int> registered_ = 0;
};

TEST_F(FusePassthroughTest, InitAsksForItWithoutStacking) {
  // Of fuse_init_out: the flags above the 32nd, and 1: none below us.
  EXPECT_EQ(init_.As<fuse_init_out>().flags2 & kPassthroughFlag2,
            kPassthroughFlag2);
  uint32_t depth = 0;
  init_.body.copy(reinterpret_cast<char*>(&depth), sizeof(depth),
                  offsetof(fuse_init_out, flags2) + sizeof(uint32_t));
  EXPECT_EQ(depth, 1u);
}

TEST_F(FusePassthroughTest, ASealedFileIsPassedThroughUntilItIsForgotten) {
  const uint64_t node = kernel_->Find("repo/data.bin");
  OpenOut open = Open(node);
  EXPECT_EQ(open.open_flags & kOpenPassthrough, 0u);
  EXPECT_NE(open.open_flags & FOPEN_KEEP_CACHE, 0u);
  Seal();
  EXPECT_EQ(Open(node).open_flags & kOpenPassthrough, 0u) << "open cached";
  Release(node);
  Release(node);
  open = Open(node);
  EXPECT_NE(open.open_flags & kOpenPassthrough, 0u);
  EXPECT_EQ(open.backing_id, 5);
  // The kernel takes no other word beside it.
  EXPECT_EQ(open.open_flags & ~(kOpenPassthrough | FOPEN_NOFLUSH), 0u);
  Release(node);
  EXPECT_EQ(registered_, 1) << "closed at a release";
  EXPECT_EQ(kernel_->Find("repo/data.bin"), node);
  Forget(node, 1);
  EXPECT_EQ(registered_, 1) << "looked up twice";
  Forget(node, 1);
  EXPECT_EQ(registered_, 0);
  // Other files are as before.
  const uint64_t config = kernel_->Find("repo/config.json");
  EXPECT_EQ(Open(config).open_flags & kOpenPassthrough, 0u);
}

// So that the kernel looks them up again, and may be told that they are gone.
TEST_F(FusePassthroughTest, NamesOfFilesExpire) {
  const auto timeout = [this](uint64_t folder, const char* name) {
    return kernel_->Ask(FUSE_LOOKUP, folder, FakeKernel::Name(name))
        .As<fuse_entry_out>()
        .entry_valid;
  };
  const uint64_t repo = kernel_->Find("repo");
  state_->names_expire = true;
  EXPECT_EQ(timeout(repo, "data.bin"), 3u);
  EXPECT_EQ(timeout(FUSE_ROOT_ID, "repo"), 86'400u);
  EXPECT_EQ(timeout(FUSE_ROOT_ID, "nothing"), 86'400u);
  state_->names_expire = false;
  EXPECT_EQ(timeout(repo, "data.bin"), 86'400u);
}

TEST_F(FusePassthroughTest, AHiddenNameIsHiddenFromOneThread) {
  const uint64_t repo = kernel_->Find("repo");
  const auto look = [this](uint64_t folder, const char* name) {
    return kernel_->Ask(FUSE_LOOKUP, folder, FakeKernel::Name(name)).error;
  };
  const auto hide = [&](pid_t from, uint64_t folder) {
    MutexLock lock(state_->mutex);
    state_->hidden = {from, folder, "data.bin"};
    state_->found_hidden = false;
  };
  const auto found = [&] {
    MutexLock lock(state_->mutex);
    return state_->found_hidden;
  };
  hide(::getpid() + 1, repo);
  EXPECT_EQ(look(repo, "data.bin"), 0);
  hide(::getpid(), FUSE_ROOT_ID);
  EXPECT_EQ(look(repo, "data.bin"), 0);
  hide(::getpid(), repo);
  EXPECT_EQ(look(repo, "config.json"), 0);
  EXPECT_FALSE(found());
  EXPECT_EQ(look(repo, "data.bin"), EAGAIN);
  EXPECT_TRUE(found());
}

TEST_F(FusePassthroughTest, ListingsCountAsLookUps) {
  Seal();
  const uint64_t repo = kernel_->Find("repo");
  const uint64_t handle =
      kernel_->Ask(FUSE_OPENDIR, repo, FakeKernel::Bytes(fuse_open_in{}))
          .As<fuse_open_out>()
          .fh;
  fuse_read_in read{};
  read.fh = handle;
  read.size = 4096;
  EXPECT_EQ(kernel_->Ask(FUSE_READDIRPLUS, repo, FakeKernel::Bytes(read)).error,
            0);
  const uint64_t node = kernel_->Find("repo/data.bin");
  EXPECT_EQ(Open(node).backing_id, 5);
  Release(node);
  Forget(node, 1);
  EXPECT_EQ(registered_, 1);
  Forget(node, 1);
  EXPECT_EQ(registered_, 0);
}

TEST_F(FusePassthroughTest, AnswersThatWereNotTakenDoNotCount) {
  Seal();
  const uint64_t node = kernel_->Find("repo/data.bin");
  const uint64_t repo = kernel_->Find("repo");
  kernel_->RefuseAnswers(ENOENT, 1);
  kernel_->Ask(FUSE_LOOKUP, repo, FakeKernel::Name("data.bin"));
  Settle();
  kernel_->RefuseAnswers(ENOENT, 1);
  kernel_->Ask(FUSE_OPEN, node, FakeKernel::Bytes(fuse_open_in{}));
  Settle();
  EXPECT_EQ(registered_, 1);
  Forget(node, 1);
  // The look-up's thread takes its count back once it knows.
  const auto until = Clock::System().Now() + std::chrono::seconds(60);
  while (registered_ != 0 && Clock::System().Now() < until) {
    std::this_thread::yield();
  }
  EXPECT_EQ(registered_, 0);
}

TEST_F(FusePassthroughTest, WhatLostBytesIsOpenedNoMoreWhileOthersHaveIt) {
  Seal();
  const uint64_t node = kernel_->Find("repo/data.bin");
  EXPECT_EQ(Open(node).backing_id, 5);
  EXPECT_EQ(Open(node).backing_id, 5);
  cache_.file->Unverify();
  EXPECT_EQ(
      kernel_->Ask(FUSE_OPEN, node, FakeKernel::Bytes(fuse_open_in{})).error,
      EIO);
  Release(node);
  Release(node);
  EXPECT_EQ(Open(node).open_flags & kOpenPassthrough, 0u);
}

// It opens as without passthrough.
TEST_F(FusePassthroughTest, ACacheThatHangsHoldsUpNoOpen) {
  Seal();
  const uint64_t node = kernel_->Find("repo/data.bin");
  cache_.on_open = [this] { gate_.Pass(); };
  cache_.file->OnShare([this]() -> Result<UniqueFd> {
    gate_.Pass();
    return Error(Code::kStale, "late");
  });
  EXPECT_EQ(Open(node).open_flags & kOpenPassthrough, 0u);
  gate_.Open();
}

}  // namespace
}  // namespace weightfs
