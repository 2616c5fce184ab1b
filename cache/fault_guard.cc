#include "cache/fault_guard.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>

#include "cache/cache_disk.h"
#include "formats/base/mutex.h"

namespace weightfs {

// One registered range, as a seqlock: the version is odd while the fields
// change, so that the handler never pairs the begin of one mapping with the end
// of another. The slot of the mapping that faults does not change meanwhile:
// who touches a mapping keeps it alive.
struct GuardedMapping::Slot {
  std::atomic<uint32_t> version{0};
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> faulted{false};
};

namespace {

using Slot = GuardedMapping::Slot;

// Chunks are added and never freed, so that the handler may walk them without a
// lock.
struct Chunk {
  std::array<Slot, 256> slots;
  std::atomic<Chunk*> next{nullptr};
};

// Constant-initialised: the handler may run before or after any constructor.
constinit Chunk first_chunk;
constinit struct sigaction previous_action {};
constinit bool handler_installed = false;

Mutex& RegistryMutex() {
  static Mutex mutex;  // registration, not the handler
  return mutex;
}

void SetRange(Slot& slot, uintptr_t begin, uintptr_t end) {
  slot.version.fetch_add(1, std::memory_order_acq_rel);
  slot.begin.store(begin, std::memory_order_release);
  slot.end.store(end, std::memory_order_release);
  slot.version.fetch_add(1, std::memory_order_release);
}

Slot& Register(uintptr_t begin, uintptr_t end) {
  MutexLock lock(RegistryMutex());
  for (Chunk* chunk = &first_chunk;;) {
    for (Slot& slot : chunk->slots) {
      if (slot.begin.load(std::memory_order_relaxed) != 0) continue;
      slot.faulted.store(false, std::memory_order_relaxed);
      SetRange(slot, begin, end);
      return slot;
    }
    Chunk* next = chunk->next.load(std::memory_order_relaxed);
    if (next == nullptr) {
      next = std::make_unique<Chunk>().release();  // lives with the process
      chunk->next.store(next, std::memory_order_release);
    }
    chunk = next;
  }
}

// Async-signal-safe: atomics and one system call.
bool CoverWithZeros(uintptr_t address) {
  for (Chunk* chunk = &first_chunk; chunk != nullptr;
       chunk = chunk->next.load(std::memory_order_acquire)) {
    for (Slot& slot : chunk->slots) {
      const uint32_t version = slot.version.load(std::memory_order_acquire);
      const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
      const uintptr_t end = slot.end.load(std::memory_order_acquire);
      if (slot.version.load(std::memory_order_acquire) != version ||
          version % 2 != 0 || address < begin || address >= end) {
        continue;
      }
      slot.faulted.store(true, std::memory_order_seq_cst);
      // The system call itself: sanitizers' wrappers of mmap take locks.
      const long mapped =
          ::syscall(SYS_mmap, begin, end - begin, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      return mapped == static_cast<long>(begin);
    }
  }
  return false;
}

void Chain(int signal, siginfo_t* info, void* context) {
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
    previous_action.sa_sigaction(signal, info, context);
    return;
  }
  // A fault cannot be ignored: the kernel would end the process too.
  const bool sent = info->si_code <= 0;  // by kill() or the like
  if (previous_action.sa_handler == SIG_IGN && sent) return;
  if (previous_action.sa_handler == SIG_DFL ||
      previous_action.sa_handler == SIG_IGN) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    ::sigaction(signal, &action, nullptr);
    if (sent) ::raise(signal);  // a fault comes again by itself
    return;
  }
  previous_action.sa_handler(signal);
}

void OnBusError(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const bool fault = info->si_code > 0;
  if (!fault || !CoverWithZeros(reinterpret_cast<uintptr_t>(info->si_addr))) {
    Chain(signal, info, context);
  }
  errno = saved_errno;
}

Result<> InstallHandler() {
  MutexLock lock(RegistryMutex());
  if (handler_installed) return {};
  struct sigaction action {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  // Read first: the handler may need it as soon as it is installed.
  if (::sigaction(SIGBUS, nullptr, &previous_action) != 0 ||
      ::sigaction(SIGBUS, &action, nullptr) != 0) {
    return DiskError(errno, "installing the handler of SIGBUS");
  }
  handler_installed = true;
  return {};
}

}  // namespace

Result<std::unique_ptr<GuardedMapping>> GuardedMapping::Map(
    int fd, size_t length, const std::string& name) {
  RETURN_IF_ERROR(InstallHandler());
  void* address =
      ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return DiskError(errno, name);
  const auto begin = reinterpret_cast<uintptr_t>(address);
  // Kernels map whole pages, and any of them can fault.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t end = (begin + length + page - 1) / page * page;
  Slot& slot = Register(begin, end);
  return std::unique_ptr<GuardedMapping>(
      new GuardedMapping({static_cast<std::byte*>(address), length}, slot));
}

GuardedMapping::~GuardedMapping() {
  {
    MutexLock lock(RegistryMutex());
    SetRange(slot_, 0, 0);
  }
  ::munmap(bytes_.data(), bytes_.size());
}

bool GuardedMapping::faulted() const {
  return slot_.faulted.load(std::memory_order_seq_cst);
}

}  // namespace weightfs
