#include "cache/fetcher.h"

#include <utility>

#include "cache/fetch_core.h"

namespace weightfs {
namespace {

class FetchedObject final : public Object {
 public:
  FetchedObject(std::shared_ptr<FetchCore> core, FileInfo info,
                std::shared_ptr<FetchFile> file, double fraction_without_cache)
      : core_(std::move(core)),
        info_(std::move(info)),
        file_(std::move(file)),
        fraction_without_cache_(fraction_without_cache) {}

  const FileInfo& info() const override { return info_; }

  bool TryRead(uint64_t offset, std::span<std::byte> out) override {
    return core_->TryRead(*file_, offset, out);
  }

  std::optional<LentBytes> TryLend(uint64_t offset, uint64_t length) override {
    return core_->TryLend(*file_, offset, length);
  }

  ReadId StartRead(uint64_t offset, std::span<std::byte> out,
                   const ReadOptions& options, Done done) override {
    return core_->StartRead(file_, offset, out, options, std::move(done));
  }

  void CancelRead(ReadId id) override { core_->CancelRead(*file_, id); }

  std::string WaitsFor(ReadId id) const override { return core_->WaitsFor(id); }

  uint64_t Prefetch(uint64_t offset, uint64_t length) override {
    return core_->Prefetch(file_, offset, length);
  }

  double CachedFraction() const override {
    return file_->cache ? core_->CachedFraction(file_)
                        : fraction_without_cache_;
  }

 private:
  const std::shared_ptr<FetchCore> core_;
  const FileInfo info_;  // file_ may have another path of the same bytes
  const std::shared_ptr<FetchFile> file_;
  const double fraction_without_cache_;
};

class FetcherImpl final : public Fetcher {
 public:
  FetcherImpl(Origin& origin, TimerQueue& timers, WorkerPool& pool,
              const FetcherOptions& options)
      : local_(origin.cache_namespace().empty()),
        core_(std::make_shared<FetchCore>(origin, timers, pool, options)) {}
  ~FetcherImpl() override { core_->Stop(); }
  FetcherImpl(const FetcherImpl&) = delete;
  FetcherImpl& operator=(const FetcherImpl&) = delete;

  std::shared_ptr<Object> OpenObject(
      const FileInfo& file, std::shared_ptr<CacheFile> file_in_cache) override {
    return std::make_shared<FetchedObject>(
        core_, file, core_->OpenFile(file, std::move(file_in_cache)),
        local_ ? 1.0 : 0.0);
  }
  void Stop() override { core_->Stop(); }
  FetcherStats stats() const override { return core_->stats(); }

 private:
  const bool local_;
  const std::shared_ptr<FetchCore> core_;
};

}  // namespace

std::unique_ptr<Fetcher> Fetcher::Create(Origin& origin, TimerQueue& timers,
                                         WorkerPool& pool,
                                         const FetcherOptions& options) {
  return std::make_unique<FetcherImpl>(origin, timers, pool, options);
}

}  // namespace weightfs
