#include "formats/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "formats/text.h"
#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;

Result<TensorIndex> Read(std::string_view file) {
  MemorySource source("dir/model.safetensors", ToBytes(file));
  return ReadSafetensors(source);
}

Result<TensorIndex> ParseHeader(std::string_view header,
                                std::string_view data = "") {
  return Read(SafetensorsBytes(header, data));
}

// A header of one entry "a" of four bytes, with `fields` in it.
Result<TensorIndex> ParseFields(std::string_view fields) {
  return ParseHeader(fmt::format(R"({{"a":{{{}}}}})", fields), "1234");
}

constexpr std::string_view kGood =
    R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";

TEST(SafetensorsTest, ReadsNamesTypesShapesAndPlaces) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},)"
      R"("w":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},)"
      R"("b":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})";
  auto index = ParseHeader(header, std::string(26, 'x'));
  ASSERT_OK(index);
  EXPECT_THAT(index->objects(), ElementsAre("dir/model.safetensors"));
  EXPECT_THAT(index->metadata(), ElementsAre(Pair("format", "pt")));
  ASSERT_THAT(index->tensors(), SizeIs(2));
  const TensorInfo& b = index->tensors()[0];
  const TensorInfo& w = index->tensors()[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, SizeIs(0));
  EXPECT_EQ(b.order, 0U);
  EXPECT_EQ(w.dtype, DType::kF32);
  EXPECT_THAT(w.shape, ElementsAre(2U, 3U));
  EXPECT_EQ(w.order, 1U);
  EXPECT_TRUE(w.dense());
  EXPECT_NE(w.storage_id, b.storage_id);
  ASSERT_THAT(w.data, SizeIs(1));
  EXPECT_EQ(w.data[0], (SourceRange{0, 8 + header.size() + 2, 24}));
}

TEST(SafetensorsTest, ReadsEveryDType) {
  std::string header = "{";
  uint64_t at = 0;
  for (const DType dtype : AllDTypes()) {
    if (!SafetensorsHolds(dtype)) continue;
    const uint64_t size = DTypeBits(dtype);  // of eight elements, in bytes
    header += fmt::format(
        R"({}"{}":{{"dtype":"{}","shape":[2,4],"data_offsets":[{},{}]}})",
        at == 0 ? "" : ",", DTypeName(dtype), DTypeName(dtype), at, at + size);
    at += size;
  }
  auto index = ParseHeader(header + "}", std::string(at, 'x'));
  ASSERT_OK(index);
  ASSERT_THAT(index->tensors(), SizeIs(22));
  for (const TensorInfo& tensor : index->tensors()) {
    EXPECT_EQ(DTypeName(tensor.dtype), tensor.name);
    EXPECT_EQ(tensor.data.at(0).length, DTypeBits(tensor.dtype));
  }
}

// The reference writer's own file: every dtype that torch has, odd names.
TEST(SafetensorsTest, ReadsTheReferenceWritersFile) {
  const std::string folder = WEIGHTFS_TEST_DATA "/formats/";
  const std::string file = ReadFileOrDie(folder + "reference.safetensors");
  auto index = Read(file);
  ASSERT_OK(index);
  EXPECT_THAT(index->metadata(),
              ElementsAre(Pair("", "empty key"), Pair("format", "pt")));
  std::istringstream lines(ReadFileOrDie(folder + "reference.txt"));
  std::string dtype;
  std::string shape;
  std::string name;
  std::string data;
  size_t count = 0;
  while (lines >> dtype >> shape >> name >> data) {
    ++count;
    const TensorInfo* tensor = index->Find(name == "-" ? "" : FromHex(name));
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(DTypeName(tensor->dtype), dtype);
    EXPECT_EQ(fmt::format("{}", fmt::join(tensor->shape, ",")),
              shape == "-" ? "" : shape);
    std::string bytes;
    for (const SourceRange& range : tensor->data) {
      bytes += file.substr(range.offset, range.length);
    }
    EXPECT_EQ(bytes, data == "-" ? "" : FromHex(data)) << dtype;
  }
  EXPECT_EQ(count, 20U);
  EXPECT_EQ(index->tensors().size(), count);
}

TEST(SafetensorsTest, AcceptsWhatTheReferenceAccepts) {
  const std::string good(kGood);
  EXPECT_OK(ParseHeader("{}"));
  EXPECT_OK(ParseHeader(good, "1234"));
  EXPECT_OK(ParseHeader(good + "     ", "1234"));
  EXPECT_OK(ParseHeader(" \n\t\r" + good + "\n", "1234"));
  EXPECT_OK(ParseHeader(R"({"a":["U8",[4],[0,4]]})", "1234"));
  EXPECT_OK(ParseHeader(R"({"__metadata__":null})"));
  EXPECT_OK(ParseHeader(R"({"__metadata__":{}})"));
  EXPECT_OK(ParseHeader(R"({"":{"dtype":"U8","shape":[1],)"
                        R"("data_offsets":[0,1]},"\u0000/../.":{"dtype":"U8",)"
                        R"("shape":[1],"data_offsets":[1,2]}})",
                        "12"));
  EXPECT_OK(ParseFields(R"("data_offsets":[0,4],"shape":[2,2],"dtype":"I8",)"
                        R"("x":[1.5,{"dtype":1}],"x":null,"y":-1)"));
  // Data need not be aligned.
  EXPECT_OK(
      ParseHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                  "12345"));
}

TEST(SafetensorsTest, ZeroSizeTensorsMayStandAnywhereBetweenOthers) {
  auto index =
      ParseHeader(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                  R"("z1":{"dtype":"F64","shape":[0,9],"data_offsets":[0,0]},)"
                  R"("z3":{"dtype":"F64","shape":[0],"data_offsets":[2,2]},)"
                  R"("z2":{"dtype":"F64","shape":[3,0],"data_offsets":[2,2]},)"
                  R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                  "1234");
  ASSERT_OK(index);
  std::vector<std::string> names;
  for (const uint32_t i : index->InFileOrder()) {
    names.push_back(index->tensors()[i].name);
  }
  EXPECT_THAT(names, ElementsAre("z1", "a", "z2", "z3", "b"));
  EXPECT_THAT(index->Find("z1")->data, SizeIs(0));
}

struct Malformation {
  std::string what;
  std::string file;
  Code code;
  std::string message;  // a part of it
};

class SafetensorsMalformationTest
    : public ::testing::TestWithParam<Malformation> {};

TEST_P(SafetensorsMalformationTest, IsRefused) {
  const auto index = Read(GetParam().file);
  EXPECT_THAT(index, HasCode(GetParam().code));
  EXPECT_THAT(index, HasMessage(AllOf(StartsWith("dir/model.safetensors: "),
                                      HasSubstr(GetParam().message))));
}

std::string WithLength(uint64_t length, std::string_view rest) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + std::string(rest);
}

std::string Entry(std::string_view fields) {
  return SafetensorsBytes(fmt::format(R"({{"a":{{{}}}}})", fields), "1234");
}

std::string Dims(std::string_view dtype, std::string_view shape) {
  return Entry(fmt::format(R"("dtype":"{}","shape":{},"data_offsets":[0,4])",
                           dtype, shape));
}

std::string Offsets(std::string_view offsets) {
  return Entry(
      fmt::format(R"("dtype":"U8","shape":[4],"data_offsets":{})", offsets));
}

// Two U8 tensors in four bytes.
std::string Pair2(uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                  std::string_view data = "1234") {
  return SafetensorsBytes(
      fmt::format(
          R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
          R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
          b - a, a, b, d - c, c, d),
      data);
}

std::vector<Malformation> Malformations() {
  const std::string good(kGood);
  const std::string entry = good.substr(1, good.size() - 2);
  const auto header = [](std::string_view text) {
    return SafetensorsBytes(text, "1234");
  };
  const Code corrupt = Code::kCorrupt;
  std::vector<Malformation> list = {
      {"EmptyFile", "", corrupt, "header length"},
      {"SevenBytes", "1234567", corrupt, "header length"},
      {"NoHeader", WithLength(0, ""), corrupt, "no valid JSON"},
      {"HeaderPastTheEnd", WithLength(60, "{}"), corrupt, "header length: 60"},
      {"FourMebibytesClaimed", WithLength(4 << 20, "x"), corrupt,
       "header length"},
      {"LengthOf2To64", WithLength(UINT64_MAX, "{}"), corrupt, "header length"},
      {"LengthThatWraps", WithLength(UINT64_MAX - 7, "{}"), corrupt,
       "header length"},
      {"LengthFromTheReferencesTests", WithLength(0xFFFFFF000000003C, "{}"),
       corrupt, "header length"},
      {"LengthOverTheCap",
       WithLength(kMaxSafetensorsHeader + 1, std::string(9, ' ')), corrupt,
       "100000001 bytes are more than"},
      {"InvalidUtf8", header("\xff"), corrupt, "byte 9: no valid JSON"},
      {"InvalidUtf8InAName", header("{\"\xc3(\":1}"), corrupt, "JSON"},
      {"OpenBrace", header("{"), corrupt, "JSON"},
      {"TrailingComma", header("{" + entry + ",}"), corrupt, "JSON"},
      {"TrailingText", header(good + "x"), corrupt, "JSON"},
      {"NulPadding", header(good + std::string(3, '\0')), corrupt, "NUL"},
      {"ByteOrderMark", header("\xef\xbb\xbf" + good), corrupt,
       "byte order mark"},
      {"LoneSurrogate", header(R"({"\ud800":1})"), corrupt, "JSON"},
      {"TopLevelArray", header("[]"), corrupt, "not an object"},
      {"TopLevelNumber", header("1"), corrupt, "not an object"},
      {"TooDeep",
       Entry(R"("x":)" + std::string(126, '[') + std::string(126, ']')),
       corrupt, "nesting"},
      {"HugeNumberInAnIgnoredField", Entry(R"("x":1e400)"), corrupt, "JSON"},
      {"MetadataNumber", header(R"({"__metadata__":1})"), corrupt,
       "__metadata__: is not an object"},
      {"MetadataList", header(R"({"__metadata__":[]})"), corrupt,
       "__metadata__"},
      {"MetadataIntegerValue", header(R"({"__metadata__":{"k":1}})"), corrupt,
       "__metadata__: the value of \"k\" is not a string"},
      {"MetadataNested", header(R"({"__metadata__":{"k":{}}})"), corrupt,
       "__metadata__"},
      {"MetadataNullValue", header(R"({"__metadata__":{"k":null}})"), corrupt,
       "__metadata__"},
      {"MetadataTwice", header(R"({"__metadata__":{},"__metadata__":null})"),
       corrupt, "__metadata__: comes twice"},
      {"MetadataKeyTwice", header(R"({"__metadata__":{"k":"","k":""}})"),
       corrupt, "a key comes twice"},
      {"NameTwice", header("{" + entry + "," + entry + "}"), corrupt, ""},
      {"NameTwiceByEscape",
       header("{" + entry + R"(,"\u0061":{"dtype":"U8","shape":[0],)" +
              R"("data_offsets":[4,4]}})"),
       corrupt, "\"a\" comes twice"},
      {"EntryNull", header(R"({"a":null})"), corrupt, "tensor \"a\": entry"},
      {"EntryNumber", header(R"({"a":1})"), corrupt, "tensor \"a\": entry"},
      {"FieldTwice",
       Entry(R"("dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4])"),
       corrupt, "tensor \"a\": dtype: comes twice"},
      {"OffsetsTwice",
       Entry(R"("dtype":"U8","data_offsets":[0,4],"shape":[4],)"
             R"("data_offsets":[0,4])"),
       corrupt, "data_offsets: comes twice"},
      {"NoDType", Entry(R"("shape":[4],"data_offsets":[0,4])"), corrupt,
       "dtype: is missing"},
      {"NoShape", Entry(R"("dtype":"U8","data_offsets":[0,4])"), corrupt,
       "shape: is missing"},
      {"NoOffsets", Entry(R"("dtype":"U8","shape":[4])"), corrupt,
       "data_offsets: is missing"},
      {"ArrayFormTooShort", header(R"({"a":["U8",[4]]})"), corrupt,
       "data_offsets"},
      {"ArrayFormTooLong", header(R"({"a":["U8",[4],[0,4],1]})"), corrupt,
       "more than three"},
      {"ArrayFormEmpty", header(R"({"a":[]})"), corrupt, "dtype"},
      {"DTypeUnknown", Dims("F8_E9M9", "[4]"), Code::kUnsupported,
       "dtype: \"F8_E9M9\" is not known"},
      {"DTypeOfAnotherFormat", Dims("Q4_0", "[32]"), Code::kUnsupported,
       "dtype: \"Q4_0\" is not known"},
      {"DTypeOfTorchAlone", Dims("C128", "[4]"), Code::kUnsupported,
       "dtype: \"C128\" is not known"},
      {"DTypeLowerCase", Dims("u8", "[4]"), Code::kUnsupported, "dtype"},
      {"DTypeNumber", Entry(R"("dtype":1)"), corrupt, "dtype: is not a string"},
      {"DTypeAsObject", Entry(R"("dtype":{"U8":null})"), corrupt, "dtype"},
      {"ShapeNumber", Dims("U8", "4"), corrupt, "shape: is not an array"},
      {"ShapeFloat", Dims("U8", "[4.0]"), corrupt, "shape: holds"},
      {"ShapeExponent", Dims("U8", "[4e0]"), corrupt, "shape: holds"},
      {"ShapeNegative", Dims("U8", "[-4]"), corrupt, "shape: holds"},
      {"ShapeMinusZero", Dims("U8", "[-0]"), corrupt, "shape: holds"},
      {"ShapeString", Dims("U8", R"(["4"])"), corrupt, "shape: holds"},
      {"ShapeNested", Dims("U8", "[[4]]"), corrupt, "shape: holds"},
      {"ShapeOver64Bits", Dims("U8", "[18446744073709551616]"), corrupt,
       "shape: holds"},
      {"ShapeOverflows", Dims("U8", "[18446744073709551615,2]"), corrupt,
       "tensor \"a\": shape: "},
      {"ShapeOverflowsBeforeAZero", Dims("U8", "[18446744073709551615,2,0]"),
       corrupt, "shape"},
      {"ShapeOverflowsAfterAZero", Dims("U8", "[0,18446744073709551615,2]"),
       corrupt, "shape"},
      {"SizeOverflows", Dims("F64", "[2305843009213693953]"), corrupt,
       "overflow"},
      {"SizeTooSmall", Dims("U8", "[3]"), corrupt,
       "data_offsets: 4 bytes, but the shape holds 3 bytes of U8"},
      {"SizeTooLarge", Dims("F32", "[2]"), corrupt, "data_offsets"},
      {"SubByteNotWhole", Dims("F4", "[7]"), corrupt, "whole number of bytes"},
      {"SubByteScalar", Dims("F6_E2M3", "[]"), corrupt,
       "whole number of bytes"},
      {"OffsetsNumber", Offsets("4"), corrupt, "data_offsets: is not an array"},
      {"OffsetsOne", Offsets("[4]"), corrupt, "data_offsets: does not hold"},
      {"OffsetsThree", Offsets("[0,4,4]"), corrupt,
       "data_offsets: does not hold"},
      {"OffsetsNone", Offsets("[]"), corrupt, "data_offsets: does not hold"},
      {"OffsetsNegative", Offsets("[-1,3]"), corrupt, "data_offsets: holds"},
      {"OffsetsFloat", Offsets("[0,4.0]"), corrupt, "data_offsets: holds"},
      {"OffsetsOf2To64", Offsets("[0,18446744073709551616]"), corrupt,
       "data_offsets: holds"},
      {"OffsetsBackwards", Offsets("[4,0]"), corrupt, "end 0 before begin 4"},
      {"FirstNotAtZero", Pair2(1, 2, 2, 4), corrupt,
       "tensor \"a\": data_offsets: begins at 1, the data before it ends at 0 "
       "(hole)"},
      {"Hole", Pair2(0, 1, 2, 4), corrupt, "tensor \"b\": data_offsets"},
      {"Overlap", Pair2(0, 3, 2, 4), corrupt, "(overlap)"},
      {"SameRangeTwice", Pair2(0, 4, 0, 4), corrupt, "(overlap)"},
      {"DataTooShort", Pair2(0, 2, 2, 4, "123"), corrupt,
       "tensor \"b\": data_offsets: ends at 4, the file's data at 3"},
      {"DataTooLong", Pair2(0, 2, 2, 4, "12345"), corrupt, "5 bytes from"},
      {"DataWithoutTensors", header("{}"), corrupt, "the tensors take 0 bytes"},
      {"ZeroSizeInsideAnother",
       SafetensorsBytes(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
           R"("b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
           "1234"),
       corrupt, "tensor \"b\""},
      {"ZeroSizePastTheEnd",
       SafetensorsBytes(
           R"({"b":{"dtype":"U8","shape":[0],"data_offsets":[9,9]}})", ""),
       corrupt, "tensor \"b\""},
  };
  // What the reference's tests do: ten tensors on the same bytes.
  std::string ten = "{";
  for (int i = 0; i < 10; ++i) {
    ten += fmt::format(
        R"({}"t{}":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
        i == 0 ? "" : ",", i);
  }
  list.push_back({"TenOverlapping", header(ten + "}"), corrupt, "(overlap)"});
  return list;
}

INSTANTIATE_TEST_SUITE_P(Each, SafetensorsMalformationTest,
                         ::testing::ValuesIn(Malformations()),
                         [](const auto& param) { return param.param.what; });

TEST(SafetensorsTest, DepthIsTheReferences) {
  const auto nested = [](size_t depth) {
    return ParseFields(
        fmt::format(R"("dtype":"U8","shape":[4],"data_offsets":[0,4],"x":{}{})",
                    std::string(depth, '['), std::string(depth, ']')));
  };
  // With the header and the entry, 127 levels: tried with the reference.
  EXPECT_OK(nested(125));
  EXPECT_THAT(nested(126), HasCode(Code::kCorrupt));
}

TEST(SafetensorsTest, TruncationAtEveryLengthIsRefused) {
  const std::string file =
      ReadFileOrDie(WEIGHTFS_TEST_DATA "/formats/reference.safetensors");
  for (size_t length = 0; length < file.size(); ++length) {
    ASSERT_THAT(Read(file.substr(0, length)), HasCode(Code::kCorrupt))
        << length;
  }
  EXPECT_THAT(Read(file + "x"), HasCode(Code::kCorrupt));
}

TEST(SafetensorsTest, ErrorsNameTheHeaderByte) {
  const auto index = ParseHeader(R"({"a":{"dtype":"U8","shape":[-4]}})");
  EXPECT_THAT(index, HasMessage(::testing::ContainsRegex(
                         "byte 3[89]: tensor \"a\": shape: ")));
}

TEST(SafetensorsTest, HostileNamesAreQuotedInMessages) {
  const auto index = ParseHeader(R"({"\u001b[2J\n":1})");
  ASSERT_THAT(index, HasCode(Code::kCorrupt));
  EXPECT_EQ(index.error().message().find('\x1b'), std::string::npos);
  EXPECT_EQ(index.error().message().find('\n'), std::string::npos);
}

// A header of `size` bytes for the good entry, padded with spaces.
std::string PaddedFile(size_t size) {
  std::string header(kGood);
  header.resize(size, ' ');
  return SafetensorsBytes(header, "1234");
}

TEST(SafetensorsReadsTest, ASmallFileIsReadOnce) {
  RecordingSource source("f", SafetensorsBytes(kGood, "1234"));
  ASSERT_OK(ReadSafetensors(source));
  EXPECT_THAT(source.reads(), ElementsAre(Pair(0U, source.size())));
}

TEST(SafetensorsReadsTest, AHeaderInTheProbeCostsOneRead) {
  RecordingSource source("f", PaddedFile(kSafetensorsProbe - 8));
  ASSERT_OK(ReadSafetensors(source));
  EXPECT_THAT(source.reads(), ElementsAre(Pair(0U, kSafetensorsProbe)));
}

TEST(SafetensorsReadsTest, ALargerHeaderCostsASecondReadOfTheRest) {
  RecordingSource source("f", PaddedFile(kSafetensorsProbe - 7));
  ASSERT_OK(ReadSafetensors(source));
  EXPECT_THAT(source.reads(), ElementsAre(Pair(0U, kSafetensorsProbe),
                                          Pair(kSafetensorsProbe, 1U)));
}

TEST(SafetensorsReadsTest, AReadErrorIsPassedOn) {
  for (const size_t k : {1, 2}) {
    RecordingSource source("f", PaddedFile(kSafetensorsProbe + 100));
    source.FailRead(k);
    const auto index = ReadSafetensors(source);
    EXPECT_THAT(index, HasCode(Code::kUnavailable));
    EXPECT_THAT(index, HasMessage("f: planned failure"));
  }
}

// A hostile length must not make the reader allocate.
TEST(SafetensorsReadsTest, AClaimedLengthIsCheckedBeforeTheSecondRead) {
  RecordingSource source(
      "f", WithLength(kMaxSafetensorsHeader, std::string(300'000, ' ')));
  EXPECT_THAT(ReadSafetensors(source), HasCode(Code::kCorrupt));
  EXPECT_THAT(source.reads(), SizeIs(1));
}

TEST(SafetensorsLimitsTest, DimensionsAreCounted) {
  const auto shape = [](uint64_t rank) {
    std::string ones = "1";
    for (uint64_t i = 1; i < rank; ++i) ones += ",1";
    return Read(SafetensorsBytes(
        fmt::format(
            R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}})",
            ones),
        "1"));
  };
  auto deep = shape(100'000);  // as the reference accepts
  ASSERT_OK(deep);
  EXPECT_THAT(deep->tensors()[0].shape, SizeIs(100'000));
  EXPECT_OK(shape(kMaxSafetensorsDims));
  EXPECT_THAT(shape(kMaxSafetensorsDims + 1), HasCode(Code::kUnsupported));
}

TEST(SafetensorsLimitsTest, EntriesAreCounted) {
  const auto entries = [](uint64_t count) {
    std::string header = "{";
    for (uint64_t i = 0; i < count; ++i) {
      header +=
          fmt::format(R"({}"{:x}":["U8",[0],[0,0]])", i == 0 ? "" : ",", i);
    }
    return ParseHeader(header + "}");
  };
  EXPECT_OK(entries(10'000));
  EXPECT_THAT(entries(kMaxSafetensorsEntries + 1), HasCode(Code::kUnsupported));
}

}  // namespace
}  // namespace weightfs
