#include "formats/view/virtual_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::SizeIs;

// Each output byte is the source's byte, twice over, at half the offset: output
// i = source[range.offset + i / 2].
class Doubler final : public Transform {
 public:
  explicit Doubler(SourceRange range) : range_(range) {}
  uint64_t size() const override { return range_.length * 2; }
  std::vector<SourceRange> Inputs(uint64_t offset,
                                  uint64_t length) const override {
    const uint64_t first = offset / 2;
    const uint64_t last = (offset + length - 1) / 2;
    // Two ranges, to see that neighbours become one read.
    const uint64_t middle = first + (last - first) / 2;
    return {{range_.object, range_.offset + first, middle - first},
            {range_.object, range_.offset + middle, last + 1 - middle}};
  }
  void Apply(uint64_t offset,
             std::span<const std::span<const std::byte>> inputs,
             std::span<std::byte> out) const override {
    std::vector<std::byte> bytes(inputs[0].begin(), inputs[0].end());
    bytes.insert(bytes.end(), inputs[1].begin(), inputs[1].end());
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = bytes[(offset + i) / 2 - offset / 2];
    }
  }

 private:
  const SourceRange range_;
};

Segment Range(uint32_t object, uint64_t offset, uint64_t length) {
  return SourceSegment{{object, offset, length}};
}

class VirtualFileTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kSeed = 7;

  void Make(std::vector<Segment> segments) {
    auto file = VirtualFile::Create(std::move(segments));
    ASSERT_OK(file);
    file_ = *file;
  }
  Result<std::string> Read(uint64_t offset, size_t length) {
    ByteSource* const objects[] = {&first_, &second_};
    std::vector<std::byte> out(length);
    RETURN_IF_ERROR(ReadVirtual(file_, objects, offset, out));
    return ToString(out);
  }

  std::string first_bytes_ = PatternBytes(1000);
  std::string second_bytes_ = PatternBytes(500).substr(100);
  MemorySource first_{"first", ToBytes(first_bytes_)};
  MemorySource second_{"second", ToBytes(second_bytes_)};
  VirtualFile file_;
};

TEST_F(VirtualFileTest, AnEmptyFileHoldsNothing) {
  EXPECT_EQ(file_.size(), 0U);
  EXPECT_THAT(Read(0, 0), IsOkAndHolds(""));
  EXPECT_THAT(Read(0, 1), HasCode(Code::kInvalid));
  Make({});
  EXPECT_EQ(file_.size(), 0U);
  EXPECT_THAT(Read(0, 0), IsOkAndHolds(""));
  Make({Literal(""), Range(0, 5, 0)});
  EXPECT_EQ(file_.size(), 0U);
  EXPECT_THAT(Read(0, 0), IsOkAndHolds(""));
}

TEST_F(VirtualFileTest, EveryRangeReadsAsTheWholeFileSays) {
  Make({Literal("header"), Range(0, 10, 30), Literal(""), Range(1, 0, 0),
        TransformSegment{std::make_shared<Doubler>(SourceRange{1, 7, 20})},
        Literal("x"), Range(0, 999, 1)});
  std::string whole = "header" + first_bytes_.substr(10, 30);
  for (size_t i = 0; i < 40; ++i) whole += second_bytes_[7 + i / 2];
  whole += "x" + first_bytes_.substr(999);
  ASSERT_EQ(file_.size(), whole.size());
  for (size_t offset = 0; offset <= whole.size(); ++offset) {
    for (size_t length = 0; offset + length <= whole.size(); ++length) {
      ASSERT_THAT(Read(offset, length),
                  IsOkAndHolds(whole.substr(offset, length)));
    }
    EXPECT_THAT(Read(offset, whole.size() - offset + 1),
                HasCode(Code::kInvalid));
  }
  EXPECT_THAT(Read(UINT64_MAX, 1), HasCode(Code::kInvalid));
}

TEST_F(VirtualFileTest, RandomFilesOfRandomSegments) {
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 300; ++round) {
    std::vector<Segment> segments;
    std::string whole;
    const size_t count = random() % 8;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t offset = random() % 300;
      const uint64_t length = random() % 100;
      switch (random() % 3) {
        case 0:
          segments.push_back(Literal(PatternBytes(length)));
          whole += PatternBytes(length);
          break;
        case 1:
          segments.push_back(Range(0, offset, length));
          whole += first_bytes_.substr(offset, length);
          break;
        default:
          segments.emplace_back(TransformSegment{
              std::make_shared<Doubler>(SourceRange{1, offset, length})});
          for (size_t j = 0; j < 2 * length; ++j) {
            whole += second_bytes_[offset + j / 2];
          }
      }
    }
    Make(segments);
    ASSERT_EQ(file_.size(), whole.size());
    for (int read = 0; read < 50; ++read) {
      const size_t offset = random() % (whole.size() + 1);
      const size_t length = random() % (whole.size() - offset + 1);
      ASSERT_THAT(Read(offset, length),
                  IsOkAndHolds(whole.substr(offset, length)));
    }
  }
}

TEST_F(VirtualFileTest, JoinsNeighbouringReads) {
  Make({Range(0, 10, 5), Range(0, 15, 5), Range(0, 30, 5), Range(1, 35, 5),
        Range(1, 40, 5)});
  std::vector<std::byte> out(25);
  auto plan = file_.Plan(0, out);
  ASSERT_OK(plan);
  ASSERT_THAT(plan->reads(), SizeIs(3));
  EXPECT_EQ(plan->reads()[0].offset, 10U);
  EXPECT_EQ(plan->reads()[0].dest.size(), 10U);
  EXPECT_EQ(plan->reads()[0].dest.data(), out.data());
  EXPECT_EQ(plan->reads()[1].offset, 30U);
  EXPECT_EQ(plan->reads()[2].object, 1U);
  EXPECT_EQ(plan->reads()[2].dest.size(), 10U);
}

TEST_F(VirtualFileTest, DoesNotJoinAcrossALiteral) {
  Make({Range(0, 10, 5), Literal("x"), Range(0, 15, 5)});
  std::vector<std::byte> out(11);
  auto plan = file_.Plan(0, out);
  ASSERT_OK(plan);
  EXPECT_THAT(plan->reads(), SizeIs(2));
}

TEST_F(VirtualFileTest, PlansOnlyWhatTheReadNeeds) {
  Make({Literal("head"), Range(0, 100, 50),
        TransformSegment{std::make_shared<Doubler>(SourceRange{1, 0, 50})}});
  std::vector<std::byte> out(4);
  auto plan = file_.Plan(0, out);
  ASSERT_OK(plan);
  EXPECT_THAT(plan->reads(), SizeIs(0));
  plan = file_.Plan(10, out);
  ASSERT_OK(plan);
  ASSERT_THAT(plan->reads(), SizeIs(1));
  EXPECT_EQ(plan->reads()[0].offset, 106U);
  EXPECT_EQ(plan->reads()[0].dest.size(), 4U);
  plan = file_.Plan(60, out);  // output 6…10 of the doubler
  ASSERT_OK(plan);
  ASSERT_THAT(plan->reads(), SizeIs(1));
  EXPECT_EQ(plan->reads()[0].offset, 3U);
  EXPECT_EQ(plan->reads()[0].dest.size(), 2U);
}

TEST_F(VirtualFileTest, RefusesFilesTooLargeForTheKernel) {
  const uint64_t most = INT64_MAX;
  EXPECT_OK(VirtualFile::Create({Range(0, 0, most)}));
  EXPECT_THAT(VirtualFile::Create({Range(0, 0, most), Literal("x")}),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(
      VirtualFile::Create({Range(0, 0, UINT64_MAX), Range(0, 0, UINT64_MAX)}),
      HasCode(Code::kUnsupported));
}

TEST_F(VirtualFileTest, PassesErrorsOn) {
  Make({Literal("x"), Range(0, 990, 20)});  // past the object's end
  EXPECT_THAT(Read(0, 5), IsOk());
  EXPECT_THAT(Read(0, 21), HasCode(Code::kInvalid));
  Make({Range(9, 0, 1)});
  EXPECT_THAT(Read(0, 1), HasCode(Code::kInvalid));
}

}  // namespace
}  // namespace weightfs
