#include "formats/base/byte_buffer.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <bit>
#include <new>
#include <vector>

#include "formats/base/mutex.h"

#if defined(__SANITIZE_ADDRESS__)
#define WEIGHTFS_POISONS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIGHTFS_POISONS 1
#endif
#endif
#ifdef WEIGHTFS_POISONS
#include <sanitizer/asan_interface.h>
#endif

namespace weightfs {
namespace {

// What is kept has a size of a power of two between these; what is smaller or
// larger is malloc's.
constexpr size_t kSmallest = size_t{128} << 10;
constexpr size_t kLargest = size_t{1} << 20;
constexpr size_t kClasses = std::bit_width(kLargest / kSmallest);

constexpr bool IsKept(size_t size) {
  return size > kSmallest / 2 && size <= kLargest;
}

constexpr size_t Capacity(size_t size) {
  return IsKept(size) ? std::max(std::bit_ceil(size), kSmallest) : size;
}

// A buffer that is given back is nobody's: the sanitizer sees who touches it.
void Poison([[maybe_unused]] std::byte* block, [[maybe_unused]] size_t size) {
#ifdef WEIGHTFS_POISONS
  ASAN_POISON_MEMORY_REGION(block, size);
#endif
}

void Unpoison([[maybe_unused]] std::byte* block, [[maybe_unused]] size_t size) {
#ifdef WEIGHTFS_POISONS
  ASAN_UNPOISON_MEMORY_REGION(block, size);
#endif
}

// Not malloc's: what is given back is the system's at once.
std::byte* Map(size_t capacity) {
  void* const block = ::mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(block);
}

class IdleBlocks {
 public:
  // Null: there is none.
  std::byte* Take(size_t capacity) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    auto& blocks = Of(capacity);
    if (blocks.empty()) return nullptr;
    std::byte* block = blocks.back();
    blocks.pop_back();
    bytes_ -= capacity;
    Unpoison(block, capacity);
    return block;
  }

  // False: there is no room.
  bool Keep(std::byte* block, size_t capacity) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (bytes_ + capacity > ByteBuffer::kMostIdle) return false;
    bytes_ += capacity;
    Poison(block, capacity);
    Of(capacity).push_back(block);
    return true;
  }

  void Release() EXCLUDES(mutex_) {
    for (size_t i = 0; i < kClasses; ++i) {
      while (std::byte* block = Take(kSmallest << i)) {
        ::munmap(block, kSmallest << i);
      }
    }
  }

  size_t bytes() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return bytes_;
  }

 private:
  std::vector<std::byte*>& Of(size_t capacity) REQUIRES(mutex_) {
    return blocks_[static_cast<size_t>(std::countr_zero(capacity / kSmallest))];
  }

  mutable Mutex mutex_;
  size_t bytes_ GUARDED_BY(mutex_) = 0;
  std::array<std::vector<std::byte*>, kClasses> blocks_ GUARDED_BY(mutex_);
};

// Never destroyed: a buffer may outlive everything else.
IdleBlocks& Idle() {
  static auto* const idle = new IdleBlocks;
  return *idle;
}

}  // namespace

ByteBuffer::ByteBuffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (!IsKept(size)) {
    data_ = static_cast<std::byte*>(::operator new(size));
    return;
  }
  data_ = Idle().Take(Capacity(size));
  if (data_ != nullptr) return;
  if (IsScarce()) ReleaseIdle();  // kept before there was a limit
  data_ = Map(Capacity(size));
}

ByteBuffer::~ByteBuffer() {
  if (data_ == nullptr) return;
  const size_t capacity = Capacity(size_);
  if (!IsKept(size_)) {
    ::operator delete(data_);
  } else if (IsScarce() || !Idle().Keep(data_, capacity)) {
    ::munmap(data_, capacity);
  }
}

size_t ByteBuffer::IdleBytes() { return Idle().bytes(); }

void ByteBuffer::ReleaseIdle() { Idle().Release(); }

bool ByteBuffer::IsScarce() {
  struct rlimit limit {};
  return ::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace weightfs
