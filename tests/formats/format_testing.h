// Helpers for the tests of formats/: bytes, sources that count, small files.

#ifndef WEIGHTFS_TESTS_FORMATS_FORMAT_TESTING_H_
#define WEIGHTFS_TESTS_FORMATS_FORMAT_TESTING_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/segment.h"
#include "formats/view/virtual_file.h"
#include "tests/support/matchers.h"

namespace weightfs {

inline std::vector<std::byte> ToBytes(std::string_view text) {
  std::vector<std::byte> bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

inline std::string ToString(std::span<const std::byte> bytes) {
  std::string text(bytes.size(), '\0');
  if (!bytes.empty()) std::memcpy(text.data(), bytes.data(), bytes.size());
  return text;
}

// Bytes that differ from their neighbours.
inline std::string PatternBytes(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    text[i] = static_cast<char>((i * 131 + i / 251) & 0xff);
  }
  return text;
}

inline std::string ReadFileOrDie(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  return {std::istreambuf_iterator<char>(stream), {}};
}

// A source that notes each read and can fail the k-th.
class RecordingSource final : public ByteSource {
 public:
  RecordingSource(std::string name, std::string_view bytes)
      : source_(std::move(name), ToBytes(bytes)) {}

  void FailRead(size_t k) { failing_ = k; }
  const std::vector<std::pair<uint64_t, uint64_t>>& reads() const {
    return reads_;
  }

  uint64_t size() const override { return source_.size(); }
  const std::string& name() const override { return source_.name(); }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    reads_.emplace_back(offset, out.size());
    if (reads_.size() == failing_) {
      return MakeError(Code::kUnavailable, "planned failure");
    }
    return source_.ReadAt(offset, out);
  }

 private:
  MemorySource source_;
  std::vector<std::pair<uint64_t, uint64_t>> reads_;
  size_t failing_ = 0;  // 0: none
};

// N, `header`, `data`.
inline std::string SafetensorsBytes(std::string_view header,
                                    std::string_view data) {
  const uint64_t length = header.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  file += header;
  file += data;
  return file;
}

// The whole file that `segments` make over one source.
inline std::string Materialise(const std::vector<Segment>& segments,
                               std::string_view source_bytes) {
  auto file = VirtualFile::Create(segments);
  if (!file.has_value()) {
    ADD_FAILURE() << file.error().ToString();
    return {};
  }
  MemorySource source("source", ToBytes(source_bytes));
  ByteSource* const objects[] = {&source};
  std::vector<std::byte> out(file->size());
  EXPECT_OK(ReadVirtual(*file, objects, 0, out));
  return ToString(out);
}

inline std::string FromHex(std::string_view hex) {
  std::string bytes;
  const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(digit(hex[i]) * 16 + digit(hex[i + 1]));
  }
  return bytes;
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_FORMATS_FORMAT_TESTING_H_
