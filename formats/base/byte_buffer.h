// ByteBuffer: memory for bytes on their way, uninitialised. Large ones are
// recycled: memory that is new to the process costs a page fault for every
// page, several times what the bytes themselves take to copy.
//
// Thread-safety: distinct buffers are independent.

#ifndef WEIGHTFS_FORMATS_BASE_BYTE_BUFFER_H_
#define WEIGHTFS_FORMATS_BASE_BYTE_BUFFER_H_

#include <cstddef>
#include <span>
#include <utility>

namespace weightfs {

class ByteBuffer {
 public:
  // What the process keeps for new buffers at most, in bytes.
  static constexpr size_t kMostIdle = size_t{64} << 20;

  ByteBuffer() = default;
  explicit ByteBuffer(size_t size);
  ~ByteBuffer();
  ByteBuffer(ByteBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  ByteBuffer& operator=(ByteBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data_, size_}; }

  // What is kept now, in bytes.
  static size_t IdleBytes();
  // Gives it back to the system: no more buffers are wanted for a while.
  static void ReleaseIdle();
  // Whether the address space of the process has a limit (RLIMIT_AS). Nothing
  // is kept then, here or elsewhere, that somebody may come for: what cannot be
  // had any more is the end.
  static bool IsScarce();

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_BYTE_BUFFER_H_
