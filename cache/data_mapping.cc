#include "cache/data_mapping.h"

#include <sys/mman.h>

#include "formats/base/byte_buffer.h"

namespace weightfs {

DataMapping::~DataMapping() {
  MutexLock lock(mutex_);
  if (mapped_ && !mapped_->empty()) ::munmap(mapped_->data(), mapped_->size());
}

std::span<const std::byte> DataMapping::Of(int fd, uint64_t size) {
  MutexLock lock(mutex_);
  if (!mapped_) {
    mapped_.emplace();
    if (size == 0 || ByteBuffer::IsScarce()) return {};
    void* const start = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
    if (start == MAP_FAILED) return {};
    mapped_.emplace(static_cast<std::byte*>(start), size);
    ::madvise(start, size, MADV_DONTDUMP);
  }
  return *mapped_;
}

}  // namespace weightfs
