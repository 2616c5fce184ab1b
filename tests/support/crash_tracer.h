// CrashTracer: runs a function in a process of its own and kills that with
// SIGKILL where it is about to change the disk for the n-th time: at a write, a
// sync, an allocation, a truncation, or when a name is made, changed or
// removed. It sees system calls (ptrace), so stores into mappings are no places
// of their own. It notes what was synced, so that the power can be cut, too.
//
// Thread-safety: none; no thread of the caller may run.

#ifndef WEIGHTFS_TESTS_SUPPORT_CRASH_TRACER_H_
#define WEIGHTFS_TESTS_SUPPORT_CRASH_TRACER_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace weightfs {

class CrashTracer {
 public:
  static constexpr uint64_t kPage = 4096;

  struct Run {
    bool killed = false;
    int status = 0;      // the exit status, if it was not killed
    uint64_t calls = 0;  // that changed the disk
    std::string next;    // the call that it was killed at
  };
  // Lets `calls` such calls pass. Nothing: this process may trace none.
  std::optional<Run> RunAndKill(const std::function<int()>& body,
                                uint64_t calls);

  // How a file is after a power cut.
  enum class Lost {
    kNothing,
    kUnsynced,  // pages that were not synced: zeros, or as they were synced
    kSome,      // some of them
    kAll,       // as kUnsynced; a file that was never synced is empty
  };
  using Fate = std::function<Lost(const std::string& path)>;
  // Copies a folder as it is after a power cut. `seed` chooses the pages.
  void CopyAfterPowerCut(const std::string& from, const std::string& to,
                         const Fate& fate, uint64_t seed) const;

 private:
  using Pages = std::map<uint64_t, std::vector<std::byte>>;

  void NoteSynced(pid_t child, int64_t call, const uint64_t* arguments);
  void NoteFile(const std::string& path, uint64_t offset, uint64_t length);

  std::map<uint64_t, Pages> synced_;  // by inode
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_CRASH_TRACER_H_
