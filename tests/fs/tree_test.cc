// Node ids, the repository's folders, weight sets, and tensor names as paths.

#include "fs/catalog.h"
#include "fs/name_tree.h"
#include "fs/node_id.h"
#include "fs/repo_tree.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::StartsWith;

Snapshot Files(std::vector<std::string> paths) {
  Snapshot snapshot;
  std::sort(paths.begin(), paths.end());
  for (std::string& path : paths) {
    FileInfo file;
    file.path = std::move(path);
    snapshot.files.push_back(std::move(file));
  }
  return snapshot;
}

std::vector<std::string> SetPaths(const Catalog& catalog) {
  std::vector<std::string> paths;
  for (const WeightSet& set : catalog.sets()) paths.push_back(set.path);
  return paths;
}

std::string PrimaryOf(const Catalog& catalog, const std::string& folder) {
  auto it = catalog.primary().find(folder);
  return it == catalog.primary().end() ? "" : catalog.sets()[it->second].path;
}

TEST(NodeIdTest, PacksEveryFieldAndTheRootIsOne) {
  NodeId id;
  id.slot = kMaxSlots - 1;
  id.set = kMaxSets - 2;
  id.kind = NodeKind::kTensorFile;
  id.format = 15;
  id.ordinal = kMaxOrdinals - 3;
  EXPECT_EQ(UnpackNode(PackNode(id)), id);
  NodeId root;
  root.ordinal = 1;
  EXPECT_EQ(PackNode(root), kRootNode);
  EXPECT_EQ(UnpackNode(kRootNode).kind, NodeKind::kRoot);
}

TEST(RepoTreeTest, FoldersComeFromPaths) {
  const Snapshot snapshot = Files({"a.txt", "b/c.txt", "b/d/e.txt"});
  const RepoTree tree(snapshot);
  ASSERT_EQ(tree.folders().size(), 3u);
  EXPECT_THAT(tree.folders()[0].folders, ElementsAre(Pair("b", 1u)));
  EXPECT_THAT(tree.folders()[0].files, ElementsAre(Pair("a.txt", 0u)));
  EXPECT_EQ(tree.FindFolder("b/d"), 2u);
  EXPECT_EQ(tree.folders()[2].parent, 1u);
  EXPECT_EQ(tree.FindFolder("x"), std::nullopt);
}

TEST(RepoTreeTest, APathThatIsFileAndFolderIsAFolder) {
  const Snapshot snapshot = Files({"a", "a/b"});
  const RepoTree tree(snapshot);
  EXPECT_THAT(tree.folders()[0].files, IsEmpty());
  EXPECT_THAT(tree.folders()[0].folders, ElementsAre(Pair("a", 1u)));
}

TEST(CatalogTest, ShardsAndTheirIndexAreOneSet) {
  const Catalog catalog = Catalog::Create(Files(
      {"config.json", "model-00001-of-00002.safetensors",
       "model-00002-of-00002.safetensors", "model.safetensors.index.json"}));
  ASSERT_THAT(SetPaths(catalog), ElementsAre("model.safetensors"));
  EXPECT_EQ(catalog.sets()[0].files.size(), 2u);
  EXPECT_TRUE(catalog.sets()[0].index_file.has_value());
  EXPECT_THAT(catalog.sets()[0].problems, IsEmpty());
}

TEST(CatalogTest, AMissingShardIsAProblem) {
  const Catalog catalog =
      Catalog::Create(Files({"model-00001-of-00003.safetensors",
                             "model-00003-of-00003.safetensors"}));
  ASSERT_THAT(SetPaths(catalog), ElementsAre("model.safetensors"));
  EXPECT_THAT(catalog.sets()[0].problems,
              ElementsAre("shard 2 of 3 is missing"));
}

TEST(CatalogTest, TheUnshardedFileIsPrimaryAndAVariantIsNot) {
  const Catalog catalog = Catalog::Create(
      Files({"model-00001-of-00001.safetensors", "model.fp16.safetensors",
             "model.safetensors", "model.safetensors.index.json",
             "aaa.safetensors"}));
  EXPECT_EQ(PrimaryOf(catalog, ""), "model.safetensors");
  EXPECT_THAT(SetPaths(catalog),
              ElementsAre("aaa.safetensors", "model.fp16.safetensors",
                          "model.safetensors", "model.safetensors.index.json"));
}

TEST(CatalogTest, ADotInANameIsNoVariant) {
  const Catalog catalog =
      Catalog::Create(Files({"Llama-3.1-8B.safetensors", "zzz.safetensors"}));
  EXPECT_EQ(PrimaryOf(catalog, ""), "Llama-3.1-8B.safetensors");
}

TEST(CatalogTest, EveryFormatsFilesAreSets) {
  const Catalog catalog = Catalog::Create(
      Files({"a/model-Q4_0.gguf", "b/x-00001-of-00002.gguf",
             "b/x-00002-of-00002.gguf", "c/last.ckpt", "d/e.pth",
             "f/pytorch_model-00001-of-00001.bin",
             "f/pytorch_model.bin.index.json", "g/readme.txt", "h/.bin"}));
  EXPECT_THAT(SetPaths(catalog),
              ElementsAre("a/model-Q4_0.gguf", "b/x.gguf", "c/last.ckpt",
                          "d/e.pth", "f/pytorch_model.bin"));
  EXPECT_TRUE(catalog.sets()[4].index_file.has_value());
}

TEST(CatalogTest, LoadersLookForSafetensorsFirst) {
  const Catalog catalog = Catalog::Create(
      Files({"a/model.gguf", "a/model.safetensors", "a/pytorch_model.bin",
             "b/a.safetensors", "b/pytorch_model.bin",
             "b/pytorch_model.fp16.bin", "c/a.gguf", "c/b.safetensors",
             "d/pytorch_model.bin.index.fp16.json", "d/z.pt"}));
  EXPECT_EQ(PrimaryOf(catalog, "a"), "a/model.safetensors");
  EXPECT_EQ(PrimaryOf(catalog, "b"), "b/pytorch_model.bin");
  EXPECT_EQ(PrimaryOf(catalog, "c"), "c/b.safetensors");
  EXPECT_EQ(PrimaryOf(catalog, "d"), "d/z.pt");
}

TEST(CatalogTest, ATrainersStateIsNobodysModel) {
  const Catalog catalog =
      Catalog::Create(Files({"optimizer.pt", "rng_state_0.pth", "scheduler.pt",
                             "training_args.bin", "unet/model.safetensors"}));
  EXPECT_EQ(catalog.sets().size(), 5u);
  EXPECT_EQ(PrimaryOf(catalog, "unet"), "unet/model.safetensors");
  EXPECT_EQ(catalog.shown().size(), 1u);
}

TEST(CatalogTest, WithoutARootSetEachFolderShowsItsOwn) {
  const Catalog catalog = Catalog::Create(
      Files({"model_index.json", "text_encoder/model.safetensors",
             "unet/diffusion_pytorch_model.fp16.safetensors",
             "unet/diffusion_pytorch_model.safetensors"}));
  EXPECT_EQ(catalog.shown().size(), 2u);
  EXPECT_EQ(PrimaryOf(catalog, "unet"),
            "unet/diffusion_pytorch_model.safetensors");
}

TEST(CatalogTest, WithARootSetOnlyThatIsShown) {
  const Catalog catalog = Catalog::Create(
      Files({"model.safetensors", "lora/adapter_model.safetensors"}));
  ASSERT_EQ(catalog.shown().size(), 1u);
  EXPECT_EQ(catalog.shown().begin()->first, "");
  EXPECT_EQ(catalog.primary().size(), 2u);
}

TensorIndex Named(const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.order = tensors.size();
    tensors.push_back(std::move(tensor));
  }
  auto index = TensorIndex::Create({"f"}, std::move(tensors), {});
  EXPECT_OK(index);
  return std::move(*index);
}

std::vector<std::string> Paths(const NameTree& tree, const TensorIndex& index,
                               Format format) {
  std::vector<std::string> paths;
  for (uint32_t i = 0; i < index.tensors().size(); ++i) {
    paths.push_back(tree.FilePath(i, format));
  }
  return paths;
}

// Walks a path as look-ups do.
std::optional<std::string> Resolve(const NameTree& tree,
                                   const TensorIndex& index,
                                   const std::string& path, Format format) {
  uint32_t folder = 0;
  size_t start = 0;
  for (size_t slash = path.find('/'); slash != std::string::npos;
       start = slash + 1, slash = path.find('/', start)) {
    auto next = tree.FindFolder(folder, path.substr(start, slash - start));
    if (!next) return std::nullopt;
    folder = *next;
  }
  auto tensor = tree.FindTensor(folder, path.substr(start), format);
  if (!tensor) return std::nullopt;
  return index.tensors()[*tensor].name;
}

TEST(NameTreeTest, SlashesMakeFolders) {
  const TensorIndex index = Named({"a/b/c", "a/d", "e.f"});
  const NameTree tree(index, {});
  EXPECT_THAT(Paths(tree, index, Format::kNpy),
              ElementsAre("a/b/c.npy", "a/d.npy", "e.f.npy"));
  EXPECT_EQ(tree.folder_count(), 3u);
  EXPECT_EQ(tree.FindTensor(0, "e.f.pt", Format::kNpy), std::nullopt);
}

TEST(NameTreeTest, EveryNameResolvesFromThePathThatShowsIt) {
  const std::string control("x\0y", 3);
  const TensorIndex index =
      Named({"", ".", "..", "/", "a", "a.npy", "a.npy/b", "a/../b", "a//b",
             "a/b", "%41", "%", control, "\xff\xfe", "größe",
             std::string(300, 'l'), std::string(300, 'l') + "/x",
             std::string(300, 'm') + "/x", std::string(252, 'n')});
  const NameTree tree(index, {"tok", "a"});
  for (Format format : AllFormats()) {
    std::set<std::string> seen;
    for (uint32_t i = 0; i < index.tensors().size(); ++i) {
      const std::string path = tree.FilePath(i, format);
      EXPECT_TRUE(seen.insert(path).second) << path;
      EXPECT_EQ(Resolve(tree, index, path, format), index.tensors()[i].name)
          << path;
      EXPECT_TRUE(IsSafePath(path)) << path;
    }
  }
}

TEST(NameTreeTest, AFolderWinsOverAFileOfItsName) {
  const TensorIndex index = Named({"w", "w.npy/b"});
  const NameTree tree(index, {});
  const auto npy = Paths(tree, index, Format::kNpy);
  EXPECT_THAT(npy[0], StartsWith("%~"));
  EXPECT_EQ(npy[1], "w.npy/b.npy");
  EXPECT_EQ(tree.FilePath(0, Format::kPt), "w.pt");
  EXPECT_EQ(tree.FindTensor(0, "w.npy", Format::kNpy), std::nullopt);
}

}  // namespace
}  // namespace weightfs
