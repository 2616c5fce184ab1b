#include "cache/snapshot_store.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <fstream>
#include <iterator>
#include <thread>

#include "tests/cache/cache_fixture.h"

namespace weightfs {
namespace {

namespace fs = std::filesystem;

const std::string kHub = "https://hub.test";
const std::string kCommit(40, 'c');

FileInfo File(std::string path, uint64_t size,
              ContentId id = {ContentId::Kind::kGit, std::string(40, '1')}) {
  return {.path = std::move(path), .size = size, .id = std::move(id)};
}

class SnapshotStoreTest : public ::testing::Test {
 protected:
  SnapshotStoreTest()
      : fds_before_(CountFds()),
        // In memory where there is such a folder: thousands of small writes.
        temp_(::access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                                              : ::testing::TempDir()),
        store_(temp_.path()) {}
  void TearDown() override {
    EXPECT_EQ(CountFds(), fds_before_) << "file descriptors were left open";
  }

  static Snapshot Sample() {
    return {
        .repo = "org/name",
        .revision = "main",
        .commit = kCommit,
        .restricted = true,
        .files = {File("a/config.json", 12),
                  File("model.safetensors", uint64_t{5} << 30, Sha256Id('d')),
                  File("z \"quoted\" \xC3\xA9\n.txt", 0)}};
  }

  // The one file under the store that ends so.
  std::string FindFile(const std::string& ending) const {
    std::string found;
    for (const auto& entry : fs::recursive_directory_iterator(temp_.path())) {
      const std::string path = entry.path().string();
      if (entry.is_regular_file() && path.ends_with(ending)) {
        EXPECT_TRUE(found.empty()) << found << " and " << path;
        found = path;
      }
    }
    EXPECT_FALSE(found.empty()) << "no file …" << ending;
    return found;
  }
  static std::string ReadText(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  static void WriteText(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }

  const size_t fds_before_;
  TempFolder temp_;
  SnapshotStore store_;
};

TEST_F(SnapshotStoreTest, RemembersRefs) {
  EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"),
              HasCode(Code::kNotFound));
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", kCommit));
  EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"), IsOkAndHolds(kCommit));
  const std::string newer(40, 'e');
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", newer));
  EXPECT_THAT(SnapshotStore(temp_.path()).LoadRef(kHub, "org/name", "main"),
              IsOkAndHolds(newer));
}

TEST_F(SnapshotStoreTest, KeepsEndpointsReposAndRevisionsApart) {
  const std::vector<std::array<std::string, 3>> keys = {
      {kHub, "org/name", "main"},
      {kHub, "org/name", "refs/pr/1"},
      {kHub, "org/name", "refs%2Fpr%2F1"},
      {kHub, "org/name", ""},
      {kHub, "org/name", "."},
      {kHub, "org/name", ".."},
      {kHub, "org/name", "../../../../escape"},
      {kHub, "org/name", std::string(3000, '/')},
      {kHub, "org/name", std::string(3000, '/') + "x"},
      {kHub, "org/name", "MAIN"},
      {kHub, "datasets/org/name", "main"},
      {kHub, "name", "main"},
      {"https://mirror.test", "org/name", "main"}};
  const auto commit = [](size_t i) { return fmt::format("{:040x}", i); };
  for (size_t i = 0; i < keys.size(); ++i) {
    ASSERT_OK(store_.SaveRef(keys[i][0], keys[i][1], keys[i][2], commit(i)));
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_THAT(store_.LoadRef(keys[i][0], keys[i][1], keys[i][2]),
                IsOkAndHolds(commit(i)));
  }
  for (const auto& entry : fs::directory_iterator(temp_.path())) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name == "snapshots" || name == "tmp") << name;
  }
}

TEST_F(SnapshotStoreTest, RemembersListings) {
  EXPECT_THAT(store_.LoadListing(kHub, "org/name", kCommit),
              HasCode(Code::kNotFound));
  const Snapshot saved = Sample();
  ASSERT_OK(store_.SaveListing(kHub, saved));
  const auto loaded = store_.LoadListing(kHub, "org/name", kCommit);
  ASSERT_OK(loaded);
  EXPECT_EQ((*loaded)->repo, saved.repo);
  EXPECT_EQ((*loaded)->revision, "");
  EXPECT_EQ((*loaded)->commit, saved.commit);
  EXPECT_TRUE((*loaded)->restricted);
  EXPECT_EQ((*loaded)->files, saved.files);
  EXPECT_THAT(store_.LoadListing("https://mirror.test", "org/name", kCommit),
              HasCode(Code::kNotFound));
}

TEST_F(SnapshotStoreTest, FilesAreTheUsersAlone) {
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", kCommit));
  ASSERT_OK(store_.SaveListing(kHub, Sample()));
  for (const auto& entry : fs::recursive_directory_iterator(temp_.path())) {
    struct stat status {};
    ASSERT_EQ(::stat(entry.path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, entry.is_directory() ? 0700u : 0600u)
        << entry.path();
  }
  EXPECT_TRUE(fs::is_empty(temp_.path() + "/tmp"));
}

TEST_F(SnapshotStoreTest, RefusesToKeepWhatItCouldNotTrust) {
  EXPECT_THAT(store_.SaveRef(kHub, "org/name", "main", "main"),
              HasCode(Code::kInvalid));
  EXPECT_THAT(store_.SaveRef(kHub, "org/name", "main", std::string(40, 'G')),
              HasCode(Code::kInvalid));
  EXPECT_THAT(store_.LoadListing(kHub, "org/name", "../../x"),
              HasCode(Code::kInvalid));
  EXPECT_THAT(store_.SaveRef(kHub, "org/name", "\xFF", kCommit),
              HasCode(Code::kInvalid));
  for (const char* path : {"", "/a", "../a", "a//b", "a/./b", "a/"}) {
    Snapshot snapshot = Sample();
    snapshot.files[0].path = path;
    EXPECT_THAT(store_.SaveListing(kHub, snapshot), HasCode(Code::kInvalid));
  }
  Snapshot snapshot = Sample();
  snapshot.files[0].id = {ContentId::Kind::kStat, "1:2:3"};
  EXPECT_THAT(store_.SaveListing(kHub, snapshot), HasCode(Code::kInvalid));
  snapshot.files[0].id = {ContentId::Kind::kSha256, std::string(40, 'a')};
  EXPECT_THAT(store_.SaveListing(kHub, snapshot), HasCode(Code::kInvalid));
}

TEST_F(SnapshotStoreTest, ADamagedFileCountsAsAbsent) {
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", kCommit));
  ASSERT_OK(store_.SaveListing(kHub, Sample()));
  const std::string ref = FindFile("refs/main");
  const std::string listing = FindFile(".json");
  const auto expect_absent = [&](const std::string& path,
                                 const std::string& text) {
    WriteText(path, text);
    if (path == ref) {
      EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"),
                  HasCode(Code::kNotFound));
    } else {
      EXPECT_THAT(store_.LoadListing(kHub, "org/name", kCommit),
                  HasCode(Code::kNotFound));
    }
  };
  for (const std::string& path : {ref, listing}) {
    const std::string text = ReadText(path);
    for (size_t length = 0; length < text.size(); ++length) {
      expect_absent(path, text.substr(0, length));
    }
    for (size_t i = 0; i < text.size(); ++i) {
      std::string flipped = text;
      flipped[i] = static_cast<char>(flipped[i] ^ 1);
      expect_absent(path, flipped);
    }
    expect_absent(path, text + " ");
    expect_absent(path, std::string(1 << 20, '['));
  }
  // A save repairs it.
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", kCommit));
  EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"), IsOkAndHolds(kCommit));
}

TEST_F(SnapshotStoreTest, AFileOfAnotherKeyCountsAsAbsent) {
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", kCommit));
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "other", std::string(40, 'e')));
  fs::copy(FindFile("refs/other"), FindFile("refs/main"),
           fs::copy_options::overwrite_existing);
  EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"),
              HasCode(Code::kNotFound));
  ASSERT_OK(store_.SaveListing(kHub, Sample()));
  const std::string listing = FindFile(".json");
  const std::string elsewhere = std::string(40, 'f');
  fs::copy(listing, fs::path(listing).parent_path() / (elsewhere + ".json"));
  EXPECT_THAT(store_.LoadListing(kHub, "org/name", elsewhere),
              HasCode(Code::kNotFound));
}

// A file that was made on purpose, with the right hash.
TEST_F(SnapshotStoreTest, AListingIsCheckedThoughItsHashIsRight) {
  Snapshot sample = Sample();
  ASSERT_OK(store_.SaveListing(kHub, sample));
  const std::string path = FindFile(".json");
  const std::string text = ReadText(path);
  const auto with = [&](const std::string& from, const std::string& to) {
    const std::string_view key = "\"body\":";
    std::string body = text.substr(text.find(key) + key.size());
    body.resize(body.size() - 2);
    body.replace(body.find(from), from.size(), to);
    WriteText(path, fmt::format(R"({{"weightfs":1,"xxh3":"{:016x}","body":{}}})"
                                "\n",
                                XXH3_64bits(body.data(), body.size()), body));
    return store_.LoadListing(kHub, "org/name", kCommit);
  };
  ASSERT_OK(with("12", "13"));
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{
           {"a/config.json", "../config.json"},
           {"a/config.json", "/config.json"},
           {"a/config.json", "zz"},  // not sorted
           {"a/config.json", "model.safetensors"},
           {"\"size\":12", "\"size\":-12"},
           {"\"size\":12", "\"size\":1.5"},
           {"\"size\":12", "\"size\":\"12\""},
           {"\"size\":12", "\"size\":18446744073709551616"},
           {"\"size\":12", "\"size\":9223372036854775808"},
           {"\"size\":12", "\"sizes\":12"},
           {std::string(40, '1'), std::string(39, '1')},
           {std::string(40, '1'), "../" + std::string(37, '1')},
           {"\"git\"", "\"gut\""},
           {"\"git\"", "\"sha256\""},
           {"true", "1"},
           {"\"files\":[", "\"files\":[[],"},
           {"\"files\":[",
            "\"files\":["
            "null,"},
           {"\"files\"", "\"flies\""}}) {
    EXPECT_THAT(with(from, to), HasCode(Code::kNotFound)) << from << to;
  }
}

TEST_F(SnapshotStoreTest, RemembersInWhichOrderFilesWereRead) {
  const Snapshot sample = Sample();
  EXPECT_THAT(store_.LoadOrder(kHub, sample), HasCode(Code::kNotFound));
  const std::vector<FileRun> order = {
      {1, 1 << 20, 5}, {0, 0, 12}, {1, 0, 1 << 20}};
  ASSERT_OK(store_.SaveOrder(kHub, sample, order));
  EXPECT_THAT(SnapshotStore(temp_.path()).LoadOrder(kHub, sample),
              IsOkAndHolds(order));
  EXPECT_THAT(store_.LoadOrder("https://mirror.test", sample),
              HasCode(Code::kNotFound));
  Snapshot other = sample;
  other.commit = std::string(40, 'd');
  EXPECT_THAT(store_.LoadOrder(kHub, other), HasCode(Code::kNotFound));
  other = sample;
  other.repo = "org/other";
  EXPECT_THAT(store_.LoadOrder(kHub, other), HasCode(Code::kNotFound));
}

// cache/LAYOUT.md: other bytes would be another version's.
TEST_F(SnapshotStoreTest, AnOrderHasTheseBytes) {
  ASSERT_OK(store_.SaveOrder(kHub, Sample(), {{1, 77, 5}, {0, 0, 12}}));
  const std::string path = FindFile("/orders/" + kCommit + ".json");
  EXPECT_EQ(ReadText(path),
            R"({"weightfs":1,"xxh3":"702b6954ac420f25","body":{"commit":")" +
                kCommit +
                R"(","endpoint":"https://hub.test","repo":"org/name",)"
                R"("runs":[[1,77,5],[0,0,12]]}})"
                "\n");
}

TEST_F(SnapshotStoreTest, AnOrderHasEachByteOnceAndNoneThatNoFileHas) {
  const Snapshot sample = Sample();
  const uint64_t size = sample.files[1].size;
  for (const std::vector<FileRun>& order : std::vector<std::vector<FileRun>>{
           {{3, 0, 1}},
           {{UINT32_MAX, 0, 1}},
           {{1, 0, 0}},
           {{1, 0, size + 1}},
           {{1, size, 1}},
           {{1, UINT64_MAX, 2}},
           {{1, 2, UINT64_MAX}},
           {{1, 5, 5}, {0, 0, 1}, {1, 9, 1}},
           {{2, 0, 1}},  // an empty file
           std::vector<FileRun>(SnapshotStore::kMaxOrderRuns + 1,
                                FileRun{1, 0, 1})}) {
    EXPECT_THAT(store_.SaveOrder(kHub, sample, order), HasCode(Code::kInvalid));
  }
  std::vector<FileRun> most;
  for (uint64_t i = 0; i < SnapshotStore::kMaxOrderRuns; ++i) {
    most.push_back({1, size - 2 * i - 2, 1});
  }
  ASSERT_OK(store_.SaveOrder(kHub, sample, most));
  EXPECT_THAT(store_.LoadOrder(kHub, sample), IsOkAndHolds(most));
}

TEST_F(SnapshotStoreTest, AnOrderThatIsDamagedOrMadeUpCountsAsAbsent) {
  const Snapshot sample = Sample();
  ASSERT_OK(store_.SaveOrder(kHub, sample, {{1, 77, 5}, {0, 0, 12}}));
  const std::string path = FindFile(kCommit + ".json");
  const std::string text = ReadText(path);
  const auto expect_absent = [&](const std::string& bad) {
    WriteText(path, bad);
    EXPECT_THAT(store_.LoadOrder(kHub, sample), HasCode(Code::kNotFound))
        << bad;
  };
  for (size_t length = 0; length < text.size(); ++length) {
    expect_absent(text.substr(0, length));
  }
  for (size_t i = 0; i < text.size(); ++i) {
    std::string flipped = text;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    expect_absent(flipped);
  }
  expect_absent(std::string(1 << 20, '['));
  // With the right hash.
  const std::string_view key = "\"body\":";
  std::string body = text.substr(text.find(key) + key.size());
  body.resize(body.size() - 2);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = body;
    changed.replace(changed.find(from), from.size(), to);
    return fmt::format(R"({{"weightfs":1,"xxh3":"{:016x}","body":{}}})"
                       "\n",
                       XXH3_64bits(changed.data(), changed.size()), changed);
  };
  WriteText(path, with("77", "78"));
  EXPECT_OK(store_.LoadOrder(kHub, sample));
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{
           {"77", "-77"},
           {"77", "7.7"},
           {"77", "\"77\""},
           {"77", "18446744073709551615"},
           {"[1,77,5]", "[1,77]"},
           {"[1,77,5]", "[1,77,5,5]"},
           {"[1,77,5]", "[3,0,1]"},
           {"[1,77,5]", "[4294967297,77,5]"},
           {"[1,77,5]", "[0,3,1]"},
           {"[1,77,5]", "null"},
           {"\"runs\":[", "\"runs\":[[],"},
           {"\"runs\"", "\"ruins\""}}) {
    expect_absent(with(from, to));
  }
  ASSERT_OK(store_.SaveOrder(kHub, sample, {}));
  EXPECT_THAT(store_.LoadOrder(kHub, sample),
              IsOkAndHolds(std::vector<FileRun>()));
}

TEST_F(SnapshotStoreTest, KeepsTwentyThousandFiles) {
  Snapshot big = Sample();
  big.files.clear();
  for (int i = 0; i < 20'000; ++i) {
    big.files.push_back(
        File(fmt::format("shards/model-{:05}-of-20000.safetensors", i),
             uint64_t{1} << 32,
             {ContentId::Kind::kSha256, fmt::format("{:064x}", i)}));
  }
  ASSERT_OK(store_.SaveListing(kHub, big));
  const auto loaded = store_.LoadListing(kHub, "org/name", kCommit);
  ASSERT_OK(loaded);
  EXPECT_EQ((*loaded)->files, big.files);
}

TEST_F(SnapshotStoreTest, AnEmptyRepositoryIsAListingToo) {
  Snapshot empty = Sample();
  empty.files.clear();
  ASSERT_OK(store_.SaveListing(kHub, empty));
  const auto loaded = store_.LoadListing(kHub, "org/name", kCommit);
  ASSERT_OK(loaded);
  EXPECT_TRUE((*loaded)->files.empty());
}

TEST_F(SnapshotStoreTest, ReadersSeeWholeFilesWhileWritersReplaceThem) {
  const std::array<std::string, 2> commits = {std::string(40, 'a'),
                                              std::string(40, 'b')};
  ASSERT_OK(store_.SaveRef(kHub, "org/name", "main", commits[0]));
  std::vector<std::jthread> threads;
  for (const std::string& commit : commits) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_OK(store_.SaveRef(kHub, "org/name", "main", commit));
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 500; ++i) {
      EXPECT_THAT(store_.LoadRef(kHub, "org/name", "main"),
                  IsOkAndHolds(testing::AnyOf(commits[0], commits[1])));
    }
  });
}

TEST_F(SnapshotStoreTest, AFolderThatIsGoneIsAnError) {
  SnapshotStore gone(temp_.path() + "/gone");
  EXPECT_FALSE(gone.SaveRef(kHub, "org/name", "main", kCommit).has_value());
  EXPECT_FALSE(gone.LoadRef(kHub, "org/name", "main").has_value());
}

}  // namespace
}  // namespace weightfs
