// OpenCacheFile: what checks all of it against what it must be.

#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "cache/content_hash.h"
#include "cache/open_cache_file.h"

namespace weightfs {
namespace {

// A pass is repeated if bytes changed under it.
constexpr int kAuditTries = 3;

// A pin that leaves the slab's recency alone: a check is no use.
class AuditPin {
 public:
  AuditPin(SlabLocks& locks, uint64_t slab)
      : locks_(locks), slab_(slab), result_(locks.Pin(slab)) {}
  ~AuditPin() {
    if (result_.has_value()) locks_.Unpin(slab_);
  }
  AuditPin(const AuditPin&) = delete;
  AuditPin& operator=(const AuditPin&) = delete;

  const Result<>& result() const { return result_; }

 private:
  SlabLocks& locks_;
  const uint64_t slab_;
  const Result<> result_;
};

}  // namespace

struct OpenCacheFile::AuditPass {
  uint64_t& bad_granules;
  ContentHash hash;
  uint64_t losses;  // Losses() at the start
  std::vector<std::byte> buffer;
  bool complete = true;  // so far
  Audited found{};
};

Result<OpenCacheFile::Audited> OpenCacheFile::Audit(
    const std::function<void(uint64_t)>& on_bytes) {
  uint64_t bad_granules = 0;
  for (int i = 0; i < kAuditTries; ++i) {
    ASSIGN_OR_RETURN(auto found, AuditOnce(bad_granules, on_bytes));
    if (!found) continue;
    found->bad_granules = bad_granules;
    return *std::move(found);
  }
  return MakeError(Code::kStale, "{}: it changes while it is checked", name_);
}

Result<std::optional<OpenCacheFile::Audited>> OpenCacheFile::AuditOnce(
    uint64_t& bad_granules, const std::function<void(uint64_t)>& on_bytes) {
  AuditPass pass{.bad_granules = bad_granules,
                 .hash = ContentHash(id_.kind, size()),
                 .losses = Losses(),
                 .buffer = std::vector<std::byte>(kGranuleSize)};
  std::vector<uint32_t> generations;  // of the slabs, from before their hash
  for (uint64_t slab = 0; slab < layout_.slabs; ++slab) {
    const AuditPin pin(locks_, slab);
    const uint64_t start = slab * kSlabSize;
    const uint64_t length = std::min(kSlabSize, size() - start);
    generations.push_back(meta().Generation(slab));
    if (!pin.result().has_value()) {
      if (pin.result().error().code() != Code::kStale) {
        return Error(pin.result().error()).AddContext(name_);
      }
      pass.complete = false;  // being evicted
      on_bytes(length);
      continue;
    }
    // Else the page cache, which may be right, would answer for the disk. Dirty
    // pages stay, and are on the way there.
    ::posix_fadvise(fd(), static_cast<off_t>(start), static_cast<off_t>(length),
                    POSIX_FADV_DONTNEED);
    const uint64_t end =
        std::min((slab + 1) * kGranulesPerSlab, layout_.granules);
    for (uint64_t g = slab * kGranulesPerSlab; g < end; ++g) {
      RETURN_IF_ERROR(AuditGranule(g, pass));
      on_bytes(GranuleLength(g));
    }
  }
  if (LostBytes(pass.losses)) return std::optional<Audited>();
  if (!pass.complete) return std::optional(pass.found);
  for (uint64_t slab = 0; slab < layout_.slabs; ++slab) {
    if (meta().Generation(slab) != generations[slab]) {
      return std::optional<Audited>();
    }
  }
  std::string hash = pass.hash.Finish();
  if (hash != id_.value) {
    Poison();
    pass.found.wrong_hash = std::move(hash);
    return std::optional(std::move(pass.found));
  }
  pass.found.right = true;
  // That it could not be written down makes it no less right.
  if (!meta().verified()) static_cast<void>(Promote(generations));
  return std::optional(std::move(pass.found));
}

// Its slab is pinned, so nobody but who found the bytes bad makes it absent.
Result<> OpenCacheFile::AuditGranule(uint64_t granule, AuditPass& pass) {
  const uint64_t entry = meta().Entry(granule);
  if (!IsWhole()) return Broken("it was poisoned, or its files broke");
  if (entry == 0) {
    pass.complete = false;
    return {};
  }
  const auto bytes = std::span(pass.buffer).first(GranuleLength(granule));
  const auto read =
      ReadAndHash(granule, granule * kGranuleSize, bytes, pass.losses);
  if (read.has_value()) {
    if (pass.complete) pass.hash.Add(bytes);
    pass.found.cached_bytes += bytes.size();
    return {};
  }
  if (!IsWhole()) return Error(read.error());
  // A disk that cannot read it: written again, it may be put elsewhere.
  meta().Wipe(granule, entry);
  ++pass.bad_granules;
  pass.complete = false;
  return {};
}

}  // namespace weightfs
