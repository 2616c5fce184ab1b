#include "cache/unread_bytes.h"

#include <utility>

namespace weightfs {

void UnreadBytes::Add(const std::shared_ptr<FetchFile>& file, uint64_t granule,
                      BytesPtr bytes, uint64_t read, Clock::Time now) {
  const auto [it, added] = file->unread.emplace(granule, entries_.end());
  if (!added) return;
  bytes_ += bytes->size();
  it->second = entries_.insert(entries_.end(),
                               {file, granule, std::move(bytes), read, now});
}

UnreadBytes::BytesPtr UnreadBytes::Read(FetchFile& file, uint64_t granule,
                                        uint64_t length) {
  const auto it = file.unread.find(granule);
  if (it == file.unread.end()) return nullptr;
  const auto entry = it->second;
  entry->read += length;
  if (entry->read < entry->bytes->size()) return entry->bytes;
  BytesPtr bytes = std::move(entry->bytes);
  bytes_ -= bytes->size();
  file.unread.erase(it);
  entries_.erase(entry);
  return bytes;
}

void UnreadBytes::Shrink(uint64_t most, Dropped& dropped) {
  while (bytes_ > most) DropOldest(dropped);
}

Clock::Time UnreadBytes::Age(Clock::Time now, Dropped& dropped) {
  while (!entries_.empty() && entries_.front().since + kLife <= now) {
    DropOldest(dropped);
  }
  return entries_.empty() ? Clock::Time::max() : entries_.front().since + kLife;
}

void UnreadBytes::DropOldest(Dropped& dropped) {
  UnreadGranule& oldest = entries_.front();
  bytes_ -= oldest.bytes->size();
  if (auto file = oldest.file.lock()) {
    file->unread.erase(oldest.granule);
    dropped.push_back(std::move(file));
  }
  dropped.push_back(std::const_pointer_cast<GranuleBytes>(oldest.bytes));
  entries_.pop_front();
}

}  // namespace weightfs
