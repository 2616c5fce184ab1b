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

// No format has a tensor where a file begins: that is a header.
bool Readahead::Extents::FirstByteIsIn(ByteRange read) const {
  return first.offset > 0 && read.offset <= first.offset &&
         first.offset < read.offset + read.length;
}

// The larger the read, the more of its kind may be on their way beside it: in
// its extent, or in a file, that the kernel reads ahead. Files that show one
// tensor each are read one after the other.
bool Readahead::Stream::IsNear(ByteRange read, const Extents& in) const {
  constexpr uint64_t kPadding = 4096;  // between tensors
  const uint64_t slack = in.alone && extent != in.first.offset
                             ? kPadding
                             : std::min<uint64_t>(4 * read.length, kTolerance);
  return read.offset + slack >= next && read.offset <= next + slack;
}

// Many threads that share a tensor's bytes are one stream.
bool Readahead::Stream::Spans(ByteRange read, const Extents& in) const {
  return extent == in.first.offset && read.offset >= begin &&
         read.offset + kStraggling >= next && read.offset <= fetched;
}

ByteRange Readahead::OnRead(uint32_t file, uint64_t file_size, ByteRange read,
                            const Extents& in) {
  MutexLock lock(mutex_);
  auto& streams = Follow(file).streams;
  auto stream =
      std::find_if(streams.begin(), streams.end(),
                   [&](const Stream& s) { return s.IsNear(read, in); });
  if (stream == streams.end()) {
    stream = std::find_if(streams.begin(), streams.end(),
                          [&](const Stream& s) { return s.Spans(read, in); });
  }
  if (stream != streams.end()) return GoOn(*stream, file_size, read, in);
  if (streams.size() < kStreams) streams.emplace_back();
  return Begin(*std::min_element(streams.begin(), streams.end(),
                                 [](const Stream& a, const Stream& b) {
                                   return a.last_use < b.last_use;
                                 }),
               read, in);
}

ByteRange Readahead::Begin(Stream& stream, ByteRange read, const Extents& in) {
  const uint64_t end = read.offset + read.length;
  const uint64_t extent_end = in.first.offset + in.first.length;
  stream = Stream{.begin = read.offset,
                  .next = end,
                  .fetched = end,
                  .last_use = ++tick_,
                  .extent = in.last,
                  .length = read.length,
                  // Nobody reads on from a header by chance.
                  .crossings = in.first.offset == 0 && in.last > 0 ? 1u : 0u};
  if (!in.FirstByteIsIn(read) || end >= extent_end) return {};
  stream.fetched = std::min({extent_end, end + kTensorWindow, end + largest_});
  return {end, stream.fetched - end};
}

void Readahead::Refused(uint32_t file, ByteRange ahead, uint64_t taken) {
  MutexLock lock(mutex_);
  const auto it = files_.find(file);
  if (it == files_.end()) return;
  for (Stream& stream : it->second.streams) {
    if (stream.fetched != ahead.offset + ahead.length) continue;
    stream.fetched = std::max(stream.next, ahead.offset + taken);
    stream.pause = stream.next + kFirstWindow;
  }
}

uint64_t Readahead::Share(Stream& stream) {
  if (const uint64_t turn = tick_ / kTurn + 1; turn != turn_) {
    busy_before_ = turn == turn_ + 1 ? busy_ : 0;
    busy_ = 0;
    turn_ = turn;
  }
  if (stream.turn != turn_) {
    stream.turn = turn_;
    ++busy_;
  }
  return std::max(largest_ / std::max(busy_, busy_before_), kFirstWindow);
}

ByteRange Readahead::GoOn(Stream& stream, uint64_t file_size, ByteRange read,
                          const Extents& in) {
  const uint64_t end = read.offset + read.length;
  stream.last_use = ++tick_;
  stream.next = std::max(stream.next, end);
  stream.begin = std::min(stream.begin, read.offset);
  stream.length += read.length;
  // A read that comes late, from an extent before, crosses nothing.
  const bool enters = stream.extent < in.first.offset;
  stream.crossings += enters ? 1 : 0;
  stream.crossings += in.last > std::max(stream.extent, in.first.offset);
  stream.extent = std::max(stream.extent, in.last);
  const bool goes_on = stream.crossings >= kCrossings;
  const uint64_t share = Share(stream);
  if (stream.next < stream.pause) return {};
  // It may be what the kernel read beyond a tensor, or the last page of one, in
  // which the next begins.
  if (enters && !goes_on && in.first.offset != read.offset) return {};
  const uint64_t steep = stream.length > kFirstWindow
                             ? std::min(4 * stream.length, kSteepWindow)
                             : 0;
  uint64_t window =
      std::clamp(std::max(2 * stream.length, steep), kFirstWindow, share);
  // The kernel's first requests come in any order.
  if (!enters && in.FirstByteIsIn(read)) {
    window = std::max(window, std::min(kTensorWindow, largest_));
  }
  const uint64_t ends = goes_on ? file_size : in.first.offset + in.first.length;
  const uint64_t from = std::max(stream.next, stream.fetched);
  const uint64_t window_end = stream.next + window;
  uint64_t to = std::min(window_end, ends);
  // Who crossed once already may well do so again.
  if (stream.crossings > 0 && window_end > ends) {
    const uint64_t beyond =
        std::min({window_end, file_size, ends + stream.length / 4});
    if (beyond >= from + kBeyond) to = beyond;
  }
  // Not in drips: half a window at least, unless the extent ends.
  if (to <= from || (to - from < window / 2 && to < ends)) return {};
  stream.fetched = to;
  return {from, to - from};
}

}  // namespace weightfs
