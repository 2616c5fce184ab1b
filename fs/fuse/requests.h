// Requests: what the kernel waits for an answer to. Whoever takes a request out
// has the right to answer it, and nobody else has: the Vfs, which ends each
// call at its deadline, and a watchdog for calls that the Vfs cannot end, since
// the thread that should is stuck (on a disk that hangs, say). What comes of
// those later is dropped.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_FS_FUSE_REQUESTS_H_
#define WEIGHTFS_FS_FUSE_REQUESTS_H_

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "fs/fuse_settings.h"
#include "fs/vfs.h"

namespace weightfs {

using RequestId = uint64_t;  // never 0, never reused

class Requests {
 public:
  struct Request {
    fuse_req_t req = nullptr;
    const char* operation = "";
    fuse_ino_t node = 0;
    uint64_t offset = 0;
    uint64_t size = 0;
    OpId op = 0;
    bool resident = false;  // a FUSE thread reads resident memory for it
    Clock::Time started{};
    Clock::Time deadline{};
  };

  // `read` starts the read of a request again, by way of the Vfs.
  Requests(Vfs& vfs, const RequestTimes& times,
           std::function<void(RequestId, const Request&)> read);
  ~Requests() { Stop(); }
  Requests(const Requests&) = delete;
  Requests& operator=(const Requests&) = delete;

  // Adds what req, operation, node, offset, size and resident say; sets the
  // rest. `interrupt` is called with the op. The request may be answered by
  // others from now on, so that `req` must not be touched any more but after
  // Take().
  std::pair<RequestId, OpId> Add(Request request,
                                 fuse_interrupt_func_t interrupt)
      EXCLUDES(mutex_);
  // Null if it was answered, or is being. Else it is to be answered, and
  // Answered() to be called after that.
  fuse_req_t Take(RequestId id) EXCLUDES(mutex_);
  void Answered() EXCLUDES(mutex_);
  // The thread is through with resident memory. False: its op was used up
  // meanwhile, so that nothing is left to do with it.
  bool LeaveResident(RequestId id) EXCLUDES(mutex_);

  RequestTotals totals() EXCLUDES(mutex_);
  // Answers all with EIO, from any thread.
  void FailAll() EXCLUDES(mutex_);
  // Until every request was answered; false after `limit`.
  bool WaitIdle(std::chrono::milliseconds limit) EXCLUDES(mutex_);
  // Ends the watchdog. Idempotent.
  void Stop() EXCLUDES(mutex_);

 private:
  void Watch() EXCLUDES(mutex_);
  std::vector<Request> TakeLate(
      const std::vector<std::pair<RequestId, Request>>& due) EXCLUDES(mutex_);
  void FailLate(const Request& request);
  void RestartRead(RequestId id, const Request& request);

  Vfs& vfs_;
  const RequestTimes times_;
  const std::function<void(RequestId, const Request&)> read_;
  Mutex mutex_;
  CondVar work_;  // for the watchdog
  CondVar done_;  // for who waits until all is answered
  RequestId next_ GUARDED_BY(mutex_) = 1;
  std::unordered_map<RequestId, Request> waiting_ GUARDED_BY(mutex_);
  size_t answering_ GUARDED_BY(mutex_) = 0;
  uint64_t late_ GUARDED_BY(mutex_) = 0;
  bool idle_ GUARDED_BY(mutex_) = false;  // the watchdog waits for requests
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::jthread watchdog_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FS_FUSE_REQUESTS_H_
