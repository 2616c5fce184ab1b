// ReadTorch over files that torch itself wrote (tests/make_torch_seeds.py), and
// what was done to them. tests/e2e/test_torch_files.py compares the bytes.

#include "formats/torch.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tests/formats/format_testing.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string WrittenByTorch(const std::string& name) {
  return ReadFileOrDie(WEIGHTFS_TEST_DATA "/../corpus/torch/" + name);
}

Result<TensorIndex> ReadTorchBytes(const std::string& bytes) {
  RecordingSource source("m.pt", bytes);
  return ReadTorch(source);
}

std::vector<std::string> TorchNames(const TensorIndex& index) {
  std::vector<std::string> names;
  for (const TensorInfo& tensor : index.tensors()) names.push_back(tensor.name);
  return names;
}

std::string WithReplaced(std::string bytes, const std::string& from,
                         const std::string& to) {
  const size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  if (at != std::string::npos) bytes.replace(at, from.size(), to);
  return bytes;
}

class TorchFileTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Each, TorchFileTest,
                         ::testing::Values("state", "protocol4", "stored",
                                           "legacy"),
                         [](const auto& file) { return file.param; });

TEST_P(TorchFileTest, HasItsTensors) {
  const std::string bytes = WrittenByTorch(GetParam());
  const auto index = ReadTorchBytes(bytes);
  ASSERT_OK(index);
  EXPECT_THAT(index->problems(), IsEmpty());
  std::vector<std::string> names = {"a",         "column", "empty",  "half",
                                    "parameter", "row",    "scalar", "tied"};
  if (GetParam() != std::string("legacy"))
    names.insert(names.begin() + 3, "fp8");
  EXPECT_EQ(TorchNames(*index), names);

  const TensorInfo& a = *index->Find("a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.shape, (std::vector<uint64_t>{4, 6}));
  EXPECT_EQ(index->Find("tied")->data, a.data);
  EXPECT_EQ(index->Find("tied")->storage_id, a.storage_id);
  const TensorInfo& row = *index->Find("row");
  ASSERT_TRUE(row.dense());
  EXPECT_EQ(row.data[0].offset, a.data[0].offset + 6 * 4);
  EXPECT_EQ(row.data[0].length, 6u * 4);
  const TensorInfo& column = *index->Find("column");
  EXPECT_EQ(column.strides, (std::vector<uint64_t>{6}));
  EXPECT_EQ(column.storage_offset, 2u);
  EXPECT_EQ(index->Find("scalar")->dtype, DType::kI64);
  EXPECT_THAT(index->Find("scalar")->shape, IsEmpty());
  // The scalar is 1: its bytes lie where they are said to.
  const SourceRange& one = index->Find("scalar")->data[0];
  EXPECT_EQ(bytes.substr(one.offset, one.length),
            std::string("\1\0\0\0\0\0\0\0", 8));
}

TEST_P(TorchFileTest, TruncatedAnywhereIsRefused) {
  const std::string bytes = WrittenByTorch(GetParam());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto index = ReadTorchBytes(bytes.substr(0, size));
    ASSERT_FALSE(index.has_value()) << size;
    ASSERT_THAT(index.error().message(), HasSubstr("m.pt")) << size;
  }
}

TEST_P(TorchFileTest, AFailedReadIsNoVerdictOnTheFile) {
  const std::string bytes = WrittenByTorch(GetParam());
  RecordingSource whole("m.pt", bytes);
  ASSERT_OK(ReadTorch(whole));
  EXPECT_LE(whole.reads().size(), 3u);
  for (size_t k = 1; k <= whole.reads().size(); ++k) {
    RecordingSource source("m.pt", bytes);
    source.FailRead(k);
    EXPECT_THAT(ReadTorch(source), HasCode(Code::kUnavailable)) << k;
  }
}

// The directory's entry of a storage in an archive that Python wrote.
std::string PatchedEntry(size_t field, size_t bytes, uint64_t value) {
  std::string file = WrittenByTorch("stored");
  const size_t name = file.rfind("archive/data/0");
  EXPECT_NE(name, std::string::npos);
  const size_t entry = name - 46;  // a directory's entry before its name
  EXPECT_EQ(file.substr(entry, 4), "PK\1\2");
  for (size_t i = 0; i < bytes; ++i) {
    file[entry + field + i] = static_cast<char>(value >> (8 * i));
  }
  return file;
}

constexpr size_t kEntryFlags = 8;
constexpr size_t kEntryMethod = 10;
constexpr size_t kEntryStoredSize = 20;
constexpr size_t kEntrySize = 24;
constexpr size_t kEntryPlace = 42;

// What its directory says of a storage is wrong: no byte of it is shown.
TEST(TorchTest, AnEntryThatIsWrongGivesNoBytes) {
  const struct {
    size_t field;
    size_t bytes;
    uint64_t value;
  } patches[] = {{kEntryFlags, 2, 1},          {kEntryMethod, 2, 8},
                 {kEntryMethod, 2, 99},        {kEntryStoredSize, 4, 95},
                 {kEntryStoredSize, 4, 97},    {kEntryStoredSize, 4, 1 << 30},
                 {kEntrySize, 4, 95},          {kEntrySize, 4, 1 << 30},
                 {kEntryPlace, 4, 0},          {kEntryPlace, 4, 1},
                 {kEntryPlace, 4, 0x7fffffff}, {kEntryPlace, 4, 0xffffffff}};
  for (const auto& patch : patches) {
    const auto index =
        ReadTorchBytes(PatchedEntry(patch.field, patch.bytes, patch.value));
    const bool shown = index.has_value() && index->Find("a") != nullptr;
    EXPECT_FALSE(shown) << patch.field << " " << patch.value;
  }
}

TEST(TorchTest, AMemberTwiceIsRefused) {
  std::string file = WrittenByTorch("stored");
  const size_t name = file.rfind("archive/data/1");
  file[name + 13] = '0';
  EXPECT_THAT(ReadTorchBytes(file), HasCode(Code::kCorrupt));
}

TEST(TorchTest, CheckpointsAreFlattened) {
  const auto index = ReadTorchBytes(WrittenByTorch("checkpoint"));
  ASSERT_OK(index);
  EXPECT_NE(index->Find("state.0.a"), nullptr);
  EXPECT_NE(index->Find("state.1.0"), nullptr);
  EXPECT_EQ(index->metadata().at("epoch"), "1");
}

TEST(TorchTest, ModulesHaveTheirTensorsByAttribute) {
  for (const char* file : {"module", "script"}) {
    const auto index = ReadTorchBytes(WrittenByTorch(file));
    ASSERT_OK(index);
    EXPECT_EQ(TorchNames(*index),
              (std::vector<std::string>{"layer.bias", "layer.weight", "steps"}))
        << file;
  }
}

TEST(TorchTest, DeflatedStoragesAreProblemsByName) {
  const auto index = ReadTorchBytes(WrittenByTorch("deflated"));
  ASSERT_OK(index);
  ASSERT_THAT(index->problems(), Not(IsEmpty()));
  EXPECT_THAT(index->problems()[0], HasSubstr("is compressed"));
}

// One that is wrong by itself hides no other.
TEST(TorchTest, AnUnknownStorageIsAProblem) {
  const auto index = ReadTorchBytes(
      WithReplaced(WrittenByTorch("stored"), "HalfStorage", "HulfStorage"));
  ASSERT_OK(index);
  EXPECT_EQ(index->Find("half"), nullptr);
  EXPECT_NE(index->Find("a"), nullptr);
  ASSERT_THAT(index->problems(), SizeIs(1));
  EXPECT_THAT(index->problems()[0], HasSubstr("half"));
}

TEST(TorchTest, OtherFilesAreRefusedByName) {
  EXPECT_THAT(ReadTorchBytes(std::string(512, 'x')),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(ReadTorchBytes("\x80\x02."), HasCode(Code::kUnsupported));
  EXPECT_THAT(ReadTorchBytes(""), HasCode(Code::kUnsupported));
}

}  // namespace
}  // namespace weightfs
