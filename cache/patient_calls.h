// PatientCalls: calls that may never return (of a disk that hangs), made on
// threads of their own so that the caller goes on without an answer.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_PATIENT_CALLS_H_
#define WEIGHTFS_CACHE_PATIENT_CALLS_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "formats/base/clock.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"

namespace weightfs {

class PatientCalls {
 public:
  PatientCalls(const std::string& thread_name, size_t threads,
               std::chrono::milliseconds patience)
      : patience_(patience), pool_(thread_name, threads) {}
  // Waits for the calls that run, however long they take.
  ~PatientCalls() = default;
  PatientCalls(const PatientCalls&) = delete;
  PatientCalls& operator=(const PatientCalls&) = delete;

  // Runs `call` on one of the threads and waits for it. False if it did not end
  // within the patience, and at once as long as an earlier call has not ended
  // that was given up so. A call that was given up may still run, later: it
  // owns all that it touches. Not to be called from a call.
  bool Run(std::function<void()> call) EXCLUDES(state_->mutex);

  // True while a call runs that was given up.
  bool overdue() const EXCLUDES(state_->mutex);

 private:
  struct State {
    Mutex mutex;
    CondVar ended;
    size_t overdue GUARDED_BY(mutex) = 0;
  };

  const std::chrono::milliseconds patience_;
  const std::shared_ptr<State> state_ = std::make_shared<State>();
  WorkerPool pool_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_PATIENT_CALLS_H_
