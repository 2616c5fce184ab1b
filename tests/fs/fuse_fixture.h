// FuseTest: the FUSE adapter over a played origin and a cache in memory, before
// a kernel that does as the test says.

#ifndef WEIGHTFS_TESTS_FS_FUSE_FIXTURE_H_
#define WEIGHTFS_TESTS_FS_FUSE_FIXTURE_H_

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/fs/memory_origin.h"
#include "tests/support/fake_cache_file.h"
#include "tests/support/fake_kernel.h"
#include "tests/support/gate.h"
#include "tests/support/matchers.h"

namespace weightfs {

inline constexpr uint64_t kSize = 1 << 20;

// A cache in memory: one file, which a test gives.
class OneFileCache final : public ObjectCache {
 public:
  const std::string& folder() const override { return folder_; }
  Result<std::shared_ptr<CacheFile>> OpenObject(const std::string&,
                                                const ContentId& id,
                                                uint64_t size) override {
    if (on_open) on_open();
    if (id.value == path && file != nullptr) {
      return std::shared_ptr<CacheFile>(file);
    }
    return std::shared_ptr<CacheFile>(std::make_shared<FakeCacheFile>(size));
  }
  void Trim() override {}
  Stats stats() const override { return {}; }

  std::string path;
  std::shared_ptr<FakeCacheFile> file;
  std::function<void()> on_open;

 private:
  const std::string folder_ = "memory";
};

class FuseTest : public ::testing::Test {
 protected:
  FuseTest() {
    for (uint64_t i = 0; i < kSize; ++i) {
      text_ += static_cast<char>(i * 131 % 251 + (i >> 10));
    }
    origin_.Add("config.json", "{}");
    origin_.Add("model.safetensors", Model(kHeader, 26));
    origin_.Add("data.bin", text_);
    origin_.Add("hung.bin", text_);
    origin_.Hang("hung.bin");
  }
  ~FuseTest() override {
    gate_.Open();
    // libfuse keeps an interrupt of nothing until another request, and loses
    // those that it still has at its end.
    if (interrupts_ > 0) Settle();
    for (; interrupts_ > 0; --interrupts_) {
      kernel_->Ask(FUSE_STATFS, FUSE_ROOT_ID);
    }
    if (vfs_) vfs_->Shutdown();
    if (fetcher_) fetcher_->Stop();
    indexers_.Stop();
    pool_.Stop();
    timers_.Stop();
    if (state_) state_->requests.Stop();
    // Last, as it is with a mount: until now anybody may have answered.
    kernel_.reset();
  }

  void Start(const RequestTimes& times = {}, const VfsOptions& options = {}) {
    fetcher_ = Fetcher::Create(origin_, timers_, pool_, fetcher_options_);
    RepoOptions repo_options;
    repo_options.disk_patience = fetcher_options_.disk_patience;
    auto repo =
        Repo::Open({&origin_, fetcher_.get(),
                    cache_.file != nullptr ? &cache_ : nullptr, &indexers_},
                   repo_options);
    ASSERT_OK(repo);
    repo_ = std::move(*repo);
    vfs_ = std::make_unique<Vfs>(*repo_, pool_, timers_, options);
    state_ = std::make_unique<FuseState>(*vfs_, times);
    kernel_ = std::make_unique<FakeKernel>(*state_);
    init_ = kernel_->Init(flags2_);
    ASSERT_EQ(init_.error, 0);
  }
  // A cache that has all of data.bin, read without waiting.
  void KeepData() {
    origin_.SetNamespace("memory");
    cache_.path = "data.bin";
    cache_.file = std::make_shared<FakeCacheFile>(kSize);
    cache_.file->AllowTryRead();
    for (uint64_t g = 0; g * kGranuleSize < kSize; ++g) {
      const auto bytes = std::as_bytes(std::span(text_));
      ASSERT_OK(
          cache_.file->Put(g, bytes.subspan(g * kGranuleSize, kGranuleSize)));
    }
  }
  std::string Text(uint64_t offset, uint64_t size) const {
    return text_.substr(offset, size);
  }
  void Interrupt(uint64_t unique) {
    ++interrupts_;
    fuse_interrupt_in interrupt{};
    interrupt.unique = unique;
    kernel_->SendAs(unique | 1, FUSE_INTERRUPT, 0,
                    FakeKernel::Bytes(interrupt));
  }
  // Waits for it, a minute at most.
  bool HandlesAreClosed() {
    const auto until = Clock::System().Now() + std::chrono::minutes(1);
    while (Clock::System().Now() < until) {
      {
        MutexLock lock(state_->mutex);
        if (state_->handles.empty()) return true;
      }
      std::this_thread::yield();
    }
    return false;
  }
  void Settle() { kernel_->Settle(); }

  std::string text_;
  Gate gate_;
  MemoryOrigin origin_;
  OneFileCache cache_;
  FetcherOptions fetcher_options_;
  TimerQueue timers_{"timers"};
  WorkerPool pool_{"pool", 8};
  WorkerPool indexers_{"index", 2};
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<Repo> repo_;
  std::unique_ptr<Vfs> vfs_;
  std::unique_ptr<FuseState> state_;
  std::unique_ptr<FakeKernel> kernel_;
  FakeKernel::Answer init_;
  uint32_t flags2_ = 0;  // that the kernel offers
  size_t interrupts_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_FS_FUSE_FIXTURE_H_
