// ByteReader: a bounds-checked little-endian cursor over bytes in memory. Every
// read that would pass the end is kCorrupt with the format, field and offset.
//
// Not thread-safe. Borrows the bytes.

#ifndef WEIGHTFS_FORMATS_BASE_BYTE_READER_H_
#define WEIGHTFS_FORMATS_BASE_BYTE_READER_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "formats/base/result.h"

namespace weightfs {

static_assert(std::endian::native == std::endian::little,
              "weightfs runs on little-endian machines");

class ByteReader {
 public:
  // `format` names the format in errors ("safetensors").
  ByteReader(std::string_view format, std::span<const std::byte> bytes)
      : format_(format), bytes_(bytes) {}

  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }

  // An integer or float, little-endian.
  template <class T>
  requires std::is_arithmetic_v<T> Result<T> Read(std::string_view field) {
    RETURN_IF_ERROR(Need(field, sizeof(T)));
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  // The next `length` bytes, borrowed.
  Result<std::span<const std::byte>> Bytes(std::string_view field,
                                           uint64_t length);
  Result<std::string_view> String(std::string_view field, uint64_t length);
  Result<> Skip(std::string_view field, uint64_t length);

 private:
  Result<> Need(std::string_view field, uint64_t length) const;

  const std::string_view format_;
  const std::span<const std::byte> bytes_;
  size_t offset_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_BYTE_READER_H_
