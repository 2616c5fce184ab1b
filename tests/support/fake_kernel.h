// FakeKernel: plays the kernel to the FUSE adapter, over libfuse's custom I/O:
// a test sends raw requests and sees each answer, and can refuse to take them.
// There is one at a time.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_TESTS_SUPPORT_FAKE_KERNEL_H_
#define WEIGHTFS_TESTS_SUPPORT_FAKE_KERNEL_H_

#include "fs/fuse/handlers.h"
// After libfuse's: the names of the protocol.
#include <linux/fuse.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class FakeKernel {
 public:
  struct Answer {
    int error = 0;  // 0 or a positive errno
    std::string body;

    // The body's beginning as one of the protocol's structures.
    template <class T>
    T As() const {
      T value{};
      body.copy(reinterpret_cast<char*>(&value), sizeof(T));
      return value;
    }
  };

  // `state` and what it works on must outlive it. Starts the workers.
  explicit FakeKernel(FuseState& state, size_t threads = 8);
  // Hangs up and waits for the workers.
  ~FakeKernel();
  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;

  // A request's arguments: bytes as they stand.
  template <class T>
  static std::string Bytes(const T& value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }
  static std::string Name(std::string_view name) {
    return std::string(name) + '\0';
  }

  // Sends a request; returns its number.
  uint64_t Send(uint32_t opcode, uint64_t node,
                std::string_view arguments = {});
  // As the caller numbers it.
  void SendAs(uint64_t unique, uint32_t opcode, uint64_t node,
              std::string_view arguments = {});
  void SendRaw(std::string_view bytes);
  uint64_t NextUnique() EXCLUDES(mutex_);

  // Waits for the answer (a minute at most).
  Answer Wait(uint64_t unique) EXCLUDES(mutex_);
  Answer Ask(uint32_t opcode, uint64_t node, std::string_view arguments = {}) {
    return Wait(Send(opcode, node, arguments));
  }
  // How many answers came to it so far, those that were refused among them.
  size_t Answers(uint64_t unique) EXCLUDES(mutex_);
  size_t AllAnswers() EXCLUDES(mutex_);
  // Until the workers are done with all that was sent (a minute at most), its
  // handlers' ends included. What hangs in a handler is waited for, too.
  void Settle() EXCLUDES(mutex_);
  // The next `count` answers are refused so.
  void RefuseAnswers(int error, size_t count) EXCLUDES(mutex_);

  // `flags2`: what it offers on top, above the 32nd bit.
  Answer Init(uint32_t flags2 = 0);
  // Node of a path, looked up from the root.
  uint64_t Find(const std::string& path);
  uint64_t SendRead(uint64_t node, uint64_t offset, uint32_t size,
                    uint64_t handle = 0);

 private:
  static ssize_t OnRead(int fd, void* buffer, size_t size, void* userdata);
  static ssize_t OnWrite(int fd, iovec* parts, int count, void* userdata);
  ssize_t Take(const iovec* parts, int count) EXCLUDES(mutex_);
  // A worker's next request: it is done with the one before.
  void Done() EXCLUDES(mutex_);

  Mutex mutex_;
  CondVar changed_;
  uint64_t next_ GUARDED_BY(mutex_) = 2;  // even, as the kernel's
  std::multimap<uint64_t, Answer> answers_ GUARDED_BY(mutex_);
  uint64_t sent_ GUARDED_BY(mutex_) = 0;
  uint64_t done_ GUARDED_BY(mutex_) = 0;
  int refusal_ GUARDED_BY(mutex_) = 0;
  size_t refusals_ GUARDED_BY(mutex_) = 0;
  UniqueFd ours_;
  UniqueFd theirs_;
  fuse_session* session_ = nullptr;
  std::jthread loop_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_FAKE_KERNEL_H_
