#include "formats/gather.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <variant>

#include "formats/writer.h"
#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::SizeIs;

// A strided tensor over `storage` bytes of object 0.
TensorInfo Strided(DType dtype, std::vector<uint64_t> shape,
                   std::vector<uint64_t> strides, uint64_t offset,
                   uint64_t storage) {
  TensorInfo tensor;
  tensor.name = "t";
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.strides = std::move(strides);
  tensor.storage_offset = offset;
  if (storage > 0) tensor.data = {{0, 0, storage}};
  return tensor;
}

// Element by element, by the definition.
std::string Naive(const TensorInfo& tensor, std::string_view storage) {
  const uint64_t item = DTypeBits(tensor.dtype) / 8;
  std::string out;
  std::vector<uint64_t> at(tensor.shape.size());
  for (uint64_t n = *ElementCount(tensor.shape); n > 0; --n) {
    uint64_t element = tensor.storage_offset;
    for (size_t i = 0; i < at.size(); ++i) element += at[i] * tensor.strides[i];
    out += storage.substr(element * item, item);
    for (size_t i = at.size(); i-- > 0;) {
      if (++at[i] < tensor.shape[i]) break;
      at[i] = 0;
    }
  }
  return out;
}

uint64_t InputBytes(const std::vector<Segment>& segments) {
  uint64_t bytes = 0;
  for (const Segment& segment : segments) {
    const auto* part = std::get_if<TransformSegment>(&segment);
    if (part == nullptr) continue;
    for (const SourceRange& range :
         part->transform->Inputs(0, part->transform->size())) {
      bytes += range.length;
    }
  }
  return bytes;
}

const Transform& OnlyTransform(const std::vector<Segment>& segments) {
  return *std::get<TransformSegment>(segments.at(0)).transform;
}

TEST(GatherTest, TransposedMatrix) {
  const std::string storage = PatternBytes(6 * 4);
  const TensorInfo tensor = Strided(DType::kF32, {3, 2}, {1, 3}, 0, 24);
  auto segments = DenseSegments(tensor);
  ASSERT_OK(segments);
  EXPECT_EQ(Materialise(*segments, storage), Naive(tensor, storage));
}

TEST(GatherTest, ContiguousTensorsAreRangesAsTheyAre) {
  // Dimensions of 1 may have any stride.
  const TensorInfo tensor =
      Strided(DType::kF16, {1, 3, 1, 4}, {999, 4, 7, 1}, 5, 1000);
  auto segments = DenseSegments(tensor);
  ASSERT_OK(segments);
  ASSERT_THAT(*segments, SizeIs(1));
  EXPECT_EQ(std::get<SourceSegment>(segments->at(0)).range,
            (SourceRange{0, 10, 24}));
}

TEST(GatherTest, ScalarsAndEmptyTensors) {
  auto scalar = DenseSegments(Strided(DType::kF32, {1}, {1}, 3, 16));
  ASSERT_OK(scalar);
  EXPECT_EQ(std::get<SourceSegment>(scalar->at(0)).range,
            (SourceRange{0, 12, 4}));
  auto empty = DenseSegments(Strided(DType::kF32, {2, 0}, {1, 1}, 99, 0));
  ASSERT_OK(empty);
  EXPECT_THAT(*empty, SizeIs(0));
}

TEST(GatherTest, LongRunsAreRangesToo) {
  // Two rows of 64 KiB out of four.
  const TensorInfo tensor =
      Strided(DType::kU8, {2, 65536}, {131072, 1}, 0, 4 * 65536);
  auto segments = DenseSegments(tensor);
  ASSERT_OK(segments);
  ASSERT_THAT(*segments, SizeIs(2));
  EXPECT_EQ(std::get<SourceSegment>(segments->at(1)).range,
            (SourceRange{0, 131072, 65536}));
}

TEST(GatherTest, ReadsNoMoreThanItNeeds) {
  // A column of a wide matrix: one item a row.
  auto segments =
      DenseSegments(Strided(DType::kF32, {100}, {1000}, 7, 400'000));
  ASSERT_OK(segments);
  EXPECT_EQ(InputBytes(*segments), 400U);
  const auto one = OnlyTransform(*segments).Inputs(4, 4);
  ASSERT_THAT(one, SizeIs(1));
  EXPECT_EQ(one[0], (SourceRange{0, 4028, 4}));
  // A part of an item costs that part.
  EXPECT_EQ(OnlyTransform(*segments).Inputs(5, 2)[0],
            (SourceRange{0, 4029, 2}));
}

TEST(GatherTest, JoinsRunsOfATransposedRead) {
  // Rows of the transposed view: 16 of them need 16 neighbours of each column.
  auto segments =
      DenseSegments(Strided(DType::kF32, {64, 64}, {1, 64}, 0, 16384));
  ASSERT_OK(segments);
  const auto inputs = OnlyTransform(*segments).Inputs(0, 16 * 64 * 4);
  ASSERT_THAT(inputs, SizeIs(64));
  for (const SourceRange& range : inputs) EXPECT_EQ(range.length, 64U);
  // All of it is one range.
  EXPECT_THAT(OnlyTransform(*segments).Inputs(0, 16384), SizeIs(1));
}

TEST(GatherTest, ReadsSmallGapsAlong) {
  auto near = DenseSegments(Strided(DType::kU8, {100}, {65}, 0, 6500));
  ASSERT_OK(near);
  EXPECT_THAT(OnlyTransform(*near).Inputs(0, 100), SizeIs(1));
  auto far = DenseSegments(Strided(DType::kU8, {100}, {66}, 0, 6600));
  ASSERT_OK(far);
  EXPECT_THAT(OnlyTransform(*far).Inputs(0, 100), SizeIs(100));
}

TEST(GatherTest, ARepeatedElementIsReadOnce) {
  auto segments = DenseSegments(Strided(DType::kF64, {1000, 3}, {0, 1}, 2, 64));
  ASSERT_OK(segments);
  EXPECT_EQ(InputBytes(*segments), 24U);
}

TEST(GatherTest, RefusesWhatReachesPastTheStorage) {
  const auto refused = [](std::vector<uint64_t> shape,
                          std::vector<uint64_t> strides, uint64_t offset) {
    return DenseSegments(
        Strided(DType::kF32, std::move(shape), std::move(strides), offset, 40));
  };
  EXPECT_OK(refused({2, 5}, {5, 1}, 0));
  EXPECT_OK(refused({5, 2}, {1, 5}, 0));
  EXPECT_THAT(refused({5, 2}, {1, 5}, 1), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2, 5}, {5, 1}, 1), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({5, 2}, {1, 6}, 0), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2}, {UINT64_MAX}, 0), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({3}, {UINT64_MAX / 8 + 1}, 0), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2}, {1}, UINT64_MAX), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2}, {1}, UINT64_MAX / 4), HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2, 2}, {UINT64_MAX / 8, UINT64_MAX / 8}, 0),
              HasCode(Code::kCorrupt));
  EXPECT_THAT(refused({2}, {1, 1}, 0), HasCode(Code::kInvalid));
}

TEST(GatherTest, SubByteDTypesOnlyWhereContiguous) {
  auto whole = DenseSegments(Strided(DType::kF4, {4, 4}, {4, 1}, 2, 100));
  ASSERT_OK(whole);
  EXPECT_EQ(std::get<SourceSegment>(whole->at(0)).range,
            (SourceRange{0, 1, 8}));
  EXPECT_THAT(DenseSegments(Strided(DType::kF4, {4, 4}, {1, 4}, 0, 100)),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(DenseSegments(Strided(DType::kF4, {4}, {1}, 1, 100)),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(DenseSegments(Strided(DType::kF4, {4}, {1}, 200, 100)),
              HasCode(Code::kCorrupt));
}

TEST(GatherTest, BlocksOnlyWhereContiguous) {
  auto whole = DenseSegments(Strided(DType::kQ40, {2, 64}, {64, 1}, 32, 100));
  ASSERT_OK(whole);
  EXPECT_EQ(std::get<SourceSegment>(whole->at(0)).range,
            (SourceRange{0, 18, 72}));
  EXPECT_THAT(DenseSegments(Strided(DType::kQ40, {2, 64}, {1, 2}, 0, 100)),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(DenseSegments(Strided(DType::kQ40, {64}, {1}, 31, 100)),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(DenseSegments(Strided(DType::kQ40, {64}, {1}, 160, 100)),
              HasCode(Code::kCorrupt));
  EXPECT_THAT(
      DenseSegments(Strided(DType::kQ40, {64}, {1}, UINT64_MAX - 31, 100)),
      HasCode(Code::kCorrupt));
}

TEST(SliceRangesTest, CutsAcrossRanges) {
  const std::vector<SourceRange> ranges = {{0, 10, 5}, {1, 0, 0}, {1, 20, 5}};
  EXPECT_THAT(SliceRanges(ranges, 0, 0), SizeIs(0));
  EXPECT_EQ(SliceRanges(ranges, 3, 4),
            (std::vector<SourceRange>{{0, 13, 2}, {1, 20, 2}}));
  EXPECT_EQ(SliceRanges(ranges, 5, 5), (std::vector<SourceRange>{{1, 20, 5}}));
}

// Random shapes, strides (0 and overlapping ones too), storages in pieces, and
// reads, against the definition.
TEST(GatherPropertyTest, EqualsTheDefinition) {
  constexpr uint32_t kSeed = 42;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  const DType dtypes[] = {DType::kU8, DType::kBF16, DType::kF32, DType::kC64};
  int transforms = 0;
  for (int round = 0; round < 3000; ++round) {
    const DType dtype = dtypes[random() % 4];
    const uint64_t item = DTypeBits(dtype) / 8;
    std::vector<uint64_t> shape(1 + random() % 4);
    std::vector<uint64_t> strides(shape.size());
    const uint64_t offset = random() % 5;
    uint64_t last = offset;
    for (size_t i = 0; i < shape.size(); ++i) {
      shape[i] = random() % 20 == 0 ? 0 : 1 + random() % 6;
      strides[i] = random() % 3 == 0 ? random() % 200 : random() % 9;
      if (shape[i] > 0) last += (shape[i] - 1) * strides[i];
    }
    if (!shape.empty() && random() % 2 == 0) strides.back() = 1;
    if (!shape.empty()) last += shape.back();
    const std::string storage = PatternBytes((last + 1) * item);
    TensorInfo tensor = Strided(dtype, shape, strides, offset, 0);
    // The storage in pieces, an empty one among them, cut inside of items too.
    for (uint64_t at = 0; at < storage.size();) {
      const uint64_t length = std::min<uint64_t>(storage.size() - at,
                                                 random() % storage.size() + 1);
      tensor.data.push_back({0, at, length});
      if (random() % 4 == 0) tensor.data.push_back({0, at, 0});
      at += length;
    }
    auto segments = DenseSegments(tensor);
    ASSERT_OK(segments);
    const std::string whole = Naive(tensor, storage);
    ASSERT_EQ(Materialise(*segments, storage), whole) << "round " << round;
    if (segments->size() == 1 &&
        std::holds_alternative<TransformSegment>(segments->at(0))) {
      ++transforms;
    }

    auto file = VirtualFile::Create(*segments);
    ASSERT_OK(file);
    MemorySource source("s", ToBytes(storage));
    ByteSource* const objects[] = {&source};
    for (int read = 0; read < 10; ++read) {
      const size_t from = random() % (whole.size() + 1);
      std::vector<std::byte> out(random() % (whole.size() - from + 1));
      ASSERT_OK(ReadVirtual(*file, objects, from, out));
      ASSERT_EQ(ToString(out), whole.substr(from, out.size()))
          << "round " << round;
    }
  }
  EXPECT_GT(transforms, 500);
}

// The inputs are sorted, disjoint, and no more than the items and gaps.
TEST(GatherPropertyTest, InputsAreDisjointAndBounded) {
  constexpr uint32_t kSeed = 43;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 500; ++round) {
    std::vector<uint64_t> shape(1 + random() % 3);
    std::vector<uint64_t> strides(shape.size());
    uint64_t last = 0;
    for (size_t i = 0; i < shape.size(); ++i) {
      shape[i] = 2 + random() % 8;
      strides[i] = random() % 300;
      last += (shape[i] - 1) * strides[i];
    }
    const TensorInfo tensor =
        Strided(DType::kF32, shape, strides, 0, (last + 1) * 4);
    auto segments = DenseSegments(tensor);
    ASSERT_OK(segments);
    const auto* part = std::get_if<TransformSegment>(&segments->at(0));
    if (part == nullptr) continue;
    const uint64_t from = random() % part->transform->size();
    const uint64_t length = 1 + random() % (part->transform->size() - from);
    const auto inputs = part->transform->Inputs(from, length);
    uint64_t total = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      total += inputs[i].length;
      if (i == 0) continue;
      ASSERT_GT(inputs[i].offset,
                inputs[i - 1].offset + inputs[i - 1].length + kMaxGatherGap);
    }
    ASSERT_LE(total, length + (length / 4 + 2) * kMaxGatherGap);
  }
}

}  // namespace
}  // namespace weightfs
