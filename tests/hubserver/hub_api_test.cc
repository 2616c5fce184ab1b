// The test hub speaks the Hub's protocol as its clients expect it.

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "tests/hubserver/hub_fixture.h"

namespace weightfs {
namespace {

using Json = nlohmann::json;

class HubApiTest : public TestHubTest {};

// sha1("blob 9\0" + kConfig), as `git hash-object` gives it.
TEST_F(HubApiTest, HashesAsGitAndLfsDo) {
  EXPECT_EQ(MemoryContent("")->GitBlobSha1(),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
  EXPECT_EQ(MemoryContent("hello\n")->GitBlobSha1(),
            "ce013625030ba8dba906f756967f9e9ca394464a");
  EXPECT_EQ(MemoryContent("hello\n")->Sha256(),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
  EXPECT_EQ(MemoryContent("hello\n")->PointerSize(), 126U);
}

TEST_F(HubApiTest, PatternDoesNotDependOnWhereAReadStarts) {
  const std::string all = PatternContent(4096, 9)->ReadAll();
  for (uint64_t offset = 0; offset < 40; ++offset) {
    for (uint64_t length = 0; length < 40; ++length) {
      ASSERT_EQ(PatternContent(4096, 9)->ReadRange(offset, length),
                all.substr(offset, length))
          << offset << " " << length;
    }
  }
  EXPECT_NE(all, PatternContent(4096, 10)->ReadAll());
}

TEST_F(HubApiTest, InfoNamesTheCommitAndItsFiles) {
  for (const std::string& target :
       {std::string("/api/models/org/name"),
        std::string("/api/models/org/name/revision/main"),
        "/api/models/org/name/revision/" + commit_}) {
    const Json info = GetJson(target);
    EXPECT_EQ(info["id"], "org/name") << target;
    EXPECT_EQ(info["sha"], commit_);
    EXPECT_EQ(info["private"], false);
    EXPECT_EQ(info["siblings"].size(), 3U);
    EXPECT_EQ(info["siblings"][0]["rfilename"], "config.json");
    EXPECT_FALSE(info["siblings"][0].contains("size"));
  }
  const Json blobs = GetJson("/api/models/org/name?blobs=true")["siblings"];
  EXPECT_EQ(blobs[0]["size"], 9);
  EXPECT_EQ(blobs[0]["blobId"], MemoryContent(kConfig)->GitBlobSha1());
  EXPECT_EQ(blobs[1]["lfs"]["sha256"], weights_->Sha256());
}

TEST_F(HubApiTest, IdsOfOnePartAndOtherRepoTypesWork) {
  const std::string gpt2 = hub_->Commit(
      "gpt2", "main", {{"config.json", MemoryContent("{}"), std::nullopt}});
  const std::string data = hub_->Commit("datasets/org/data", "main",
                                        {{"a.csv", MemoryContent("1"), {}}});
  EXPECT_EQ(GetJson("/api/models/gpt2")["sha"], gpt2);
  EXPECT_EQ(GetJson("/api/models/gpt2/tree/main").size(), 1U);
  EXPECT_EQ(Head("/gpt2/resolve/main/config.json").status, 307);
  EXPECT_EQ(GetJson("/api/datasets/org/data")["sha"], data);
  const RawReply head = Head("/datasets/org/data/resolve/main/a.csv");
  EXPECT_EQ(head.status, 307);
  EXPECT_TRUE(head.Header("Location")
                  .starts_with("/api/resolve-cache/datasets/org/data/" + data +
                               "/a.csv?"));
  EXPECT_EQ(Get(head.Header("Location")).body, "1");
  EXPECT_EQ(Get("/api/models/org/data").status, 401);
}

TEST_F(HubApiTest, TreeTellsPlainFilesFromLfsFilesAndFolders) {
  const Json root = GetJson("/api/models/org/name/tree/main");
  ASSERT_EQ(root.size(), 3U);
  EXPECT_EQ(root[0]["path"], "config.json");
  EXPECT_EQ(root[0]["oid"], MemoryContent(kConfig)->GitBlobSha1());
  EXPECT_FALSE(root[0].contains("lfs"));
  EXPECT_EQ(root[1]["size"], kSize);
  EXPECT_EQ(root[1]["lfs"]["oid"], weights_->Sha256());
  EXPECT_EQ(root[1]["lfs"]["size"], kSize);
  EXPECT_EQ(root[1]["oid"], weights_->PointerSha1());
  EXPECT_EQ(root[2]["type"], "directory");
  EXPECT_EQ(root[2]["path"], "sub");

  const Json all = GetJson("/api/models/org/name/tree/main?recursive=true");
  ASSERT_EQ(all.size(), 5U);
  EXPECT_EQ(all[3]["path"], "sub/deep");
  EXPECT_EQ(all[4]["path"], "sub/deep/notes.txt");

  const Json sub = GetJson("/api/models/org/name/tree/main/sub");
  ASSERT_EQ(sub.size(), 1U);
  EXPECT_EQ(sub[0]["path"], "sub/deep");
  EXPECT_EQ(Get("/api/models/org/name/tree/main/none").Header("X-Error-Code"),
            "EntryNotFound");

  hub_->Configure([](TestHubSettings& s) { s.tree_has_pointer_size = true; });
  EXPECT_EQ(GetJson("/api/models/org/name/tree/main")[1]["size"],
            weights_->PointerSize());
}

TEST_F(HubApiTest, TreePagesFollowEachOtherByLink) {
  std::vector<TestHubFile> files;
  for (int i = 0; i < 25; ++i) {
    files.push_back({"f" + std::to_string(i), MemoryContent("x"), {}});
  }
  hub_->Commit("org/many", "refs/pr/1", std::move(files));
  hub_->Configure([](TestHubSettings& s) { s.tree_page_size = 10; });
  std::string target =
      "/api/models/org/many/tree/refs%2Fpr%2F1?recursive=true&expand=false";
  std::set<std::string> seen;
  std::vector<size_t> sizes;
  while (!target.empty()) {
    const RawReply reply = Get(target);
    ASSERT_EQ(reply.status, 200) << target;
    const Json page = Json::parse(reply.body);
    sizes.push_back(page.size());
    for (const Json& entry : page) seen.insert(entry["path"]);
    const std::string link = reply.Header("Link");
    target.clear();
    if (link.empty()) break;
    ASSERT_TRUE(link.starts_with("<" + hub_->url() + "/api/")) << link;
    ASSERT_TRUE(link.ends_with(">; rel=\"next\"")) << link;
    target = link.substr(1 + hub_->url().size(),
                         link.find('>') - 1 - hub_->url().size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{10, 10, 5}));
  EXPECT_EQ(seen.size(), 25U);

  hub_->Configure(
      [](TestHubSettings& s) { s.next_page_origin = "https://other.test"; });
  EXPECT_TRUE(Get("/api/models/org/many/tree/refs%2Fpr%2F1?limit=3")
                  .Header("Link")
                  .starts_with("<https://other.test/api/models/org/many/"));
}

TEST_F(HubApiTest, PathsInfoTakesAForm) {
  const RawReply reply =
      RawClient(hub_->url())
          .Ask("POST", "/api/models/org/name/paths-info/main",
               {{"Content-Type", "application/x-www-form-urlencoded"}},
               "paths=config.json&paths=sub%2Fdeep&paths=none&expand=false");
  const Json entries = Json::parse(reply.body);
  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0]["path"], "config.json");
  EXPECT_EQ(entries[1]["type"], "directory");
}

TEST_F(HubApiTest, PlainFilesRedirectToARelativeUrlWhoseQueryMatters) {
  const RawReply head = Head("/org/name/resolve/main/config.json");
  EXPECT_EQ(head.status, 307);
  EXPECT_EQ(head.Header("X-Repo-Commit"), commit_);
  const std::string location = head.Header("Location");
  const std::string path =
      "/api/resolve-cache/models/org/name/" + commit_ + "/config.json";
  EXPECT_TRUE(location.starts_with(path + "?")) << location;
  const RawReply file = Get(location);
  EXPECT_EQ(file.status, 200);
  EXPECT_EQ(file.body, kConfig);
  EXPECT_EQ(file.Header("ETag"),
            "\"" + MemoryContent(kConfig)->GitBlobSha1() + "\"");
  EXPECT_EQ(file.Header("X-Repo-Commit"), commit_);
  EXPECT_EQ(Head(location).Header("Content-Length"), "9");
  EXPECT_EQ(Get(path).status, 400);

  hub_->Configure([](TestHubSettings& s) { s.head_without_size = true; });
  EXPECT_EQ(Head(location).Header("Content-Length"), "");
  EXPECT_EQ(Get(location).body, kConfig);
}

TEST_F(HubApiTest, LfsFilesRedirectToASignedUrlOfTheCdn) {
  const RawReply head = Head("/org/name/resolve/main/model.safetensors");
  EXPECT_EQ(head.status, 302);
  EXPECT_EQ(head.Header("X-Repo-Commit"), commit_);
  EXPECT_EQ(head.Header("X-Linked-Size"), std::to_string(kSize));
  EXPECT_EQ(head.Header("X-Linked-Etag"), "\"" + weights_->Sha256() + "\"");
  const RawReply file = GetCdn(Signed());
  EXPECT_EQ(file.status, 200);
  EXPECT_TRUE(file.body == weights_->ReadAll());
}

TEST_F(HubApiTest, CdnRefusesWhatIsNotSignedOrHasExpired) {
  const std::string target = Signed();
  const std::string path = target.substr(0, target.find('?'));
  EXPECT_EQ(GetCdn(path).status, 403);
  std::string forged = target;
  const size_t expires = forged.find("Expires=") + 8;
  forged[expires] = '9';
  EXPECT_EQ(GetCdn(forged).status, 403);
  EXPECT_EQ(GetCdn(target, {{"Range", "bytes=0-0"}}).status, 206);
  hub_->RotateSigningKey();
  EXPECT_EQ(GetCdn(target).status, 403);
  EXPECT_EQ(GetCdn(Signed(), {{"Range", "bytes=0-0"}}).status, 206);
  hub_->Configure([](TestHubSettings& s) {
    s.signature_lifetime = std::chrono::seconds(0);
  });
  EXPECT_EQ(GetCdn(Signed()).status, 403);
}

TEST_F(HubApiTest, CdnTrapsATokenThatLeaks) {
  const RawReply reply =
      GetCdn(Signed(), {{"Authorization", "Bearer hf_secret"}});
  EXPECT_EQ(reply.status, 400);
  const auto seen = hub_->Requests({.listener = TestHubListener::kCdn});
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen[0].authorization, "Bearer hf_secret");
}

struct RangeCase {
  const char* range;
  int status;
  uint64_t first;
  uint64_t length;
};

TEST_F(HubApiTest, RangesAreAnsweredAsRfc9110Says) {
  const std::string target = Signed();
  const RangeCase cases[] = {
      {"bytes=0-0", 206, 0, 1},
      {"bytes=5-9", 206, 5, 5},
      {"bytes=2999990-", 206, kSize - 10, 10},
      {"bytes=-7", 206, kSize - 7, 7},
      {"bytes=-9999999", 206, 0, kSize},
      {"bytes=2999999-3999999", 206, kSize - 1, 1},
      {"bytes=3000000-", 416, 0, 0},
      {"bytes=-0", 416, 0, 0},
      {"bytes=9-5", 200, 0, kSize},
      {"bytes=0-1,4-5", 200, 0, kSize},
      {"lines=0-1", 200, 0, kSize},
      {"bytes=99999999999999999999-", 200, 0, kSize},
  };
  for (const RangeCase& c : cases) {
    const RawReply reply = GetCdn(target, {{"Range", c.range}});
    EXPECT_EQ(reply.status, c.status) << c.range;
    EXPECT_TRUE(reply.body == Weights(c.first, c.length)) << c.range;
    const std::string range = reply.Header("Content-Range");
    if (c.status == 206) {
      EXPECT_EQ(range, "bytes " + std::to_string(c.first) + "-" +
                           std::to_string(c.first + c.length - 1) + "/3000000");
    } else {
      EXPECT_EQ(range, c.status == 416 ? "bytes */3000000" : "") << c.range;
    }
  }
}

TEST_F(HubApiTest, ErrorsSayWhatIsMissing) {
  const RawReply revision = Get("/api/models/org/name/revision/nope");
  EXPECT_EQ(revision.status, 404);
  EXPECT_EQ(revision.Header("X-Error-Code"), "RevisionNotFound");
  EXPECT_EQ(Json::parse(revision.body)["error"], "Invalid rev id: nope");

  const RawReply entry = Head("/org/name/resolve/main/none.json");
  EXPECT_EQ(entry.status, 404);
  EXPECT_EQ(entry.Header("X-Error-Code"), "EntryNotFound");
  EXPECT_EQ(entry.Header("X-Repo-Commit"), commit_);

  hub_->AddToken("hf_good");
  const RawHeaders good = {{"Authorization", "Bearer hf_good"}};
  const RawHeaders bad = {{"Authorization", "Bearer hf_bad"}};
  EXPECT_EQ(Get("/api/models/org/none").status, 401);
  EXPECT_EQ(Get("/api/models/org/none", good).status, 404);
  EXPECT_EQ(Get("/api/models/org/none", good).Header("X-Error-Code"),
            "RepoNotFound");
  const RawReply invalid = Get("/api/models/org/name", bad);
  EXPECT_EQ(invalid.status, 401);
  EXPECT_EQ(invalid.Header("X-Error-Message"),
            "Invalid credentials in Authorization header");
}

TEST_F(HubApiTest, PrivateGatedAndDisabledReposAreToldApart) {
  hub_->AddToken("hf_stranger");
  const RawHeaders reader = {{"Authorization", "Bearer hf_reader"}};
  const RawHeaders stranger = {{"Authorization", "Bearer hf_stranger"}};
  const std::string file = "/org/name/resolve/main/config.json";

  hub_->SetRepo("org/name", {.is_private = true, .readers = {"hf_reader"}});
  EXPECT_EQ(Get("/api/models/org/name").status, 401);
  EXPECT_EQ(Get("/api/models/org/name", stranger).status, 404);
  EXPECT_EQ(Get("/api/models/org/name", reader).status, 200);
  EXPECT_EQ(Head(file, reader).status, 307);

  hub_->SetRepo("org/name", {.gated = true, .readers = {"hf_reader"}});
  EXPECT_EQ(Get("/api/models/org/name").status, 200);
  EXPECT_EQ(Head(file).status, 401);
  EXPECT_EQ(Head(file, stranger).status, 403);
  EXPECT_EQ(Head(file, stranger).Header("X-Error-Code"), "GatedRepo");
  EXPECT_EQ(Head(file, reader).status, 307);

  hub_->SetRepo("org/name", {.disabled = true});
  EXPECT_EQ(Get("/api/models/org/name").Header("X-Error-Message"),
            "Access to this resource is disabled.");
}

TEST_F(HubApiTest, RenamedReposAnswerWithAPathOnlyRedirect) {
  hub_->AddAlias("old/name", "org/name");
  const RawReply api = Get("/api/models/old/name?blobs=true");
  EXPECT_EQ(api.status, 307);
  EXPECT_EQ(api.Header("Location"), "/api/models/org/name?blobs=true");
  EXPECT_EQ(Head("/old/name/resolve/main/config.json").Header("Location"),
            "/org/name/resolve/main/config.json");
}

TEST_F(HubApiTest, BranchesMoveWhileItRuns) {
  const std::string next = hub_->Commit(
      "org/name", "main", {{"config.json", MemoryContent("{}"), {}}});
  EXPECT_NE(next, commit_);
  EXPECT_EQ(GetJson("/api/models/org/name")["sha"], next);
  EXPECT_EQ(GetJson("/api/models/org/name/revision/" + commit_)["sha"],
            commit_);
  hub_->SetRef("org/name", "v1.0", commit_);
  hub_->SetRef("org/name", "main", commit_);
  EXPECT_EQ(GetJson("/api/models/org/name/revision/v1.0")["sha"], commit_);
  EXPECT_EQ(hub_->Resolve("org/name", "main"), commit_);
  EXPECT_TRUE(
      hub_->Content("org/name", "main", "model.safetensors")->ReadAll() ==
      weights_->ReadAll());
}

TEST_F(HubApiTest, SmallAnswersForPeers) {
  EXPECT_EQ(Get("/api/agent-harnesses").body, "{}");
  EXPECT_TRUE(GetJson("/api/models/org/name/xet-read-token/main")
                  .contains("accessToken"));
  EXPECT_EQ(GetJson("/api/models/org/name/refs")["branches"][0]["name"],
            "main");
}

TEST_F(HubApiTest, ShowsAPublicRepoAsAPlainWebServer) {
  const std::string top = "/files/org/name/main/";
  const RawReply page = GetCdn(top);
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.body, ::testing::HasSubstr("href=\"config.json\""));
  EXPECT_THAT(page.body, ::testing::HasSubstr("href=\"sub/\""));
  EXPECT_THAT(GetCdn(top + "sub/deep/").body,
              ::testing::HasSubstr("href=\"notes.txt\""));
  EXPECT_EQ(GetCdn(top + "config.json").body, kConfig);
  const RawReply part =
      GetCdn("/files/org/name/" + commit_ + "/model.safetensors",
             {{"Range", "bytes=1000-1999"}});
  EXPECT_EQ(part.status, 206);
  EXPECT_TRUE(part.body == Weights(1000, 1000));
  EXPECT_EQ(GetCdn(top + "none").status, 404);
  EXPECT_EQ(GetCdn("/files/org/other/main/").status, 404);
  EXPECT_EQ(Get(top).status, 404) << "the hub itself has none";
  hub_->SetRepo("org/name", {.is_private = true});
  EXPECT_EQ(GetCdn(top + "config.json").status, 404);
}

TEST_F(HubApiTest, AFileThatTheKernelSendsIsTheSameAndCounted) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("weightfs-hub-" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  std::ofstream(folder / "a.bin", std::ios::binary) << Weights(0, kSize);
  ASSERT_OK(hub_->CommitFolder("org/folder", "main", folder.string()));
  std::filesystem::remove_all(folder);  // the hub has it open
  hub_->Configure([](TestHubSettings& settings) {
    settings.sendfile = true;
    settings.bytes_per_second = 100'000'000;
  });
  const std::string path = "/files/org/folder/main/a.bin";
  EXPECT_TRUE(GetCdn(path).body == Weights(0, kSize));
  const RawHeaders range = {{"Range", "bytes=1000001-1999999"}};
  EXPECT_TRUE(GetCdn(path, range).body == Weights(1'000'001, 999'999));
  ASSERT_TRUE(hub_->WaitForDone({.contains = "a.bin"}, 2,
                                std::chrono::milliseconds(10'000)));
  EXPECT_EQ(hub_->BodyBytes({.contains = "a.bin"}), kSize + 999'999);
  // A fault is the program's, so it sends the bytes itself.
  TestHubFault flip;
  flip.kind = TestHubFault::Kind::kFlipBit;
  flip.number = 1'500'000;
  hub_->AddFault(flip);
  std::string wrong = Weights(1'000'001, 999'999);
  wrong[499'999] = static_cast<char>(wrong[499'999] ^ 1);
  EXPECT_TRUE(GetCdn(path, range).body == wrong);
}

TEST_F(HubApiTest, GeneratedModelsAreSafetensors) {
  const auto spec =
      ParseTestHubModelSpec("tensors=10,shards=3,tensor_bytes=64,dtype=BF16");
  ASSERT_OK(spec);
  auto files = MakeTestHubModel(*spec);
  ASSERT_OK(files);
  ASSERT_EQ(files->size(), 5U);
  const std::string shard = (*files)[1].content->ReadAll();
  EXPECT_EQ((*files)[1].path, "model-00002-of-00003.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, shard.data(), 8);
  const Json header = Json::parse(shard.substr(8, length));
  EXPECT_EQ(header["model.layers.3.weight"]["shape"], Json({32}));
  EXPECT_EQ(header["model.layers.5.weight"]["data_offsets"], Json({128, 192}));
  EXPECT_EQ(shard.substr(8 + length),
            PatternContent(192, spec->seed + 1)->ReadAll());
  const Json index = Json::parse((*files)[3].content->ReadAll());
  EXPECT_EQ(index["weight_map"]["model.layers.9.weight"],
            "model-00003-of-00003.safetensors");
  EXPECT_THAT(ParseTestHubModelSpec("tensors=many"), HasCode(Code::kInvalid));
  EXPECT_THAT(MakeTestHubModel({.tensor_bytes = 3, .dtype = "F32"}),
              HasCode(Code::kInvalid));
}

}  // namespace
}  // namespace weightfs
