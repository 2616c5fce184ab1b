// The cache's names: which folder an object, a namespace, a repository or a
// revision has, relative to the cache folder. Names that servers choose become
// paths only here. See cache/LAYOUT.md.
//
// Thread-safety: pure functions.

#ifndef WEIGHTFS_CACHE_CACHE_PATHS_H_
#define WEIGHTFS_CACHE_CACHE_PATHS_H_

#include <string>
#include <string_view>

#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

inline constexpr std::string_view kObjectsFolder = "objects";
inline constexpr std::string_view kSnapshotsFolder = "snapshots";
inline constexpr std::string_view kTempFolder = "tmp";

// True for `digits` lower-case hexadecimal digits and nothing else.
bool IsLowerHex(std::string_view text, size_t digits);

// The first 64 bits of the text's SHA-256, as 16 hex digits.
std::string ShortHash(std::string_view text);

// ShortHash as a number, as `meta` holds it.
uint64_t NamespaceNumber(std::string_view cache_namespace);

// "objects/<ShortHash>", the folder of what one namespace claims.
std::string NamespacePath(std::string_view cache_namespace);

// "objects/<ShortHash>/sha256/<2 hex>/<64 hex>", or git/…: an object as the
// namespace claims it. kInvalid: an id that is not plain hex of its kind's
// length, a kStat id, an empty namespace.
Result<std::string> ObjectPath(std::string_view cache_namespace,
                               const ContentId& id);

// "sha256/<2 hex>/<64 hex>", or git/…: an object whose whole-file hash was
// checked. REQUIRES: ObjectPath takes the id.
std::string VerifiedPath(const ContentId& id);
// Where an object of VerifiedPath `path` belongs while it is not verified;
// `owner` is a NamespaceNumber.
std::string ClaimedPath(uint64_t owner, std::string_view path);
// The id that a path of ObjectPath or VerifiedPath ends in. kInvalid: no such
// path.
Result<ContentId> IdOfPath(std::string_view path);

// A file name for any text, "" included: letters, digits, `-`, `_` and inner
// dots stay, other bytes become %XX; a name over 200 bytes is cut and ends in
// "%~" and a hash. Different texts give different names.
std::string FileNameFor(std::string_view text);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CACHE_PATHS_H_
