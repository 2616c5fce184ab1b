#include "formats/tensor_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kMax = UINT64_MAX;

TensorInfo Tensor(std::string name, uint64_t order) {
  TensorInfo tensor;
  tensor.name = std::move(name);
  tensor.order = order;
  return tensor;
}

TEST(ElementCountTest, MultipliesAndTellsOverflow) {
  EXPECT_EQ(ElementCount({}), 1U);
  EXPECT_EQ(ElementCount({0}), 0U);
  EXPECT_EQ(ElementCount({2, 3, 4}), 24U);
  EXPECT_EQ(ElementCount({kMax}), kMax);
  EXPECT_EQ(ElementCount({kMax, 2}), std::nullopt);
  EXPECT_EQ(ElementCount({uint64_t{1} << 32, uint64_t{1} << 32}), std::nullopt);
}

// Wherever the zero stands: the reference parser takes the first, not the last.
TEST(ElementCountTest, AnOverflowIsNotHiddenByAZero) {
  EXPECT_EQ(ElementCount({0, kMax, 2}), std::nullopt);
  EXPECT_EQ(ElementCount({kMax, 0, 2}), std::nullopt);
  EXPECT_EQ(ElementCount({kMax, 2, 0}), std::nullopt);
  EXPECT_EQ(ElementCount({0, kMax}), 0U);
}

TEST(DenseSizeTest, CountsBytes) {
  EXPECT_THAT(DenseSize(DType::kF32, {}), IsOkAndHolds(4U));
  EXPECT_THAT(DenseSize(DType::kC64, {2, 3}), IsOkAndHolds(48U));
  EXPECT_THAT(DenseSize(DType::kF4, {4, 2}), IsOkAndHolds(4U));
  EXPECT_THAT(DenseSize(DType::kF6E2M3, {4}), IsOkAndHolds(3U));
  EXPECT_THAT(DenseSize(DType::kF64, {3, 0}), IsOkAndHolds(0U));
}

TEST(DenseSizeTest, CountsBlocks) {
  EXPECT_THAT(DenseSize(DType::kQ40, {32}), IsOkAndHolds(18U));
  EXPECT_THAT(DenseSize(DType::kQ4K, {3, 512}), IsOkAndHolds(864U));
  EXPECT_THAT(DenseSize(DType::kQ4K, {3, 0}), IsOkAndHolds(0U));
  EXPECT_THAT(DenseSize(DType::kQ4K, {0, 256}), IsOkAndHolds(0U));
  // A row is whole blocks, not only the whole.
  EXPECT_THAT(DenseSize(DType::kQ40, {2, 16}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kQ40, {32, 1}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kQ40, {}), HasCode(Code::kCorrupt));
  // More bytes than values: of Q8_K, 292 for 256.
  EXPECT_THAT(DenseSize(DType::kQ8K, {kMax - 255}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kQ40, {kMax - 31}),
              IsOkAndHolds((kMax / 32) * 18));
}

TEST(DenseSizeTest, RefusesPartsOfBytesAndOverflow) {
  EXPECT_THAT(DenseSize(DType::kF4, {3}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kF4, {}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kF6E3M2, {2}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kF32, {kMax / 4 + 1}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kF4, {kMax / 4 + 1}), HasCode(Code::kCorrupt));
  EXPECT_THAT(DenseSize(DType::kU8, {kMax, 2}), HasCode(Code::kCorrupt));
}

TEST(TensorIndexTest, SortsByNameBytewise) {
  auto index = TensorIndex::Create(
      {"f"}, {Tensor("b", 0), Tensor("\xff", 1), Tensor("a", 2), Tensor("", 3)},
      {{"k", "v"}});
  ASSERT_OK(index);
  EXPECT_EQ(index->tensors()[0].name, "");
  EXPECT_EQ(index->tensors()[1].name, "a");
  EXPECT_EQ(index->tensors()[2].name, "b");
  EXPECT_EQ(index->tensors()[3].name, "\xff");
  EXPECT_THAT(index->InFileOrder(), ElementsAre(2U, 3U, 1U, 0U));
  EXPECT_EQ(index->metadata().at("k"), "v");
}

TEST(TensorIndexTest, FindsByName) {
  auto index = TensorIndex::Create({"f"}, {Tensor("b", 0), Tensor("d", 1)}, {});
  ASSERT_OK(index);
  ASSERT_NE(index->Find("b"), nullptr);
  EXPECT_EQ(index->Find("d")->order, 1U);
  for (const std::string_view name : {"", "a", "c", "e", "b "}) {
    EXPECT_EQ(index->Find(name), nullptr) << name;
  }
  EXPECT_EQ(TensorIndex().Find("x"), nullptr);
}

TEST(TensorIndexTest, RefusesANameThatComesTwice) {
  const auto index = TensorIndex::Create(
      {"f"}, {Tensor("b", 0), Tensor("a", 1), Tensor("b", 2)}, {});
  EXPECT_THAT(index, HasCode(Code::kCorrupt));
  EXPECT_THAT(index, HasMessage(HasSubstr("\"b\" comes twice")));
}

TEST(TensorIndexTest, RefusesARangeOfNoObject) {
  TensorInfo tensor = Tensor("a", 0);
  tensor.data = {{1, 0, 1}};
  EXPECT_THAT(TensorIndex::Create({"f"}, {tensor}, {}),
              HasCode(Code::kInvalid));
}

}  // namespace
}  // namespace weightfs
