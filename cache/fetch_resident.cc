// FetchCore: reads of what is in memory already.

#include <algorithm>
#include <utility>

#include "cache/fetch_core.h"

namespace weightfs {
namespace {

// The granules of the range, from the first on, if memory has them all: those
// that wait for the disk, and those that nobody has read yet. Under the mutex.
std::vector<std::shared_ptr<const GranuleBytes>> TakeFromMemory(
    FetchFile& file, UnreadBytes& unread, uint64_t begin, uint64_t end) {
  const uint64_t first = begin / kGranuleSize;
  const uint64_t last = (end - 1) / kGranuleSize;
  for (uint64_t g = first; g <= last; ++g) {
    const auto it = file.granules.find(g);
    const bool is_there = it != file.granules.end()
                              ? it->second.state == Granule::State::kWriting
                              : file.unread.contains(g);
    if (!is_there) return {};
  }
  std::vector<std::shared_ptr<const GranuleBytes>> all;
  for (uint64_t g = first; g <= last; ++g) {
    const uint64_t length =
        std::min(end, file.GranuleEnd(g)) - std::max(begin, g * kGranuleSize);
    if (const auto it = file.granules.find(g); it != file.granules.end()) {
      it->second.read += length;
      all.push_back(it->second.bytes);
    } else {
      all.push_back(unread.Read(file, g, length));
    }
  }
  return all;
}

// Of the bytes from `begin` on, those in the `length` from `offset` on.
std::span<const std::byte> Overlap(const GranuleBytes& bytes, uint64_t begin,
                                   uint64_t offset, uint64_t length) {
  const uint64_t from = std::max(begin, offset);
  const uint64_t to = std::min(begin + bytes.size(), offset + length);
  return bytes.view().subspan(from - begin, to - from);
}

}  // namespace

bool FetchCore::TryRead(FetchFile& file, uint64_t offset,
                        std::span<std::byte> out) {
  if (out.empty()) return true;
  if (!file.cache) return false;
  const InlineStays::Stay stay(inline_reads_);
  if (!stay.inside()) return false;
  std::vector<BytesPtr> all;
  {
    MutexLock lock(mutex_);
    all = TakeFromMemory(file, unread_, offset, offset + out.size());
  }
  if (!all.empty()) {
    uint64_t g = offset / kGranuleSize;
    std::byte* to = out.data();
    for (const auto& bytes : all) {
      const auto part = Overlap(*bytes, g++ * kGranuleSize, offset, out.size());
      to = std::copy(part.begin(), part.end(), to);
    }
    // What is known to be wrong is not served any more.
    return file.cache->IsWhole();
  }
  const auto pin = file.cache->Pin(offset, out.size());
  return pin.has_value() && file.cache->TryRead(offset, out);
}

std::optional<LentBytes> FetchCore::TryLend(FetchFile& file, uint64_t offset,
                                            uint64_t length) {
  if (!file.cache || length == 0) return std::nullopt;
  const InlineStays::Stay stay(inline_reads_);
  if (!stay.inside()) return std::nullopt;
  LentBytes lent;
  std::vector<BytesPtr> all;
  {
    MutexLock lock(mutex_);
    all = TakeFromMemory(file, unread_, offset, offset + length);
  }
  if (!all.empty()) {
    uint64_t g = offset / kGranuleSize;
    for (auto& bytes : all) {
      lent.parts.push_back(Overlap(*bytes, g++ * kGranuleSize, offset, length));
      lent.owners.push_back(std::move(bytes));
    }
    // What is known to be wrong is not served any more.
    if (!file.cache->IsWhole()) return std::nullopt;
    return lent;
  }
  // Nothing else is sealed: a pin, which takes a lock, would be for nothing.
  if (!file.cache->verified()) return std::nullopt;
  auto pin = file.cache->Pin(offset, length);
  if (!pin.has_value()) return std::nullopt;
  const auto bytes = file.cache->TryLend(offset, length);
  if (bytes.empty()) return std::nullopt;
  lent.parts.push_back(bytes);
  lent.owners.push_back(std::make_shared<SlabPin>(std::move(*pin)));
  return lent;
}

}  // namespace weightfs
