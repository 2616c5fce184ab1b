// Exit codes of the `weightfs` program. Scripts rely on them: they keep their
// meaning, and `weightfs --help` lists them.

#ifndef WEIGHTFS_TOOLS_EXIT_CODES_H_
#define WEIGHTFS_TOOLS_EXIT_CODES_H_

#include "formats/base/error.h"

namespace weightfs {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,   // none of the below: disk, memory, mount, busy
  kExitUsage = 2,     // wrong arguments, options or environment
  kExitNotFound = 3,  // no such repository, revision, file, tensor or mount
  kExitDenied = 4,    // token missing or refused, gated, no permission
  // Network or origin; or offline and not cached. verify: nothing is wrong, but
  // not all of the source is cached; warm --check: the latter.
  kExitUnavailable = 5,
  kExitCorrupt = 6,      // bytes that break their format or their hash
  kExitUnsupported = 7,  // weightfs does not do that
  kExitSignal = 128,     // plus the number of the signal that ended it
};

// The exit code for an operation that failed with `code`.
int ExitCodeFor(Code code);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_EXIT_CODES_H_
