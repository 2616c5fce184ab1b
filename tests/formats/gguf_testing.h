// Makes GGUF files byte by byte, well-formed or not, for tests.

#ifndef WEIGHTFS_TESTS_FORMATS_GGUF_TESTING_H_
#define WEIGHTFS_TESTS_FORMATS_GGUF_TESTING_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/checked.h"
#include "tests/formats/format_testing.h"

namespace weightfs {

// A number's bytes, little-endian.
template <class T>
std::string Le(T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

// A string with its length before it.
inline std::string GgufText(std::string_view text) {
  return Le<uint64_t>(text.size()) + std::string(text);
}

// An array's value: item type, count, items.
inline std::string GgufArray(uint32_t type, uint64_t count,
                             std::string_view items) {
  return Le(type) + Le(count) + std::string(items);
}

// The numbers of the types of values.
namespace gguf {
inline constexpr uint32_t kU8 = 0;
inline constexpr uint32_t kI8 = 1;
inline constexpr uint32_t kU16 = 2;
inline constexpr uint32_t kI16 = 3;
inline constexpr uint32_t kU32 = 4;
inline constexpr uint32_t kI32 = 5;
inline constexpr uint32_t kF32 = 6;
inline constexpr uint32_t kBool = 7;
inline constexpr uint32_t kString = 8;
inline constexpr uint32_t kArray = 9;
inline constexpr uint32_t kU64 = 10;
inline constexpr uint32_t kI64 = 11;
inline constexpr uint32_t kF64 = 12;
}  // namespace gguf

class GgufBuilder {
 public:
  GgufBuilder& Version(uint32_t version) {
    version_ = version;
    return *this;
  }
  // Pads the start of the data; does not write the pair that says so.
  GgufBuilder& PadTo(uint64_t alignment) {
    alignment_ = alignment;
    return *this;
  }
  // Counts that are not true.
  GgufBuilder& Claim(uint64_t tensors, uint64_t pairs) {
    tensor_count_ = tensors - descriptions_;
    pair_count_ = pairs - pairs_;
    return *this;
  }
  GgufBuilder& Pair(std::string_view key, uint32_t type,
                    std::string_view value) {
    ++pairs_;
    pair_bytes_ += GgufText(key) + Le(type) + std::string(value);
    return *this;
  }
  // `ne` in the file's order, the innermost first.
  GgufBuilder& Tensor(std::string_view name, const std::vector<uint64_t>& ne,
                      uint32_t type, uint64_t offset) {
    ++descriptions_;
    tensor_bytes_ += GgufText(name) + Le(static_cast<uint32_t>(ne.size()));
    for (const uint64_t dim : ne) tensor_bytes_ += Le(dim);
    tensor_bytes_ += Le(type) + Le(offset);
    return *this;
  }
  GgufBuilder& Data(std::string_view data) {
    data_ = data;
    return *this;
  }

  // Where the data starts.
  uint64_t DataStart() const { return AlignUp(Header().size(), alignment_); }
  std::string Build() const {
    std::string file = Header();
    if (data_.empty() && descriptions_ == 0) return file;
    file.resize(DataStart());
    return file + data_;
  }

 private:
  std::string Header() const {
    return "GGUF" + Le(version_) + Le(descriptions_ + tensor_count_) +
           Le(pairs_ + pair_count_) + pair_bytes_ + tensor_bytes_;
  }

  uint32_t version_ = 3;
  uint64_t alignment_ = 32;
  uint64_t descriptions_ = 0;
  uint64_t pairs_ = 0;
  uint64_t tensor_count_ = 0;  // claimed beyond what is there
  uint64_t pair_count_ = 0;
  std::string pair_bytes_;
  std::string tensor_bytes_;
  std::string data_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_FORMATS_GGUF_TESTING_H_
