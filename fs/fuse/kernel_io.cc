// I/O with the kernel: INIT is answered with what libfuse 3.14 leaves out, and
// the end of the connection is told.

#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "fs/fuse/handlers.h"
#include "fs/fuse/kernel_settings.h"

namespace weightfs {
namespace {

// The flags are all that is changed, and they are in every version's reply.
constexpr size_t kLeast =
    offsetof(fuse_init_out, flags) + sizeof(fuse_init_out::flags);

ssize_t WriteInit(int fd, const FuseState& state, iovec* parts, int count) {
  if (!state.parallel_folders || count != 2 || parts[1].iov_len < kLeast ||
      parts[1].iov_len > sizeof(fuse_init_out)) {
    return ::writev(fd, parts, count);
  }
  fuse_init_out out;
  std::memcpy(&out, parts[1].iov_base, parts[1].iov_len);
  out.flags |= FUSE_PARALLEL_DIROPS;
  std::array<iovec, 2> changed = {{parts[0], {&out, parts[1].iov_len}}};
  return ::writev(fd, changed.data(), count);
}

ssize_t Write(int fd, iovec* parts, int count, void* userdata) {
  auto& state = *static_cast<FuseState*>(userdata);
  // INIT is the first request, and nothing else is sent before its answer.
  if (state.answered.exchange(true)) return ::writev(fd, parts, count);
  const ssize_t written = WriteInit(fd, state, parts, count);
  const int error = errno;
  {
    MutexLock lock(state.mutex);
    state.initialised = true;
    state.changed.NotifyAll();
  }
  errno = error;
  return written;
}

// Who polls the device to learn of its end is woken by every request.
ssize_t Read(int fd, void* buffer, size_t size, void* userdata) {
  const ssize_t got = ::read(fd, buffer, size);
  if (got >= 0 || errno != ENODEV) return got;
  const auto& state = *static_cast<FuseState*>(userdata);
  if (state.disconnected) state.disconnected();
  errno = ENODEV;
  return got;
}

}  // namespace

bool UseOwnIo(fuse_session* session) {
  fuse_custom_io io{};
  io.writev = &Write;
  io.read = &Read;
  return fuse_session_custom_io(session, &io, fuse_session_fd(session)) == 0;
}

}  // namespace weightfs
