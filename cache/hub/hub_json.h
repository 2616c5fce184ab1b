// The Hub's JSON answers, read as hostile input: sizes are bounded, repeated
// keys and paths refused, ids checked digit by digit. Pure functions.

#ifndef WEIGHTFS_CACHE_HUB_HUB_JSON_H_
#define WEIGHTFS_CACHE_HUB_HUB_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

inline constexpr uint64_t kMaxHubAnswerBytes = 64 << 20;
inline constexpr size_t kMaxHubFiles = 1'000'000;  // of one repository
inline constexpr size_t kMaxHubPath = 4096;  // bytes; the kernel's PATH_MAX
// Of the paths of all folders together: a few files in deep folders must not be
// able to take gigabytes.
inline constexpr size_t kMaxHubFolderBytes = 64 << 20;

// GET /api/models/{id}/revision/{rev}.
struct HubRepoInfo {
  std::string id;      // the repository's present name; may be empty
  std::string commit;  // 40 lower-case hex digits
  bool is_private = false;
  bool gated = false;
  bool disabled = false;
};

// kCorrupt, with what is wrong, unless `text` is such an answer.
Result<HubRepoInfo> ParseHubRepoInfo(std::string_view text);

// One page of GET /api/models/{id}/tree/{commit}?recursive=true. Appends its
// files to `files`, in the page's order. An LFS file has LFS's size and id, not
// those of its pointer. kCorrupt if anything in the page is not what it should
// be: no file is left out silently.
Result<> ParseHubTreePage(std::string_view text, std::vector<FileInfo>& files);

// Sorts what the pages gave. kCorrupt if a path comes twice, or is both a file
// and a folder, or if the folders are too many.
Result<> FinishHubListing(std::vector<FileInfo>& files);

// The text of `error` in an error answer, as PrintableText; empty if there is
// none.
std::string ParseHubErrorMessage(std::string_view text,
                                 std::string_view secret = "");

// True for `digits` lower-case hex digits.
bool IsHexId(std::string_view text, size_t digits);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_JSON_H_
