// Fuzzes an object's folder in the cache: a published object of 4 KiB, changed
// as the input says, is opened by the cache, read, filled and shared. Whatever
// is in the files: no crash; bytes that are returned are those that the entry
// names, and to another namespace only while they are verified; a sealed
// descriptor holds bytes of the right whole-file hash; a granule that was given
// up can be published again.
//
// The input: records of four bytes. The first says what is done, modulo 16, the
// next two are an offset, the last a value: see Apply.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "cache/cache_paths.h"
#include "cache/content_hash.h"
#include "cache/meta_file.h"
#include "cache/object_cache.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

namespace fs = std::filesystem;

constexpr char kNamespace[] = "https://hub.test";
constexpr char kMirror[] = "https://mirror.test";
constexpr uint64_t kSize = 4096;

void Require(bool condition) {
  if (!condition) std::abort();
}

std::vector<std::byte> Content() {
  std::vector<std::byte> bytes(kSize);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  }
  return bytes;
}

const ContentId& Id() {
  static const ContentId& id = *new ContentId([] {
    ContentHash hash(ContentId::Kind::kSha256, kSize);
    hash.Add(Content());
    return ContentId{ContentId::Kind::kSha256, hash.Finish()};
  }());
  return id;
}

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file),
          std::istreambuf_iterator<char>()};
}

void WriteAll(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

struct World {
  World() {
    std::string name = fs::temp_directory_path() / "weightfs-fuzz-XXXXXX";
    Require(::mkdtemp(name.data()) != nullptr);
    folder = name;
    auto opened = ObjectCache::Open(name);
    Require(opened.has_value());
    cache = *std::move(opened);
    const auto file = cache->OpenObject(kNamespace, Id(), kSize);
    Require(file.has_value() && (*file)->Put(0, Content()).has_value());
    const fs::path object = folder / *ObjectPath(kNamespace, Id());
    meta = ReadAll(object / "meta");
    data = ReadAll(object / "data");
  }
  ~World() {
    cache.reset();
    std::error_code failed;
    fs::remove_all(folder, failed);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  fs::path folder;
  std::unique_ptr<ObjectCache> cache;
  std::string meta;
  std::string data;
};

// What stands at a file's name.
enum class Kind { kFile, kNothing, kFolder, kLink, kPipe };

struct File {
  std::string bytes;
  Kind kind = Kind::kFile;
};

struct Files {
  File meta;
  File data;
  File claims;
  bool verified_place = false;  // in the folder of the verified ones
};

void SetRightCheckValue(std::string& meta) {
  constexpr size_t kCheck = 120;
  if (meta.size() < kCheck + 8) return;
  const uint64_t check = XXH3_64bits(meta.data(), kCheck);
  std::memcpy(meta.data() + kCheck, &check, sizeof check);
}

void SetEntry(const File& data, std::string& meta) {
  const uint64_t at = MetaLayout::For(kSize).entries_offset;
  const uint64_t hash = GranuleHash(std::as_bytes(std::span(data.bytes)));
  if (meta.size() < at + sizeof hash) return;
  std::memcpy(meta.data() + at, &hash, sizeof hash);
}

void Apply(const uint8_t* record, Files& files) {
  const size_t offset = record[1] + 256U * record[2];
  const auto value = static_cast<char>(record[3]);
  const auto set = [&](std::string& bytes, size_t at) {
    if (at < bytes.size()) bytes[at] = value;
  };
  std::string& meta = files.meta.bytes;
  std::string& data = files.data.bytes;
  switch (record[0] % 16) {
    case 0:
    case 1:
      return set(meta, offset);
    case 2:
    case 3:
      return set(data, offset);
    case 4:  // in the header, whose check value is right all the same
      set(meta, offset % 512);
      return SetRightCheckValue(meta);
    case 5:  // bytes that were published, but are not the file's
      set(data, offset);
      return SetEntry(files.data, meta);
    case 6:
      return meta.resize(std::min(meta.size(), offset));
    case 7:
      return data.resize(std::min(data.size(), offset));
    case 8:
      meta.append(offset, value);
      return;
    case 9:
      data.append(offset, value);
      return;
    case 10:
      files.meta.kind = static_cast<Kind>(record[3] % 5);
      return;
    case 11:
      files.data.kind = static_cast<Kind>(record[3] % 5);
      return;
    case 12:
      files.claims.kind = static_cast<Kind>(record[3] % 5);
      return;
    case 13:
      files.verified_place = value != 0;
      return;
    default:
      return set(meta, 128 + offset % 64);  // state, verified, boot, owner
  }
}

void Make(const fs::path& path, const File& file) {
  std::error_code failed;
  switch (file.kind) {
    case Kind::kFile:
      return WriteAll(path, file.bytes);
    case Kind::kNothing:
      return;
    case Kind::kFolder:
      fs::create_directory(path, failed);
      return;
    case Kind::kLink:  // to bytes that would be right
      WriteAll(path.string() + ".target", file.bytes);
      fs::create_symlink(path.string() + ".target", path, failed);
      return;
    case Kind::kPipe:
      ::mkfifo(path.c_str(), 0600);
  }
}

// A new object each time: the old files may be mapped still.
void MakeObject(const World& world, const Files& files) {
  std::error_code failed;
  fs::remove_all(world.folder / kObjectsFolder, failed);
  fs::remove_all(world.folder / "sha256", failed);
  const fs::path object =
      world.folder / (files.verified_place ? VerifiedPath(Id())
                                           : *ObjectPath(kNamespace, Id()));
  fs::create_directories(object, failed);
  Require(!failed);
  Make(object / "meta", files.meta);
  Make(object / "data", files.data);
  Make(object / "claims", files.claims);
}

uint64_t EntryOf(const std::string& meta) {
  const uint64_t at = MetaLayout::For(kSize).entries_offset;
  uint64_t entry = 0;
  Require(meta.size() >= at + sizeof entry);
  std::memcpy(&entry, meta.data() + at, sizeof entry);
  return entry;
}

// Reads the whole object; empty if the cache says that it is not there.
std::vector<std::byte> Read(CacheFile& file) {
  std::vector<std::byte> bytes(kSize);
  const auto pin = file.Pin(0, kSize);
  Require(pin.has_value());
  const auto read = file.Read(0, bytes);
  if (read.has_value()) return bytes;
  Require(read.error().code() == Code::kStale ||
          read.error().code() == Code::kIo);
  return {};
}

void CheckShared(CacheFile& file) {
  const auto shared = file.Share();
  if (!shared.has_value()) return;
  std::vector<std::byte> bytes(kSize);
  Require(::pread(shared->get(), bytes.data(), bytes.size(), 0) ==
          static_cast<ssize_t>(kSize));
  Require(bytes == Content());
}

std::shared_ptr<CacheFile> Open(World& world, const std::string& name_space) {
  auto opened = world.cache->OpenObject(name_space, Id(), kSize);
  Require(opened.has_value() && (*opened)->size() == kSize);
  return *std::move(opened);
}

// `may_hold`: the object may be the one that was there, not one made anew.
void CheckObject(World& world, const Files& files,
                 const std::string& name_space, bool may_hold) {
  auto file = Open(world, name_space);
  const std::vector<std::byte> bytes = Read(*file);
  if (!bytes.empty()) {
    Require(may_hold);
    const auto data = std::as_bytes(std::span(files.data.bytes));
    Require(bytes == Content() ||
            (GranuleHash(bytes) == EntryOf(files.meta.bytes) &&
             std::equal(bytes.begin(), bytes.end(), data.begin(), data.end())));
  }
  if (bytes.empty() && !file->IsWhole()) {
    // It stopped to be verified. The files are this namespace's own now.
    file = Open(world, name_space);
    Require(file->IsWhole() && Read(*file).empty());
  }
  const auto put = file->Put(0, Content());
  if (bytes.empty() || bytes == Content()) {
    Require(put.has_value() && Read(*file) == Content());
  } else {
    // Others may be reading those: refused, until the whole file is judged.
    Require(!put.has_value() && put.error().code() == Code::kCorrupt);
  }
  CheckShared(*file);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  Files files{{world.meta}, {world.data}, {}, false};
  for (; size >= 4; data += 4, size -= 4) Apply(data, files);
  std::string& meta = files.meta.bytes;
  // A seal of this boot is believed: none is forged.
  if (meta.size() > 136 && meta[128] == 1) meta[136] ^= 1;
  static_cast<void>(CheckMetaHeader(
      std::as_bytes(std::span(meta))
          .first(std::min<size_t>(meta.size(), kMetaHeaderSize)),
      Id(), kSize));
  MakeObject(world, files);
  // Another namespace sees no more than what is verified.
  const bool verified =
      files.verified_place && meta.size() > 135 && meta[132] == 1;
  CheckObject(world, files, kMirror, verified);
  CheckObject(world, files, kNamespace, true);
  return 0;
}
