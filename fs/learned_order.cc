#include "fs/learned_order.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "cache/object_cache.h"

namespace weightfs {
namespace {

constexpr uint64_t kNoBits = UINT64_MAX;
// 8 TiB; files beyond are not followed. A listing may claim anything.
constexpr uint64_t kMaxBits = uint64_t{1} << 26;
constexpr uint64_t kWordBits = 64;
// Touches where the extents are not known yet count once in so many bytes.
constexpr uint64_t kUnknownPiece = uint64_t{1} << 20;

// Bytes of files, none of them twice.
class Coverage {
 public:
  // Adds the bytes; returns those that were not in it, in order.
  std::vector<FileRun> Add(const FileRun& added) {
    auto& ranges = files_[added.file];
    std::vector<FileRun> fresh;
    uint64_t at = added.offset;
    auto it = ranges.upper_bound(at);
    if (it != ranges.begin() && std::prev(it)->second >= at) --it;
    uint64_t begin = at;
    uint64_t end = added.end();
    while (it != ranges.end() && it->first <= added.end()) {
      if (it->first > at) {
        fresh.push_back({added.file, at, it->first - at});
      }
      at = std::max(at, it->second);
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = ranges.erase(it);
    }
    if (at < added.end()) fresh.push_back({added.file, at, added.end() - at});
    ranges[begin] = end;
    return fresh;
  }

 private:
  std::unordered_map<uint32_t, std::map<uint64_t, uint64_t>> files_;
};

uint64_t BytesOf(const std::vector<FileRun>& runs) {
  uint64_t bytes = 0;
  for (const FileRun& run : runs) bytes += run.length;
  return bytes;
}

// Where one ends and the next begins they become one run.
void Append(const std::vector<FileRun>& more, std::vector<FileRun>& order) {
  for (const FileRun& run : more) {
    if (!order.empty() && order.back().file == run.file &&
        order.back().end() == run.offset) {
      order.back().length += run.length;
    } else if (order.size() < SnapshotStore::kMaxOrderRuns) {
      order.push_back(run);
    }
  }
}

bool Holds(ByteRange range, uint64_t offset) {
  return offset >= range.offset && offset - range.offset < range.length;
}

}  // namespace

LearnedOrder::LearnedOrder(const std::vector<FileInfo>& files) {
  uint64_t bits = 0;
  for (const FileInfo& file : files) {
    const uint64_t granules = file.size / kGranuleSize + 1;
    const bool follow = file.size >= kLeastFile && granules <= kMaxBits - bits;
    sizes_.push_back(file.size);
    first_bit_.push_back(follow ? bits : kNoBits);
    if (follow) bits += granules;
  }
  bits_ = std::make_unique<std::atomic<uint64_t>[]>(bits / kWordBits + 1);
}

bool LearnedOrder::IsFirst(uint32_t file, uint64_t offset) {
  if (file >= sizes_.size() || first_bit_[file] == kNoBits ||
      offset >= sizes_[file]) {
    return false;
  }
  const uint64_t bit = first_bit_[file] + offset / kGranuleSize;
  std::atomic<uint64_t>& word = bits_[bit / kWordBits];
  const uint64_t mask = uint64_t{1} << (bit % kWordBits);
  if ((word.load(std::memory_order_relaxed) & mask) != 0) return false;
  return (word.fetch_or(mask, std::memory_order_relaxed) & mask) == 0;
}

ByteRange LearnedOrder::BlockAt(uint32_t file, uint64_t offset) const {
  const uint64_t begin = offset / kBlock * kBlock;
  return {begin, std::min(kBlock, sizes_[file] - begin)};
}

void LearnedOrder::Learn(const std::vector<FileRun>& order) {
  MutexLock lock(mutex_);
  kept_.clear();
  for (const FileRun& run : order) {
    // The listing is a server's: sizes need not add up.
    if (run.file >= sizes_.size() || total_ > UINT64_MAX / 2 - run.length) {
      break;
    }
    kept_.push_back(run);
    starts_.push_back(total_);
    placed_[run.file].push_back({run.offset, run.end(), total_});
    total_ += run.length;
  }
  for (auto& [file, runs] : placed_) {
    std::sort(runs.begin(), runs.end(), [](const Placed& a, const Placed& b) {
      return a.begin < b.begin;
    });
  }
}

std::vector<FileRun> LearnedOrder::OnRead(uint32_t file, ByteRange read,
                                          ByteRange extent) {
  if (read.length == 0 || !IsFirst(file, read.offset)) return {};
  const bool known = extent.offset != 0 || extent.length != sizes_[file];
  if (!known) extent = BlockAt(file, read.offset);
  if (!Holds(extent, read.offset)) return {};
  MutexLock lock(mutex_);
  const bool is_new = Record(file, read.offset, extent, known);
  return Follow(file, read, extent, is_new);
}

bool LearnedOrder::Record(uint32_t file, uint64_t offset, ByteRange extent,
                          bool known) {
  if (touches_.size() >= kMaxTouches) return false;
  const uint64_t length = known ? extent.length : 0;
  // Who knows the extents later tells apart what was read in one block.
  const uint64_t begin =
      known ? extent.offset : offset / kUnknownPiece * kUnknownPiece;
  if (!touched_.emplace(file, begin, length).second) return false;
  touches_.push_back({file, known ? extent.offset : offset, length});
  ++touches_count_;
  return true;
}

std::optional<uint64_t> LearnedOrder::PlaceOf(uint32_t file,
                                              uint64_t offset) const {
  const auto runs = placed_.find(file);
  if (runs == placed_.end()) return std::nullopt;
  const auto next = std::upper_bound(
      runs->second.begin(), runs->second.end(), offset,
      [](uint64_t wanted, const Placed& run) { return wanted < run.begin; });
  if (next == runs->second.begin()) return std::nullopt;
  const Placed& run = *std::prev(next);
  if (offset >= run.end) return std::nullopt;
  return run.at + (offset - run.begin);
}

// Not followed yet: the extent is the next one, or the one after it. Else:
// several readers at a time are as far apart as the extents that they are in.
bool LearnedOrder::GoesOn(uint64_t at, uint64_t length) const {
  if (!following_) {
    return last_end_ && at >= *last_end_ && at - *last_end_ <= length;
  }
  const uint64_t slack =
      kSlack * std::clamp(length, kLeastSlack, UINT64_MAX / 4 / kSlack);
  return at <= frontier_ + slack && at + slack >= frontier_;
}

std::vector<FileRun> LearnedOrder::Follow(uint32_t file, ByteRange read,
                                          ByteRange extent, bool is_new) {
  if (kept_.empty() || (!is_new && !following_)) return {};
  const auto place = PlaceOf(file, read.offset);
  // Where the extent begins and ends there, if all of it was kept.
  const uint64_t into = read.offset - extent.offset;
  const uint64_t begin = place ? *place - std::min(*place, into) : 0;
  const bool goes_on = place && GoesOn(begin, extent.length);
  if (is_new) {
    if (place) last_end_ = begin + extent.length;
    if (!goes_on && following_ && ++misses_ >= kMisses) following_ = false;
  }
  if (!goes_on) return {};
  const uint64_t position =
      std::min(*place + std::min(read.length, total_ - *place), total_);
  if (!following_) {
    following_ = true;
    frontier_ = position;
    asked_ = position;
    window_ = kFirstWindow;
  } else if (is_new) {
    window_ = std::min(2 * window_, kLargestWindow);
  }
  if (is_new) misses_ = 0;
  frontier_ = std::max(frontier_, position);
  const uint64_t from = std::max(asked_, frontier_);
  const uint64_t to = std::min(frontier_ + window_, total_);
  // Not in drips.
  if (to <= from || (to - from < window_ / 2 && to != total_)) return {};
  asked_ = to;
  return Cut(from, to);
}

std::vector<FileRun> LearnedOrder::Cut(uint64_t from, uint64_t to) const {
  std::vector<FileRun> runs;
  auto i = static_cast<size_t>(
      std::upper_bound(starts_.begin(), starts_.end(), from) - starts_.begin() -
      1);
  for (; i < kept_.size() && starts_[i] < to; ++i) {
    const uint64_t skipped = std::max(from, starts_[i]) - starts_[i];
    const uint64_t end = std::min(to - starts_[i], kept_[i].length);
    runs.push_back({kept_[i].file, kept_[i].offset + skipped, end - skipped});
  }
  return runs;
}

std::vector<FileRun> LearnedOrder::Collect(const ExtentAt& extent_at) const {
  std::vector<Touch> touches;
  std::vector<FileRun> kept;
  {
    MutexLock lock(mutex_);
    touches = touches_;
    kept = kept_;
  }
  if (touches.empty()) return {};
  Coverage covered;
  std::vector<FileRun> order;
  for (const Touch& touch : touches) {
    ByteRange extent{touch.offset, touch.length};
    if (touch.length == 0) {
      extent = extent_at(touch.file, touch.offset);
      if (extent.offset == 0 && extent.length == sizes_[touch.file]) {
        extent = BlockAt(touch.file, touch.offset);
      }
      if (!Holds(extent, touch.offset)) continue;  // the header
    }
    Append(covered.Add({touch.file, extent.offset, extent.length}), order);
  }
  if (order.empty()) return {};
  std::vector<FileRun> others;
  for (const FileRun& run : kept) {
    const auto fresh = covered.Add(run);
    others.insert(others.end(), fresh.begin(), fresh.end());
  }
  if (BytesOf(others) > BytesOf(kept) / 2) return {};
  Append(others, order);
  return order;
}

}  // namespace weightfs
