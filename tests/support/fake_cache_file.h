// FakeCacheFile: a CacheFile in memory whose faults a test chooses.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_FAKE_CACHE_FILE_H_
#define WEIGHTFS_TESTS_SUPPORT_FAKE_CACHE_FILE_H_

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "cache/object_cache.h"
#include "formats/base/mutex.h"

namespace weightfs {

class FakeCacheFile final : public CacheFile {
 public:
  // Called before each Read or Put without a lock; an error is the answer.
  using Fault = std::function<Result<>(uint64_t granule)>;

  explicit FakeCacheFile(uint64_t size) : size_(size) {}

  void OnRead(Fault fault) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_read_ = std::move(fault);
  }
  void OnPut(Fault fault) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_put_ = std::move(fault);
  }
  // Called before each Has; before each Pin.
  void OnLook(std::function<void()> call) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_look_ = std::move(call);
  }
  void OnPin(std::function<void()> call) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_pin_ = std::move(call);
  }
  // The next Read that touches `granule` finds it bad.
  void Spoil(uint64_t granule) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    spoiled_.insert(granule);
  }
  size_t reads() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return reads_;
  }
  size_t tries() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return tries_;
  }
  void WaitForGranules(size_t count) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (granules_.size() < count) changed_.Wait(mutex_);
  }

  uint64_t size() const override { return size_; }
  bool Has(uint64_t granule) const override EXCLUDES(mutex_);
  double CachedFraction() const override EXCLUDES(mutex_);
  Result<SlabPin> Pin(uint64_t /*offset*/, uint64_t /*length*/) override
      EXCLUDES(mutex_);
  Result<> Read(uint64_t offset, std::span<std::byte> out) override
      EXCLUDES(mutex_);
  bool TryRead(uint64_t offset, std::span<std::byte> out) override
      EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    ++tries_;
    return try_read_ && Copy(offset, out).has_value();
  }
  void AllowTryRead() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    try_read_ = true;
  }
  std::span<const std::byte> TryLend(uint64_t offset, uint64_t length) override
      EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (!try_lend_ || broken_) return {};
    auto& lent = lent_.emplace_back(length);
    return Copy(offset, lent).has_value() ? lent : std::span<std::byte>();
  }
  void AllowTryLend() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    try_lend_ = verified_ = true;
  }
  // Pins that are held.
  size_t pins() const { return pins_; }
  Result<> Put(uint64_t granule, std::span<const std::byte> bytes) override
      EXCLUDES(mutex_);

  bool IsWhole() const override { return !broken_; }
  uint32_t Generation(uint64_t /*slab*/) const override { return 0; }
  bool verified() const override { return verified_; }
  Result<> Promote(std::span<const uint32_t> /*generations*/) override {
    verified_ = true;
    return {};
  }
  void Poison() override { broken_ = true; }
  Result<UniqueFd> Share() override {
    return Error(Code::kUnsupported, "in memory");
  }
  // What `share` gives, if it is verified and sealed.
  Result<UniqueFd> ShareSealed() override EXCLUDES(mutex_);
  void OnShare(std::function<Result<UniqueFd>()> share) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_share_ = std::move(share);
  }
  Result<> Seal(std::span<const uint32_t> /*generations*/, uint64_t /*losses*/,
                const std::function<bool()>& /*go_on*/) override {
    sealed_ = true;
    return {};
  }
  bool sealed() const { return sealed_; }
  // A granule was lost, as a Wipe says.
  void Unverify() { verified_ = sealed_ = false; }
  uint64_t losses() const override { return 0; }

  // Granules in [first, first + count) count as claimed by another process.
  void ClaimForOther(uint64_t first, uint64_t count) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    for (uint64_t g = first; g < first + count; ++g) elsewhere_.insert(g);
  }
  void UnclaimForOther(uint64_t first, uint64_t count) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    for (uint64_t g = first; g < first + count; ++g) elsewhere_.erase(g);
  }
  // What this process claims.
  std::set<uint64_t> claimed() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return claimed_;
  }
  // Called before each Claim.
  void OnClaim(std::function<void()> call) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    on_claim_ = std::move(call);
  }
  uint64_t Claim(uint64_t first, uint64_t count) override EXCLUDES(mutex_);
  void Unclaim(uint64_t first, uint64_t count) override EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    for (uint64_t g = first; g < first + count; ++g) claimed_.erase(g);
  }
  GranuleRun ClaimedElsewhere(uint64_t first, uint64_t count) const override
      EXCLUDES(mutex_);

 private:
  class CountedPin;
  Result<> Copy(uint64_t offset, std::span<std::byte> out) REQUIRES(mutex_);

  const uint64_t size_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, std::vector<std::byte>> granules_ GUARDED_BY(mutex_);
  std::set<uint64_t> spoiled_ GUARDED_BY(mutex_);
  Fault on_read_ GUARDED_BY(mutex_);
  Fault on_put_ GUARDED_BY(mutex_);
  std::function<void()> on_look_ GUARDED_BY(mutex_);
  std::function<void()> on_pin_ GUARDED_BY(mutex_);
  std::function<void()> on_claim_ GUARDED_BY(mutex_);
  std::set<uint64_t> claimed_ GUARDED_BY(mutex_);
  std::set<uint64_t> elsewhere_ GUARDED_BY(mutex_);
  std::atomic<bool> broken_ = false;
  std::atomic<bool> verified_ = false;
  std::atomic<bool> sealed_ = false;
  std::function<Result<UniqueFd>()> on_share_ GUARDED_BY(mutex_);
  bool try_read_ GUARDED_BY(mutex_) = false;
  bool try_lend_ GUARDED_BY(mutex_) = false;
  std::list<std::vector<std::byte>> lent_ GUARDED_BY(mutex_);
  std::atomic<size_t> pins_ = 0;
  size_t reads_ GUARDED_BY(mutex_) = 0;
  size_t tries_ GUARDED_BY(mutex_) = 0;  // of TryRead
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_FAKE_CACHE_FILE_H_
