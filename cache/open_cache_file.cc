#include "cache/open_cache_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <ctime>
#include <vector>

#include "formats/base/checked.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

// A read is repeated if the hash is wrong or a write-back failed meanwhile.
constexpr int kReadTries = 3;

uint32_t MinutesNow() {
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return static_cast<uint32_t>(now.tv_sec / 60);
}

// Room for one granule, for the calling thread.
std::span<std::byte> ScratchGranule() {
  thread_local const auto buffer =
      std::make_unique_for_overwrite<std::byte[]>(kGranuleSize);
  return {buffer.get(), kGranuleSize};
}

}  // namespace

// Pins the slabs [first, end) that it managed to pin.
class OpenCacheFile::Hold final : public SlabPin::Hold {
 public:
  Hold(std::shared_ptr<OpenCacheFile> file, uint64_t first)
      : file_(std::move(file)), first_(first), end_(first) {}
  ~Hold() override {
    while (end_ > first_) file_->locks_.Unpin(--end_);
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;

  Result<> PinNext(uint32_t minutes) {
    RETURN_IF_ERROR(file_->locks_.Pin(end_));
    file_->meta().Touch(end_, minutes);
    ++end_;
    return {};
  }

 private:
  const std::shared_ptr<OpenCacheFile> file_;
  const uint64_t first_;
  uint64_t end_;
};

OpenCacheFile::OpenCacheFile(std::shared_ptr<CacheParts> parts,
                             ObjectFiles opened, ContentId id, uint64_t owner)
    : parts_(std::move(parts)),
      disk_(parts_->disk),
      files_(std::move(opened)),
      layout_(files_.meta->layout()),
      id_(std::move(id)),
      name_(fmt::format("{}/{}", parts_->folder->path(), id_.ToString())),
      foreign_(files_.meta->owner() != owner),
      locks_(files_.data.get(), layout_.slabs),
      hashed_(layout_.granules),
      generations_(std::make_unique<std::atomic<uint32_t>[]>(layout_.slabs)) {}

// False once the files broke: no entry that was loaded before this counts.
bool OpenCacheFile::IsWhole() const {
  return !broken_.load(std::memory_order_acquire) &&
         meta().state() != MetaState::kPoisoned &&
         (!foreign_ || meta().verified()) && !meta().faulted();
}

bool OpenCacheFile::IsUsable() const {
  struct stat status {};
  return IsWhole() && ::fstat(fd(), &status) == 0 && status.st_nlink > 0;
}

bool OpenCacheFile::Has(uint64_t granule) const {
  return granule < layout_.granules && meta().Entry(granule) != 0 && IsWhole();
}

double OpenCacheFile::CachedFraction() const {
  if (size() == 0) return 1;
  uint64_t bytes = 0;
  for (uint64_t granule = 0; granule < layout_.granules; ++granule) {
    if (meta().Entry(granule) != 0) bytes += GranuleLength(granule);
  }
  if (!IsWhole()) return 0;
  return static_cast<double>(bytes) / static_cast<double>(size());
}

Result<SlabPin> OpenCacheFile::Pin(uint64_t offset, uint64_t length) {
  if (!RangeFits(offset, length, size())) {
    return MakeError(Code::kInvalid, "{}: no bytes {}+{} in {}", name_, offset,
                     length, size());
  }
  if (length == 0) return SlabPin();
  const uint64_t first = offset / kSlabSize;
  const uint64_t last = (offset + length - 1) / kSlabSize;
  const uint32_t minutes = MinutesNow();
  auto hold = std::make_unique<Hold>(
      std::static_pointer_cast<OpenCacheFile>(shared_from_this()), first);
  for (uint64_t slab = first; slab <= last; ++slab) {
    auto pinned = hold->PinNext(minutes);
    if (!pinned.has_value()) return std::move(pinned).error().AddContext(name_);
  }
  return SlabPin(std::move(hold));
}

Result<> OpenCacheFile::Read(uint64_t offset, std::span<std::byte> out) {
  if (!RangeFits(offset, out.size(), size())) {
    return MakeError(Code::kInvalid, "{}: no bytes {}+{} in {}", name_, offset,
                     out.size(), size());
  }
  if (out.empty()) return {};
  for (int i = 0; i < kReadTries; ++i) {
    const uint64_t losses = Losses();
    ForgetOldHashes(offset / kGranuleSize,
                    (offset + out.size() - 1) / kGranuleSize);
    RETURN_IF_ERROR(ReadOnce(offset, out, losses));
    // What was read before the object was poisoned, or lost its verification,
    // may be anything.
    if (!IsWhole()) return Absent(offset / kGranuleSize);
    if (!LostBytes(losses)) return {};
  }
  return MakeError(Code::kIo, "{}: write-back keeps failing", name_);
}

bool OpenCacheFile::TryRead(uint64_t offset, std::span<std::byte> out) {
  if (!RangeFits(offset, out.size(), size())) return false;
  if (out.empty()) return true;
  const uint64_t losses = Losses();
  if (!IsHashed(offset, out.size()) || !IsWhole()) return false;
  const ssize_t got = disk_.ReadNowait(fd(), out, offset);
  return got == static_cast<ssize_t>(out.size()) && IsWhole() &&
         !LostBytes(losses);
}

bool OpenCacheFile::IsHashed(uint64_t offset, uint64_t length) {
  const uint64_t last = (offset + length - 1) / kGranuleSize;
  ForgetOldHashes(offset / kGranuleSize, last);
  for (uint64_t granule = offset / kGranuleSize; granule <= last; ++granule) {
    assert(locks_.IsPinned(granule / kGranulesPerSlab));
    if (!hashed_.Has(granule) || meta().Entry(granule) == 0) return false;
  }
  return true;
}

Result<> OpenCacheFile::Put(uint64_t granule,
                            std::span<const std::byte> bytes) {
  if (granule >= layout_.granules || bytes.size() != GranuleLength(granule)) {
    return MakeError(Code::kInvalid, "{}: {} bytes are not granule {}", name_,
                     bytes.size(), granule);
  }
  Result<> result;
  // Before the pin, which would keep this very slab from being evicted.
  if (meta().Entry(granule) == 0 && !parts_->space.Take(bytes.size())) {
    result = MakeError(Code::kNoSpace, "{}: the cache is full", name_);
  } else if (auto pin = Pin(granule * kGranuleSize, bytes.size());
             pin.has_value()) {
    result = PutPinned(granule, bytes);
  } else {
    result = std::move(pin).error();
  }
  if (!result.has_value()) {
    // A full disk fails every write: one line tells it, the counter the rest.
    if (parts_->write_failures.fetch_add(1) == 0) {
      LogWarning("a granule is not kept in the cache object={} why={}", name_,
                 result.error().message());
    }
  }
  return result;
}

Result<> OpenCacheFile::ReadOnce(uint64_t offset, std::span<std::byte> out,
                                 uint64_t losses) {
  while (!out.empty()) {
    const uint64_t granule = offset / kGranuleSize;
    assert(locks_.IsPinned(granule / kGranulesPerSlab));
    uint64_t next = granule;
    const uint64_t end = offset + out.size();
    while (next * kGranuleSize < end && hashed_.Has(next)) {
      if (meta().Entry(next) == 0) return Absent(next);
      ++next;
    }
    const bool hashed = next > granule;
    if (!hashed) ++next;
    const uint64_t length = std::min(next * kGranuleSize, end) - offset;
    const std::span<std::byte> part = out.first(length);
    if (hashed) {
      if (!IsWhole()) return Absent(granule);
      RETURN_IF_ERROR(ReadFully(offset, part));
    } else {
      RETURN_IF_ERROR(ReadAndHash(granule, offset, part, losses));
    }
    offset += length;
    out = out.subspan(length);
  }
  return {};
}

// `out` from `offset`, which lie in the granule, once its hash is right.
Result<> OpenCacheFile::ReadAndHash(uint64_t granule, uint64_t offset,
                                    std::span<std::byte> out, uint64_t losses) {
  const uint64_t start = granule * kGranuleSize;
  const uint64_t length = GranuleLength(granule);
  const uint64_t slab = granule / kGranulesPerSlab;
  const uint32_t generation = meta().Generation(slab);
  const std::span<std::byte> buffer =
      out.size() == length ? out : ScratchGranule().first(length);
  for (uint64_t bad_entry = 0;;) {
    const uint64_t entry = meta().Entry(granule);
    if (entry == 0 || !IsWhole()) return Absent(granule);
    RETURN_IF_ERROR(ReadFully(start, buffer));
    if (GranuleHash(buffer) == entry) break;
    if (entry == bad_entry) {
      meta().Wipe(granule, entry);
      parts_->bad_granules.fetch_add(1);
      LogWarning("cached bytes do not match their hash object={} granule={}",
                 name_, granule);
      return MakeError(Code::kStale, "{}: granule {} does not match its hash",
                       name_, granule);
    }
    // Perhaps another process was writing it: only twice the same is bad.
    bad_entry = entry;
  }
  hashed_.Add(granule);
  // Others count first and forget then: one of the two sees the other.
  if (Losses() != losses || meta().Generation(slab) != generation) {
    hashed_.Remove(granule);
  }
  if (buffer.data() != out.data()) {
    std::copy_n(buffer.begin() + static_cast<ptrdiff_t>(offset - start),
                out.size(), out.begin());
  }
  return {};
}

Result<> OpenCacheFile::ReadFully(uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = disk_.Read(fd(), out, offset);
    if (got < 0) {
      // Not trusted any more, so that a Put writes over the bad place.
      hashed_.Remove(offset / kGranuleSize);
      return DiskError(static_cast<int>(-got), name_);
    }
    if (got == 0) return Broken("data was truncated");
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

void OpenCacheFile::ForgetOldHashes(uint64_t first_granule,
                                    uint64_t last_granule) {
  for (uint64_t slab = first_granule / kGranulesPerSlab;
       slab <= last_granule / kGranulesPerSlab; ++slab) {
    const uint32_t now = meta().Generation(slab);
    if (generations_[slab].load(std::memory_order_acquire) == now) continue;
    hashed_.RemoveRange(slab * kGranulesPerSlab, (slab + 1) * kGranulesPerSlab);
    generations_[slab].store(now, std::memory_order_release);
  }
}

bool OpenCacheFile::LostBytes(uint64_t losses) {
  MutexLock lock(loss_mutex_);
  const int error = disk_.WritebackError(fd());  // does not wait
  if (error != 0) CountLoss(error);
  return Losses() != losses;
}

Result<> OpenCacheFile::CheckWritten(int result) {
  if (result == 0) return {};
  MutexLock lock(loss_mutex_);
  CountLoss(result);
  return DiskError(-result, name_);
}

void OpenCacheFile::CountLoss(int error) {
  losses_.fetch_add(1);
  hashed_.RemoveRange(0, layout_.granules);
  parts_->write_failures.fetch_add(1);
  LogWarning("the disk lost cached bytes object={} errno={}", name_, -error);
}

Result<> OpenCacheFile::PutPinned(uint64_t granule,
                                  std::span<const std::byte> bytes) {
  const uint64_t hash = GranuleHash(bytes);
  ASSIGN_OR_RETURN(const bool published, IsPublished(granule, hash));
  if (!IsWhole()) return Broken("the file broke");
  if (published) return {};
  RETURN_IF_ERROR(CheckData());
  RETURN_IF_ERROR(
      WriteFully(disk_, fd(), bytes, granule * kGranuleSize, name_));
  meta().Publish(granule, hash);
  // What was stored to a broken mapping is seen by nobody.
  if (!IsWhole()) return Broken("the file broke");
  return {};
}

Result<bool> OpenCacheFile::IsPublished(uint64_t granule, uint64_t hash) {
  const uint64_t entry = meta().Entry(granule);
  if (entry == 0) return false;
  ForgetOldHashes(granule, granule);
  static_cast<void>(LostBytes(Losses()));  // forgets hashes, too
  if (!hashed_.Has(granule)) {
    // It may name bytes that a crash or the disk lost.
    const auto buffer = ScratchGranule().first(GranuleLength(granule));
    auto read = ReadAndHash(granule, granule * kGranuleSize, buffer, Losses());
    if (!read.has_value()) {
      // Not readable: write it again, which lets a disk replace the sector.
      meta().Wipe(granule, entry);
      return false;
    }
  }
  // Other processes read these bytes now, so they are never overwritten.
  if (entry != hash) {
    return MakeError(Code::kCorrupt,
                     "{}: granule {} is published with other bytes", name_,
                     granule);
  }
  return true;
}

// A file that somebody truncated is not made longer again: another process
// would read the hole as zeros. One that was removed takes no more bytes:
// nobody would count them.
Result<> OpenCacheFile::CheckData() {
  struct stat status {};
  if (::fstat(fd(), &status) != 0) return DiskError(errno, name_);
  if (status.st_nlink == 0) return Broken("it was removed");
  if (static_cast<uint64_t>(status.st_size) == size()) return {};
  return Broken("data has another size");
}

Error OpenCacheFile::Broken(std::string_view why) {
  if (!broken_.exchange(true, std::memory_order_acq_rel)) {
    LogWarning("a cached object broke while it was open object={} why={}",
               name_, why);
  }
  return MakeError(Code::kStale, "{}: {}", name_, why);
}

Error OpenCacheFile::Absent(uint64_t granule) const {
  return MakeError(Code::kStale, "{}: granule {} is not cached", name_,
                   granule);
}

}  // namespace weightfs
