#include "cache/cache_audit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "cache/cache_paths.h"
#include "cache/content_hash.h"
#include "cache/object_files.h"
#include "cache/open_cache_file.h"
#include "cache/slab_evictor.h"

namespace weightfs {
namespace {

using Verdict = CacheAudit::Verdict;
using State = CacheAudit::State;

constexpr std::string_view kDropped =
    "dropped, so that the next read fetches it again";

// No bytes are cached of an empty file, and none are needed.
Verdict CheckEmpty(const FileInfo& file) {
  ContentHash hash(file.id.kind, 0);
  const std::string found = hash.Finish();
  if (found == file.id.value) return {.state = State::kOk, .id = file.id};
  return {.state = State::kWrong,
          .id = file.id,
          .why = fmt::format("it is listed as empty, and the hash of nothing "
                             "is {}",
                             found)};
}

std::string DamageText(uint64_t granules) {
  return fmt::format(
      "{} piece{} of 128 KiB did not match {} checksum; dropped, so that the "
      "next read fetches {} again",
      granules, granules == 1 ? "" : "s", granules == 1 ? "its" : "their",
      granules == 1 ? "it" : "them");
}

}  // namespace

CacheAudit::CacheAudit(std::shared_ptr<CacheParts> parts, OnBytes on_bytes)
    : parts_(std::move(parts)), on_bytes_(std::move(on_bytes)) {}

CacheAudit::~CacheAudit() = default;

Result<std::unique_ptr<CacheAudit>> CacheAudit::Open(const std::string& folder,
                                                     OnBytes on_bytes,
                                                     CacheDisk& disk) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0 && errno == ENOENT) {
    return MakeError(Code::kNotFound, "there is no cache folder {}", folder);
  }
  ASSIGN_OR_RETURN(auto opened, CacheFolder::Open(folder));
  return std::unique_ptr<CacheAudit>(new CacheAudit(
      std::make_shared<CacheParts>(std::move(opened), disk, CacheLimits()),
      std::move(on_bytes)));
}

Verdict CacheAudit::CheckFile(const std::string& cache_namespace,
                              const FileInfo& file) {
  const auto claimed = ObjectPath(cache_namespace, file.id);
  if (!claimed.has_value() || file.size > kMaxObjectSize) {
    on_bytes_(file.size);  // the cache keeps no such file
    return {.id = file.id, .size = file.size};
  }
  if (file.size == 0) return CheckEmpty(file);
  const std::string verified = VerifiedPath(file.id);
  Verdict found;
  if (!PassByUnverified(verified, file)) {
    found = Check(verified, file.id, file.size);
  }
  if (found.state == State::kMissing) {
    found = Check(*claimed, file.id, file.size);
  }
  if (found.state == State::kPartial && found.cached_bytes == 0) {
    found.state = State::kMissing;
  }
  return found;
}

// As readers do: one that is not verified any more is not everybody's.
bool CacheAudit::PassByUnverified(const std::string& path,
                                  const FileInfo& file) {
  const auto files = OpenExistingFiles(ToOpen(file.id, file.size), path);
  if (!files.has_value() || files->meta->verified()) return false;
  DemoteObject(*parts_->folder, path, files->meta->owner());
  return true;
}

Verdict CacheAudit::CheckObject(const Object& object) {
  const ContentId id = IdOfPath(object.path).value_or(ContentId());
  Verdict found = Check(object.path, id, object.size);
  if (found.state != State::kMissing || id.value.empty()) return found;
  // It was verified meanwhile, perhaps.
  const std::string verified = VerifiedPath(id);
  return verified == object.path ? found : Check(verified, id, object.size);
}

ObjectToOpen CacheAudit::ToOpen(const ContentId& id, uint64_t size) const {
  return {.folder = *parts_->folder,
          .disk = parts_->disk,
          .space = parts_->space,
          .id = id,
          .size = size,
          .owner = 0};
}

Verdict CacheAudit::Check(const std::string& path, const ContentId& id,
                          uint64_t size) {
  Verdict verdict{.id = id, .size = size};
  const ObjectToOpen object = ToOpen(id, size);
  const auto wrong = [&](std::string_view why) {
    verdict.state = State::kWrong;
    verdict.cached_bytes = 0;
    verdict.why = fmt::format("{}; ", why);
    const auto aside = SetAsideDamaged(object, path);
    verdict.why += aside.has_value()
                       ? kDropped
                       : std::string_view("and it could not be dropped");
    return verdict;
  };
  auto files = OpenExistingFiles(object, path);
  if (!files.has_value()) {
    if (files.error().code() == Code::kNotFound) return verdict;
    if (files.error().code() == Code::kCorrupt) {
      return wrong(files.error().message());
    }
    verdict.state = State::kWrong;
    verdict.why = files.error().message();
    return verdict;
  }
  const uint64_t owner = files->meta->owner();
  const bool is_claim = path.starts_with(kObjectsFolder);
  auto file =
      std::make_shared<OpenCacheFile>(parts_, *std::move(files), id, owner);
  if (is_claim && ClaimedPath(owner, VerifiedPath(id)) != path) {
    file->Poison();
    file.reset();
    return wrong("meta: the owner is another namespace");
  }
  const auto audited = file->Audit(on_bytes_);
  const bool whole = file->IsWhole();
  const bool demote = !is_claim && !file->verified();
  file.reset();
  if (!audited.has_value()) {
    if (!whole) return wrong(audited.error().message());
    verdict.state = State::kWrong;
    verdict.why = audited.error().message();
    return verdict;
  }
  if (!audited->wrong_hash.empty()) {
    return wrong(
        fmt::format("the hash of its bytes is {}", audited->wrong_hash));
  }
  // What lost bytes is not everybody's any more.
  if (demote) DemoteObject(*parts_->folder, path, owner);
  verdict.cached_bytes = audited->cached_bytes;
  verdict.state = State::kPartial;
  if (audited->right) verdict.state = State::kOk;
  if (audited->bad_granules > 0) {
    verdict.state = State::kWrong;
    verdict.why = DamageText(audited->bad_granules);
  }
  return verdict;
}

std::vector<CacheAudit::Object> CacheAudit::Objects() const {
  std::vector<Object> all;
  const std::string claims(kObjectsFolder);
  for (const std::string& name_space : parts_->folder->Names(claims)) {
    if (!IsLowerHex(name_space, 16)) continue;
    AddObjects(fmt::format("{}/{}/", claims, name_space), &all);
  }
  AddObjects("", &all);
  std::sort(all.begin(), all.end(),
            [](const Object& a, const Object& b) { return a.path < b.path; });
  return all;
}

void CacheAudit::AddObjects(const std::string& folder,
                            std::vector<Object>* all) const {
  const CacheFolder& cache = *parts_->folder;
  for (const std::string_view kind : {"sha256", "git"}) {
    const std::string of_kind = fmt::format("{}{}", folder, kind);
    for (const std::string& two : cache.Names(of_kind)) {
      for (const std::string& name :
           cache.Names(fmt::format("{}/{}", of_kind, two))) {
        Object object{fmt::format("{}/{}/{}", of_kind, two, name)};
        if (!IdOfPath(object.path).has_value()) continue;  // set aside
        struct stat status {};
        if (::fstatat(cache.fd(), (object.path + "/data").c_str(), &status,
                      AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(status.st_mode)) {
          object.size =
              std::min(static_cast<uint64_t>(status.st_size), kMaxObjectSize);
        }
        all->push_back(std::move(object));
      }
    }
  }
}

std::string_view AuditStateName(CacheAudit::State state) {
  switch (state) {
    case State::kOk:
      return "ok";
    case State::kWrong:
      return "wrong";
    case State::kMissing:
      return "missing";
    case State::kPartial:
      return "partial";
  }
  return "";
}

}  // namespace weightfs
