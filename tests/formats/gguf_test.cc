#include "formats/gguf.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "formats/shards.h"
#include "tests/formats/format_testing.h"
#include "tests/formats/gguf_testing.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr uint32_t kTypeF32 = 0;
constexpr uint32_t kTypeQ40 = 2;
constexpr uint32_t kTypeI8 = 24;

Result<TensorIndex> ReadBuilt(const std::string& file) {
  MemorySource source("dir/model.gguf", ToBytes(file));
  return ReadGguf(source);
}

Result<TensorIndex> ReadBuilt(const GgufBuilder& builder) {
  return ReadBuilt(builder.Build());
}

std::vector<std::string> NamesInFileOrder(const TensorIndex& index) {
  std::vector<std::string> names;
  for (const uint32_t i : index.InFileOrder()) {
    EXPECT_EQ(index.tensors()[i].order, names.size());
    names.push_back(index.tensors()[i].name);
  }
  return names;
}

// Two tensors as ggml lays them out, and two pairs.
GgufBuilder SmallGguf() {
  GgufBuilder builder;
  builder.Pair("general.architecture", gguf::kString, GgufText("llama"))
      .Pair("llama.block_count", gguf::kU32, Le<uint32_t>(32))
      .Tensor("token_embd.weight", {3, 2}, kTypeF32, 0)
      .Tensor("blk.0.attn_q.weight", {64, 2, 1}, kTypeQ40, 32)
      .Data(PatternBytes(32 + 4 * 18));
  return builder;
}

TEST(GgufTest, ReadsNamesTypesShapesAndPlaces) {
  auto index = ReadBuilt(SmallGguf());
  ASSERT_OK(index);
  EXPECT_THAT(index->objects(), ElementsAre("dir/model.gguf"));
  EXPECT_THAT(index->metadata(),
              ElementsAre(Pair("general.architecture", "llama"),
                          Pair("llama.block_count", "32")));
  EXPECT_THAT(NamesInFileOrder(*index),
              ElementsAre("token_embd.weight", "blk.0.attn_q.weight"));
  const uint64_t start = SmallGguf().DataStart();
  const TensorInfo* embedding = index->Find("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->dtype, DType::kF32);
  EXPECT_THAT(embedding->shape, ElementsAre(2U, 3U));  // ne reversed
  EXPECT_TRUE(embedding->dense());
  EXPECT_THAT(embedding->data, ElementsAre(SourceRange{0, start, 24}));
  const TensorInfo* query = index->Find("blk.0.attn_q.weight");
  ASSERT_NE(query, nullptr);
  EXPECT_EQ(query->dtype, DType::kQ40);
  EXPECT_THAT(query->shape, ElementsAre(1U, 2U, 64U));
  EXPECT_THAT(query->data, ElementsAre(SourceRange{0, start + 32, 72}));
  EXPECT_NE(query->storage_id, embedding->storage_id);
}

TEST(GgufTest, Version2IsReadAsVersion3) {
  auto index = ReadBuilt(SmallGguf().Version(2));
  ASSERT_OK(index);
  EXPECT_THAT(index->tensors(), SizeIs(2));
}

TEST(GgufTest, AFileOfNothingIsFine) {
  auto index = ReadBuilt(GgufBuilder());
  ASSERT_OK(index);
  EXPECT_THAT(index->tensors(), IsEmpty());
  EXPECT_THAT(index->metadata(), IsEmpty());
}

// Numbers, names and sizes as ggml's headers have them: formats/gguf.md.
TEST(GgufTest, ReadsEveryType) {
  struct Row {
    uint32_t id;
    std::string_view name;
    uint64_t elements;
    uint64_t bytes;
  };
  const std::vector<Row> rows = {
      {0, "F32", 1, 4},         {1, "F16", 1, 2},
      {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},
      {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},
      {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
      {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},
      {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
      {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
      {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
      {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136},
      {24, "I8", 1, 1},         {25, "I16", 1, 2},
      {26, "I32", 1, 4},        {27, "I64", 1, 8},
      {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
      {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
      {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
      {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18},
      {42, "Q2_0", 64, 18}};
  GgufBuilder builder;
  std::string data;
  for (const Row& row : rows) {
    builder.Tensor(row.name, {row.elements, 3}, row.id, data.size());
    data.resize(AlignUp(data.size() + 3 * row.bytes, 32), 'x');
  }
  auto index = ReadBuilt(builder.Data(data));
  ASSERT_OK(index);
  ASSERT_THAT(index->tensors(), SizeIs(rows.size()));
  for (const Row& row : rows) {
    const TensorInfo* tensor = index->Find(row.name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(DTypeName(tensor->dtype), row.name);
    EXPECT_THAT(tensor->shape, ElementsAre(3U, row.elements));
    EXPECT_EQ(tensor->data.at(0).length, 3 * row.bytes) << row.name;
  }
}

TEST(GgufTest, ScalarsAndTensorsOfNoBytes) {
  GgufBuilder builder;
  builder.Tensor("scalar", {}, kTypeF32, 0)
      .Tensor("none", {0, 5}, kTypeF32, 32)
      .Tensor("no blocks", {32, 0}, kTypeQ40, 32)
      .Tensor("one", {1}, kTypeI8, 32)
      .Data(std::string(33, 'x'));
  auto index = ReadBuilt(builder);
  ASSERT_OK(index);
  EXPECT_THAT(index->Find("scalar")->shape, IsEmpty());
  EXPECT_EQ(index->Find("scalar")->data.at(0).length, 4U);
  EXPECT_THAT(index->Find("none")->shape, ElementsAre(5U, 0U));
  EXPECT_THAT(index->Find("none")->data, IsEmpty());
  EXPECT_THAT(index->Find("no blocks")->data, IsEmpty());
  EXPECT_THAT(NamesInFileOrder(*index),
              ElementsAre("scalar", "none", "no blocks", "one"));
}

// ggml insists on its own order without holes; the bytes are as clear here.
TEST(GgufTest, OffsetsMayComeInAnyOrderAndLeaveHoles) {
  GgufBuilder builder;
  builder.Tensor("last", {4}, kTypeI8, 96)
      .Tensor("first", {4}, kTypeI8, 32)
      .Data(std::string(300, 'x'));
  auto index = ReadBuilt(builder);
  ASSERT_OK(index);
  EXPECT_THAT(NamesInFileOrder(*index), ElementsAre("first", "last"));
  EXPECT_EQ(index->Find("last")->data.at(0).offset, builder.DataStart() + 96);
}

TEST(GgufTest, NamesMayHoldAnyBytes) {
  const std::string odd("\xff/../\0\n", 7);
  GgufBuilder builder;
  builder.Tensor("", {1}, kTypeI8, 0)
      .Tensor(odd, {1}, kTypeI8, 32)
      .Tensor(std::string(kMaxGgufName, 'n'), {1}, kTypeI8, 64)
      .Data(std::string(65, 'x'));
  auto index = ReadBuilt(builder);
  ASSERT_OK(index);
  EXPECT_NE(index->Find(""), nullptr);
  EXPECT_NE(index->Find(odd), nullptr);
}

TEST(GgufTest, TheAlignmentIsTheFiles) {
  for (const uint32_t alignment : {1U, 8U, 64U, 4096U}) {
    GgufBuilder builder;
    builder.Pair("general.alignment", gguf::kU32, Le(alignment))
        .PadTo(alignment)
        .Tensor("a", {1}, kTypeI8, 0)
        .Tensor("b", {1}, kTypeI8, alignment)
        .Data(std::string(alignment + 1, 'x'));
    auto index = ReadBuilt(builder);
    ASSERT_OK(index);
    EXPECT_EQ(index->Find("a")->data.at(0).offset, builder.DataStart());
    EXPECT_EQ(index->Find("b")->data.at(0).offset,
              builder.DataStart() + alignment);
    EXPECT_THAT(
        index->metadata(),
        ElementsAre(Pair("general.alignment", fmt::format("{}", alignment))));
  }
}

Result<std::string> Shown(uint32_t type, std::string_view value) {
  ASSIGN_OR_RETURN(const auto index,
                   ReadBuilt(GgufBuilder().Pair("key", type, value)));
  const auto found = index.metadata().find("key");
  return found == index.metadata().end() ? "(left out)" : found->second;
}

TEST(GgufMetadataTest, ScalarsAreJson) {
  EXPECT_THAT(Shown(gguf::kU8, Le<uint8_t>(200)), IsOkAndHolds("200"));
  EXPECT_THAT(Shown(gguf::kI8, Le<int8_t>(-100)), IsOkAndHolds("-100"));
  EXPECT_THAT(Shown(gguf::kU16, Le<uint16_t>(65535)), IsOkAndHolds("65535"));
  EXPECT_THAT(Shown(gguf::kI16, Le<int16_t>(-5)), IsOkAndHolds("-5"));
  EXPECT_THAT(Shown(gguf::kU32, Le(UINT32_MAX)), IsOkAndHolds("4294967295"));
  EXPECT_THAT(Shown(gguf::kI32, Le<int32_t>(-1)), IsOkAndHolds("-1"));
  EXPECT_THAT(Shown(gguf::kU64, Le(UINT64_MAX)),
              IsOkAndHolds("18446744073709551615"));
  EXPECT_THAT(Shown(gguf::kI64, Le(INT64_MIN)),
              IsOkAndHolds("-9223372036854775808"));
  EXPECT_THAT(Shown(gguf::kF32, Le(1e-5F)), IsOkAndHolds("1e-05"));
  EXPECT_THAT(Shown(gguf::kF64, Le(0.1)), IsOkAndHolds("0.1"));
  EXPECT_THAT(Shown(gguf::kF32, Le(std::nanf(""))), IsOkAndHolds("NaN"));
  EXPECT_THAT(Shown(gguf::kF64, Le(-std::numeric_limits<double>::infinity())),
              IsOkAndHolds("-Infinity"));
  EXPECT_THAT(Shown(gguf::kBool, std::string(1, '\0')), IsOkAndHolds("false"));
  EXPECT_THAT(Shown(gguf::kBool, "\x01"), IsOkAndHolds("true"));
  EXPECT_THAT(Shown(gguf::kBool, "\xff"), IsOkAndHolds("true"));  // as ggml
}

TEST(GgufMetadataTest, StringsAreAsTheyAre) {
  EXPECT_THAT(Shown(gguf::kString, GgufText("")), IsOkAndHolds(""));
  EXPECT_THAT(Shown(gguf::kString, GgufText("a \"b\"\né")),
              IsOkAndHolds("a \"b\"\né"));
  EXPECT_THAT(Shown(gguf::kString, GgufText("\xff")),
              IsOkAndHolds("[1 bytes]"));
  const std::string most(kMaxGgufShownString, 's');
  EXPECT_THAT(Shown(gguf::kString, GgufText(most)), IsOkAndHolds(most));
  EXPECT_THAT(Shown(gguf::kString, GgufText(most + "s")),
              IsOkAndHolds("[65537 bytes]"));
}

TEST(GgufMetadataTest, ShortArraysAreJsonAndLongOnesCounted) {
  const auto array = [](uint32_t type, uint64_t count, std::string_view items) {
    return Shown(gguf::kArray, GgufArray(type, count, items));
  };
  EXPECT_THAT(array(gguf::kU8, 0, ""), IsOkAndHolds("[]"));
  EXPECT_THAT(array(gguf::kI16, 2, Le<int16_t>(-1) + Le<int16_t>(7)),
              IsOkAndHolds("[-1,7]"));
  EXPECT_THAT(array(gguf::kBool, 3, std::string("\0\1\2", 3)),
              IsOkAndHolds("[false,true,true]"));
  EXPECT_THAT(array(gguf::kString, 2, GgufText("a\"\n") + GgufText("")),
              IsOkAndHolds(R"(["a\"\n",""])"));
  EXPECT_THAT(array(gguf::kString, 2, GgufText("\xff") + GgufText("")),
              IsOkAndHolds("[2 strings]"));
  EXPECT_THAT(array(gguf::kF32, 16, std::string(64, '\0')),
              IsOkAndHolds("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"));
  EXPECT_THAT(array(gguf::kF32, 17, std::string(68, '\0')),
              IsOkAndHolds("[17 f32]"));
  std::string strings;
  for (int i = 0; i < 17; ++i) strings += GgufText("token");
  EXPECT_THAT(array(gguf::kString, 17, strings), IsOkAndHolds("[17 strings]"));
  const std::string half = GgufText(std::string(kMaxGgufShownString / 2, 's'));
  EXPECT_THAT(array(gguf::kString, 2, half + half),
              IsOkAndHolds("[2 strings]"));
}

TEST(GgufMetadataTest, IsBoundedInAll) {
  GgufBuilder builder;
  const std::string text(kMaxGgufShownString, 's');
  for (int i = 0; i < 40; ++i) {
    builder.Pair(fmt::format("{:02}", i), gguf::kString, GgufText(text));
  }
  builder.Pair("small", gguf::kU8, "\x05").Pair("\xff", gguf::kU8, "\x05");
  auto index = ReadBuilt(builder);
  ASSERT_OK(index);
  size_t bytes = 0;
  for (const auto& [key, value] : index->metadata()) {
    bytes += key.size() + value.size();
  }
  EXPECT_LE(bytes, kMaxGgufShown);
  EXPECT_GT(bytes, kMaxGgufShown - text.size() - 10);
  // What is small still finds room; a key that is no UTF-8 is left out.
  EXPECT_EQ(index->metadata().count("small"), 1U);
  EXPECT_EQ(index->metadata().count("\xff"), 0U);
}

// As llama.cpp's gguf-split makes them: all pairs in the first file, which may
// have no tensors.
TEST(GgufSplitTest, ShardsMerge) {
  std::vector<Shard> shards;
  for (uint16_t i = 0; i < 3; ++i) {
    GgufBuilder builder;
    if (i == 0) {
      builder.Pair("general.architecture", gguf::kString, GgufText("llama"));
    }
    builder.Pair("split.no", gguf::kU16, Le(i))
        .Pair("split.count", gguf::kU16, Le<uint16_t>(3))
        .Pair("split.tensors.count", gguf::kI32, Le<int32_t>(2));
    if (i > 0) {
      builder.Tensor(fmt::format("t{}", i), {8}, kTypeI8, 0)
          .Data(std::string(8, 'x'));
    }
    const std::string name = fmt::format("m-{:05}-of-00003.gguf", i + 1);
    const auto parsed = ParseShardName(name);
    ASSERT_TRUE(parsed.has_value());
    EXPECT_EQ(parsed->unsharded, "m.gguf");
    MemorySource source(name, ToBytes(builder.Build()));
    auto index = ReadGguf(source);
    ASSERT_OK(index);
    EXPECT_EQ(index->metadata().at("split.no"), fmt::format("{}", i));
    EXPECT_EQ(index->metadata().at("split.count"), "3");
    EXPECT_EQ(index->metadata().at("split.tensors.count"), "2");
    shards.push_back(
        {name, std::make_shared<const TensorIndex>(std::move(*index))});
  }
  auto merged = MergeShards(shards, nullptr, "");
  ASSERT_OK(merged);
  EXPECT_THAT(merged->problems, IsEmpty());
  EXPECT_THAT(NamesInFileOrder(merged->index), ElementsAre("t1", "t2"));
  EXPECT_EQ(merged->index.Find("t2")->data.at(0).object, 2U);
  EXPECT_EQ(merged->index.metadata().at("general.architecture"), "llama");
}

struct GgufMalformation {
  std::string what;
  std::string file;
  Code code;
  std::string message;  // a part of it
};

class GgufMalformationTest : public ::testing::TestWithParam<GgufMalformation> {
};

TEST_P(GgufMalformationTest, IsRefused) {
  const auto index = ReadBuilt(GetParam().file);
  EXPECT_THAT(index, HasCode(GetParam().code));
  EXPECT_THAT(index, HasMessage(AllOf(StartsWith("dir/model.gguf: "),
                                      HasSubstr(GetParam().message))));
}

// One pair "k"; `more` bytes behind it.
std::string OnePair(uint32_t type, std::string_view value, size_t more = 0) {
  return GgufBuilder().Pair("k", type, value).Build() + std::string(more, 'x');
}

std::string Aligned(uint32_t type, std::string_view value) {
  return GgufBuilder().Pair("general.alignment", type, value).Build();
}

// One tensor "t" before 64 bytes of data.
std::string OneTensor(const std::vector<uint64_t>& ne, uint32_t type,
                      uint64_t offset = 0) {
  return GgufBuilder()
      .Tensor("t", ne, type, offset)
      .Data(std::string(64, 'x'))
      .Build();
}

std::string TwoTensors(uint64_t a, uint64_t b) {
  return GgufBuilder()
      .Tensor("a", {33}, kTypeI8, a)
      .Tensor("b", {16}, kTypeI8, b)
      .Data(std::string(128, 'x'))
      .Build();
}

std::vector<GgufMalformation> PreambleMalformations() {
  const Code corrupt = Code::kCorrupt;
  const Code unsupported = Code::kUnsupported;
  const std::string zeros(100, '\0');
  return {
      {"EmptyFile", "", corrupt, "magic"},
      {"ThreeBytes", "GGU", corrupt, "magic"},
      {"AnotherMagic", "GGML" + zeros, corrupt, "magic: \"GGML\""},
      {"MagicBackwards", "FUGG" + zeros, corrupt, "magic"},
      {"NoVersion", "GGUF", corrupt, "version"},
      {"Version0", GgufBuilder().Version(0).Build(), corrupt, "version: is 0"},
      {"Version1", GgufBuilder().Version(1).Build(), unsupported,
       "version: 1, 2 and 3 are read"},
      {"Version4", GgufBuilder().Version(4).Build(), unsupported, "version: 4"},
      {"BigEndian3", GgufBuilder().Version(0x03000000).Build(), unsupported,
       "big-endian"},
      {"BigEndian2", GgufBuilder().Version(0x02000000).Build(), unsupported,
       "big-endian"},
      {"NoCounts", "GGUF" + Le<uint32_t>(3), corrupt, "tensor count"},
      {"NoPairCount", "GGUF" + Le<uint32_t>(3) + Le<uint64_t>(0), corrupt,
       "pair count"},
      {"TensorCountOf2To64", GgufBuilder().Claim(UINT64_MAX, 0).Build(),
       corrupt, "tensor count: 18446744073709551615 do not fit"},
      {"TensorCountOneTooMany", GgufBuilder().Claim(5, 0).Build() + zeros,
       corrupt, "tensor count: 5 do not fit"},
      {"PairCountOf2To64", GgufBuilder().Claim(0, UINT64_MAX).Build(), corrupt,
       "pair count: 18446744073709551615 do not fit"},
      {"PairCountOneTooMany", GgufBuilder().Claim(0, 8).Build() + zeros,
       corrupt, "pair count: 8 do not fit"},
      {"TooManyPairs",
       GgufBuilder().Claim(0, kMaxGgufPairs + 1).Build() +
           std::string(14 * (kMaxGgufPairs + 1), '\0'),
       unsupported, "pair count: 16385, at most 16384"},
      {"TooManyTensors",
       GgufBuilder().Claim(kMaxGgufTensors + 1, 0).Build() +
           std::string(24 * (kMaxGgufTensors + 1), '\0'),
       unsupported, "tensor count: 1048577, at most 1048576"},
  };
}

std::vector<GgufMalformation> PairMalformations() {
  const Code corrupt = Code::kCorrupt;
  const Code unsupported = Code::kUnsupported;
  const std::string claimed = GgufBuilder().Claim(0, 1).Build();
  const std::string zeros(100, '\0');
  const auto array = [](uint32_t type, uint64_t count,
                        std::string_view items = "", size_t more = 0) {
    return OnePair(gguf::kArray, GgufArray(type, count, items), more);
  };
  return {
      {"KeyOf2To64", claimed + Le(UINT64_MAX) + zeros, corrupt, "key: 184467"},
      {"KeyThatWraps", claimed + Le(UINT64_MAX - 31) + zeros, corrupt, "key"},
      {"KeyPastTheEnd", claimed + Le<uint64_t>(101) + zeros, corrupt,
       "key: 101 bytes at byte 32 do not fit a file of 132"},
      {"KeyEmpty", GgufBuilder().Pair("", gguf::kU64, zeros).Build(), corrupt,
       "key: is empty"},
      {"KeyTooLong",
       GgufBuilder()
           .Pair(std::string(kMaxGgufKey + 1, 'k'), gguf::kU8, "1")
           .Build(),
       unsupported, "key: 4097 bytes, at most 4096"},
      {"KeyTwice",
       GgufBuilder()
           .Pair("k", gguf::kU8, "1")
           .Pair("k", gguf::kString, GgufText("x"))
           .Build(),
       corrupt, "pair \"k\": key: comes twice"},
      {"ValueTypeUnknown", OnePair(13, zeros), corrupt,
       "pair \"k\": type: 13 is not known"},
      {"ValueTypeNegative", OnePair(UINT32_MAX, zeros), corrupt, "type: 4294"},
      {"ValueMissing", OnePair(gguf::kU32, "1"), corrupt, "value at byte 37"},
      {"StringOf2To64", OnePair(gguf::kString, Le(UINT64_MAX), 50), corrupt,
       "pair \"k\": value: 18446744073709551615 bytes"},
      {"StringPastTheEnd", OnePair(gguf::kString, Le<uint64_t>(51), 50),
       corrupt, "value: 51 bytes"},
      {"ArrayWithoutCount", OnePair(gguf::kArray, Le(gguf::kU8)), corrupt,
       "item count"},
      {"ArrayTypeUnknown", array(13, 1, zeros), corrupt, "item type: 13"},
      {"ArrayOfArrays", array(gguf::kArray, 1, GgufArray(gguf::kU8, 1, "1")),
       unsupported, "item type: arrays of arrays"},
      {"ArrayOfNoArrays", array(gguf::kArray, 0), unsupported, "item type"},
      {"ArrayOf2To64", array(gguf::kU8, UINT64_MAX, "", 50), corrupt,
       "item count: 18446744073709551615 u8 do not fit"},
      {"ArrayThatWraps", array(gguf::kU64, uint64_t{1} << 61, "", 50), corrupt,
       "item count"},
      {"ArrayOneTooMany", array(gguf::kU16, 26, "", 51), corrupt,
       "item count: 26 u16"},
      {"StringsThatWrap", array(gguf::kString, uint64_t{1} << 61, "", 50),
       corrupt, "item count"},
      {"StringsOneTooMany", array(gguf::kString, 7, "", 55), corrupt,
       "item count: 7 strings do not fit"},
      {"StringInArrayOf2To64", array(gguf::kString, 1, Le(UINT64_MAX), 50),
       corrupt, "item: 18446744073709551615 bytes"},
      {"StringInLongArrayPastTheEnd",
       array(gguf::kString, 17, Le<uint64_t>(200), 180), corrupt,
       "item: 200 bytes"},
      {"AlignmentZero", Aligned(gguf::kU32, Le<uint32_t>(0)), corrupt,
       "pair \"general.alignment\": value: 0 is no power of two"},
      {"Alignment24", Aligned(gguf::kU32, Le<uint32_t>(24)), corrupt,
       "24 is no power of two"},
      {"AlignmentOfAnotherType", Aligned(gguf::kU64, Le<uint64_t>(32)), corrupt,
       "type: is u64, must be u32"},
      {"AlignmentString", Aligned(gguf::kString, GgufText("32")), corrupt,
       "type: is strings, must be u32"},
  };
}

std::vector<GgufMalformation> TensorMalformations() {
  const Code corrupt = Code::kCorrupt;
  const Code unsupported = Code::kUnsupported;
  const std::string claimed = GgufBuilder().Claim(1, 0).Build();
  const std::string zeros(100, '\0');
  const uint64_t negative = uint64_t{1} << 63;
  return {
      {"NameOf2To64", claimed + Le(UINT64_MAX) + zeros, corrupt,
       "tensor name: 184467"},
      {"NamePastTheEnd", claimed + Le<uint64_t>(101) + zeros, corrupt,
       "tensor name: 101 bytes"},
      {"NameTooLong",
       GgufBuilder()
           .Tensor(std::string(kMaxGgufName + 1, 'n'), {1}, kTypeI8, 0)
           .Data("x")
           .Build(),
       unsupported, "tensor name: 1025 bytes, at most 1024"},
      {"NameTwice",
       GgufBuilder()
           .Tensor("t", {1}, kTypeI8, 0)
           .Tensor("t", {1}, kTypeI8, 32)
           .Data(std::string(64, 'x'))
           .Build(),
       corrupt, "tensor \"t\" comes twice"},
      {"FiveDimensions", OneTensor({1, 1, 1, 1, 1}, kTypeI8), unsupported,
       "tensor \"t\": rank: 5 dimensions, ggml has 4"},
      {"RankOf2To32", claimed + GgufText("t") + Le(UINT32_MAX) + zeros,
       unsupported, "rank: 4294967295"},
      {"ShapeNegative", OneTensor({negative}, kTypeI8), corrupt,
       "tensor \"t\": shape: 9223372036854775808 is negative"},
      {"ShapeOverflows",
       OneTensor({uint64_t{1} << 40, uint64_t{1} << 40}, kTypeI8), corrupt,
       "tensor \"t\": shape: "},
      {"ShapeOverflowsBesideAZero",
       OneTensor({uint64_t{1} << 40, uint64_t{1} << 40, 0}, kTypeI8), corrupt,
       "shape"},
      {"SizeOverflows", OneTensor({uint64_t{1} << 62}, 28), corrupt,
       "overflow"},
      {"RowsOfHalfABlock", OneTensor({16, 2}, kTypeQ40), corrupt,
       "shape: rows of 16 elements are no whole number of Q4_0 blocks of 32"},
      {"BlockScalar", OneTensor({}, kTypeQ40), corrupt, "rows of 1 elements"},
      {"TypeRemoved4", OneTensor({32}, 4), unsupported,
       "type: 4 was removed from the format"},
      {"TypeRemoved31", OneTensor({32}, 31), unsupported, "31 was removed"},
      {"TypeRemoved33", OneTensor({32}, 33), unsupported, "33 was removed"},
      {"TypeRemoved36", OneTensor({32}, 36), unsupported, "36 was removed"},
      {"TypeRemoved38", OneTensor({32}, 38), unsupported, "38 was removed"},
      {"TypeUnknown", OneTensor({32}, 43), unsupported,
       "type: 43 is not known"},
      {"TypeNegative", OneTensor({32}, UINT32_MAX), unsupported,
       "type: 4294967295 is not known"},
      {"OffsetUnaligned", OneTensor({1}, kTypeI8, 16), corrupt,
       "tensor \"t\": offset: 16 is no multiple of 32"},
      {"OffsetPastTheEnd", OneTensor({1}, kTypeI8, 64), corrupt,
       "offset: 1 bytes at 64 do not fit 64 bytes of data"},
      {"OffsetThatWraps", OneTensor({64}, kTypeI8, UINT64_MAX - 31), corrupt,
       "offset"},
      {"OffsetOfNothingPastTheEnd", OneTensor({0}, kTypeI8, 96), corrupt,
       "offset: 0 bytes at 96"},
      {"DataTooShort", OneTensor({65}, kTypeI8), corrupt,
       "65 bytes at 0 do not fit 64"},
      {"NoData",
       claimed + GgufText("t") + Le<uint32_t>(0) + Le(kTypeI8) +
           Le<uint64_t>(0),
       corrupt, "data: begins at byte 64, the file has 49"},
      {"Overlap", TwoTensors(0, 32), corrupt,
       "tensor \"b\": offset: begins at 32, the data before it ends at 33"},
      {"OverlapBackwards", TwoTensors(32, 64), corrupt, "tensor \"b\""},
      {"SameOffsetTwice", TwoTensors(0, 0), corrupt, "tensor \"a\": offset"},
  };
}

std::string WhatOf(const ::testing::TestParamInfo<GgufMalformation>& info) {
  return info.param.what;
}

INSTANTIATE_TEST_SUITE_P(Preamble, GgufMalformationTest,
                         ::testing::ValuesIn(PreambleMalformations()), WhatOf);
INSTANTIATE_TEST_SUITE_P(Pairs, GgufMalformationTest,
                         ::testing::ValuesIn(PairMalformations()), WhatOf);
INSTANTIATE_TEST_SUITE_P(Tensors, GgufMalformationTest,
                         ::testing::ValuesIn(TensorMalformations()), WhatOf);

TEST(GgufTest, TruncationAtEveryLengthIsRefused) {
  GgufBuilder builder = SmallGguf();
  builder
      .Pair("strings", gguf::kArray,
            GgufArray(gguf::kString, 2, GgufText("one") + GgufText("two")))
      .Pair("numbers", gguf::kArray,
            GgufArray(gguf::kI16, 20, std::string(40, '\0')));
  const std::string file = builder.Build();
  ASSERT_OK(ReadBuilt(file));
  for (size_t length = 0; length < file.size(); ++length) {
    ASSERT_THAT(ReadBuilt(file.substr(0, length)), HasCode(Code::kCorrupt))
        << length;
  }
}

TEST(GgufTest, HostileNamesAreQuotedInMessages) {
  const auto index = ReadBuilt(GgufBuilder().Pair("\x1b[2J\n", 99, ""));
  ASSERT_THAT(index, HasCode(Code::kCorrupt));
  EXPECT_EQ(index.error().message().find('\x1b'), std::string::npos);
  EXPECT_EQ(index.error().message().find('\n'), std::string::npos);
}

}  // namespace
}  // namespace weightfs
