// Board: what the processes of a chaos run share: what each reader does now,
// the windows in which errors are explained, and all counts. It lies in memory
// that is mapped shared before the readers are forked, so what a killed reader
// counted is kept, and a reader that hangs is seen.
//
// Thread-safety: atomics only; safe for concurrent use by all processes. Times
// are CLOCK_MONOTONIC nanoseconds.

#ifndef WEIGHTFS_TESTS_CHAOS_BOARD_H_
#define WEIGHTFS_TESTS_CHAOS_BOARD_H_

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

namespace weightfs {

enum class CallKind : uint32_t {
  kOpen,  // open and fstat
  kList,  // readdir
  kRead,
  kPread,
  kPreadv,
  kMmapShared,
  kMmapPrivate,
  kDirect,  // pread with O_DIRECT
  kSendfile,
  kSplice,
  kCopyFileRange,
};
inline constexpr size_t kCallKinds = 11;
std::string_view CallName(CallKind kind);

// Why a call may fail, while a window is open and, for those calls that began
// before it was closed, after.
enum class Excuse : uint32_t {
  // The daemon was killed or unmounted: what was opened before is dead.
  kDown,
  // The origin gave an answer that no retry can mend.
  kFinal,
  // The origin was out of order for longer than reads wait.
  kOutlasted,
  // The daemon was stopped: its calls may take longer by so much.
  kStopped,
};
inline constexpr size_t kExcuses = 4;
std::string_view ExcuseName(Excuse excuse);

int64_t MonotonicNow();

// Durations by powers of two, each in eight parts.
class Histogram {
 public:
  static constexpr size_t kBuckets = 64 * 8;
  void Add(int64_t nanoseconds);
  uint64_t count() const;
  // An upper bound of that share of the durations, 0 if there are none.
  int64_t Quantile(double share) const;
  int64_t most() const { return most_.load(); }

 private:
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
  std::atomic<int64_t> most_{0};
};

// One reader thread's.
struct Slot {
  std::atomic<int64_t> began{0};     // of the call that runs; 0: none does
  std::atomic<int64_t> reported{0};  // `began` of the call last found late
  std::atomic<uint32_t> mount{0};
  std::atomic<uint32_t> kind{0};
  std::atomic<uint32_t> file{0};
  std::atomic<uint64_t> offset{0};
  std::atomic<uint64_t> length{0};
  std::atomic<bool> resting{false};  // paused, with nothing open
};

struct Window {
  std::atomic<uint32_t> excuse{0};
  std::atomic<uint32_t> mounts{0};  // bit 1 << mount
  std::atomic<int64_t> begin{0};
  std::atomic<int64_t> end{std::numeric_limits<int64_t>::max()};
};

// A call that failed or took long.
struct Call {
  uint32_t mount = 0;
  int64_t opened = 0;  // when its file was
  int64_t began = 0;
  int64_t ended = 0;
  bool of_names = false;  // a look-up
};

class Board {
 public:
  static constexpr size_t kMaxReaders = 256;
  static constexpr size_t kMaxWindows = 1 << 16;

  // In shared memory, for as long as the process; null if there is none.
  static Board* Create();

  // Windows are added by one process alone. SIZE_MAX if there are too many.
  size_t OpenWindow(Excuse excuse, uint32_t mounts);
  void CloseWindow(size_t window);

  // What explains that the call failed with `error` (an errno; a bus error is
  // EIO), if anything does.
  std::optional<Excuse> Explain(const Call& call, int error) const;
  // How long the call may take: the deadline, and what its daemon was stopped.
  int64_t Allowance(const Call& call) const;

  // Settings, from before the readers start.
  int64_t read_timeout = 0;
  int64_t grace = 0;
  uint64_t seed = 0;

  std::atomic<bool> paused{false};
  std::atomic<bool> ending{false};
  std::atomic<uint64_t> pace_us{0};  // mean rest between two calls

  std::array<Slot, kMaxReaders> slots;
  std::array<std::atomic<uint64_t>, kCallKinds> calls{};
  std::array<std::atomic<uint64_t>, kCallKinds> bytes{};
  std::array<std::atomic<uint64_t>, 8> mount_reads{};  // that gave bytes
  std::atomic<uint64_t> bytes_checked{0};
  std::atomic<uint64_t> wrong_bytes{0};
  std::atomic<uint64_t> wrong_reads{0};
  std::array<std::atomic<uint64_t>, kExcuses> excused{};
  std::atomic<uint64_t> unexcused{0};
  std::atomic<uint64_t> bus_errors{0};   // of the two above
  std::atomic<uint64_t> interrupted{0};  // by a signal that was sent
  std::atomic<uint64_t> short_reads{0};  // explained ones
  std::atomic<uint64_t> late{0};
  Histogram latency;

 private:
  std::atomic<size_t> windows_used_{0};
  std::array<Window, kMaxWindows> windows_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CHAOS_BOARD_H_
