// What reading a GGUF header costs: round trips, bytes, memory.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "formats/gguf.h"
#include "formats/read_window.h"
#include "tests/formats/format_testing.h"
#include "tests/formats/gguf_testing.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

// `head`, and then zeros up to `size`; notes each read.
class ZerosBehind final : public ByteSource {
 public:
  ZerosBehind(std::string head, uint64_t size)
      : head_(std::move(head)), size_(size) {}

  uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    reads_.emplace_back(offset, out.size());
    std::fill(out.begin(), out.end(), std::byte{0});
    if (offset < head_.size()) {
      const size_t take = std::min<size_t>(out.size(), head_.size() - offset);
      std::memcpy(out.data(), head_.data() + offset, take);
    }
    return {};
  }
  const std::vector<std::pair<uint64_t, uint64_t>>& reads() const {
    return reads_;
  }
  uint64_t bytes_read() const {
    uint64_t bytes = 0;
    for (const auto& read : reads_) bytes += read.second;
    return bytes;
  }

 private:
  const std::string head_;
  const uint64_t size_;
  const std::string name_ = "zeros";
  std::vector<std::pair<uint64_t, uint64_t>> reads_;
};

// Strings as a tokenizer has them: short ones first.
std::string Vocabulary(uint64_t count) {
  std::string items;
  for (uint64_t i = 0; i < count; ++i) {
    items += GgufText(std::string(2 + i * 10 / count, 't'));
  }
  return GgufArray(gguf::kString, count, items);
}

std::string ModelWithVocabulary(uint64_t count) {
  GgufBuilder builder;
  builder.Pair("general.architecture", gguf::kString, GgufText("llama"))
      .Pair("tokenizer.ggml.tokens", gguf::kArray, Vocabulary(count))
      .Pair("tokenizer.ggml.scores", gguf::kArray,
            GgufArray(gguf::kF32, count, std::string(4 * count, '\0')))
      .Pair("tokenizer.ggml.merges", gguf::kArray, Vocabulary(2 * count));
  for (uint64_t i = 0; i < 300; ++i) {
    builder.Tensor(fmt::format("blk.{}.attn_output.weight", i), {8}, 24,
                   i * 32);
  }
  return builder.Data(std::string(300 * 32, 'x')).Build();
}

TEST(GgufReadsTest, ASmallFileIsReadOnce) {
  RecordingSource source("f", ModelWithVocabulary(100));
  ASSERT_OK(ReadGguf(source));
  EXPECT_THAT(source.reads(), ElementsAre(Pair(0U, source.size())));
}

TEST(GgufReadsTest, AHeaderInTheProbeCostsOneRead) {
  ZerosBehind source(ModelWithVocabulary(3000), uint64_t{1} << 35);
  ASSERT_OK(ReadGguf(source));
  EXPECT_THAT(source.reads(), ElementsAre(Pair(0U, kGgufProbe)));
}

// 32,000 tokens, as Llama 2 has; 128,256, as Llama 3; 262,144, as Gemma 3.
TEST(GgufReadsTest, AVocabularyCostsAFewReads) {
  for (const auto& [count, most] :
       {std::pair(32'000U, 3U), {128'256U, 4U}, {262'144U, 4U}}) {
    const std::string file = ModelWithVocabulary(count);
    ZerosBehind source(file, uint64_t{1} << 35);
    auto index = ReadGguf(source);
    ASSERT_OK(index);
    EXPECT_EQ(index->metadata().at("tokenizer.ggml.tokens"),
              fmt::format("[{} strings]", count));
    EXPECT_THAT(index->tensors(), SizeIs(300));
    EXPECT_LE(source.reads().size(), most) << count;
    EXPECT_LE(source.bytes_read(), file.size() * 2) << count;
    for (const auto& read : source.reads()) {
      EXPECT_LE(read.second, kMaxGgufRead);
    }
  }
}

TEST(GgufReadsTest, ALongArrayOfNumbersIsNotFetched) {
  const uint64_t count = 10 << 20;
  GgufBuilder builder;
  builder
      .Pair("big", gguf::kArray,
            GgufArray(gguf::kF32, count, std::string(4 * count, '\0')))
      .Pair("string", gguf::kString, GgufText(std::string(20 << 20, 's')))
      .Tensor("t", {8}, 24, 0)
      .Data(std::string(8, 'x'));
  RecordingSource source("f", builder.Build());
  auto index = ReadGguf(source);
  ASSERT_OK(index);
  EXPECT_EQ(index->metadata().at("big"), "[10485760 f32]");
  EXPECT_EQ(index->metadata().at("string"), "[20971520 bytes]");
  EXPECT_LE(source.reads().size(), 3U);
  uint64_t bytes = 0;
  for (const auto& read : source.reads()) bytes += read.second;
  EXPECT_LE(bytes, 4U << 20);
}

TEST(GgufReadsTest, AReadErrorIsPassedOn) {
  const std::string file = ModelWithVocabulary(32'000);
  for (const size_t k : {1, 2}) {
    RecordingSource source("f", file);
    source.FailRead(k);
    const auto index = ReadGguf(source);
    EXPECT_THAT(index, HasCode(Code::kUnavailable));
    EXPECT_THAT(index, HasMessage(HasSubstr("planned failure")));
  }
}

TEST(GgufReadsTest, AHeaderPastTheLimitIsRefusedUnread) {
  const uint64_t size = uint64_t{1} << 40;
  ZerosBehind array(
      GgufBuilder()
          .Pair("k", gguf::kArray, GgufArray(gguf::kU8, kMaxGgufHeader, ""))
          .Build(),
      size);
  EXPECT_THAT(ReadGguf(array), HasCode(Code::kUnsupported));
  EXPECT_THAT(array.reads(), SizeIs(1));
  ZerosBehind string(
      GgufBuilder().Pair("k", gguf::kString, Le(kMaxGgufHeader)).Build(), size);
  EXPECT_THAT(ReadGguf(string),
              HasMessage(HasSubstr("268435456 of a header are read")));
  EXPECT_THAT(string.reads(), SizeIs(1));
}

// Empty strings without end: each costs 8 bytes of the header's limit.
TEST(GgufReadsTest, HostileArraysCostNoMoreThanTheLimit) {
  ZerosBehind source(GgufBuilder()
                         .Pair("k", gguf::kArray,
                               GgufArray(gguf::kString, uint64_t{1} << 36, ""))
                         .Build(),
                     uint64_t{1} << 40);
  EXPECT_THAT(ReadGguf(source), HasCode(Code::kUnsupported));
  EXPECT_LE(source.bytes_read(), kMaxGgufHeader);
  EXPECT_LE(source.reads().size(), 40U);
}

TEST(ReadWindowTest, TakesSkipsAndGrows) {
  const std::string bytes = PatternBytes(1000);
  RecordingSource source("f", bytes);
  ReadWindow window("X", source, {.first = 10, .most = 40, .end = 900});
  const auto take = [&](uint64_t length) {
    auto taken = window.Take("field", length);
    EXPECT_OK(taken);
    return ToString(*taken);
  };
  EXPECT_EQ(take(4), bytes.substr(0, 4));
  EXPECT_EQ(take(6), bytes.substr(4, 6));
  EXPECT_EQ(take(5), bytes.substr(10, 5));
  ASSERT_OK(window.Skip("field", 12));  // in the buffer
  EXPECT_EQ(take(6), bytes.substr(27, 6));
  ASSERT_OK(window.Skip("field", 500));  // past it
  EXPECT_EQ(window.offset(), 533U);
  EXPECT_EQ(take(1), bytes.substr(533, 1));
  window.Expect(35);
  EXPECT_EQ(take(40), bytes.substr(534, 40));
  // 10, 20, then 40: with the 3 and the 39 that were left.
  EXPECT_THAT(source.reads(),
              ElementsAre(Pair(0U, 10U), Pair(10U, 20U), Pair(30U, 37U),
                          Pair(533U, 40U), Pair(573U, 1U)));
  ASSERT_OK(window.Skip("field", 324));
  EXPECT_EQ(take(2), bytes.substr(898, 2));
  EXPECT_THAT(window.Take("field", 1), HasCode(Code::kUnsupported));
  EXPECT_THAT(window.Skip("field", 1), HasCode(Code::kUnsupported));
  EXPECT_THAT(window.Take("field", 101),
              HasMessage("X: field at byte 900 needs 101 bytes, the file has "
                         "1000"));
  EXPECT_THAT(window.Skip("field", UINT64_MAX), HasCode(Code::kCorrupt));
}

}  // namespace
}  // namespace weightfs
