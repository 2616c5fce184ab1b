// Holders: which processes keep a mount busy.

#ifndef WEIGHTFS_TOOLS_HOLDERS_H_
#define WEIGHTFS_TOOLS_HOLDERS_H_

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace weightfs {

struct Holder {
  pid_t pid = 0;
  std::string command;
};

// Processes with an open file, a working folder or a mapping in `mountpoint`,
// as far as this user may see, at most `limit`. Names in /proc are read as text
// only, in a child process that is given up after `time`: a look through the
// mount could hang. REQUIRES: no other thread runs.
std::vector<Holder> FindHolders(const std::string& mountpoint, size_t limit,
                                std::chrono::milliseconds time);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_HOLDERS_H_
