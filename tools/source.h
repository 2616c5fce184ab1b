// Source: what a user names to mount, list or read: a repository of the Hub at
// a revision, or a local folder or file.

#ifndef WEIGHTFS_TOOLS_SOURCE_H_
#define WEIGHTFS_TOOLS_SOURCE_H_

#include <string>
#include <string_view>

#include "formats/base/result.h"

namespace weightfs {

struct Source {
  enum class Kind { kHub, kLocal };
  Kind kind = Kind::kHub;
  std::string text;               // as given
  std::string repo;               // kHub: "org/name" or "name"
  std::string revision = "main";  // kHub: branch, tag or commit
  std::string path;               // kLocal: as given
};

// "org/name[@rev]", "name[@rev]", either behind "hf://", or a local path: what
// starts with `/`, `./` or `../`, or is `.` or `..`. kInvalid: no source.
// kUnsupported: one of a later version.
Result<Source> ParseSource(std::string_view text);

// OK if the Hub allows the id: one or two parts of letters, digits, `-`, `_`
// and `.`, 96 bytes at most.
Result<> CheckRepoId(std::string_view id);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_SOURCE_H_
