#include "tests/support/fake_kernel.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace weightfs {
namespace {

// libfuse hands its callbacks the session's userdata, which is not ours.
std::atomic<FakeKernel*> current{nullptr};
thread_local bool handles_one = false;

}  // namespace

FakeKernel::FakeKernel(FuseState& state, size_t threads) {
  FakeKernel* nobody = nullptr;
  if (!current.compare_exchange_strong(nobody, this)) std::abort();
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    std::abort();
  }
  ours_.Reset(ends[0]);
  theirs_.Reset(ends[1]);
  std::string program = "test";
  char* argv[] = {program.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, argv);
  session_ =
      fuse_session_new(&args, &FuseHandlers(), sizeof(FuseHandlers()), &state);
  fuse_opt_free_args(&args);
  static const fuse_custom_io io = [] {
    fuse_custom_io calls{};  // newer libfuses have more of them
    calls.writev = OnWrite;
    calls.read = OnRead;
    return calls;
  }();
  if (session_ == nullptr ||
      fuse_session_custom_io(session_, &io, theirs_.get()) != 0) {
    std::abort();
  }
  loop_ = std::jthread([this, threads] {
    fuse_loop_config* config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 0);
    fuse_loop_cfg_set_max_threads(config, static_cast<unsigned>(threads));
    fuse_loop_cfg_set_idle_threads(config, static_cast<unsigned>(threads));
    fuse_session_loop_mt(session_, config);
    fuse_loop_cfg_destroy(config);
  });
}

FakeKernel::~FakeKernel() {
  ours_.Reset();
  loop_.join();
  // It would close the descriptor: that is ours.
  theirs_.Release();
  fuse_session_destroy(session_);
  current = nullptr;
}

ssize_t FakeKernel::OnRead(int fd, void* buffer, size_t size, void*) {
  if (std::exchange(handles_one, false)) current.load()->Done();
  const ssize_t got = ::recv(fd, buffer, size, 0);
  handles_one = got > 0;
  if (got != 0) return got;
  errno = ENODEV;  // as after an unmount
  return -1;
}

ssize_t FakeKernel::OnWrite(int, iovec* parts, int count, void*) {
  return current.load()->Take(parts, count);
}

ssize_t FakeKernel::Take(const iovec* parts, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    bytes.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
  }
  fuse_out_header header{};
  std::memcpy(&header, bytes.data(), std::min(sizeof(header), bytes.size()));
  EXPECT_EQ(header.len, bytes.size());
  MutexLock lock(mutex_);
  answers_.emplace(header.unique,
                   Answer{-header.error, bytes.substr(sizeof(header))});
  changed_.NotifyAll();
  if (refusals_ > 0) {
    --refusals_;
    errno = refusal_;
    return -1;
  }
  return static_cast<ssize_t>(bytes.size());
}

void FakeKernel::Done() {
  MutexLock lock(mutex_);
  ++done_;
  changed_.NotifyAll();
}

void FakeKernel::Settle() {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::minutes(1);
  MutexLock lock(mutex_);
  while (done_ < sent_) {
    if (!changed_.WaitUntil(mutex_, deadline) &&
        std::chrono::steady_clock::now() >= deadline) {
      ADD_FAILURE() << sent_ - done_ << " requests are still being handled";
      return;
    }
  }
}

uint64_t FakeKernel::NextUnique() {
  MutexLock lock(mutex_);
  const uint64_t unique = next_;
  next_ += 2;
  return unique;
}

uint64_t FakeKernel::Send(uint32_t opcode, uint64_t node,
                          std::string_view arguments) {
  const uint64_t unique = NextUnique();
  SendAs(unique, opcode, node, arguments);
  return unique;
}

void FakeKernel::SendAs(uint64_t unique, uint32_t opcode, uint64_t node,
                        std::string_view arguments) {
  fuse_in_header header{};
  header.len = static_cast<uint32_t>(sizeof(header) + arguments.size());
  header.opcode = opcode;
  header.unique = unique;
  header.nodeid = node;
  header.uid = ::getuid();
  header.pid = static_cast<uint32_t>(::getpid());
  SendRaw(Bytes(header) + std::string(arguments));
}

void FakeKernel::SendRaw(std::string_view bytes) {
  {
    MutexLock lock(mutex_);
    ++sent_;
  }
  ASSERT_EQ(::send(ours_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

FakeKernel::Answer FakeKernel::Wait(uint64_t unique) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::minutes(1);
  MutexLock lock(mutex_);
  for (;;) {
    const auto it = answers_.find(unique);
    if (it != answers_.end()) return it->second;
    if (!changed_.WaitUntil(mutex_, deadline) &&
        std::chrono::steady_clock::now() >= deadline) {
      ADD_FAILURE() << "no answer to " << unique;
      return {ETIMEDOUT, ""};
    }
  }
}

size_t FakeKernel::Answers(uint64_t unique) {
  MutexLock lock(mutex_);
  return answers_.count(unique);
}

size_t FakeKernel::AllAnswers() {
  MutexLock lock(mutex_);
  return answers_.size();
}

void FakeKernel::RefuseAnswers(int error, size_t count) {
  MutexLock lock(mutex_);
  refusal_ = error;
  refusals_ = count;
}

FakeKernel::Answer FakeKernel::Init(uint32_t flags2) {
  fuse_init_in init{};
  init.major = FUSE_KERNEL_VERSION;
  init.minor = 36;
  init.max_readahead = 1 << 20;
  init.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS |
               FUSE_ASYNC_DIO | FUSE_AUTO_INVAL_DATA | FUSE_MAX_PAGES;
  if (flags2 != 0) init.flags |= FUSE_INIT_EXT;
  init.flags2 = flags2;
  return Ask(FUSE_INIT, 0, Bytes(init));
}

uint64_t FakeKernel::Find(const std::string& path) {
  uint64_t node = FUSE_ROOT_ID;
  for (size_t start = 0; start <= path.size();) {
    const size_t slash = std::min(path.find('/', start), path.size());
    const Answer answer =
        Ask(FUSE_LOOKUP, node, Name(path.substr(start, slash - start)));
    EXPECT_EQ(answer.error, 0) << path;
    node = answer.As<fuse_entry_out>().nodeid;
    EXPECT_NE(node, 0u) << path;
    start = slash + 1;
  }
  return node;
}

uint64_t FakeKernel::SendRead(uint64_t node, uint64_t offset, uint32_t size,
                              uint64_t handle) {
  fuse_read_in read{};
  read.fh = handle;
  read.offset = offset;
  read.size = size;
  return Send(FUSE_READ, node, Bytes(read));
}

}  // namespace weightfs
