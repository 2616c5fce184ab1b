#include "formats/writer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "formats/npy.h"
#include "formats/safetensors.h"
#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;

TensorInfo Tensor(std::string name, DType dtype, std::vector<uint64_t> shape) {
  TensorInfo tensor;
  tensor.name = std::move(name);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  const auto size = DenseSize(dtype, tensor.shape);
  EXPECT_OK(size);
  if (*size > 0) tensor.data = {{0, 0, *size}};
  return tensor;
}

std::vector<uint64_t> ParseShape(const std::string& text) {
  std::vector<uint64_t> shape;
  std::istringstream dims(text == "-" ? "" : text);
  std::string dim;
  while (std::getline(dims, dim, ',')) shape.push_back(std::stoull(dim));
  return shape;
}

TEST(FormatTest, NamesAndExtensions) {
  for (const Format format : AllFormats()) {
    EXPECT_EQ(FormatFromName(FormatName(format)), format);
    EXPECT_TRUE(FormatExtension(format).starts_with('.'));
  }
  EXPECT_EQ(FormatName(Format::kSafetensors), "safetensors");
  EXPECT_EQ(FormatExtension(Format::kRaw), ".bin");
  EXPECT_EQ(FormatFromName("NPY"), std::nullopt);
  EXPECT_EQ(FormatFromName(""), std::nullopt);
  EXPECT_EQ(static_cast<int>(Format::kSafetensors), 3);  // node ids hold it
}

// The table in README.md: | F32 | yes | `<f4` | FloatStorage | yes |.
TEST(FormatTest, TheTableInTheReadmeIsTheCodes) {
  std::istringstream lines(
      ReadFileOrDie(WEIGHTFS_TEST_DATA "/../../formats/README.md"));
  std::string line;
  std::set<DType> seen;
  while (std::getline(lines, line)) {
    if (!line.starts_with("| ")) continue;
    // "\\|" in a cell is a bar, not the cell's end.
    for (size_t bar = 0; (bar = line.find("\\|")) != std::string::npos;) {
      line.replace(bar, 2, "\x01");
    }
    std::vector<std::string> cells;
    std::istringstream row(line.substr(1));
    std::string cell;
    while (std::getline(row, cell, '|')) {
      std::replace(cell.begin(), cell.end(), '\x01', '|');
      const size_t first = cell.find_first_not_of(' ');
      const size_t last = cell.find_last_not_of(' ');
      cells.push_back(first == std::string::npos
                          ? ""
                          : cell.substr(first, last - first + 1));
    }
    const auto dtype = DTypeFromName(cells.at(0));
    if (!dtype) continue;
    ASSERT_EQ(cells.size(), 1 + AllFormats().size()) << line;
    EXPECT_TRUE(seen.insert(*dtype).second) << line;
    for (size_t i = 0; i < AllFormats().size(); ++i) {
      EXPECT_EQ(CheckFormatHolds(AllFormats()[i], *dtype).has_value(),
                cells[i + 1] != "no")
          << FormatName(AllFormats()[i]) << ": " << line;
    }
    const std::string_view descr = NpyDescr(*dtype);
    EXPECT_EQ(cells[2], descr.empty() ? "no" : "`" + std::string(descr) + "`");
  }
  EXPECT_EQ(seen.size(), AllDTypes().size());
}

TEST(FormatTest, WhatAFormatCannotHoldSaysWhy) {
  const auto refused = CheckFormatHolds(Format::kNpy, DType::kF4);
  EXPECT_THAT(refused, HasCode(Code::kUnsupported));
  EXPECT_THAT(refused, HasMessage(HasSubstr("npy cannot hold F4: ")));
  EXPECT_THAT(
      CheckFormatHolds(Format::kNpy, DType::kQ4K),
      HasMessage("npy cannot hold Q4_K: NumPy has no quantised blocks"));
  EXPECT_THAT(CheckFormatHolds(Format::kSafetensors, DType::kQ4K),
              HasMessage(HasSubstr("safetensors cannot hold Q4_K: ")));
  for (const Format format : AllFormats()) {
    for (const DType dtype : AllDTypes()) {
      const bool holds = CheckFormatHolds(format, dtype).has_value();
      const auto written = WriteTensor(format, Tensor("t", dtype, {2, 256}));
      EXPECT_EQ(written.has_value(), holds)
          << FormatName(format) << " " << DTypeName(dtype);
      if (!holds) {
        EXPECT_THAT(written, HasCode(Code::kUnsupported));
      }
    }
  }
}

TEST(RawWriterTest, IsTheBytesAlone) {
  const std::string data = PatternBytes(24);
  auto segments = WriteTensor(Format::kRaw, Tensor("t", DType::kF32, {2, 3}));
  ASSERT_OK(segments);
  EXPECT_EQ(Materialise(*segments, data), data);
}

TEST(DenseSegmentsTest, ChecksTheRangesAgainstTheShape) {
  TensorInfo tensor = Tensor("t", DType::kF32, {2, 3});
  tensor.data[0].length = 23;
  EXPECT_THAT(DenseSegments(tensor), HasCode(Code::kInvalid));
  tensor.data = {{0, 0, 12}, {0, 50, 0}, {1, 100, 12}};
  auto segments = DenseSegments(tensor);
  ASSERT_OK(segments);
  EXPECT_EQ(segments->size(), 2U);
  tensor.data = {{0, 0, UINT64_MAX}, {0, 0, 25}};  // 24, after a wrap
  EXPECT_THAT(DenseSegments(tensor), HasCode(Code::kInvalid));
}

TEST(NpyWriterTest, HeadersAreNumpysByteForByte) {
  std::istringstream lines(
      ReadFileOrDie(WEIGHTFS_TEST_DATA "/formats/npy_headers.txt"));
  std::string dtype;
  std::string shape;
  std::string hex;
  int count = 0;
  while (lines >> dtype >> shape >> hex) {
    ++count;
    EXPECT_THAT(NpyHeader(*DTypeFromName(dtype), ParseShape(shape)),
                IsOkAndHolds(FromHex(hex)))
        << dtype << " " << shape;
  }
  EXPECT_GT(count, 60);
}

TEST(NpyWriterTest, EveryHeaderIsAlignedAndSaysItsLength) {
  for (uint64_t digits = 1; digits < 1'000'000'000'000'000'000; digits *= 10) {
    for (size_t rank = 0; rank <= 64; ++rank) {
      std::vector<uint64_t> shape(rank, 0);
      if (rank > 0) shape[0] = digits;
      if (rank > 1) shape[1] = 0;
      const auto header = NpyHeader(DType::kBF16, shape);
      ASSERT_OK(header);
      ASSERT_EQ(header->size() % 64, 0U);
      const size_t length = static_cast<unsigned char>((*header)[8]) +
                            256 * static_cast<unsigned char>((*header)[9]);
      ASSERT_EQ(header->size(), 10 + length);
      ASSERT_EQ(header->back(), '\n');
    }
  }
}

TEST(NpyWriterTest, NumpyHasNoMoreThan64Dimensions) {
  const std::vector<uint64_t> shape(65, 1);
  EXPECT_THAT(WriteTensor(Format::kNpy, Tensor("t", DType::kU8, shape)),
              HasCode(Code::kUnsupported));
}

TEST(SafetensorsWriterTest, FilesAreTheReferenceWritersByteForByte) {
  std::istringstream lines(
      ReadFileOrDie(WEIGHTFS_TEST_DATA "/formats/safetensors_single.txt"));
  std::string dtype;
  std::string shape;
  std::string name;
  std::string hex;
  int count = 0;
  while (lines >> dtype >> shape >> name >> hex) {
    ++count;
    const TensorInfo tensor = Tensor(name == "-" ? "" : FromHex(name),
                                     *DTypeFromName(dtype), ParseShape(shape));
    const std::string file = FromHex(hex);
    const uint64_t size = *DenseSize(tensor.dtype, tensor.shape);
    auto segments = WriteSafetensors(tensor);
    ASSERT_OK(segments);
    EXPECT_EQ(Materialise(*segments, file.substr(file.size() - size)), file);
  }
  EXPECT_EQ(count, 7);
}

TEST(SafetensorsWriterTest, WhatItWritesReadsBack) {
  const std::string name =
      "a\"\\\b\f\n\r\t\x01\x1f\x7f/é😀" + std::string(1, '\0') + "z";
  for (const DType dtype : AllDTypes()) {
    if (!SafetensorsHolds(dtype)) continue;
    for (const auto& shape :
         std::vector<std::vector<uint64_t>>{{8}, {2, 0, 3}, {3, 2, 4}}) {
      const TensorInfo tensor = Tensor(name, dtype, shape);
      const std::string data = PatternBytes(*DenseSize(dtype, shape));
      auto segments = WriteSafetensors(tensor);
      ASSERT_OK(segments);
      const std::string file = Materialise(*segments, data);
      MemorySource source("s", ToBytes(file));
      auto index = ReadSafetensors(source);
      ASSERT_OK(index);
      const TensorInfo* read = index->Find(name);
      ASSERT_NE(read, nullptr);
      EXPECT_EQ(read->dtype, dtype);
      EXPECT_EQ(read->shape, shape);
      EXPECT_EQ((file.size() - data.size()) % 8, 0U);
      EXPECT_TRUE(file.ends_with(data));
    }
  }
}

TEST(SafetensorsWriterTest, RefusesNamesThatJsonCannotHold) {
  for (const std::string name : {"\xff", "a\xc3", "__metadata__"}) {
    EXPECT_THAT(WriteSafetensors(Tensor(name, DType::kU8, {1})),
                HasCode(Code::kUnsupported));
  }
}

TEST(WriterTest, AStridedTensorIsWrittenDense) {
  TensorInfo tensor;
  tensor.name = "t";
  tensor.dtype = DType::kU8;
  tensor.shape = {2, 3};
  tensor.strides = {1, 2};
  tensor.data = {{0, 0, 6}};
  for (const Format format : AllFormats()) {
    auto segments = WriteTensor(format, tensor);
    ASSERT_OK(segments);
    EXPECT_THAT(Materialise(*segments, "adbecf"), HasSubstr("abcdef"));
  }
}

}  // namespace
}  // namespace weightfs
