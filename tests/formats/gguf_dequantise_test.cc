#include "formats/gguf_dequantise.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "formats/gguf_blocks.h"
#include "formats/gguf_grids.h"
#include "formats/half_float.h"
#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TensorInfo BlockTensor(DType dtype, std::vector<uint64_t> shape) {
  TensorInfo tensor;
  tensor.name = "t";
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  const auto size = DenseSize(dtype, tensor.shape);
  EXPECT_OK(size);
  if (*size > 0) tensor.data = {{0, 0, *size}};
  return tensor;
}

// All of a tensor's values, packed.
std::string Values(const TensorInfo& tensor, DType to, std::string_view bytes) {
  auto segments = DequantiseSegments(tensor, to);
  if (!segments.has_value()) {
    ADD_FAILURE() << segments.error().ToString();
    return {};
  }
  return Materialise(*segments, bytes);
}

std::vector<float> Floats(std::string_view packed) {
  std::vector<float> floats(packed.size() / sizeof(float));
  std::memcpy(floats.data(), packed.data(), packed.size());
  return floats;
}

struct GoldenBlock {
  DType dtype;
  std::string block;
  std::string values;  // F32
};

// TYPE BLOCK VALUES, as the reference has them (tests/make_gguf_fixtures.py).
std::vector<GoldenBlock> GoldenBlocks() {
  std::istringstream lines(
      ReadFileOrDie(WEIGHTFS_TEST_DATA "/formats/gguf_blocks.txt"));
  std::vector<GoldenBlock> goldens;
  std::string type;
  std::string block;
  std::string values;
  while (lines >> type >> block >> values) {
    const auto dtype = DTypeFromName(type);
    EXPECT_TRUE(dtype.has_value()) << type;
    if (!dtype) continue;
    goldens.push_back({*dtype, FromHex(block), FromHex(values)});
  }
  return goldens;
}

TEST(GgufDequantiseTest, EqualsTheReferenceBitForBit) {
  std::set<DType> seen;
  for (const GoldenBlock& golden : GoldenBlocks()) {
    const uint64_t elements = BlockElements(golden.dtype);
    ASSERT_EQ(golden.block.size(), BlockBytes(golden.dtype));
    ASSERT_EQ(golden.values.size(), 4 * elements);
    const std::string values = Values(BlockTensor(golden.dtype, {elements}),
                                      DType::kF32, golden.block);
    EXPECT_EQ(Floats(values), Floats(golden.values)) << DTypeName(golden.dtype);
    EXPECT_TRUE(values == golden.values) << DTypeName(golden.dtype);
    seen.insert(golden.dtype);
  }
  for (const DType dtype : AllDTypes()) {
    EXPECT_EQ(CanDequantise(dtype), seen.contains(dtype)) << DTypeName(dtype);
  }
  EXPECT_EQ(seen.size(), 23U);
}

TEST(GgufDequantiseTest, SixteenBitFloatsAreRoundedFromF32) {
  for (const GoldenBlock& golden : GoldenBlocks()) {
    const TensorInfo tensor =
        BlockTensor(golden.dtype, {BlockElements(golden.dtype)});
    std::string half;
    std::string brain;
    for (const float value : Floats(golden.values)) {
      const uint16_t bits[] = {FloatToHalf(value), FloatToBFloat16(value)};
      half.append(reinterpret_cast<const char*>(&bits[0]), 2);
      brain.append(reinterpret_cast<const char*>(&bits[1]), 2);
    }
    EXPECT_TRUE(Values(tensor, DType::kF16, golden.block) == half);
    EXPECT_TRUE(Values(tensor, DType::kBF16, golden.block) == brain);
  }
}

TEST(GgufDequantiseTest, Q40ByHand) {
  // Scale 0.5; low nibbles 0 to 15, high ones 15 to 0.
  std::string block("\x00\x38", 2);
  for (int i = 0; i < 16; ++i) block += static_cast<char>(i | (15 - i) << 4);
  const auto values =
      Floats(Values(BlockTensor(DType::kQ40, {32}), DType::kF32, block));
  ASSERT_THAT(values, SizeIs(32));
  EXPECT_EQ(values[0], -4.0F);
  EXPECT_EQ(values[15], 3.5F);
  EXPECT_EQ(values[16], 3.5F);
  EXPECT_EQ(values[31], -4.0F);
}

// Rows, data in pieces that cut blocks, and reads at any byte.
TEST(GgufDequantiseTest, AnyPartIsThatPartOfTheWhole) {
  constexpr uint32_t kSeed = 3;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (const DType dtype : {DType::kQ40, DType::kQ6K, DType::kNvfp4}) {
    TensorInfo tensor = BlockTensor(dtype, {3, 2 * BlockElements(dtype)});
    const std::string bytes = PatternBytes(6 * BlockBytes(dtype));
    for (const DType to : {DType::kF32, DType::kF16, DType::kBF16}) {
      tensor.data = {{0, 0, bytes.size()}};
      const std::string whole = Values(tensor, to, bytes);
      ASSERT_EQ(whole.size(), 6 * BlockElements(dtype) * DTypeBits(to) / 8);
      tensor.data = {{0, 0, 7}, {0, 7, 0}, {0, 7, 60}, {0, 67, bytes.size()}};
      tensor.data.back().length -= 67;
      auto segments = DequantiseSegments(tensor, to);
      ASSERT_OK(segments);
      auto file = VirtualFile::Create(*segments);
      ASSERT_OK(file);
      MemorySource source("s", ToBytes(bytes));
      ByteSource* const objects[] = {&source};
      for (int round = 0; round < 200; ++round) {
        const size_t from = random() % (whole.size() + 1);
        std::vector<std::byte> out(random() % (whole.size() - from + 1));
        ASSERT_OK(ReadVirtual(*file, objects, from, out));
        ASSERT_TRUE(ToString(out) == whole.substr(from, out.size()))
            << DTypeName(dtype) << " " << DTypeName(to) << " " << from;
      }
    }
  }
}

TEST(GgufDequantiseTest, ReadsOnlyTheBlocksOfAPart) {
  const auto segments =
      DequantiseSegments(BlockTensor(DType::kQ40, {4, 64}), DType::kF16);
  ASSERT_OK(segments);
  ASSERT_THAT(*segments, SizeIs(1));
  const auto& transform =
      *std::get<TransformSegment>(segments->at(0)).transform;
  EXPECT_EQ(transform.size(), 4 * 64 * 2U);
  EXPECT_THAT(transform.Inputs(0, 1), ElementsAre(SourceRange{0, 0, 18}));
  EXPECT_THAT(transform.Inputs(63, 2), ElementsAre(SourceRange{0, 0, 36}));
  EXPECT_THAT(transform.Inputs(64, 64), ElementsAre(SourceRange{0, 18, 18}));
  EXPECT_THAT(transform.Inputs(511, 1), ElementsAre(SourceRange{0, 126, 18}));
  EXPECT_THAT(transform.Inputs(100, 0), IsEmpty());
}

TEST(GgufDequantiseTest, WhatItCannotDoIsRefused) {
  for (const DType from :
       {DType::kQ81, DType::kQ8K, DType::kQ10, DType::kQ20, DType::kF32}) {
    const auto refused =
        DequantiseSegments(BlockTensor(from, {256}), DType::kF32);
    EXPECT_THAT(refused, HasCode(Code::kUnsupported));
    EXPECT_THAT(refused, HasMessage(HasSubstr(std::string(DTypeName(from)))));
  }
  const TensorInfo tensor = BlockTensor(DType::kQ40, {64});
  for (const DType to : {DType::kF64, DType::kU8, DType::kQ40}) {
    EXPECT_THAT(DequantiseSegments(tensor, to), HasCode(Code::kUnsupported));
  }
  TensorInfo strided = tensor;
  strided.strides = {1};
  EXPECT_THAT(DequantiseSegments(strided, DType::kF32),
              HasCode(Code::kUnsupported));
  TensorInfo cut = tensor;
  cut.data[0].length -= 1;
  EXPECT_THAT(DequantiseSegments(cut, DType::kF32), HasCode(Code::kInvalid));
  // More bytes as F32 than 64 bits count.
  TensorInfo huge = tensor;
  huge.shape = {uint64_t{1} << 62};
  huge.data = {{0, 0, (uint64_t{1} << 57) * 18}};
  EXPECT_THAT(DequantiseSegments(huge, DType::kF32), HasCode(Code::kCorrupt));
}

TEST(GgufDequantiseTest, ATensorOfNoBytesHasNoSegments) {
  const auto segments =
      DequantiseSegments(BlockTensor(DType::kQ4K, {0, 256}), DType::kF32);
  ASSERT_OK(segments);
  EXPECT_THAT(*segments, IsEmpty());
}

// FNV-1a of all coordinates.
template <class Grid>
uint64_t HashOf(const Grid& grid) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const auto& point : grid) {
    for (const int8_t level : point) {
      hash = (hash ^ static_cast<uint8_t>(level)) * 0x100000001b3;
    }
  }
  return hash;
}

// Sizes and hashes of the reference's codebooks.
TEST(GgufGridsTest, AreTheReferences) {
  EXPECT_THAT(Iq2XxsGrid(), SizeIs(256));
  EXPECT_THAT(Iq2XsGrid(), SizeIs(512));
  EXPECT_THAT(Iq2SGrid(), SizeIs(1024));
  EXPECT_THAT(Iq1SGrid(), SizeIs(2048));
  EXPECT_THAT(Iq3XxsGrid(), SizeIs(256));
  EXPECT_THAT(Iq3SGrid(), SizeIs(512));
  EXPECT_EQ(HashOf(Iq2XxsGrid()), 0xbb4ee025b5ac6e8e);
  EXPECT_EQ(HashOf(Iq2XsGrid()), 0xc9b1ee61e79909bd);
  EXPECT_EQ(HashOf(Iq2SGrid()), 0x123edd38a3b62b90);
  EXPECT_EQ(HashOf(Iq1SGrid()), 0x6703ed863501ae2e);
  EXPECT_EQ(HashOf(Iq3XxsGrid()), 0xdfa5dc83d6a155d5);
  EXPECT_EQ(HashOf(Iq3SGrid()), 0xfa37020c25b44829);
}

TEST(HalfFloatTest, EveryHalfGoesThereAndBack) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    if ((bits & 0x7fff) > 0x7c00) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      EXPECT_EQ(FloatToHalf(value), half);
    }
  }
  EXPECT_EQ(HalfToFloat(0x3c00), 1.0F);
  EXPECT_EQ(HalfToFloat(0xc500), -5.0F);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24F);
  EXPECT_EQ(HalfToFloat(0x7bff), 65504.0F);
  EXPECT_TRUE(std::isinf(HalfToFloat(0x7c00)));
}

TEST(HalfFloatTest, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(FloatToHalf(1 + 0x1p-11F), 0x3c00);      // a tie
  EXPECT_EQ(FloatToHalf(1 + 3 * 0x1p-11F), 0x3c02);  // a tie
  EXPECT_EQ(FloatToHalf(1 + 0x1p-11F + 0x1p-20F), 0x3c01);
  EXPECT_EQ(FloatToHalf(0x1p-25F), 0x0000);  // a tie
  EXPECT_EQ(FloatToHalf(0x1p-25F + 0x1p-40F), 0x0001);
  EXPECT_EQ(FloatToHalf(-3 * 0x1p-25F), 0x8002);  // a tie
  EXPECT_EQ(FloatToHalf(0x1p-14F - 0x1p-30F), 0x0400);
  EXPECT_EQ(FloatToHalf(65519.0F), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0F), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30F), 0xfc00);
  EXPECT_EQ(FloatToHalf(-0.0F), 0x8000);
  EXPECT_EQ(FloatToBFloat16(1.0F), 0x3f80);
  EXPECT_EQ(FloatToBFloat16(1 + 0x1p-8F), 0x3f80);      // a tie
  EXPECT_EQ(FloatToBFloat16(1 + 3 * 0x1p-8F), 0x3f82);  // a tie
  EXPECT_EQ(FloatToBFloat16(1 + 0x1p-8F + 0x1p-20F), 0x3f81);
  EXPECT_EQ(FloatToBFloat16(3.4e38F), 0x7f80);
  // A NaN whose low bits alone say so stays one.
  EXPECT_EQ(FloatToBFloat16(std::bit_cast<float>(0x7f800001U)), 0x7fc0);
  EXPECT_EQ(FloatToHalf(std::bit_cast<float>(0xff800001U)), 0xfe00);
}

TEST(HalfFloatTest, NoNeighbourIsNearer) {
  constexpr uint32_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 200'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!(std::fabs(value) < 65504.0F)) continue;
    const uint16_t half = FloatToHalf(value);
    const auto distance = [&](int bits) {
      return std::fabs(static_cast<double>(value) -
                       HalfToFloat(static_cast<uint16_t>(bits)));
    };
    if ((half & 0x7fff) > 0) {
      ASSERT_LE(distance(half), distance(half - 1));
    }
    ASSERT_LE(distance(half), distance(half + 1));
  }
}

}  // namespace
}  // namespace weightfs
