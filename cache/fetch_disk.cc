// FetchCore: reading granules from the cache and writing them to it.

#include <algorithm>
#include <utility>

#include "cache/fetch_core.h"
#include "cache/fetch_core_internal.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

Result<> ReadPinned(CacheFile& cache, uint64_t offset,
                    std::span<std::byte> out) {
  ASSIGN_OR_RETURN(const SlabPin pin, cache.Pin(offset, out.size()));
  return cache.Read(offset, out);
}

// What waits for the disk and what waits for readers share one budget.
uint64_t RoomForUnread(const FetcherOptions& options, uint64_t unwritten) {
  return options.max_backlog_bytes -
         std::min(options.max_backlog_bytes, unwritten);
}

}  // namespace

void FetchCore::QueueDiskRead(const std::shared_ptr<ReadOp>& op, uint64_t first,
                              uint64_t last) {
  auto read = std::make_shared<DiskRead>();
  read->op = op;
  read->first = first;
  read->last = last;
  read->patience = timers_.At(
      Clock::System().Now() + options_.disk_patience,
      [weak = weak_from_this(), weak_read = std::weak_ptr<DiskRead>(read)] {
        if (auto self = weak.lock()) self->OnDiskPatience(weak_read);
      });
  disk_queue_.push_back(std::move(read));
}

// All slots are taken by reads that should be over: do not queue behind them.
bool FetchCore::DiskIsStuck(Clock::Time now) const {
  return disk_reading_.size() >= options_.disk_reads &&
         std::all_of(disk_reading_.begin(), disk_reading_.end(),
                     [&](const auto& read) {
                       return read->started + options_.disk_patience <= now;
                     });
}

void FetchCore::PumpDisk(Effects& effects) {
  if (phase_ >= Phase::kClosed) return;
  while (!disk_queue_.empty() && disk_reading_.size() < options_.disk_reads) {
    auto read = std::move(disk_queue_.front());
    disk_queue_.pop_front();
    read->started = Clock::System().Now();
    disk_reading_.push_back(read);
    effects.disk_reads.push_back(std::move(read));
  }
  while (!write_queue_.empty() && disk_writing_ < options_.disk_writes) {
    ++disk_writing_;
    effects.disk_writes.push_back(std::move(write_queue_.front()));
    write_queue_.pop_front();
  }
}

// Reads into memory of its own, not into the reader's: a disk that hangs must
// not keep the read from ending at its deadline.
void FetchCore::RunDiskRead(const std::shared_ptr<DiskRead>& read) {
  ReadOp& op = *read->op;
  std::vector<uint64_t> failed;
  if (!op.ended()) {
    const FetchFile& file = *op.file();
    const uint64_t begin = std::max(op.offset(), read->first * kGranuleSize);
    const uint64_t end = std::min(op.end(), file.GranuleEnd(read->last));
    const ByteBuffer buffer(end - begin);
    const std::span<std::byte> all = buffer.span();
    Result<> result = ReadPinned(*file.cache, begin, all);
    const bool by_granule = !result.has_value() &&
                            result.error().code() == Code::kStale &&
                            read->first != read->last;
    for (const uint64_t g : read->Granules()) {
      if (op.ended()) break;
      if (by_granule) {
        // One of the run is bad; the others are as good as before.
        const uint64_t from = std::max(begin, g * kGranuleSize);
        const uint64_t to = std::min(end, file.GranuleEnd(g));
        result =
            ReadPinned(*file.cache, from, all.subspan(from - begin, to - from));
      }
      if (result.has_value()) {
        op.Fill(g, begin, all);
      } else {
        failed.push_back(g);
      }
    }
    if (!result.has_value() && result.error().code() != Code::kStale &&
        !disk_error_logged_.exchange(true)) {
      LogWarning("cache cannot be read, fetching instead file={} error={}",
                 file.info.path, result.error().message());
    }
  }
  FinishDiskRead(read, failed, Where::kPoolThread);
}

// `failed`: granules that the disk did not give.
void FetchCore::FinishDiskRead(const std::shared_ptr<DiskRead>& read,
                               const std::vector<uint64_t>& failed,
                               Where where) {
  const Activity activity(*this);
  const bool ended = read->op->ended();
  Effects effects;
  {
    MutexLock lock(mutex_);
    std::erase(disk_reading_, read);
    if (!activity.entered()) return;
    if (read->patience) timers_.Cancel(*read->patience);
    read->patience.reset();
    stats_.cache_read_failures += failed.size();
    if (ended) {
      // Whoever ended it otherwise completes it; twice does no harm.
      effects.ended.push_back(read->op);
    } else if (reads_.contains(read->op->id())) {
      for (const uint64_t g : failed) {
        Sharing::WantAnyway(*this, read->op, g, effects);
      }
      Pump(effects);
    }
    PumpDisk(effects);
  }
  Apply(std::move(effects), where);
}

// The disk takes too long: fetches as well, and what comes first is served.
void FetchCore::OnDiskPatience(const std::weak_ptr<DiskRead>& weak) {
  const Activity activity(*this);
  const auto read = weak.lock();
  if (!activity.entered() || !read) return;
  std::vector<uint64_t> missing;
  for (const uint64_t g : read->Granules()) {
    if (!read->op->Has(g)) missing.push_back(g);
  }
  Effects effects;
  {
    MutexLock lock(mutex_);
    if (!read->patience) return;  // it is over
    read->patience.reset();
    std::erase(disk_queue_, read);
    if (!reads_.contains(read->op->id())) return;
    stats_.cache_read_failures += missing.size();
    for (const uint64_t g : missing) {
      Sharing::WantAnyway(*this, read->op, g, effects);
    }
    Pump(effects);
  }
  Apply(std::move(effects));
}

// False if there is no room: the granule is not kept. There is more for one
// that was fetched for later and nobody has read yet.
bool FetchCore::QueueDiskWrite(const Flight& flight, uint64_t granule,
                               const BytesPtr& bytes, bool unread,
                               Effects& effects) {
  const uint64_t limit = unread ? std::max(options_.max_backlog_bytes,
                                           options_.max_unwritten_bytes)
                                : options_.max_unwritten_bytes;
  if (unwritten_bytes_ + bytes->size() > limit) return false;
  unwritten_bytes_ += bytes->size();
  unread_.Shrink(RoomForUnread(options_, unwritten_bytes_), effects.dropped);
  auto write = std::make_shared<DiskWrite>();
  write->file = flight.file;
  write->granule = granule;
  write->bytes = bytes;
  write->claimed = flight.claimed;
  write_queue_.push_back(std::move(write));
  return true;
}

// A granule that waits for the disk was read, and the disk is behind: others
// need the memory.
void FetchCore::Unqueue(const std::shared_ptr<FetchFile>& file,
                        uint64_t granule, Effects& effects) {
  const auto it = std::find_if(
      write_queue_.begin(), write_queue_.end(), [&](const auto& write) {
        return write->file == file && write->granule == granule;
      });
  if (it == write_queue_.end()) return;  // it is being written
  unwritten_bytes_ -= (*it)->bytes->size();
  stats_.bytes_not_kept += (*it)->bytes->size();
  if ((*it)->claimed) claims_->Release(file, {granule, 1});
  effects.claims |= (*it)->claimed;
  write_queue_.erase(it);
  Erase(*file, granule, effects);
}

void FetchCore::RunDiskWrite(const std::shared_ptr<DiskWrite>& write) {
  CacheFile& cache = *write->file->cache;
  const Result<> result = cache.Put(write->granule, write->bytes->view());
  if (write->claimed) cache.Unclaim(write->granule, 1);
  FinishDiskWrite(*write, result);
}

void FetchCore::FinishDiskWrite(const DiskWrite& write,
                                const Result<>& result) {
  if (!result.has_value() && !disk_error_logged_.exchange(true)) {
    LogWarning("cache cannot be written, serving without it file={} error={}",
               write.file->info.path, result.error().message());
  }
  const Activity activity(*this);
  Effects effects;
  {
    MutexLock lock(mutex_);
    unwritten_bytes_ -= write.bytes->size();
    --disk_writing_;
    if (!result.has_value()) stats_.bytes_not_kept += write.bytes->size();
    ++write.file->landed;
    auto it = write.file->granules.find(write.granule);
    if (it != write.file->granules.end() && it->second.bytes == write.bytes) {
      const bool stays = result.has_value() &&
                         it->second.read < write.bytes->size() &&
                         phase_ == Phase::kRunning && !ByteBuffer::IsScarce();
      const uint64_t read = it->second.read;
      write.file->granules.erase(it);
      if (stays) {
        unread_.Add(write.file, write.granule, write.bytes, read,
                    Clock::System().Now());
      }
    }
    unread_.Shrink(RoomForUnread(options_, unwritten_bytes_), effects.dropped);
    quiet_.NotifyAll();
    // What is fetched for later may have waited for room.
    if (!prefetch_.empty()) Pump(effects);
    if (activity.entered()) {
      PumpDisk(effects);
      if (!std::exchange(tidies_, true)) {
        ArmTidy(Clock::System().Now() + UnreadBytes::kLife);
      }
    }
  }
  Apply(std::move(effects));
}

void FetchCore::ArmTidy(Clock::Time when) {
  timers_.At(when, [weak = weak_from_this()] {
    if (auto self = weak.lock()) self->Tidy();
  });
}

// Lets go what nobody came for; and once nothing moves any more, the memory.
void FetchCore::Tidy() {
  const Activity activity(*this);
  if (!activity.entered()) return;
  Effects effects;
  {
    MutexLock lock(mutex_);
    const Clock::Time now = Clock::System().Now();
    const Clock::Time next = unread_.Age(now, effects.dropped);
    tidies_ =
        next != Clock::Time::max() || unwritten_bytes_ > 0 || !flying_.empty();
    if (tidies_) return ArmTidy(std::min(next, now + UnreadBytes::kLife));
  }
  effects = {};
  ByteBuffer::ReleaseIdle();
}

}  // namespace weightfs
