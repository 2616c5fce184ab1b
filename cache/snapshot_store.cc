#include "cache/snapshot_store.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <exception>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "cache/cache_folder.h"
#include "cache/cache_paths.h"
#include "formats/base/checked.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxRefBytes = 64 * 1024;
constexpr size_t kMaxListingBytes = 512 * 1024 * 1024;
constexpr size_t kMaxOrderBytes = 256 * 1024;
constexpr size_t kMaxFiles = 2'000'000;
constexpr size_t kCommitDigits = 40;

// A kept file is {"weightfs":1,"xxh3":"<16 hex>","body":BODY}: JSON as a whole,
// and BODY is hashed as it stands there, so that a flipped bit in a size or an
// id does not pass.
constexpr std::string_view kHead = R"({"weightfs":1,"xxh3":")";
constexpr std::string_view kBodyHead = R"(","body":)";
constexpr std::string_view kTail = "}\n";
constexpr size_t kHashDigits = 16;

std::string Seal(std::string_view body) {
  return fmt::format("{}{:016x}{}{}{}", kHead,
                     XXH3_64bits(body.data(), body.size()), kBodyHead, body,
                     kTail);
}

// The body; kCorrupt.
Result<std::string_view> Unseal(std::string_view text) {
  constexpr size_t kBefore = kHead.size() + kHashDigits + kBodyHead.size();
  if (text.size() < kBefore + kTail.size() || !text.starts_with(kHead) ||
      !text.ends_with(kTail) ||
      text.substr(kHead.size() + kHashDigits, kBodyHead.size()) != kBodyHead) {
    return Error(Code::kCorrupt, "not a file of this version");
  }
  std::string_view body = text.substr(kBefore);
  body.remove_suffix(kTail.size());
  const std::string hash =
      fmt::format("{:016x}", XXH3_64bits(body.data(), body.size()));
  if (text.substr(kHead.size(), kHashDigits) != hash) {
    return Error(Code::kCorrupt, "the hash is wrong");
  }
  return body;
}

std::string RepoPath(std::string_view endpoint, std::string_view repo) {
  return fmt::format("{}/{}/{}", kSnapshotsFolder, ShortHash(endpoint),
                     FileNameFor(repo));
}

std::string RefPath(std::string_view endpoint, std::string_view repo,
                    std::string_view revision) {
  return fmt::format("{}/refs/{}", RepoPath(endpoint, repo),
                     FileNameFor(revision));
}

std::string ListingPath(std::string_view endpoint, std::string_view repo,
                        std::string_view commit) {
  return fmt::format("{}/trees/{}.json", RepoPath(endpoint, repo), commit);
}

std::string OrderPath(std::string_view endpoint, std::string_view repo,
                      std::string_view commit) {
  return fmt::format("{}/orders/{}.json", RepoPath(endpoint, repo), commit);
}

Result<> CheckCommit(std::string_view commit) {
  if (IsLowerHex(commit, kCommitDigits)) return {};
  return MakeError(Code::kInvalid, "a commit is {} hex digits, not {} bytes",
                   kCommitDigits, commit.size());
}

// The string at `key` of an object; null if there is none.
const std::string* FindString(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() ? it->get_ptr<const std::string*>() : nullptr;
}

// Names are hashed or escaped in paths, so the file says whose it is.
Result<> ExpectString(const Json& object, const char* key,
                      std::string_view wanted) {
  const std::string* found = FindString(object, key);
  if (found != nullptr && *found == wanted) return {};
  return MakeError(Code::kCorrupt, "not for this {}", key);
}

Result<FileInfo> ParseFile(const Json& item) {
  FileInfo file;
  const std::string* path = FindString(item, "path");
  if (path == nullptr || !IsSafePath(*path)) {
    return Error(Code::kCorrupt, "a file's path is bad");
  }
  file.path = *path;
  const auto size = item.find("size");
  // Offsets are signed in the kernel's interfaces.
  if (size == item.end() || !size->is_number_unsigned() ||
      size->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    return Error(Code::kCorrupt, "a file's size is bad");
  }
  file.size = size->get<uint64_t>();
  const std::string* sha256 = FindString(item, "sha256");
  const std::string* git = FindString(item, "git");
  if ((sha256 == nullptr) == (git == nullptr)) {
    return Error(Code::kCorrupt, "a file has no id, or two");
  }
  file.id = sha256 != nullptr ? ContentId{ContentId::Kind::kSha256, *sha256}
                              : ContentId{ContentId::Kind::kGit, *git};
  if (!IsLowerHex(file.id.value, sha256 != nullptr ? 64 : 40)) {
    return Error(Code::kCorrupt, "a file's id is bad");
  }
  return file;
}

Result<Json> FileJson(const FileInfo& file) {
  const bool sha256 = file.id.kind == ContentId::Kind::kSha256;
  if (!IsSafePath(file.path)) {
    return Error(Code::kInvalid, "a file's path is not safe");
  }
  if (file.id.kind == ContentId::Kind::kStat ||
      !IsLowerHex(file.id.value, sha256 ? 64 : 40)) {
    return MakeError(Code::kInvalid, "{}: no id to keep", file.path);
  }
  Json item = Json::object();
  item["path"] = file.path;
  item["size"] = file.size;
  item[sha256 ? "sha256" : "git"] = file.id.value;
  return item;
}

Result<std::string> ListingBody(const std::string& endpoint,
                                const Snapshot& snapshot) {
  Json body = Json::object();
  body["endpoint"] = endpoint;
  body["repo"] = snapshot.repo;
  body["commit"] = snapshot.commit;
  body["restricted"] = snapshot.restricted;
  Json files = Json::array();
  for (const FileInfo& file : snapshot.files) {
    ASSIGN_OR_RETURN(Json item, FileJson(file));
    files.push_back(std::move(item));
  }
  body["files"] = std::move(files);
  return body.dump();  // throws for text that is not UTF-8
}

Result<std::shared_ptr<const Snapshot>> ParseListing(
    std::string_view text, const std::string& endpoint, const std::string& repo,
    const std::string& commit) {
  ASSIGN_OR_RETURN(const std::string_view sealed, Unseal(text));
  const Json body = Json::parse(sealed, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) return Error(Code::kCorrupt, "not JSON");
  RETURN_IF_ERROR(ExpectString(body, "endpoint", endpoint));
  RETURN_IF_ERROR(ExpectString(body, "repo", repo));
  RETURN_IF_ERROR(ExpectString(body, "commit", commit));
  const auto restricted = body.find("restricted");
  const auto files = body.find("files");
  if (restricted == body.end() || !restricted->is_boolean() ||
      files == body.end() || !files->is_array() || files->size() > kMaxFiles) {
    return Error(Code::kCorrupt, "fields are missing");
  }
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->repo = repo;
  snapshot->commit = commit;
  snapshot->restricted = restricted->get<bool>();
  snapshot->files.reserve(files->size());
  for (const Json& item : *files) {
    ASSIGN_OR_RETURN(FileInfo file, ParseFile(item));
    snapshot->files.push_back(std::move(file));
  }
  const auto not_less = [](const FileInfo& a, const FileInfo& b) {
    return a.path >= b.path;
  };
  if (std::adjacent_find(snapshot->files.begin(), snapshot->files.end(),
                         not_less) != snapshot->files.end()) {
    return Error(Code::kCorrupt, "files are not in order");
  }
  return std::shared_ptr<const Snapshot>(std::move(snapshot));
}

Result<std::string> ParseRef(std::string_view text, const std::string& endpoint,
                             const std::string& repo,
                             const std::string& revision) {
  ASSIGN_OR_RETURN(const std::string_view sealed, Unseal(text));
  const Json body = Json::parse(sealed, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) return Error(Code::kCorrupt, "not JSON");
  RETURN_IF_ERROR(ExpectString(body, "endpoint", endpoint));
  RETURN_IF_ERROR(ExpectString(body, "repo", repo));
  RETURN_IF_ERROR(ExpectString(body, "revision", revision));
  const std::string* commit = FindString(body, "commit");
  if (commit == nullptr || !IsLowerHex(*commit, kCommitDigits)) {
    return Error(Code::kCorrupt, "the commit is bad");
  }
  return *commit;
}

// Each run in its file, and no byte twice.
Result<> CheckOrder(std::vector<FileRun> order, const Snapshot& snapshot) {
  if (order.size() > SnapshotStore::kMaxOrderRuns) {
    return Error(Code::kInvalid, "too many runs");
  }
  for (const FileRun& run : order) {
    if (run.file >= snapshot.files.size() || run.length == 0 ||
        !RangeFits(run.offset, run.length, snapshot.files[run.file].size)) {
      return Error(Code::kInvalid, "a run is in no file");
    }
  }
  std::sort(order.begin(), order.end(), [](const FileRun& a, const FileRun& b) {
    return std::tie(a.file, a.offset) < std::tie(b.file, b.offset);
  });
  const auto share = [](const FileRun& a, const FileRun& b) {
    return a.file == b.file && a.end() > b.offset;
  };
  if (std::adjacent_find(order.begin(), order.end(), share) != order.end()) {
    return Error(Code::kInvalid, "two runs share bytes");
  }
  return {};
}

Result<FileRun> ParseRun(const Json& item) {
  const auto is_number = [](const Json& part) {
    return part.is_number_unsigned();
  };
  if (!item.is_array() || item.size() != 3 ||
      !std::all_of(item.begin(), item.end(), is_number) ||
      item[0].get<uint64_t>() > UINT32_MAX) {
    return Error(Code::kCorrupt, "a run is bad");
  }
  return FileRun{.file = item[0].get<uint32_t>(),
                 .offset = item[1].get<uint64_t>(),
                 .length = item[2].get<uint64_t>()};
}

Result<std::vector<FileRun>> ParseOrder(std::string_view text,
                                        const std::string& endpoint,
                                        const Snapshot& snapshot) {
  ASSIGN_OR_RETURN(const std::string_view sealed, Unseal(text));
  const Json body = Json::parse(sealed, nullptr, /*allow_exceptions=*/false);
  if (!body.is_object()) return Error(Code::kCorrupt, "not JSON");
  RETURN_IF_ERROR(ExpectString(body, "endpoint", endpoint));
  RETURN_IF_ERROR(ExpectString(body, "repo", snapshot.repo));
  RETURN_IF_ERROR(ExpectString(body, "commit", snapshot.commit));
  const auto runs = body.find("runs");
  if (runs == body.end() || !runs->is_array() ||
      runs->size() > SnapshotStore::kMaxOrderRuns) {
    return Error(Code::kCorrupt, "fields are missing");
  }
  std::vector<FileRun> order;
  order.reserve(runs->size());
  for (const Json& item : *runs) {
    ASSIGN_OR_RETURN(const FileRun run, ParseRun(item));
    order.push_back(run);
  }
  RETURN_IF_ERROR(CheckOrder(order, snapshot));
  return order;
}

// Runs `call`; what nlohmann or the allocator throws becomes an error.
template <class Call>
auto Catch(Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const Json::exception& e) {
    return MakeError(Code::kInvalid, "snapshot store: {}", e.what());
  } catch (const std::exception& e) {
    return MakeError(Code::kNoSpace, "snapshot store: {}", e.what());
  }
}

template <class T>
Result<T> WithPatience(PatientCalls& calls, const std::string& path,
                       std::function<Result<T>()> call) {
  auto result = std::make_shared<std::optional<Result<T>>>();
  const bool ended =
      calls.Run([result, call = std::move(call)] { *result = call(); });
  if (ended) return std::move(**result);
  return MakeError(Code::kIo, "{}: the disk does not answer", path);
}

// Parses the file at `path`. Whatever is wrong with it, it is absent.
template <class Parse>
auto Load(PatientCalls& calls, const std::string& folder,
          const std::string& path, size_t limit, Parse parse)
    -> decltype(parse(std::string_view())) {
  const auto text = WithPatience<std::string>(
      calls, path, [folder, path, limit]() -> Result<std::string> {
        ASSIGN_OR_RETURN(const auto opened, CacheFolder::OpenPlain(folder));
        return opened->ReadFile(path, limit);
      });
  if (!text.has_value() && text.error().code() != Code::kCorrupt) {
    return text.error();
  }
  auto result = text.has_value() ? parse(*text) : text.error();
  if (result.has_value()) return result;
  LogWarning("a kept listing, ref or order is ignored path={}/{} why={}",
             folder, path, result.error().message());
  return MakeError(Code::kNotFound, "{}/{} is damaged", folder, path);
}

Result<> Save(PatientCalls& calls, const std::string& folder,
              const std::string& path, std::string_view body) {
  return WithPatience<void>(
      calls, path, [folder, path, text = Seal(body)]() -> Result<> {
        ASSIGN_OR_RETURN(const auto opened, CacheFolder::OpenPlain(folder));
        return opened->WriteFile(path, text);
      });
}

}  // namespace

Result<> SnapshotStore::SaveRef(const std::string& endpoint,
                                const std::string& repo,
                                const std::string& revision,
                                const std::string& commit) {
  RETURN_IF_ERROR(CheckCommit(commit));
  return Catch([&]() -> Result<> {
    Json body = Json::object();
    body["endpoint"] = endpoint;
    body["repo"] = repo;
    body["revision"] = revision;
    body["commit"] = commit;
    return Save(calls_, folder_, RefPath(endpoint, repo, revision),
                body.dump());
  });
}

Result<std::string> SnapshotStore::LoadRef(const std::string& endpoint,
                                           const std::string& repo,
                                           const std::string& revision) {
  return Catch([&]() -> Result<std::string> {
    return Load(calls_, folder_, RefPath(endpoint, repo, revision),
                kMaxRefBytes, [&](std::string_view text) {
                  return ParseRef(text, endpoint, repo, revision);
                });
  });
}

Result<> SnapshotStore::SaveListing(const std::string& endpoint,
                                    const Snapshot& snapshot) {
  RETURN_IF_ERROR(CheckCommit(snapshot.commit));
  return Catch([&]() -> Result<> {
    ASSIGN_OR_RETURN(const std::string body, ListingBody(endpoint, snapshot));
    return Save(calls_, folder_,
                ListingPath(endpoint, snapshot.repo, snapshot.commit), body);
  });
}

Result<std::shared_ptr<const Snapshot>> SnapshotStore::LoadListing(
    const std::string& endpoint, const std::string& repo,
    const std::string& commit) {
  RETURN_IF_ERROR(CheckCommit(commit));
  return Catch([&]() -> Result<std::shared_ptr<const Snapshot>> {
    return Load(calls_, folder_, ListingPath(endpoint, repo, commit),
                kMaxListingBytes, [&](std::string_view text) {
                  return ParseListing(text, endpoint, repo, commit);
                });
  });
}

Result<> SnapshotStore::SaveOrder(const std::string& endpoint,
                                  const Snapshot& snapshot,
                                  const std::vector<FileRun>& order) {
  RETURN_IF_ERROR(CheckCommit(snapshot.commit));
  RETURN_IF_ERROR(CheckOrder(order, snapshot));
  return Catch([&]() -> Result<> {
    Json body = Json::object();
    body["endpoint"] = endpoint;
    body["repo"] = snapshot.repo;
    body["commit"] = snapshot.commit;
    Json runs = Json::array();
    for (const FileRun& run : order) {
      runs.push_back({run.file, run.offset, run.length});
    }
    body["runs"] = std::move(runs);
    return Save(calls_, folder_,
                OrderPath(endpoint, snapshot.repo, snapshot.commit),
                body.dump());
  });
}

Result<std::vector<FileRun>> SnapshotStore::LoadOrder(
    const std::string& endpoint, const Snapshot& snapshot) {
  RETURN_IF_ERROR(CheckCommit(snapshot.commit));
  return Catch([&]() -> Result<std::vector<FileRun>> {
    return Load(calls_, folder_,
                OrderPath(endpoint, snapshot.repo, snapshot.commit),
                kMaxOrderBytes, [&](std::string_view text) {
                  return ParseOrder(text, endpoint, snapshot);
                });
  });
}

}  // namespace weightfs
