#include "cache/read_op.h"

#include <cassert>
#include <cstring>

namespace weightfs {

ReadOp::ReadOp(ReadId id, std::shared_ptr<FetchFile> file, uint64_t offset,
               std::span<std::byte> out, Clock::Time deadline,
               Object::Done done)
    : id_(id),
      file_(std::move(file)),
      offset_(offset),
      length_(out.size()),
      started_(Clock::System().Now()),
      deadline_(deadline),
      out_(out.data()),
      missing_(out.size()),
      done_(std::move(done)) {
  if (!out.empty() && file_->cache != nullptr) {
    have_.resize(last_granule() - first_granule() + 1);
  }
}

bool ReadOp::CopyIn(uint64_t begin, std::span<const std::byte> bytes) {
  assert(begin >= offset_ && bytes.size() <= end() - begin);
  assert(bytes.size() <= missing_);
  std::memcpy(out_ + (begin - offset_), bytes.data(), bytes.size());
  missing_ -= bytes.size();
  ended_ = missing_ == 0;
  return ended_;
}

bool ReadOp::Fill(uint64_t granule, uint64_t bytes_offset,
                  std::span<const std::byte> bytes) {
  assert(granule >= first_granule() && granule <= last_granule());
  const uint64_t begin = std::max(offset_, granule * kGranuleSize);
  const uint64_t stop = std::min(end(), file_->GranuleEnd(granule));
  assert(bytes_offset <= begin && bytes_offset + bytes.size() >= stop);
  MutexLock lock(mutex_);
  const size_t index = granule - first_granule();
  if (ended_ || have_[index]) return false;
  have_[index] = true;
  return CopyIn(begin, bytes.subspan(begin - bytes_offset, stop - begin));
}

bool ReadOp::FillRaw(uint64_t bytes_offset, std::span<const std::byte> bytes) {
  MutexLock lock(mutex_);
  if (ended_) return false;
  return CopyIn(bytes_offset, bytes);
}

bool ReadOp::End(Result<> result) {
  MutexLock lock(mutex_);
  if (ended_) return false;
  ended_ = true;
  result_ = std::move(result);
  return true;
}

bool ReadOp::ended() const {
  MutexLock lock(mutex_);
  return ended_;
}

bool ReadOp::Has(uint64_t granule) const {
  MutexLock lock(mutex_);
  return have_[granule - first_granule()];
}

void ReadOp::RunDone() {
  Object::Done done;
  Result<> result;
  {
    MutexLock lock(mutex_);
    assert(ended_);
    done = std::move(done_);
    done_ = nullptr;
    result = std::move(result_);
  }
  if (done) done(std::move(result));
}

}  // namespace weightfs
