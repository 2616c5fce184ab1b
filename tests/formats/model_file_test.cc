#include "formats/model_file.h"

#include <string>

#include "tests/formats/format_testing.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Result<TensorIndex> ReadNamed(const std::string& name,
                              const std::string& bytes) {
  RecordingSource source(name, bytes);
  return ReadTensors(source);
}

TEST(ModelFileTest, ExtensionsAreThoseOfWeights) {
  EXPECT_EQ(WeightExtension("model.safetensors"), ".safetensors");
  EXPECT_EQ(WeightExtension("a.b.gguf"), ".gguf");
  EXPECT_EQ(WeightExtension(".bin"), "");
  EXPECT_EQ(WeightExtension("config.json"), "");
  EXPECT_EQ(WeightExtension("model.safetensors.index.json"), "");
}

TEST(ModelFileTest, ContentTellsTheFormatAndNotTheName) {
  const auto index = ReadNamed(
      "model.bin",
      SafetensorsBytes(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"));
  ASSERT_OK(index);
  EXPECT_NE(index->Find("a"), nullptr);
  EXPECT_THAT(ReadNamed("model.safetensors", "GGUF\x09"),
              HasCode(Code::kCorrupt));
  EXPECT_THAT(ReadNamed("model.safetensors", std::string("PK\3\4", 4) + "junk"),
              HasCode(Code::kCorrupt));
}

TEST(ModelFileTest, AnUnknownFormatHasNoTensorsAndSaysSo) {
  for (const std::string bytes : {"", "x",
                                  "\x7f"
                                  "ELF and much more of it"}) {
    const auto index = ReadNamed("vocab.bin", bytes);
    ASSERT_OK(index);
    EXPECT_THAT(index->tensors(), IsEmpty());
    EXPECT_THAT(index->problems(), ElementsAre(HasSubstr("in no format")));
  }
}

TEST(ModelFileTest, WhatIsCalledSafetensorsIsReadAsThat) {
  EXPECT_THAT(ReadNamed("model.safetensors", "x"), HasCode(Code::kCorrupt));
}

TEST(ModelFileTest, ProbesOfArchivesIncludeTheirEnd) {
  EXPECT_EQ(ProbeOf("model.safetensors", 1 << 30).tail, 0u);
  EXPECT_GT(ProbeOf("model.safetensors", 1 << 30).head, 0u);
  EXPECT_GT(ProbeOf("x/pytorch_model.bin", 1 << 30).tail, 0u);
  EXPECT_EQ(ProbeOf("config.json", 1 << 30).head, 0u);
  EXPECT_EQ(ProbeOf("small.pt", 100).head, 100u);
  EXPECT_EQ(ProbeOf("small.pt", 100).tail, 100u);
}

}  // namespace
}  // namespace weightfs
