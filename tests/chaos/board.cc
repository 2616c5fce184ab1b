#include "tests/chaos/board.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>

namespace weightfs {
namespace {

constexpr std::array<std::string_view, kCallKinds> kCallNames = {
    "open",         "readdir",  "read",     "pread",  "preadv",          "mmap",
    "mmap_private", "o_direct", "sendfile", "splice", "copy_file_range",
};
constexpr std::array<std::string_view, kExcuses> kExcuseNames = {
    "down", "final", "outlasted", "stopped"};

// A fetch that began while the fault was there may tell of it a little later;
// and names in tensors/ stay unknown for 5 s after their index failed.
constexpr int64_t kEcho = 2'000'000'000;
constexpr int64_t kNamesEcho = 7'000'000'000;
// An answer at the deadline may come a little early by the caller's clock.
constexpr int64_t kEarly = 1'000'000'000;

bool MayFailSo(Excuse excuse, int error) {
  switch (excuse) {
    case Excuse::kDown:
      return error == EIO || error == ENOTCONN || error == ECONNABORTED ||
             error == ENOENT;
    case Excuse::kFinal:
      return error == EIO || error == EACCES || error == ENOENT;
    case Excuse::kOutlasted:
      return error == EIO;
    case Excuse::kStopped:
      return false;
  }
  return false;
}

}  // namespace

std::string_view CallName(CallKind kind) {
  return kCallNames.at(static_cast<size_t>(kind));
}
std::string_view ExcuseName(Excuse excuse) {
  return kExcuseNames.at(static_cast<size_t>(excuse));
}

int64_t MonotonicNow() {
  return std::chrono::steady_clock::now().time_since_epoch() /
         std::chrono::nanoseconds(1);
}

void Histogram::Add(int64_t nanoseconds) {
  const auto value = static_cast<uint64_t>(std::max<int64_t>(nanoseconds, 8));
  const auto power = static_cast<size_t>(std::bit_width(value) - 1);
  const size_t part = (value >> (power - 3)) & 7;
  counts_.at(power * 8 + part).fetch_add(1);
  int64_t most = most_.load();
  while (most < nanoseconds &&
         !most_.compare_exchange_weak(most, nanoseconds)) {
  }
}

uint64_t Histogram::count() const {
  uint64_t sum = 0;
  for (const auto& count : counts_) sum += count.load();
  return sum;
}

int64_t Histogram::Quantile(double share) const {
  const uint64_t all = count();
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    seen += counts_[i].load();
    if (all > 0 &&
        static_cast<double>(seen) >= share * static_cast<double>(all)) {
      const size_t power = i / 8;
      const uint64_t end = (8 + i % 8 + 1) << (power < 3 ? 0 : power - 3);
      return std::min<int64_t>(static_cast<int64_t>(end), most());
    }
  }
  return 0;
}

Board* Board::Create() {
  void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  return new (memory) Board;
}

size_t Board::OpenWindow(Excuse excuse, uint32_t mounts) {
  const size_t number = windows_used_.load();
  if (number == kMaxWindows) return SIZE_MAX;
  Window& window = windows_[number];
  window.excuse = static_cast<uint32_t>(excuse);
  window.mounts = mounts;
  window.begin = MonotonicNow();
  windows_used_ = number + 1;
  return number;
}

void Board::CloseWindow(size_t window) {
  if (window < windows_used_.load()) windows_[window].end = MonotonicNow();
}

std::optional<Excuse> Board::Explain(const Call& call, int error) const {
  const size_t used = windows_used_.load();
  for (size_t i = used; i-- > 0;) {
    const Window& window = windows_[i];
    const auto excuse = static_cast<Excuse>(window.excuse.load());
    if ((window.mounts.load() >> call.mount & 1) == 0 ||
        !MayFailSo(excuse, error) || window.begin.load() > call.ended) {
      continue;
    }
    const int64_t end = window.end.load();
    if (excuse == Excuse::kDown) {
      if (end >= call.opened) return excuse;
      continue;
    }
    int64_t echo = call.of_names ? kNamesEcho : kEcho;
    // Those that began just before its end have their deadline so much later,
    // and what they missed fails at once for others.
    if (excuse == Excuse::kOutlasted) echo += read_timeout;
    const bool touches = end >= call.began || call.began - end <= echo;
    if (!touches) continue;
    if (excuse == Excuse::kFinal) return excuse;
    // Not of this call alone: of what it asks for, others may have waited.
    if (call.ended - window.begin.load() >= read_timeout - kEarly) {
      return excuse;
    }
  }
  return std::nullopt;
}

int64_t Board::Allowance(const Call& call) const {
  int64_t allowed = read_timeout + grace;
  const size_t used = windows_used_.load();
  for (size_t i = used; i-- > 0;) {
    const Window& window = windows_[i];
    if (static_cast<Excuse>(window.excuse.load()) != Excuse::kStopped ||
        (window.mounts.load() >> call.mount & 1) == 0) {
      continue;
    }
    const int64_t begin = std::max(window.begin.load(), call.began);
    const int64_t end = std::min(window.end.load(), call.ended);
    allowed += std::max<int64_t>(0, end - begin);
  }
  return allowed;
}

}  // namespace weightfs
