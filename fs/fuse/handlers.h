// The FUSE operations, as functions that libfuse calls. Each does one thing:
// hands the request to the Vfs and replies with what comes back.

#ifndef WEIGHTFS_FS_FUSE_HANDLERS_H_
#define WEIGHTFS_FS_FUSE_HANDLERS_H_

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "formats/base/mutex.h"
#include "fs/fuse/passthrough.h"
#include "fs/fuse/requests.h"
#include "fs/fuse_settings.h"
#include "fs/vfs.h"

namespace weightfs {

inline constexpr uint32_t kMaxRequest = 1 << 20;  // bytes; libfuse 3.14's limit
// Read-ahead requests that the kernel sends at once. Those that it holds back
// have no deadline, and their readers none: each may want four (4 MiB).
inline constexpr uint32_t kMaxBackground = 512;

// The session's userdata.
struct FuseState {
  // How long a file that nobody has open stays registered for passthrough.
  static constexpr std::chrono::milliseconds kPassthroughIdle{5'000};

  FuseState(Vfs& served, const RequestTimes& times,
            std::chrono::milliseconds passthrough_idle = kPassthroughIdle);

  Vfs* const vfs;
  uid_t uid = 0;
  gid_t gid = 0;
  // The kernel may send look-ups and listings of one folder side by side.
  std::atomic<bool> parallel_folders{false};
  std::atomic<bool> answered{false};   // anything, so far: INIT
  std::function<void()> disconnected;  // may be empty; see FuseOptions
  // Why no file can be passed through; empty: as the kernel says at INIT.
  std::string no_passthrough;
  std::atomic<uint64_t> reads{0};  // ever asked of the daemon

  Mutex mutex;
  CondVar changed;
  bool initialised GUARDED_BY(mutex) = false;  // the kernel took the answer
  FuseSettings settings GUARDED_BY(mutex);

  // What fuse_file_info::fh stands for between open and release: a folder's
  // listing, or the text of a file that is made anew at each open. 0: neither.
  struct Handle {
    std::shared_ptr<const Vfs::Listing> listing;
    std::shared_ptr<const std::string> content;
  };
  uint64_t AddHandle(Handle handle) EXCLUDES(mutex);
  Handle FindHandle(uint64_t fh) EXCLUDES(mutex);
  void DropHandle(uint64_t fh) EXCLUDES(mutex);
  uint64_t next_handle GUARDED_BY(mutex) = 1;
  std::unordered_map<uint64_t, Handle> handles GUARDED_BY(mutex);

  // Files whose pages the kernel may have, and those among them whose pages it
  // is to drop when they are opened.
  std::unordered_set<uint64_t> opened GUARDED_BY(mutex);
  std::unordered_set<uint64_t> stale GUARDED_BY(mutex);
  // To be called before an open is answered. False: its pages are to go.
  bool MayKeepPages(uint64_t node) EXCLUDES(mutex);

  // Names of files that may be passed through are kept for a moment only, so
  // that the kernel asks again, and forgets what it is told is not there.
  std::atomic<bool> names_expire{false};
  // A name that one thread is not to find; `found_hidden`: it looked.
  struct Hidden {
    pid_t from = 0;
    uint64_t folder = 0;
    std::string name;
  };
  std::optional<Hidden> hidden GUARDED_BY(mutex);
  bool found_hidden GUARDED_BY(mutex) = false;
  // To be called at each look-up.
  bool IsHidden(pid_t from, uint64_t folder, std::string_view name)
      EXCLUDES(mutex);

  Requests requests;  // those that the Vfs works on
  Passthrough passthrough;
};

// The libfuse that this was built with passes files through.
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
inline constexpr bool kKnowsPassthrough = true;
#else
inline constexpr bool kKnowsPassthrough = false;
#endif

const fuse_lowlevel_ops& FuseHandlers();

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_HANDLERS_H_
