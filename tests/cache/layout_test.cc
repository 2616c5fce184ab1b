// The bytes on disk, so that no change of them goes unnoticed: caches of users
// hold them for years.

#include <fstream>
#include <iterator>

#include "cache/cache_folder.h"
#include "cache/meta_file.h"
#include "tests/cache/cache_fixture.h"

namespace weightfs {
namespace {

using LayoutTest = ObjectCacheTest;

constexpr char kChanged[] =
    "layout changed: bump the version (kMetaVersion or kCacheVersion), and say "
    "in cache/LAYOUT.md what becomes of caches of the old one";

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string Hex(std::string_view bytes) {
  std::string hex;
  for (const char c : bytes) {
    hex += fmt::format("{:02x}", static_cast<unsigned char>(c));
  }
  return hex;
}

ContentId CountingId(size_t digits, ContentId::Kind kind) {
  std::string value;
  for (size_t i = 0; i < digits; ++i) value += "0123456789abcdef"[i % 16];
  return {kind, value};
}

TEST_F(LayoutTest, MetaHasTheseBytes) {
  const ContentId id = CountingId(64, ContentId::Kind::kSha256);
  // Two slabs: 513 granules, the last of 5 bytes.
  OpenFile(kSlabSize + 5, id);
  ASSERT_OK(PutPattern(*file_, 0));
  ASSERT_OK(PutPattern(*file_, 512));
  const std::string meta = ReadAll(ObjectFolder(id) + "/meta");
  ASSERT_EQ(meta.size(), 8192) << kChanged;
  EXPECT_EQ(Hex(meta.substr(0, 128)),
            "7766736d6574610a"  // magic
            "02000000"          // version
            "00010000"          // header size
            "0500000400000000"  // object size
            "00000200"          // granule size
            "00000004"          // slab size
            "0102000000000000"  // granules
            "0200000000000000"  // slabs
            "1001000000000000"  // entries offset
            "0020000000000000"  // size of meta
            "0100000000000000"  // id kind; zeros
            "0123456789abcdef0123456789abcdef"
            "0123456789abcdef0123456789abcdef"
            "00000000000000000000000000000000"  // zeros
            "2c759c0b3b842778")                 // XXH3-64 of the above
      << kChanged;
  // State, verified, boot id; whose it is; zeros.
  EXPECT_EQ(Hex(meta.substr(128, 24)), std::string(48, '0')) << kChanged;
  EXPECT_EQ(Hex(meta.substr(152, 8)), "e49a3fa95fdbc596") << kChanged;
  EXPECT_EQ(meta.substr(160, 96), std::string(96, '\0')) << kChanged;
  const auto now = static_cast<uint32_t>(::time(nullptr) / 60);
  // Two slabs' recency and generation.
  for (const size_t offset : {256, 264}) {
    uint32_t minutes = 0;
    std::memcpy(&minutes, meta.data() + offset, sizeof(minutes));
    EXPECT_LE(now - minutes, 1) << kChanged;
    EXPECT_EQ(Hex(meta.substr(offset + 4, 4)), "00000000") << kChanged;
  }
  EXPECT_EQ(Hex(meta.substr(272, 8)), "13d262ac485d1b17") << kChanged;
  EXPECT_EQ(Hex(meta.substr(272 + 512 * 8, 8)), "d3c63b07df14eb9c") << kChanged;
  std::string rest = meta.substr(272);
  rest.replace(0, 8, 8, '\0').replace(512 * 8, 8, 8, '\0');
  EXPECT_EQ(rest, std::string(rest.size(), '\0')) << kChanged;
}

TEST_F(LayoutTest, MetaOfAGitObjectHasTheseBytes) {
  const ContentId id = CountingId(40, ContentId::Kind::kGit);
  OpenFile(1, id);
  const std::string meta = ReadAll(ObjectFolder(id) + "/meta");
  ASSERT_EQ(meta.size(), 4096) << kChanged;
  EXPECT_EQ(Hex(meta.substr(0, 128)),
            "7766736d6574610a"
            "02000000"
            "00010000"
            "0100000000000000"
            "00000200"
            "00000004"
            "0100000000000000"
            "0100000000000000"
            "0801000000000000"
            "0010000000000000"
            "0200000000000000"
            "0123456789abcdef0123456789abcdef"
            "01234567000000000000000000000000"
            "00000000000000000000000000000000"
            "a39316e1997415a3")
      << kChanged;
}

TEST_F(LayoutTest, DataHasTheOriginsOffsets) {
  OpenFile(2 * kGranuleSize + 9);
  PutAll(*file_);
  const std::string data = ReadAll(DataPath());
  const auto wanted = Pattern(0, 2 * kGranuleSize + 9);
  EXPECT_TRUE(std::equal(
      data.begin(), data.end(), wanted.begin(), wanted.end(),
      [](char a, std::byte b) { return static_cast<std::byte>(a) == b; }))
      << kChanged;
}

TEST_F(LayoutTest, FilesHaveTheseNames) {
  OpenFile(10, CountingId(64, ContentId::Kind::kSha256));
  OpenFile(10, CountingId(40, ContentId::Kind::kGit));
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(folder())) {
    names.push_back(entry.path().string().substr(folder().size() + 1));
  }
  const std::string ns = "objects/96c5db5fa93f9ae4";
  const std::string sha = CountingId(64, ContentId::Kind::kSha256).value;
  const std::string git = CountingId(40, ContentId::Kind::kGit).value;
  EXPECT_THAT(
      names,
      testing::UnorderedElementsAre(
          "CACHEDIR.TAG", "version", "tmp", "objects", ns, ns + "/namespace",
          ns + "/sha256", ns + "/sha256/01", ns + "/sha256/01/" + sha,
          ns + "/sha256/01/" + sha + "/data",
          ns + "/sha256/01/" + sha + "/claims",
          ns + "/sha256/01/" + sha + "/meta", ns + "/git", ns + "/git/01",
          ns + "/git/01/" + git, ns + "/git/01/" + git + "/data",
          ns + "/git/01/" + git + "/claims", ns + "/git/01/" + git + "/meta"))
      << kChanged;
  EXPECT_EQ(ReadAll(folder() + "/version"), "weightfs cache 1\n") << kChanged;
  EXPECT_EQ(kCacheVersion, 1) << kChanged;
  EXPECT_EQ(kMetaVersion, 2) << kChanged;
}

TEST(MetaTest, LayoutGrowsWithTheObject) {
  const auto check = [](uint64_t size, uint64_t granules, uint64_t slabs,
                        uint64_t entries, uint64_t file) {
    const MetaLayout layout = MetaLayout::For(size);
    EXPECT_EQ(layout.granules, granules);
    EXPECT_EQ(layout.slabs, slabs);
    EXPECT_EQ(layout.entries_offset, entries);
    EXPECT_EQ(layout.file_size, file);
  };
  check(0, 0, 0, 256, 4096);
  check(1, 1, 1, 264, 4096);
  check(kSlabSize, 512, 1, 264, 8192);
  check(3 * kSlabSize, 1536, 3, 280, 16384);
  check(kMaxObjectSize, uint64_t{1} << 25, 65536, 256 + 65536 * 8,
        (uint64_t{1} << 28) + 65536 * 8 + 4096);
}

TEST(MetaTest, EveryFixedBitCounts) {
  const ContentId id = Sha256Id();
  auto header = EncodeMetaHeader(id, 12345, 7);
  ASSERT_OK(CheckMetaHeader(header, id, 12345));
  for (size_t bit = 0; bit < kMetaFixedSize * 8; ++bit) {
    const std::byte mask{static_cast<uint8_t>(1U << (bit % 8))};
    header[bit / 8] ^= mask;
    EXPECT_THAT(CheckMetaHeader(header, id, 12345), HasCode(Code::kCorrupt))
        << "bit " << bit;
    header[bit / 8] ^= mask;
  }
  for (size_t size = 0; size < header.size(); ++size) {
    EXPECT_THAT(CheckMetaHeader(std::span(header).first(size), id, 12345),
                HasCode(Code::kCorrupt));
  }
  EXPECT_THAT(CheckMetaHeader(header, id, 12346), HasCode(Code::kCorrupt));
  EXPECT_THAT(CheckMetaHeader(header, Sha256Id('b'), 12345),
              HasCode(Code::kCorrupt));
  // What changes while the object lives is not a part of the check.
  header[136] = std::byte{7};
  EXPECT_OK(CheckMetaHeader(header, id, 12345));
}

TEST_F(LayoutTest, AnEntryIsWipedOnlyIfItIsStillTheOneSeen) {
  OpenFile(10);
  const UniqueFd fd(::open(MetaPath().c_str(), O_RDWR | O_CLOEXEC));
  auto meta = MetaFile::Open(fd.get(), Sha256Id(), 10, "meta");
  ASSERT_OK(meta);
  (*meta)->Publish(0, 7);
  (*meta)->Wipe(0, 6);
  EXPECT_EQ((*meta)->Entry(0), 7);
  const uint32_t generation = (*meta)->Generation(0);
  (*meta)->Wipe(0, 7);
  EXPECT_EQ((*meta)->Entry(0), 0);
  EXPECT_NE((*meta)->Generation(0), generation);
}

TEST(MetaTest, GranuleHashIsXxh3AndNeverZero) {
  EXPECT_EQ(GranuleHash({}), 0x2d06800538d394c2ULL);  // XXH3-64 of nothing
  EXPECT_NE(GranuleHash(Pattern(0, 10)), 0);
}

}  // namespace
}  // namespace weightfs
