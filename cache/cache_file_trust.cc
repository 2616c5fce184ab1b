// OpenCacheFile: what makes its bytes trusted, given away, and fetched once.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "cache/cache_paths.h"
#include "cache/content_hash.h"
#include "cache/open_cache_file.h"
#include "formats/base/checked.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

constexpr size_t kHashPiece = size_t{1} << 20;  // bytes

Result<BootId> ReadBootId() {
  const UniqueFd fd(
      ::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[37] = {};
  if (!fd.valid() || ::read(fd.get(), text, 36) != 36) {
    return Error(Code::kUnsupported, "no boot id: nothing can be sealed");
  }
  BootId id{};
  size_t digits = 0;
  for (const char c : std::string_view(text, 36)) {
    if (c == '-') continue;
    if (!IsLowerHex(std::string_view(&c, 1), 1) || digits >= 2 * id.size()) {
      return Error(Code::kUnsupported, "no boot id: nothing can be sealed");
    }
    const int value = c <= '9' ? c - '0' : c - 'a' + 10;
    id[digits / 2] = (id[digits / 2] << 4) | static_cast<std::byte>(value);
    ++digits;
  }
  return id;
}

// This boot's id, or nothing where the kernel does not tell.
Result<BootId> ThisBoot() {
  static const Result<BootId> boot = ReadBootId();
  return boot;
}

}  // namespace

Result<> OpenCacheFile::Promote(std::span<const uint32_t> generations) {
  if (foreign_) return {};  // it is verified, or nothing of it counts
  ASSIGN_OR_RETURN(const SlabPin pin, Pin(0, size()));
  RETURN_IF_ERROR(CheckAllThere(generations));
  meta().SetVerified(true);
  // A wipe that came between the checks and the flag.
  if (auto there = CheckAllThere(generations); !there.has_value()) {
    meta().SetVerified(false);
    return there;
  }
  const CacheFolder& folder = *parts_->folder;
  const std::string verified = VerifiedPath(id_);
  const std::string claimed = ClaimedPath(meta().owner(), verified);
  RETURN_IF_ERROR(folder.MakeFolders(verified.substr(0, verified.rfind('/'))));
  if (::renameat(folder.fd(), claimed.c_str(), folder.fd(), verified.c_str()) !=
      0) {
    // ENOENT: it is there. EEXIST, ENOTEMPTY: another process's copy is; this
    // one goes when nobody has it open.
    const int error = errno;
    if (error != ENOENT && error != EEXIST && error != ENOTEMPTY) {
      return DiskError(error, name_);
    }
  }
  return {};
}

void OpenCacheFile::Poison() { meta().Poison(); }

Result<> OpenCacheFile::CheckAllThere(
    std::span<const uint32_t> generations) const {
  for (uint64_t slab = 0; slab < layout_.slabs; ++slab) {
    if (slab >= generations.size() ||
        meta().Generation(slab) != generations[slab]) {
      return MakeError(Code::kStale, "{}: bytes were lost", name_);
    }
  }
  for (uint64_t g = 0; g < layout_.granules; ++g) {
    if (meta().Entry(g) == 0) return Absent(g);
  }
  if (!IsWhole()) return Absent(0);
  return {};
}

Result<UniqueFd> OpenCacheFile::OpenShared() {
  // A description of its own, whose locks go with it and nothing else.
  UniqueFd shared(::open(fmt::format("/proc/self/fd/{}", fd()).c_str(),
                         O_RDONLY | O_CLOEXEC));
  if (!shared.valid()) return DiskError(errno, name_);
  for (const auto& [start, length] :
       {std::pair{uint64_t{0},
                  std::max<uint64_t>(layout_.slabs, 1) * kSlabSize},
        std::pair{kPresenceByte, uint64_t{1}}}) {
    const int locked = SetOfdLock(shared.get(), F_RDLCK, start, length);
    if (locked == -EAGAIN) {
      return MakeError(Code::kStale, "{}: it is being evicted", name_);
    }
    if (locked < 0) return DiskError(-locked, name_);
  }
  if (!IsWhole()) return Absent(0);
  return shared;
}

Result<UniqueFd> OpenCacheFile::Share() {
  ASSIGN_OR_RETURN(const BootId boot, ThisBoot());
  ASSIGN_OR_RETURN(UniqueFd shared, OpenShared());
  if (!meta().IsSealed(boot)) RETURN_IF_ERROR(HashAndSeal(boot));
  if (!meta().IsSealed(boot) || !IsWhole()) return Absent(0);
  return shared;
}

Result<UniqueFd> OpenCacheFile::ShareSealed() {
  ASSIGN_OR_RETURN(const BootId boot, ThisBoot());
  const auto sealed = [&] {
    return meta().verified() && meta().IsSealed(boot) && IsWhole();
  };
  if (!sealed()) {
    return MakeError(Code::kStale, "{}: not sealed in this boot", name_);
  }
  ASSIGN_OR_RETURN(UniqueFd shared, OpenShared());
  // Only what is seen under its locks counts.
  if (!sealed()) return Absent(0);
  return shared;
}

// Nothing can be checked once they are on their way. So only what the disk has
// for good: no write-back of it can fail any more.
std::span<const std::byte> OpenCacheFile::TryLend(uint64_t offset,
                                                  uint64_t length) {
  if (!RangeFits(offset, length, size()) || length == 0) return {};
  const uint64_t losses = Losses();
  const auto sealed = [&, boot = ThisBoot()] {
    return boot.has_value() && meta().IsSealed(*boot);
  };
  if (!sealed() || !IsHashed(offset, length)) return {};
  const auto mapped = mapping_.Of(fd(), size());
  if (mapped.empty()) return {};
  const auto bytes = mapped.subspan(offset, length);
  if (!disk_.IsResident(bytes) || !sealed() || !IsWhole() ||
      LostBytes(losses)) {
    return {};
  }
  return bytes;
}

Result<> OpenCacheFile::Seal(std::span<const uint32_t> generations,
                             uint64_t losses,
                             const std::function<bool()>& go_on) {
  ASSIGN_OR_RETURN(const BootId boot, ThisBoot());
  ASSIGN_OR_RETURN(const SlabPin pin, Pin(0, size()));
  RETURN_IF_ERROR(CheckAllThere(generations));
  if (meta().IsSealed(boot)) return {};
  for (uint64_t at = 0; at < size(); at += kSlabSize) {
    if (!go_on()) return Error(Code::kCancelled, "stopping");
    RETURN_IF_ERROR(CheckWritten(
        disk_.WriteOut(fd(), at, std::min(kSlabSize, size() - at))));
  }
  RETURN_IF_ERROR(SyncAndSeal(boot, losses));
  // A wipe that came between the checks and the seal.
  if (auto there = CheckAllThere(generations); !there.has_value()) {
    meta().Unseal();
    return there;
  }
  return {};
}

Result<> OpenCacheFile::HashAndSeal(const BootId& boot) {
  ASSIGN_OR_RETURN(const SlabPin pin, Pin(0, size()));
  const uint64_t losses = Losses();
  ContentHash hash(id_.kind, size());
  std::vector<std::byte> buffer(std::min<uint64_t>(kHashPiece, size()));
  for (uint64_t at = 0; at < size(); at += buffer.size()) {
    const auto piece =
        std::span(buffer).first(std::min<uint64_t>(buffer.size(), size() - at));
    RETURN_IF_ERROR(Read(at, piece));  // all of it present, and as published
    hash.Add(piece);
  }
  if (hash.Finish() != id_.value) {
    Poison();
    return MakeError(Code::kCorrupt, "{}: its bytes do not match its id",
                     name_);
  }
  return SyncAndSeal(boot, losses);
}

// After the hash: what is on the disk now is what was hashed.
Result<> OpenCacheFile::SyncAndSeal(const BootId& boot, uint64_t losses) {
  RETURN_IF_ERROR(CheckWritten(disk_.Sync(fd())));
  if (LostBytes(losses)) {
    return MakeError(Code::kIo, "{}: the disk lost bytes", name_);
  }
  meta().Seal(boot);
  return {};
}

uint64_t OpenCacheFile::Claim(uint64_t first, uint64_t count) {
  if (!files_.claims.valid()) return count;
  while (count > 0) {
    const int locked = SetOfdLock(files_.claims.get(), F_WRLCK, first, count);
    if (locked == 0) return count;
    if (locked != -EAGAIN) return count;  // no claims on this disk
    const GranuleRun other = ClaimedElsewhere(first, count);
    if (!other) continue;  // it went away meanwhile
    count = other.first > first ? std::min(other.first - first, count) : 0;
  }
  return 0;
}

void OpenCacheFile::Unclaim(uint64_t first, uint64_t count) {
  if (!files_.claims.valid() || count == 0) return;
  SetOfdLock(files_.claims.get(), F_UNLCK, first, count);
}

GranuleRun OpenCacheFile::ClaimedElsewhere(uint64_t first,
                                           uint64_t count) const {
  if (!files_.claims.valid() || count == 0) return {};
  struct flock other {};
  other.l_type = F_WRLCK;
  other.l_whence = SEEK_SET;
  other.l_start = static_cast<off_t>(first);
  other.l_len = static_cast<off_t>(count);
  if (::fcntl(files_.claims.get(), F_OFD_GETLK, &other) != 0 ||
      other.l_type == F_UNLCK) {
    return {};
  }
  return {static_cast<uint64_t>(other.l_start),
          static_cast<uint64_t>(other.l_len)};
}

}  // namespace weightfs
