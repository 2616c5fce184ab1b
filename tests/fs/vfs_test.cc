// The Vfs over a played origin: the tree, reads, parking, interrupts.

#include "fs/vfs.h"

#include <future>

#include "fs/describe.h"
#include "fs/node_id.h"
#include "tests/fs/memory_origin.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class VfsTest : public ::testing::Test {
 protected:
  ~VfsTest() override {
    if (vfs_) vfs_->Shutdown();
    if (fetcher_) fetcher_->Stop();
    indexers_.Stop();
    pool_.Stop();
    timers_.Stop();
  }

  void Start(VfsOptions options = {}) {
    FetcherOptions fetcher_options;
    fetcher_options.failure_memory = std::chrono::milliseconds(0);
    fetcher_ = Fetcher::Create(origin_, timers_, pool_, fetcher_options);
    RepoOptions repo_options;
    repo_options.index_retry = std::chrono::milliseconds(0);
    auto repo = Repo::Open({&origin_, fetcher_.get(), nullptr, &indexers_},
                           repo_options);
    ASSERT_OK(repo);
    repo_ = std::move(*repo);
    vfs_ = std::make_unique<Vfs>(*repo_, pool_, timers_, options);
  }

  template <class T>
  Result<T> Wait(std::function<void(OpId, Vfs::Done<T>)> call) {
    std::promise<Result<T>> promise;
    call(vfs_->NewOp(),
         [&](Result<T> result) { promise.set_value(std::move(result)); });
    return promise.get_future().get();
  }
  Result<NodeAttr> Find(const std::string& path) {
    NodeAttr attr;
    attr.node = kRootNode;
    size_t start = 0;
    while (start <= path.size()) {
      const size_t slash = std::min(path.find('/', start), path.size());
      const std::string name = path.substr(start, slash - start);
      auto found = Wait<NodeAttr>(
          [&](OpId op, auto done) { vfs_->Lookup(op, attr.node, name, done); });
      RETURN_IF_ERROR(found);
      if (found->node == 0) return Error(Code::kNotFound, path);
      attr = *found;
      start = slash + 1;
    }
    return attr;
  }
  Result<std::vector<std::string>> List(const std::string& path) {
    uint64_t node = kRootNode;
    if (!path.empty()) {
      ASSIGN_OR_RETURN(const NodeAttr attr, Find(path));
      node = attr.node;
    }
    using Listing = std::shared_ptr<const Vfs::Listing>;
    auto listing =
        Wait<Listing>([&](OpId op, auto done) { vfs_->List(op, node, done); });
    RETURN_IF_ERROR(listing);
    std::vector<std::string> names;
    for (size_t i = 0; i < (*listing)->size(); ++i) {
      names.push_back((*listing)->name(i));
      // Look-up and listing agree on what a name is.
      auto found = Wait<NodeAttr>([&](OpId op, auto done) {
        vfs_->Lookup(op, node, names.back(), done);
      });
      EXPECT_OK(found);
      EXPECT_EQ(found->node, (*listing)->attr(i).node) << names.back();
      EXPECT_EQ(found->ino, (*listing)->attr(i).ino) << names.back();
    }
    return names;
  }
  Result<std::string> Read(uint64_t node, uint64_t offset, size_t size) {
    std::promise<Result<std::string>> promise;
    vfs_->Read(vfs_->NewOp(), node, offset, size,
               [&](Result<std::span<const std::byte>> bytes) {
                 if (!bytes.has_value()) {
                   return promise.set_value(bytes.error());
                 }
                 std::string text;
                 for (std::byte byte : *bytes) {
                   text += static_cast<char>(byte);
                 }
                 promise.set_value(std::move(text));
               });
    return promise.get_future().get();
  }
  Result<std::string> Xattr(const std::string& path, const std::string& name) {
    ASSIGN_OR_RETURN(const NodeAttr attr, Find(path));
    return Wait<std::string>(
        [&](OpId op, auto done) { vfs_->GetXattr(op, attr.node, name, done); });
  }

  MemoryOrigin origin_;
  TimerQueue timers_{"timers"};
  WorkerPool pool_{"pool", 2};
  WorkerPool indexers_{"index", 2};
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<Repo> repo_;
  std::unique_ptr<Vfs> vfs_;
};

TEST_F(VfsTest, ShowsTheRepositoryAndItsTensors) {
  origin_.Add("config.json", "{}");
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  EXPECT_THAT(List(""),
              IsOkAndHolds(ElementsAre(".weightfs", "repo", "tensors")));
  EXPECT_THAT(List("repo"),
              IsOkAndHolds(ElementsAre("config.json", "model.safetensors")));
  EXPECT_THAT(List("tensors"), IsOkAndHolds(UnorderedElementsAre(
                                   "npy", "pt", "raw", "safetensors")));
  EXPECT_THAT(List("tensors/raw"),
              IsOkAndHolds(ElementsAre("b", "a.weight.bin")));
  EXPECT_THAT(List("tensors/raw/b"), IsOkAndHolds(ElementsAre("c.bin")));
  EXPECT_THAT(Find("nothing"), HasCode(Code::kNotFound));
  EXPECT_THAT(Find("repo/nothing"), HasCode(Code::kNotFound));
  EXPECT_THAT(Find("tensors/tar"), HasCode(Code::kNotFound));
}

TEST_F(VfsTest, LeavesOutWhatAFormatCannotHold) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  EXPECT_THAT(Find("tensors/npy/b/c.npy"), HasCode(Code::kNotFound));
  EXPECT_THAT(List("tensors/npy/b"), IsOkAndHolds(ElementsAre()));
  auto index = Find(".weightfs/index.json");
  ASSERT_OK(index);
  auto open = Wait<Vfs::OpenFile>(
      [&](OpId op, auto done) { vfs_->Open(op, index->node, done); });
  ASSERT_OK(open);
  ASSERT_NE(open->content, nullptr);
  EXPECT_FALSE(open->keep_cache);
  EXPECT_EQ(index->size, open->content->size());
  EXPECT_THAT(*open->content, HasSubstr("\"not_in\""));
}

TEST_F(VfsTest, ReadsFilesAndTensors) {
  const std::string model = Model(kHeader, 26);
  origin_.Add("model.safetensors", model);
  Start();
  auto file = Find("repo/model.safetensors");
  ASSERT_OK(file);
  EXPECT_EQ(file->size, model.size());
  EXPECT_THAT(Read(file->node, 0, 1 << 20), IsOkAndHolds(model));
  EXPECT_THAT(Read(file->node, 5, 9), IsOkAndHolds(model.substr(5, 9)));
  EXPECT_THAT(Read(file->node, model.size(), 9), IsOkAndHolds(""));
  EXPECT_THAT(Read(file->node, model.size() - 2, 9),
              IsOkAndHolds(model.substr(model.size() - 2)));
  auto tensor = Find("tensors/raw/a.weight.bin");
  ASSERT_OK(tensor);
  EXPECT_THAT(Read(tensor->node, 0, 100),
              IsOkAndHolds(model.substr(model.size() - 26, 24)));
  EXPECT_THAT(Read(tensor->node, 20, 100),
              IsOkAndHolds(model.substr(model.size() - 6, 4)));
  EXPECT_THAT(Read(kRootNode, 0, 1), HasCode(Code::kInvalid));
}

TEST_F(VfsTest, XattrsTellWhereATensorComesFrom) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  const std::string path = "tensors/npy/a.weight.npy";
  EXPECT_THAT(Xattr(path, "user.weightfs.dtype"), IsOkAndHolds("F32"));
  EXPECT_THAT(Xattr(path, "user.weightfs.shape"), IsOkAndHolds("[2,3]"));
  EXPECT_THAT(Xattr(path, "user.weightfs.name"), IsOkAndHolds("a.weight"));
  EXPECT_THAT(Xattr(path, "user.weightfs.source"),
              IsOkAndHolds("model.safetensors:" +
                           std::to_string(8 + sizeof(kHeader) - 1) + ":24"));
  EXPECT_THAT(Xattr(path, "security.selinux"), HasCode(Code::kNotFound));
  EXPECT_THAT(Xattr(path, "user.weightfs.none"), HasCode(Code::kNotFound));
}

TEST_F(VfsTest, XattrsTellOfARepositoryFile) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  const std::string path = "repo/model.safetensors";
  EXPECT_THAT(Xattr(path, "user.weightfs.verified"), IsOkAndHolds("0"));
  // Read where it is, as a local file.
  EXPECT_THAT(Xattr(path, "user.weightfs.cached"), IsOkAndHolds("1"));
  EXPECT_THAT(Xattr(path, "user.weightfs.commit"),
              IsOkAndHolds(repo_->snapshot().commit));
}

TEST_F(VfsTest, InodeNumbersAreThoseOfTheCommit) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  auto first = Find("tensors/npy/a.weight.npy");
  ASSERT_OK(first);
  Vfs again(*repo_, pool_, timers_, {});
  std::promise<Result<NodeAttr>> promise;
  again.GetAttr(again.NewOp(), first->node,
                [&](Result<NodeAttr> attr) { promise.set_value(attr); });
  const auto second = promise.get_future().get();
  ASSERT_OK(second);
  EXPECT_EQ(first->ino, second->ino);
  auto other = Find("tensors/pt/a.weight.pt");
  ASSERT_OK(other);
  EXPECT_NE(first->ino, other->ino);
}

TEST_F(VfsTest, ABadHeaderHidesItsTensorsOnly) {
  origin_.Add("model.safetensors", "not a model at all");
  origin_.Add("config.json", "{}");
  Start();
  EXPECT_THAT(List("tensors/npy"), HasCode(Code::kCorrupt));
  auto file = Find("repo/config.json");
  ASSERT_OK(file);
  EXPECT_THAT(Read(file->node, 0, 2), IsOkAndHolds("{}"));
  auto index = Find(".weightfs/index.json");
  ASSERT_OK(index);
}

TEST_F(VfsTest, OneBadShardLeavesTheOthers) {
  origin_.Add("model-00001-of-00002.safetensors", Model(kHeader, 26));
  origin_.Add("model-00002-of-00002.safetensors", "broken, broken, broken");
  Start();
  EXPECT_THAT(List("tensors/raw"),
              IsOkAndHolds(ElementsAre("b", "a.weight.bin")));
}

TEST_F(VfsTest, AnIndexThatCouldNotBeFetchedIsTriedAgain) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  origin_.Break("model.safetensors", Code::kDenied);
  Start();
  EXPECT_THAT(List("tensors/raw"), HasCode(Code::kDenied));
  origin_.Repair();
  EXPECT_THAT(List("tensors/raw"),
              IsOkAndHolds(ElementsAre("b", "a.weight.bin")));
}

// What the origin says is not about the bytes, which may be good.
TEST_F(VfsTest, AShardThatCouldNotBeFetchedHidesNothingForGood) {
  origin_.Add("model-00001-of-00002.safetensors", Model(kHeader, 26));
  origin_.Add(
      "model-00002-of-00002.safetensors",
      Model(R"({"z":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4));
  origin_.Break("model-00002-of-00002.safetensors", Code::kUnsupported);
  Start();
  EXPECT_THAT(List("tensors/raw"), HasCode(Code::kIo));
  for (const Code code : {Code::kCorrupt, Code::kStale, Code::kUnsupported}) {
    origin_.Break("model-00002-of-00002.safetensors", code);
    EXPECT_FALSE(List("tensors/raw").has_value()) << CodeName(code);
  }
  origin_.Repair();
  EXPECT_THAT(List("tensors/raw"),
              IsOkAndHolds(ElementsAre("b", "a.weight.bin", "z.bin")));
}

TEST_F(VfsTest, NodesOfNoMountAreRefused) {
  origin_.Add("model.safetensors", Model(kHeader, 26));
  Start();
  for (uint64_t node : {uint64_t{0xffffffffffffffff}, uint64_t{1} << 50,
                        PackNode({0, 0, NodeKind::kRepoFile, 0, 77}),
                        PackNode({0, 9, NodeKind::kTensorFile, 0, 0}),
                        PackNode({0, 0, NodeKind::kTensorFile, 9, 0})}) {
    EXPECT_THAT(Wait<NodeAttr>(
                    [&](OpId op, auto done) { vfs_->GetAttr(op, node, done); }),
                HasCode(Code::kStale))
        << std::hex << node;
  }
}

TEST_F(VfsTest, AnInterruptEndsAReadOfAHungOrigin) {
  origin_.Add("big.bin", std::string(1 << 20, 'x'));
  origin_.Hang("big.bin");
  Start();
  auto file = Find("repo/big.bin");
  ASSERT_OK(file);
  std::promise<Code> ended;
  const OpId op = vfs_->NewOp();
  vfs_->Read(op, file->node, 0, 4096,
             [&](Result<std::span<const std::byte>> bytes) {
               ended.set_value(bytes.error().code());
             });
  EXPECT_EQ(vfs_->parked(), 1u);
  vfs_->Interrupt(op);
  EXPECT_EQ(ended.get_future().get(), Code::kCancelled);
  EXPECT_EQ(vfs_->parked(), 0u);
}

TEST_F(VfsTest, ADeadlineEndsAReadOfAHungOrigin) {
  origin_.Add("big.bin", std::string(1 << 20, 'x'));
  origin_.Hang("big.bin");
  VfsOptions options;
  options.read_timeout = std::chrono::milliseconds(20);
  Start(options);
  auto file = Find("repo/big.bin");
  ASSERT_OK(file);
  const auto read = Read(file->node, 0, 4096);
  EXPECT_THAT(read, HasCode(Code::kUnavailable));
  EXPECT_THAT(read, HasMessage(HasSubstr("big.bin")));
}

TEST_F(VfsTest, ShutdownEndsParkedCallsAndRefusesLaterOnes) {
  origin_.Add("big.bin", std::string(1 << 20, 'x'));
  origin_.Hang("big.bin");
  Start();
  auto file = Find("repo/big.bin");
  ASSERT_OK(file);
  std::promise<Code> ended;
  vfs_->Read(vfs_->NewOp(), file->node, 0, 4096,
             [&](Result<std::span<const std::byte>> bytes) {
               ended.set_value(bytes.error().code());
             });
  vfs_->Shutdown();
  EXPECT_EQ(ended.get_future().get(), Code::kIo);
  EXPECT_THAT(Read(file->node, 0, 4096), HasCode(Code::kCancelled));
}

TEST_F(VfsTest, ListingNeedsNoWeightBytes) {
  std::string header = "{";
  for (int i = 0; i < 200; ++i) {
    header += fmt::format(
        R"({}"t{:03}":{{"dtype":"U8","shape":[1000],"data_offsets":[{},{}]}})",
        i == 0 ? "" : ",", i, i * 1000, (i + 1) * 1000);
  }
  header += "}";
  const std::string model = Model(header, 200 * 1000);
  origin_.Add("model.safetensors", model + std::string());
  Start();
  auto names = List("tensors/raw");
  ASSERT_OK(names);
  EXPECT_EQ(names->size(), 200u);
  EXPECT_THAT(*names, Contains("t137.bin"));
  // One probe of the head, and nothing after it.
  EXPECT_LE(origin_.fetched(), 256u * 1024);
}

}  // namespace
}  // namespace weightfs
