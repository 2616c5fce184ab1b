#include "fs/readahead.h"

#include <algorithm>

namespace weightfs {

Readahead::FileStreams& Readahead::Follow(uint32_t file) {
  auto it = files_.find(file);
  if (it != files_.end()) {
    recent_.splice(recent_.begin(), recent_, it->second.recency);
    return it->second;
  }
  if (files_.size() >= kFiles) {
    files_.erase(recent_.back());
    recent_.pop_back();
  }
  recent_.push_front(file);
  FileStreams& streams = files_[file];
  streams.recency = recent_.begin();
  return streams;
}

ByteRange Readahead::OnRead(uint32_t file, uint64_t file_size, ByteRange read,
                            ByteRange extent) {
  MutexLock lock(mutex_);
  FileStreams& followed = Follow(file);
  const uint64_t end = read.offset + read.length;
  const uint64_t extent_end = extent.offset + extent.length;
  // The larger the read, the more of its kind may be on their way beside it.
  const uint64_t slack = std::min<uint64_t>(4 * read.length, kTolerance);
  Stream* stream = nullptr;
  Stream* oldest = followed.streams.data();
  for (Stream& s : followed.streams) {
    if (s.last_use != 0 && read.offset + slack >= s.next &&
        read.offset <= s.next + slack) {
      stream = &s;
      break;
    }
    if (s.last_use < oldest->last_use) oldest = &s;
  }
  if (stream == nullptr) {
    *oldest = Stream{read.offset, end, end, ++tick_, extent.offset, false};
    // No format has a tensor where a file begins: that is a header.
    const bool starts_it = extent.offset > 0 && read.offset <= extent.offset &&
                           extent.offset < end;
    if (!starts_it || end >= extent_end) return {};
    oldest->fetched =
        std::min({extent_end, end + kTensorWindow, end + largest_});
    return {end, oldest->fetched - end};
  }
  stream->last_use = ++tick_;
  stream->next = std::max(stream->next, end);
  stream->begin = std::min(stream->begin, read.offset);
  const uint64_t window =
      std::clamp(2 * (stream->next - stream->begin), kFirstWindow, largest_);
  if (stream->extent_begin != extent.offset) {
    stream->crossed = true;
    stream->extent_begin = extent.offset;
  }
  const uint64_t limit = stream->crossed ? file_size : extent_end;
  const uint64_t from = std::max(stream->next, stream->fetched);
  const uint64_t to = std::min(stream->next + window, limit);
  // Not in drips: half a window at least, unless the extent ends.
  if (to <= from || (to - from < window / 2 && to != limit)) return {};
  stream->fetched = to;
  return {from, to - from};
}

}  // namespace weightfs
