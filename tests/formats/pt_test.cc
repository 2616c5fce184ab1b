#include "formats/pt.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "formats/writer.h"
#include "formats/zip_writer.h"
#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using namespace std::string_literals;

TensorInfo Tensor(DType dtype, std::vector<uint64_t> shape) {
  TensorInfo tensor;
  tensor.name = "t";
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  const auto size = DenseSize(dtype, tensor.shape);
  EXPECT_OK(size);
  if (*size > 0) tensor.data = {{0, 0, *size}};
  return tensor;
}

uint64_t Number(std::string_view bytes, size_t at, int length) {
  uint64_t value = 0;
  for (int i = length; i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
  }
  return value;
}

struct Record {
  std::string name;
  uint64_t offset;  // of its local header
  uint64_t start;   // of its bytes
  uint64_t size;
  uint32_t crc;
};

// The literals of a list of segments, each at its place in the file.
class SparseFile {
 public:
  explicit SparseFile(const std::vector<Segment>& segments) {
    for (const Segment& segment : segments) {
      if (const auto* literal = std::get_if<LiteralSegment>(&segment)) {
        parts_.emplace_back(size_, *literal->bytes);
      }
      size_ += SegmentSize(segment);
    }
  }
  uint64_t size() const { return size_; }
  std::string At(uint64_t offset, uint64_t length) const {
    for (const auto& [start, bytes] : parts_) {
      if (offset >= start && offset + length <= start + bytes.size()) {
        return bytes.substr(offset - start, length);
      }
    }
    ADD_FAILURE() << "no literal at " << offset;
    return std::string(length, '\0');
  }
  uint64_t Number(uint64_t offset, int length) const {
    return weightfs::Number(At(offset, length), 0, length);
  }

 private:
  std::vector<std::pair<uint64_t, std::string>> parts_;
  uint64_t size_ = 0;
};

// Takes a zip64 value off the front of `extra` if the 32-bit one says so.
uint64_t Widen(uint64_t value, std::string& extra) {
  if (value != 0xffffffff) return value;
  const uint64_t wide = Number(extra, 0, 8);
  extra.erase(0, 8);
  return wide;
}

// Walks the directory as a reader would, and checks it against the local
// headers.
std::vector<Record> ReadZip(const SparseFile& file) {
  const uint64_t end = file.size() - 22;
  EXPECT_EQ(file.At(end, 4), "PK\5\6");
  uint64_t count = file.Number(end + 10, 2);
  uint64_t at = file.Number(end + 16, 4);
  if (at == 0xffffffff || count == 0xffff) {
    EXPECT_EQ(file.At(end - 20, 4), "PK\6\7");
    const uint64_t end64 = file.Number(end - 12, 8);
    EXPECT_EQ(file.At(end64, 4), "PK\6\6");
    EXPECT_EQ(end64 + 56, end - 20);
    count = file.Number(end64 + 32, 8);
    at = file.Number(end64 + 48, 8);
    EXPECT_EQ(at + file.Number(end64 + 40, 8), end64);
  } else {
    EXPECT_EQ(at + file.Number(end + 12, 4), end);
  }
  std::vector<Record> records;
  for (; count > 0; --count) {
    EXPECT_EQ(file.At(at, 4), "PK\1\2");
    EXPECT_EQ(file.Number(at + 8, 4), 0x800U);  // flags; stored
    const uint64_t name = file.Number(at + 28, 2);
    const uint64_t extra_size = file.Number(at + 30, 2);
    std::string extra;
    if (extra_size > 0) {
      EXPECT_EQ(file.Number(at + 46 + name, 2), 1U);
      EXPECT_EQ(file.Number(at + 46 + name + 2, 2), extra_size - 4);
      extra = file.At(at + 46 + name + 4, extra_size - 4);
    }
    Record record;
    record.name = file.At(at + 46, name);
    record.crc = static_cast<uint32_t>(file.Number(at + 16, 4));
    record.size = Widen(file.Number(at + 24, 4), extra);
    EXPECT_EQ(Widen(file.Number(at + 20, 4), extra), record.size);
    record.offset = Widen(file.Number(at + 42, 4), extra);
    EXPECT_EQ(extra, "");
    const uint64_t local = record.offset;
    EXPECT_EQ(file.At(local, 4), "PK\3\4");
    EXPECT_EQ(file.At(local + 30, name), record.name);
    EXPECT_EQ(file.Number(local + 14, 4), record.crc);
    record.start = local + 30 + name + file.Number(local + 28, 2);
    EXPECT_EQ(record.start % kZipAlignment, 0U) << record.name;
    records.push_back(record);
    at += 46 + name + extra_size;
  }
  return records;
}

TEST(Crc32Test, KnownValues) {
  EXPECT_EQ(Crc32(""), 0U);
  EXPECT_EQ(Crc32("123456789"), 0xcbf43926U);
}

TEST(ZipWriterTest, RecordsAreWhereTheDirectorySays) {
  ZipWriter zip;
  zip.AddLiteral("a", "hello");
  zip.AddSegments("b/long name é", {SourceSegment{{0, 0, 1000}}});
  zip.AddLiteral("empty", "");
  zip.AddSegments("none", {});
  const auto segments = zip.Finish();
  const auto records = ReadZip(SparseFile(segments));
  ASSERT_THAT(records, SizeIs(4));
  const std::string file = Materialise(segments, PatternBytes(1000));
  EXPECT_EQ(file.substr(records[0].start, 5), "hello");
  EXPECT_EQ(records[0].crc, Crc32("hello"));
  EXPECT_EQ(records[1].name, "b/long name é");
  EXPECT_EQ(file.substr(records[1].start, 1000), PatternBytes(1000));
  EXPECT_EQ(records[1].crc, 0U);
  EXPECT_EQ(records[2].size, 0U);
  EXPECT_EQ(records[3].size, 0U);
}

TEST(ZipWriterTest, EveryNameLengthIsAligned) {
  for (size_t length = 1; length < 200; ++length) {
    ZipWriter zip;
    zip.AddLiteral(std::string(length, 'n'), "x");
    ReadZip(SparseFile(zip.Finish()));  // expects alignment
  }
}

TEST(ZipWriterTest, Zip64BeginsWhereThe32BitFieldsEnd) {
  const uint64_t edge = 0xffffffff;
  for (const uint64_t size :
       {edge - 1000, edge - 1, edge, edge + 1, 3 * edge}) {
    ZipWriter zip;
    zip.AddLiteral("first", "1");
    zip.AddSegments("big", {SourceSegment{{0, 0, size}}});
    zip.AddLiteral("after", "2");
    const SparseFile file(zip.Finish());
    const auto records = ReadZip(file);
    ASSERT_THAT(records, SizeIs(3));
    EXPECT_EQ(records[1].size, size);
    EXPECT_EQ(records[2].offset, records[1].start + size);
    EXPECT_EQ(file.At(records[2].start, 1), "2");
    const bool wide = size >= edge;
    EXPECT_EQ(file.Number(records[1].offset + 18, 4), wide ? edge : size);
    if (wide) {
      EXPECT_EQ(file.At(records[1].offset + 33, 4), "\x01\0\x10\0"s);
      EXPECT_EQ(file.Number(records[1].offset + 37, 8), size);
      EXPECT_EQ(file.Number(records[1].offset + 45, 8), size);
    }
  }
}

TEST(ZipWriterTest, ManyRecordsNeedZip64Too) {
  ZipWriter zip;
  for (int i = 0; i < 65'535; ++i) zip.AddLiteral(fmt::format("{}", i), "");
  EXPECT_THAT(ReadZip(SparseFile(zip.Finish())), SizeIs(65'535));
}

TEST(PtWriterTest, HoldsTheRecordsThatTorchWants) {
  auto segments = WritePt(Tensor(DType::kF32, {2, 3}));
  ASSERT_OK(segments);
  const auto records = ReadZip(SparseFile(*segments));
  std::vector<std::string> names;
  names.reserve(records.size());
  for (const Record& record : records) names.push_back(record.name);
  EXPECT_THAT(names, ElementsAre("archive/data.pkl", "archive/byteorder",
                                 "archive/data/0", "archive/version"));
  const std::string data = PatternBytes(24);
  const std::string file = Materialise(*segments, data);
  EXPECT_EQ(file.substr(records[1].start, records[1].size), "little");
  EXPECT_EQ(file.substr(records[2].start, records[2].size), data);
  EXPECT_EQ(file.substr(records[3].start, records[3].size), "3\n");
}

TEST(PtWriterTest, PicklesOldTypesWithTheirStorage) {
  EXPECT_THAT(PtPickle(Tensor(DType::kBF16, {2, 300})),
              IsOkAndHolds("\x80\x02"
                           "ctorch._utils\n_rebuild_tensor_v2\n"
                           "((X\7\0\0\0storagectorch\nBFloat16Storage\n"
                           "X\1\0\0\0"
                           "0X\3\0\0\0cpuM\x58\x02tQ"
                           "K\0K\2M\x2c\x01\x86M\x2c\x01K\1\x86\x89"
                           "ccollections\nOrderedDict\n)RtR."s));
}

TEST(PtWriterTest, PicklesNewTypesWithTheirDType) {
  EXPECT_THAT(
      PtPickle(Tensor(DType::kU16, {})),
      IsOkAndHolds("\x80\x02"
                   "ctorch._utils\n_rebuild_tensor_v3\n"
                   "((X\7\0\0\0storagectorch.storage\nUntypedStorage\n"
                   "X\1\0\0\0"
                   "0X\3\0\0\0cpuK\2tQ"
                   "K\0))\x89"
                   "ccollections\nOrderedDict\n)Rctorch\nuint16\ntR."s));
}

TEST(PtWriterTest, PicklesIntegersOfEverySize) {
  const auto pickled = [](uint64_t value, std::string_view opcodes) {
    const auto pickle = PtPickle(Tensor(DType::kU8, {value}));
    EXPECT_OK(pickle);
    EXPECT_THAT(*pickle, HasSubstr("cpu" + std::string(opcodes) + "tQ"));
  };
  pickled(255, "K\xff");
  pickled(256, "M\0\1"s);
  pickled(65535, "M\xff\xff");
  pickled(65536, "J\0\0\1\0"s);
  pickled(0x7fffffff, "J\xff\xff\xff\x7f");
  pickled(0x80000000, "\x8a\5\0\0\0\x80\0"s);
  pickled(0x7fffffffff, "\x8a\5\xff\xff\xff\xff\x7f");
  pickled(0x8000000000, "\x8a\6\0\0\0\0\x80\0"s);
  pickled(INT64_MAX, "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f");
}

TEST(PtWriterTest, EmptyTensorsHaveTorchsStrides) {
  // (4, 4, 1) for (2, 0, 4).
  EXPECT_THAT(PtPickle(Tensor(DType::kU8, {2, 0, 4})),
              IsOkAndHolds(HasSubstr("K\2K\0K\4\x87K\4K\4K\1\x87"s)));
  // More than three dimensions are a MARK … TUPLE.
  EXPECT_THAT(PtPickle(Tensor(DType::kU8, {1, 1, 1, 0})),
              IsOkAndHolds(HasSubstr("(K\1K\1K\1K\0t(K\1K\1K\1K\1t"s)));
}

TEST(PtWriterTest, F4HoldsPairs) {
  EXPECT_THAT(PtPickle(Tensor(DType::kF4, {3, 4})),
              IsOkAndHolds(HasSubstr("cpuK\6tQK\0K\3K\2\x86K\2K\1\x86"s)));
  EXPECT_THAT(WritePt(Tensor(DType::kF4, {4, 3})), HasCode(Code::kUnsupported));
}

TEST(PtWriterTest, RefusesWhatTorchCannotHold) {
  EXPECT_THAT(WritePt(Tensor(DType::kF6E2M3, {4})),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(WritePt(Tensor(DType::kU8, {0, uint64_t{1} << 63})),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(WritePt(Tensor(DType::kU8, {0, uint64_t{1} << 62, 2})),
              HasCode(Code::kUnsupported));
  EXPECT_OK(WritePt(Tensor(DType::kU8, {0, (uint64_t{1} << 63) - 1})));
}

TEST(PtWriterTest, BigTensorsAreZip64) {
  const uint64_t size = (uint64_t{5} << 30) + 1;
  auto segments = WritePt(Tensor(DType::kU8, {size}));
  ASSERT_OK(segments);
  const auto records = ReadZip(SparseFile(*segments));
  ASSERT_THAT(records, SizeIs(4));
  EXPECT_EQ(records[2].size, size);
  EXPECT_GT(records[3].offset, size);
}

// Files that torch loaded when they were made (tests/make_fixtures.py). If the
// layout is to change, make them anew.
TEST(PtWriterTest, BytesAreTheGoldenFiles) {
  struct Golden {
    const char* file;
    DType dtype;
    std::vector<uint64_t> shape;
  };
  const std::vector<Golden> goldens = {
      {"F32-box.pt", DType::kF32, {3, 5, 8}},
      {"BF16-scalar.pt", DType::kBF16, {}},
      {"F8_E4M3-line.pt", DType::kF8E4M3, {24}},
      {"I64-empty3.pt", DType::kI64, {2, 0, 4}},
      {"F4-line.pt", DType::kF4, {24}}};
  for (const Golden& golden : goldens) {
    const TensorInfo tensor = Tensor(golden.dtype, golden.shape);
    std::string data(*DenseSize(tensor.dtype, tensor.shape), '\0');
    for (size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<char>((i * 37 + 11) % 251);  // as formats_dump
    }
    auto segments = WritePt(tensor);
    ASSERT_OK(segments);
    EXPECT_EQ(Materialise(*segments, data),
              ReadFileOrDie(WEIGHTFS_TEST_DATA "/formats/" +
                            std::string(golden.file)))
        << golden.file;
  }
}

}  // namespace
}  // namespace weightfs
