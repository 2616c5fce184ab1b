// What processes use while something is measured: this one and others, by what
// /proc tells of them.
//
// Thread-safety: to be used by one thread; a thread of its own samples.

#ifndef WEIGHTFS_TESTS_BENCH_WATCH_H_
#define WEIGHTFS_TESTS_BENCH_WATCH_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

namespace weightfs {

class Watch {
 public:
  // From now to Stop. A process that has ended counts as using nothing.
  explicit Watch(const std::vector<pid_t>& others);

  void Stop();
  // REQUIRES, for all below: stopped.
  double seconds() const { return seconds_; }
  double own_cpu_seconds() const { return own_cpu_; }
  // [{"pid":…,"cpu":…,"peak_memory":…}, …]: CPU seconds, and the most anonymous
  // and shared memory, bytes, that was seen every few milliseconds. Pages of
  // mapped files are not in it.
  std::string OthersJson() const;

 private:
  struct Other {
    pid_t pid = 0;
    double cpu = 0;
    uint64_t peak_memory = 0;
  };
  void Sample();

  std::vector<Other> others_;
  std::chrono::steady_clock::time_point begin_;
  double own_cpu_ = 0;
  double seconds_ = 0;
  std::jthread sampler_;  // last: it uses what is above
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_BENCH_WATCH_H_
