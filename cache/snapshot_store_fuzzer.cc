// Fuzzes the files of snapshot_store.h and the names that cache_paths.h makes.
// The first byte: 'n' a repository's or a revision's name, 'r' a ref, 'o' an
// order, else a listing; in lower case the rest is a body that is given its
// right hash, in upper case the file as a whole. Whatever the bytes: no crash;
// what is loaded obeys the header's rules, and is the same after it was saved
// and loaded again; a name is one safe component, and tells what it stands for.

#include <fmt/format.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "cache/cache_paths.h"
#include "cache/snapshot_store.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

constexpr char kHub[] = "https://hub.test";
constexpr char kRepo[] = "org/name";
constexpr char kRevision[] = "main";
const std::string& Commit() {
  static const std::string& commit = *new std::string(40, 'c');
  return commit;
}

void Require(bool condition) {
  if (!condition) std::abort();
}

// Removed when the process ends.
struct Folder {
  Folder() {
    std::string name =
        std::filesystem::temp_directory_path() / "weightfs-fuzz-XXXXXX";
    Require(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() {
    std::error_code failed;
    std::filesystem::remove_all(path, failed);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path path;
};

// The one file below `folder`; the store knows where.
std::filesystem::path FileBelow(const std::filesystem::path& folder) {
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) return entry.path();
  }
  std::abort();
}

// What FileNameFor escaped.
std::string Unescaped(std::string_view name) {
  std::string text;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] != '%') {
      text += name[i];
      continue;
    }
    Require(i + 2 < name.size());
    text += static_cast<char>(
        std::stoi(std::string(name.substr(i + 1, 2)), nullptr, 16));
    i += 2;
  }
  return text;
}

void CheckName(const std::string& text) {
  const std::string name = FileNameFor(text);
  Require(!name.empty() && name.size() <= 200 && !name.starts_with('.'));
  Require(IsSafePath(name) && name.find('/') == std::string::npos);
  Require(std::all_of(name.begin(), name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' ||
           c == '_' || c == '.' || c == '%' || c == '~';
  }));
  if (text.empty()) {
    Require(name == "%");
  } else if (name.find("%~") == std::string::npos) {
    Require(Unescaped(name) == text);
  } else {  // cut: the rest is a hash
    Require(name.size() == 200 && name.find("%~") == 200 - 34);
  }
  Require(FileNameFor(text + "x") != name);
}

void CheckListing(SnapshotStore& store) {
  const auto loaded = store.LoadListing(kHub, kRepo, Commit());
  if (!loaded.has_value()) {
    Require(loaded.error().code() == Code::kNotFound);
    return;
  }
  const Snapshot& snapshot = **loaded;
  Require(snapshot.repo == kRepo && snapshot.commit == Commit());
  for (size_t i = 0; i < snapshot.files.size(); ++i) {
    const FileInfo& file = snapshot.files[i];
    Require(IsSafePath(file.path));
    Require(i == 0 || snapshot.files[i - 1].path < file.path);
    Require(file.size <= static_cast<uint64_t>(INT64_MAX));
    Require(ObjectPath("x", file.id).has_value());
  }
  // What was loaded can be saved, unless its names are no text.
  Require(store.SaveListing(kHub, snapshot).has_value());
  const auto again = store.LoadListing(kHub, kRepo, Commit());
  Require(again.has_value() && (*again)->files == snapshot.files &&
          (*again)->restricted == snapshot.restricted);
}

void CheckRef(SnapshotStore& store) {
  const auto loaded = store.LoadRef(kHub, kRepo, kRevision);
  if (!loaded.has_value()) {
    Require(loaded.error().code() == Code::kNotFound);
    return;
  }
  Require(IsLowerHex(*loaded, 40));
}

const Snapshot& Ordered() {
  static const Snapshot& snapshot = *[] {
    auto* made = new Snapshot;
    made->repo = kRepo;
    made->commit = Commit();
    for (const char* path : {"a", "b", "c"}) {
      made->files.push_back({path, uint64_t{1} << 20, {}});
    }
    return made;
  }();
  return snapshot;
}

void CheckOrder(SnapshotStore& store) {
  const auto loaded = store.LoadOrder(kHub, Ordered());
  if (!loaded.has_value()) {
    Require(loaded.error().code() == Code::kNotFound);
    return;
  }
  Require(loaded->size() <= SnapshotStore::kMaxOrderRuns);
  uint64_t bytes = 0;
  for (const FileRun& run : *loaded) {
    Require(run.file < 3 && run.length > 0 && run.end() <= uint64_t{1} << 20);
    bytes += run.length;
  }
  Require(bytes <= uint64_t{3} << 20);  // none of them twice
  Require(store.SaveOrder(kHub, Ordered(), *loaded).has_value());
  const auto again = store.LoadOrder(kHub, Ordered());
  Require(again.has_value() && *again == *loaded);
}

struct World {
  World() : store(folder.path) {
    Snapshot empty;
    empty.repo = kRepo;
    empty.commit = Commit();
    Require(store.SaveListing(kHub, empty).has_value());
    listing = FileBelow(folder.path / kSnapshotsFolder);
    std::filesystem::rename(listing, folder.path / "set-aside");
    Require(store.SaveRef(kHub, kRepo, kRevision, Commit()).has_value());
    ref = FileBelow(folder.path / kSnapshotsFolder);
    std::filesystem::rename(ref, folder.path / "set-aside");
    Require(store.SaveOrder(kHub, Ordered(), {}).has_value());
    order = FileBelow(folder.path / kSnapshotsFolder);
  }
  Folder folder;
  SnapshotStore store;
  std::filesystem::path listing;
  std::filesystem::path ref;
  std::filesystem::path order;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  if (size == 0) return 0;
  std::string text(data + 1, data + size);
  if (data[0] == 'n') {
    CheckName(text);
    return 0;
  }
  if (std::islower(data[0]) != 0) {
    text = fmt::format(R"({{"weightfs":1,"xxh3":"{:016x}","body":{}}})"
                       "\n",
                       XXH3_64bits(text.data(), text.size()), text);
  }
  const int kind = std::tolower(data[0]);
  std::ofstream(kind == 'r'   ? world.ref
                : kind == 'o' ? world.order
                              : world.listing,
                std::ios::binary | std::ios::trunc)
      << text;
  if (kind == 'r') {
    CheckRef(world.store);
  } else if (kind == 'o') {
    CheckOrder(world.store);
  } else {
    CheckListing(world.store);
  }
  return 0;
}
