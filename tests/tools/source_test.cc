#include "tools/source.h"

#include <string>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;

struct HubCase {
  const char* text;
  const char* repo;
  const char* revision;
};

class HubSourceTest : public ::testing::TestWithParam<HubCase> {};

TEST_P(HubSourceTest, IsARepository) {
  const auto source = ParseSource(GetParam().text);
  ASSERT_OK(source);
  EXPECT_EQ(source->kind, Source::Kind::kHub);
  EXPECT_EQ(source->repo, GetParam().repo);
  EXPECT_EQ(source->revision, GetParam().revision);
  EXPECT_EQ(source->text, GetParam().text);
}

INSTANTIATE_TEST_SUITE_P(
    Sources, HubSourceTest,
    ::testing::Values(HubCase{"openai-community/gpt2", "openai-community/gpt2",
                              "main"},
                      HubCase{"gpt2", "gpt2", "main"},
                      HubCase{"gpt2@v1", "gpt2", "v1"},
                      HubCase{"a/b@refs/pr/1", "a/b", "refs/pr/1"},
                      HubCase{"a/b@x@y", "a/b", "x@y"},
                      HubCase{"hf://a/b@v2.0", "a/b", "v2.0"},
                      HubCase{"hf://gpt2", "gpt2", "main"},
                      HubCase{"a/B_c.d-e1", "a/B_c.d-e1", "main"},
                      HubCase{"datasets", "datasets", "main"}));

class LocalSourceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LocalSourceTest, IsALocalPath) {
  const auto source = ParseSource(GetParam());
  ASSERT_OK(source);
  EXPECT_EQ(source->kind, Source::Kind::kLocal);
  EXPECT_EQ(source->path, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Sources, LocalSourceTest,
                         ::testing::Values("/", "/data/m", "./m", "../m", ".",
                                           "..", "./a@b", "/x y/z",
                                           "./datasets/x"));

class InvalidSourceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(InvalidSourceTest, IsRefusedWithAHint) {
  EXPECT_THAT(ParseSource(GetParam()), HasCode(Code::kInvalid));
}

INSTANTIATE_TEST_SUITE_P(Sources, InvalidSourceTest,
                         ::testing::Values("", "a/b/c", "a//b", "a/", "@v1",
                                           "a/b@", "-a/b", "a/b-", ".a/b",
                                           "a/b.", "a--b/c", "a/b..c",
                                           "a/b.git", "a b/c", "~/m", "a/b@x y",
                                           "a/b@x\ny", "a/b@\xff", "hf:///a/b",
                                           "hf://", "a\\b", "...", "C:/x",
                                           "ftp://h/x", "file:///x"));

TEST(SourceTest, RefusesIdsOverTheHubsLimit) {
  EXPECT_OK(ParseSource(std::string(47, 'a') + "/" + std::string(48, 'b')));
  EXPECT_THAT(ParseSource(std::string(48, 'a') + "/" + std::string(48, 'b')),
              HasCode(Code::kInvalid));
}

class LaterSourceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(LaterSourceTest, IsUnsupportedByThisVersion) {
  const auto source = ParseSource(GetParam());
  EXPECT_THAT(source, HasCode(Code::kUnsupported));
  EXPECT_THAT(source, HasMessage(HasSubstr("not supported in this version")));
}

INSTANTIATE_TEST_SUITE_P(Sources, LaterSourceTest,
                         ::testing::Values("datasets/a/b", "spaces/a/b",
                                           "kernels/a/b", "hf://datasets/a/b",
                                           "http://host/x/", "https://h/x",
                                           "hub"));

TEST(SourceTest, DoesNotRepeatUrlsThatMayHoldSecrets) {
  const auto source = ParseSource("https://user:secret@host/x?sig=secret");
  EXPECT_THAT(source, HasCode(Code::kUnsupported));
  EXPECT_THAT(source, HasMessage(::testing::Not(HasSubstr("secret"))));
}

}  // namespace
}  // namespace weightfs
