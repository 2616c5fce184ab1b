#include "formats/shards.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/formats/format_testing.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

std::string Show(std::string_view file_name) {
  const auto name = ParseShardName(file_name);
  if (!name) return "no";
  return fmt::format("{} {}/{}", name->unsharded, name->number, name->count);
}

TEST(ShardNameTest, ReadsTheFormsInUse) {
  EXPECT_EQ(Show("model-00001-of-00003.safetensors"), "model.safetensors 1/3");
  EXPECT_EQ(Show("pytorch_model-00028-of-00028.bin"),
            "pytorch_model.bin 28/28");
  EXPECT_EQ(Show("model.fp16-00001-of-00002.safetensors"),
            "model.fp16.safetensors 1/2");
  EXPECT_EQ(Show("diffusion_pytorch_model-00001-of-00002.fp16.safetensors"),
            "diffusion_pytorch_model.fp16.safetensors 1/2");
  EXPECT_EQ(Show("Llama-3-8B-Q4_K_M-00002-of-00009.gguf"),
            "Llama-3-8B-Q4_K_M.gguf 2/9");
  EXPECT_EQ(Show("model-00001-of-000163.safetensors"),
            "model.safetensors 1/163");
  EXPECT_EQ(Show("a-00001-of-00002-00001-of-00001.bin"),
            "a-00001-of-00002.bin 1/1");
  EXPECT_EQ(Show("x-99999-of-99999.bin"), "x.bin 99999/99999");
}

TEST(ShardNameTest, RefusesOtherNames) {
  for (const char* name : {"",
                           "model.safetensors",
                           "model-00001-of-00003",
                           "model-00001-of-00003.",
                           "model-00000-of-00003.bin",
                           "model-00004-of-00003.bin",
                           "model-0001-of-0003.bin",
                           "model-1-of-3.bin",
                           "-00001-of-00003.bin",
                           "model-00001-of-.bin",
                           "model--of-00003.bin",
                           "model-0000x-of-00003.bin",
                           "model-00001-of-0000x.bin",
                           "model-+0001-of-00003.bin",
                           "model-00001of-00003.bin",
                           "model00001-of-00003.bin",
                           "model-00001-of-00003bin",
                           "dir/model-00001-of-00003.bin",
                           "model-0000001-of-0000003.bin",
                           "model-100000-of-100000.bin",
                           "-of-",
                           "--of-.",

                           "model-4294967297-of-4294967299.bin"}) {
    EXPECT_EQ(Show(name), "no") << name;
  }
}

Result<ShardIndex> ParseIndex(std::string_view text) {
  MemorySource source("m.index.json", ToBytes(text));
  return ReadShardIndex(source);
}

TEST(ShardIndexTest, ReadsTheWeightMap) {
  auto index = ParseIndex(
      R"({"metadata":{"total_size":5,"weight_map":{"no":1}},)"
      R"("weight_map":{"b":"m-00002-of-00002.x","a":"sub/./m.x","":"..x"},)"
      R"("z":[{"weight_map":7}]})");
  ASSERT_OK(index);
  EXPECT_THAT(index->weight_map,
              ElementsAre(Pair("", "..x"), Pair("a", "sub/./m.x"),
                          Pair("b", "m-00002-of-00002.x")));
  EXPECT_OK(ParseIndex(R"({"weight_map":{}})"));
}

TEST(ShardIndexTest, RefusesMalformedIndexes) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "JSON"},
      {"[]", "not an object"},
      {"1", "not an object"},
      {"{}", "weight_map: is missing"},
      {R"({"metadata":{}})", "weight_map: is missing"},
      {R"({"metadata":{"weight_map":{"a":"b"}}})", "weight_map: is missing"},
      {R"({"weight_map":[]})", "weight_map: is not an object"},
      {R"({"weight_map":null})", "weight_map: is not an object"},
      {R"({"weight_map":"x"})", "weight_map: is not an object"},
      {R"({"weight_map":{"a":1}})", "the file of \"a\" is not a string"},
      {R"({"weight_map":{"a":["x"]}})", "the file of \"a\" is not a string"},
      {R"({"weight_map":{"a":{}}})", "the file of \"a\" is not a string"},
      {R"({"weight_map":{"a":null}})", "the file of \"a\" is not a string"},
      {R"({"weight_map":{"a":"x","a":"x"}})", "\"a\" comes twice"},
      {R"({"weight_map":{"a":"x","\u0061":"y"}})", "\"a\" comes twice"},
      {R"({"weight_map":{},"weight_map":{}})", "weight_map: comes twice"},
      {R"({"weight_map":{"a":""}})", "empty file name"},
      {R"({"weight_map":{"a":"/x"}})", "absolute"},
      {R"({"weight_map":{"a":".."}})", "leaves the folder"},
      {R"({"weight_map":{"a":"../x"}})", "leaves the folder"},
      {R"({"weight_map":{"a":"s/../x"}})", "leaves the folder"},
      {R"({"weight_map":{"a":"s/.."}})", "leaves the folder"},
      {R"({"weight_map":{"a":"x\u0000y"}})", "NUL"},
      {R"({"weight_map":{"a":"x"})", "JSON"},
      {R"({"weight_map":{"a":"x"}}x)", "JSON"},
  };
  for (const auto& [text, message] : cases) {
    const auto index = ParseIndex(text);
    EXPECT_THAT(index, HasCode(Code::kCorrupt)) << text;
    EXPECT_THAT(index, HasMessage(HasSubstr(message))) << text;
    EXPECT_THAT(index, HasMessage(HasSubstr("m.index.json: "))) << text;
  }
}

TEST(ShardIndexTest, TruncationAtEveryLengthIsRefused) {
  const std::string text = R"({"metadata":{},"weight_map":{"a":"x","b":"y"}})";
  ASSERT_OK(ParseIndex(text));
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_THAT(ParseIndex(text.substr(0, length)), HasCode(Code::kCorrupt))
        << length;
  }
}

// A source that claims a size and must not be read.
class HugeSource final : public ByteSource {
 public:
  uint64_t size() const override { return kMaxShardIndexSize + 1; }
  const std::string& name() const override { return name_; }
  Result<> ReadAt(uint64_t, std::span<std::byte>) override {
    ADD_FAILURE() << "was read";
    return {};
  }

 private:
  const std::string name_ = "huge";
};

TEST(ShardIndexTest, LimitsSizeAndEntries) {
  HugeSource huge;
  EXPECT_THAT(ReadShardIndex(huge), HasCode(Code::kUnsupported));

  std::string text = R"({"weight_map":{)";
  for (uint64_t i = 0; i <= kMaxShardIndexEntries; ++i) {
    text += fmt::format(R"({}"{:x}":"f")", i == 0 ? "" : ",", i);
  }
  EXPECT_THAT(ParseIndex(text + "}}"), HasCode(Code::kUnsupported));
}

class MergeShardsTest : public ::testing::Test {
 protected:
  // A good shard, its tensors in file order; two of one name suffix "=x" share
  // a storage.
  void Add(std::string file, std::vector<std::string> names,
           std::map<std::string, std::string> metadata = {}) {
    std::vector<TensorInfo> tensors;
    for (size_t i = 0; i < names.size(); ++i) {
      TensorInfo tensor;
      tensor.name = names[i];
      tensor.order = i;
      tensor.storage_id = names[i].ends_with("=x") ? 77 : i;
      tensor.data = {{0, 100 + i, 1}};
      tensor.shape = {1};
      tensors.push_back(tensor);
    }
    auto index = TensorIndex::Create({"object name"}, std::move(tensors),
                                     std::move(metadata));
    ASSERT_OK(index);
    shards_.push_back(
        {std::move(file), std::make_shared<const TensorIndex>(*index)});
  }
  void AddBad(std::string file) {
    shards_.push_back(
        {std::move(file), MakeError(Code::kCorrupt, "is broken")});
  }
  void Map(std::map<std::string, std::string> weight_map) {
    map_ = ShardIndex{std::move(weight_map)};
  }
  Result<MergedSet> Merge(std::string_view folder = "") {
    return MergeShards(shards_, map_ ? &*map_ : nullptr, folder);
  }
  // "name@object" in file order.
  static std::vector<std::string> Names(const TensorIndex& index) {
    std::vector<std::string> names;
    for (const uint32_t i : index.InFileOrder()) {
      const TensorInfo& tensor = index.tensors()[i];
      EXPECT_EQ(tensor.order, names.size());
      names.push_back(
          fmt::format("{}@{}", tensor.name, tensor.data.at(0).object));
    }
    return names;
  }

  std::vector<Shard> shards_;
  std::optional<ShardIndex> map_;
};

TEST_F(MergeShardsTest, NoShardsMakeAnEmptySet) {
  auto merged = Merge();
  ASSERT_OK(merged);
  EXPECT_THAT(merged->index.tensors(), SizeIs(0));
  EXPECT_THAT(merged->problems, SizeIs(0));
}

TEST_F(MergeShardsTest, JoinsShardByShardInFileOrder) {
  Add("m-1", {"z", "a"}, {{"format", "pt"}});
  Add("m-2", {"m", "b"}, {{"format", "np"}, {"k", "v"}});
  auto merged = Merge();
  ASSERT_OK(merged);
  EXPECT_THAT(Names(merged->index), ElementsAre("z@0", "a@0", "m@1", "b@1"));
  EXPECT_THAT(merged->index.objects(), ElementsAre("m-1", "m-2"));
  EXPECT_THAT(merged->index.metadata(),
              ElementsAre(Pair("format", "pt"), Pair("k", "v")));
  EXPECT_THAT(merged->problems, SizeIs(0));
  EXPECT_EQ(merged->index.Find("m")->data[0], (SourceRange{1, 100, 1}));
}

TEST_F(MergeShardsTest, StoragesAreSharedOnlyWithinAShard) {
  Add("m-1", {"a=x", "b", "c=x"});
  Add("m-2", {"d=x", "e=x"});
  auto merged = Merge();
  ASSERT_OK(merged);
  const auto id = [&](const char* name) {
    return merged->index.Find(name)->storage_id;
  };
  EXPECT_EQ(id("a=x"), id("c=x"));
  EXPECT_EQ(id("d=x"), id("e=x"));
  EXPECT_NE(id("a=x"), id("d=x"));
  EXPECT_NE(id("a=x"), id("b"));
}

TEST_F(MergeShardsTest, ABadShardIsAProblemAndTheOthersStay) {
  Add("m-1", {"a"});
  AddBad("m-2");
  Add("m-3", {"c"});
  Map({{"a", "m-1"}, {"b", "m-2"}, {"c", "m-3"}});
  auto merged = Merge();
  ASSERT_OK(merged);
  EXPECT_THAT(Names(merged->index), ElementsAre("a@0", "c@2"));
  EXPECT_THAT(merged->index.objects(), ElementsAre("m-1", "m-2", "m-3"));
  EXPECT_THAT(merged->problems, ElementsAre(HasSubstr("is broken")));
}

TEST_F(MergeShardsTest, ARepeatedNameIsTakenFromTheFileThatTheMapGives) {
  Add("d/m-1", {"a", "both"});
  Add("d/m-2", {"both", "c"});
  Map({{"a", "m-1"}, {"both", "./m-2"}, {"c", "m-2"}});
  auto merged = Merge("d");
  ASSERT_OK(merged);
  EXPECT_THAT(Names(merged->index), ElementsAre("a@0", "both@1", "c@1"));
  EXPECT_THAT(merged->problems, SizeIs(0));
}

TEST_F(MergeShardsTest, ARepeatedNameWithoutAnAnswerIsCorrupt) {
  Add("m-1", {"both"});
  Add("m-2", {"both"});
  EXPECT_THAT(Merge(), HasCode(Code::kCorrupt));
  EXPECT_THAT(Merge(),
              HasMessage(AllOf(HasSubstr("\"both\""), HasSubstr("\"m-1\""),
                               HasSubstr("\"m-2\""))));
  Map({{"other", "m-1"}});
  EXPECT_THAT(Merge(), HasCode(Code::kCorrupt));
  Map({{"both", "m-3"}});
  EXPECT_THAT(Merge(), HasCode(Code::kCorrupt));
  Add("m-3", {"c"});
  EXPECT_THAT(Merge(), HasCode(Code::kCorrupt));
  Map({{"both", "m-1"}});
  EXPECT_OK(Merge());
}

TEST_F(MergeShardsTest, TensorsThatTheMapDoesNotNameAreKept) {
  Add("m-1", {"a", "extra"});
  Map({{"a", "m-1"}});
  auto merged = Merge();
  ASSERT_OK(merged);
  EXPECT_THAT(Names(merged->index), ElementsAre("a@0", "extra@0"));
  EXPECT_THAT(merged->problems, SizeIs(0));
}

TEST_F(MergeShardsTest, WhatTheMapNamesAndIsNotThereIsAProblem) {
  Add("m-1", {"a"});
  Map({{"a", "m-1"},
       {"b", "m-1"},
       {"c", "m-9"},
       {"d", "m-9"},
       {"e", "m-9"},
       {"f", "m-9"}});
  auto merged = Merge();
  ASSERT_OK(merged);
  EXPECT_THAT(
      merged->problems,
      ElementsAre("\"m-1\" lacks 1 of the index's tensors: \"b\"",
                  "\"m-9\" is not there and would hold 4 of the index's "
                  "tensors: \"c\", \"d\", \"e\", …"));
}

TEST_F(MergeShardsTest, RefusesAShardGivenTwice) {
  Add("m-1", {"a"});
  Add("./m-1", {"b"});
  EXPECT_THAT(Merge(), HasCode(Code::kInvalid));
}

}  // namespace
}  // namespace weightfs
