#include "tests/support/fake_cache_file.h"

#include <algorithm>
#include <cstring>

namespace weightfs {

class FakeCacheFile::CountedPin final : public SlabPin::Hold {
 public:
  explicit CountedPin(std::shared_ptr<FakeCacheFile> file)
      : file_(std::move(file)) {
    ++file_->pins_;
  }
  ~CountedPin() override { --file_->pins_; }
  CountedPin(const CountedPin&) = delete;
  CountedPin& operator=(const CountedPin&) = delete;

 private:
  const std::shared_ptr<FakeCacheFile> file_;
};

bool FakeCacheFile::Has(uint64_t granule) const {
  std::function<void()> look;
  {
    MutexLock lock(mutex_);
    look = on_look_;
  }
  if (look) look();
  MutexLock lock(mutex_);
  return granules_.contains(granule);
}

double FakeCacheFile::CachedFraction() const {
  MutexLock lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [granule, data] : granules_) bytes += data.size();
  return size_ == 0 ? 1.0
                    : static_cast<double>(bytes) / static_cast<double>(size_);
}

Result<SlabPin> FakeCacheFile::Pin(uint64_t /*offset*/, uint64_t /*length*/) {
  std::function<void()> pin;
  {
    MutexLock lock(mutex_);
    pin = on_pin_;
  }
  if (pin) pin();
  return SlabPin(std::make_unique<CountedPin>(
      std::static_pointer_cast<FakeCacheFile>(shared_from_this())));
}

Result<> FakeCacheFile::Read(uint64_t offset, std::span<std::byte> out) {
  Fault fault;
  {
    MutexLock lock(mutex_);
    ++reads_;
    fault = on_read_;
  }
  if (fault) RETURN_IF_ERROR(fault(offset / kGranuleSize));
  MutexLock lock(mutex_);
  return Copy(offset, out);
}

Result<> FakeCacheFile::Put(uint64_t granule,
                            std::span<const std::byte> bytes) {
  Fault fault;
  {
    MutexLock lock(mutex_);
    fault = on_put_;
  }
  if (fault) RETURN_IF_ERROR(fault(granule));
  MutexLock lock(mutex_);
  granules_[granule] = {bytes.begin(), bytes.end()};
  spoiled_.erase(granule);
  changed_.NotifyAll();
  return {};
}

Result<UniqueFd> FakeCacheFile::ShareSealed() {
  std::function<Result<UniqueFd>()> share;
  {
    MutexLock lock(mutex_);
    share = on_share_;
  }
  if (!verified_ || !sealed_ || broken_ || !share) {
    return Error(Code::kStale, "not sealed");
  }
  return share();
}

uint64_t FakeCacheFile::Claim(uint64_t first, uint64_t count) {
  std::function<void()> claim;
  {
    MutexLock lock(mutex_);
    claim = on_claim_;
  }
  if (claim) claim();
  MutexLock lock(mutex_);
  uint64_t taken = 0;
  while (taken < count && !elsewhere_.contains(first + taken)) {
    claimed_.insert(first + taken++);
  }
  return taken;
}

GranuleRun FakeCacheFile::ClaimedElsewhere(uint64_t first,
                                           uint64_t count) const {
  MutexLock lock(mutex_);
  const auto it = elsewhere_.lower_bound(first);
  if (it == elsewhere_.end() || *it >= first + count) return {};
  GranuleRun run{*it, 1};
  while (run.first > 0 && elsewhere_.contains(run.first - 1)) {
    --run.first;
    ++run.count;
  }
  while (elsewhere_.contains(run.end())) ++run.count;
  return run;
}

Result<> FakeCacheFile::Copy(uint64_t offset, std::span<std::byte> out) {
  for (size_t done = 0; done < out.size();) {
    const uint64_t granule = (offset + done) / kGranuleSize;
    if (spoiled_.erase(granule) > 0) granules_.erase(granule);
    auto it = granules_.find(granule);
    if (it == granules_.end()) {
      return MakeError(Code::kStale, "granule {} is absent", granule);
    }
    const size_t within = offset + done - granule * kGranuleSize;
    const size_t n = std::min(out.size() - done, it->second.size() - within);
    std::memcpy(out.data() + done, it->second.data() + within, n);
    done += n;
  }
  return {};
}

}  // namespace weightfs
