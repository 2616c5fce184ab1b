#include "cache/hub/hub_json.h"

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kSha1 = "0123456789abcdef0123456789abcdef01234567";
const std::string kSha256 =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

Result<std::vector<FileInfo>> Page(const std::string& text) {
  std::vector<FileInfo> files;
  RETURN_IF_ERROR(ParseHubTreePage(text, files));
  return files;
}

std::string Entry(const std::string& path, const std::string& more = "") {
  return R"({"type":"file","path":")" + path + R"(","size":5,"oid":")" + kSha1 +
         "\"" + more + "}";
}

TEST(HubJsonTest, InfoTakesWhatMatters) {
  auto info =
      ParseHubRepoInfo(R"({"_id":"x","id":"org/name","sha":")" + kSha1 +
                       R"(","private":true,"gated":"auto","disabled":false,
          "siblings":[{"rfilename":"a","sha":"no"}],"config":{"private":1},
          "tags":["gated"],"cardData":{"a":1,"a":2}})");
  ASSERT_OK(info);
  EXPECT_EQ(info->id, "org/name");
  EXPECT_EQ(info->commit, kSha1);
  EXPECT_TRUE(info->is_private);
  EXPECT_TRUE(info->gated);
  EXPECT_FALSE(info->disabled);
  auto bare = ParseHubRepoInfo(R"({"sha":")" + kSha1 + R"(","gated":false})");
  ASSERT_OK(bare);
  EXPECT_FALSE(bare->gated);
}

TEST(HubJsonTest, InfoThatIsNoneIsCorrupt) {
  for (const std::string& text :
       {std::string(), std::string("<html>"), std::string("[]"),
        std::string("\"x\""), std::string("{}"),
        std::string(R"({"sha":"main"})"), std::string(R"({"sha":1})"),
        R"({"sha":")" + std::string(40, 'A') + "\"}",
        R"({"sha":")" + kSha1 + R"(","sha":")" + kSha1 + "\"}",
        R"({"sha":")" + kSha1 + R"(","private":"yes"})",
        R"({"sha":")" + kSha1 + R"("} trailing)",
        R"([{"sha":")" + kSha1 + R"("}])",
        R"({"sha":")" + kSha1 + R"(","x":"\ud800"})"}) {
    EXPECT_THAT(ParseHubRepoInfo(text), HasCode(Code::kCorrupt)) << text;
  }
}

TEST(HubJsonTest, TreeTakesFilesAndPrefersLfs) {
  auto files = Page(
      "[" + Entry("config.json", R"(,"xetHash":"x","lastCommit":{"id":"y"})") +
      R"(,{"type":"directory","path":"sub","size":0,"oid":"t"},)"
      R"({"type":"file","path":"sub/w.bin","size":134,"oid":")" +
      kSha1 + R"(","lfs":{"oid":")" + kSha256 +
      R"(","size":18446744073,"pointerSize":134}}])");
  ASSERT_OK(files);
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0],
            (FileInfo{"config.json", 5, {ContentId::Kind::kGit, kSha1}}));
  EXPECT_EQ((*files)[1], (FileInfo{"sub/w.bin",
                                   18446744073,
                                   {ContentId::Kind::kSha256, kSha256}}));
  EXPECT_THAT(Page("[]"), IsOkAndHolds(::testing::IsEmpty()));
}

TEST(HubJsonTest, TreeThatLiesIsCorrupt) {
  const std::string good_tail = R"(","size":5,"oid":")" + kSha1 + "\"}]";
  for (const std::string& text : {
           std::string(),
           std::string("{}"),
           std::string("null"),
           std::string("[1]"),
           std::string("[[]]"),
           std::string("[\"a\"]"),
           std::string("[{}]"),
           "[" + Entry("../etc/passwd") + "]",
           "[" + Entry("/etc/passwd") + "]",
           "[" + Entry("a//b") + "]",
           "[" + Entry("a/./b") + "]",
           "[" + Entry("") + "]",
           "[" + Entry("a\\u0000b") + "]",
           "[" + Entry(std::string(256, 'a')) + "]",
           R"([{"type":"file","path":"a","size":-1,"oid":")" + kSha1 + "\"}]",
           R"([{"type":"file","path":"a","size":1.5,"oid":")" + kSha1 + "\"}]",
           R"([{"type":"file","path":"a","size":"5","oid":")" + kSha1 + "\"}]",
           R"([{"type":"file","path":"a","size":9223372036854775808,"oid":")" +
               kSha1 + "\"}]",
           R"([{"type":"file","path":"a","size":1e3,"oid":")" + kSha1 + "\"}]",
           R"([{"type":"file","path":"a","oid":")" + kSha1 + "\"}]",
           std::string(R"([{"type":"file","path":"a","size":5}])"),
           std::string(R"([{"type":"file","path":"a","size":5,"oid":"xyz"}])"),
           R"([{"path":"a)" + good_tail,
           R"([{"type":"file","path":"a","path":"b)" + good_tail,
           "[" + Entry("a", R"(,"lfs":{"oid":")" + kSha256 + "\"}") + "]",
           "[" + Entry("a", R"(,"lfs":{"size":5})") + "]",
           "[" + Entry("a", R"(,"lfs":{"oid":")" + kSha1 + R"(","size":5})") +
               "]",
           "[" +
               Entry("a", R"(,"lfs":{"oid":")" + kSha256 +
                              R"(","size":5,"size":6})") +
               "]",
           "[" + Entry("a") + "," + Entry("b"),
           "[" + Entry("a") + "]x",
           std::string(100'000, '['),
           "[" +
               Entry("a", ",\"x\":" + std::string(100, '[') +
                              std::string(100, ']')) +
               "]",
       }) {
    EXPECT_THAT(Page(text), HasCode(Code::kCorrupt)) << text.substr(0, 200);
  }
}

TEST(HubJsonTest, TreeMessagesHoldNoControlBytes) {
  EXPECT_THAT(Page("[" + Entry("../\\u001b[2J") + "]"),
              AllOf(HasCode(Code::kCorrupt), HasMessage(HasSubstr("../?[2J"))));
}

// Cut anywhere, a page is never a shorter list.
TEST(HubJsonTest, TreeCutShortIsCorrupt) {
  const std::string whole = "[" + Entry("a") + "," + Entry("b") + "]";
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THAT(Page(whole.substr(0, length)), HasCode(Code::kCorrupt));
  }
}

TEST(HubJsonTest, ListingIsSortedAndWithoutClashes) {
  std::vector<FileInfo> files;
  ASSERT_OK(ParseHubTreePage(
      "[" + Entry("b") + "," + Entry("a/x") + "," + Entry("a-b") + "]", files));
  ASSERT_OK(FinishHubListing(files));
  EXPECT_EQ(files[0].path, "a-b");
  EXPECT_EQ(files[1].path, "a/x");
  auto twice = files;
  twice.push_back(files[0]);
  EXPECT_THAT(FinishHubListing(twice), HasCode(Code::kCorrupt));
  auto clash = files;
  ASSERT_OK(ParseHubTreePage("[" + Entry("a/x/y/z") + "]", clash));
  EXPECT_THAT(FinishHubListing(clash),
              HasMessage(HasSubstr("a/x is a file and a folder")));
}

// What a small answer must not blow up to.
TEST(HubJsonTest, DeepAndLongPathsAreRefused) {
  std::string deep = "f";
  while (deep.size() + 2 <= kMaxHubPath) deep.insert(0, "d/");
  std::vector<FileInfo> files;
  ASSERT_OK(ParseHubTreePage("[" + Entry(deep) + "]", files));
  EXPECT_OK(FinishHubListing(files));
  EXPECT_THAT(Page("[" + Entry("d/d/" + deep) + "]"), HasCode(Code::kCorrupt));

  // Sixty times 4 MiB of folders.
  for (int i = 0; i < 60; ++i) {
    FileInfo file = files[0];
    file.path.replace(0, 2, fmt::format("{:02}", i));
    files.push_back(file);
  }
  EXPECT_THAT(FinishHubListing(files),
              HasMessage(HasSubstr("too many folders")));
  // The same folders again and again are no more than once.
  std::vector<FileInfo> siblings;
  for (int i = 0; i < 10'000; ++i) {
    siblings.push_back(files[0]);
    siblings.back().path = fmt::format("{}/{}", deep.substr(0, 2001), i);
  }
  EXPECT_OK(FinishHubListing(siblings));
}

TEST(HubJsonTest, ErrorTextIsFoundAndCleaned) {
  EXPECT_EQ(ParseHubErrorMessage(R"({"error":"no\nway"})"), "no?way");
  EXPECT_EQ(ParseHubErrorMessage(R"({"error":{"error":"x"}})"), "");
  EXPECT_EQ(ParseHubErrorMessage(R"({"error":"\u0068f_a is bad"})", "hf_a"),
            "[token] is bad");
  EXPECT_EQ(ParseHubErrorMessage("<html>"), "");
  EXPECT_EQ(ParseHubErrorMessage(""), "");
}

}  // namespace
}  // namespace weightfs
