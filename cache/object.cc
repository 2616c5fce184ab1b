#include "cache/object.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "formats/base/checked.h"
#include "formats/base/mutex.h"

namespace weightfs {
namespace {

// How long after its deadline a read may take to tell so, before it is left
// alone: then the pool is stuck.
constexpr std::chrono::seconds kDonePatience{2};

// Owns the bytes, so that a ReadAt that gave up leaves nothing dangling.
struct PendingRead {
  explicit PendingRead(size_t size) : bytes(size) {}
  std::vector<std::byte> bytes;
  Mutex mutex;
  CondVar ended;
  std::optional<Result<>> result GUARDED_BY(mutex);
};

}  // namespace

Result<> ObjectSource::ReadAt(uint64_t offset, std::span<std::byte> out) {
  auto result = Read(offset, out);
  if (!result.has_value()) failed_ = true;
  return result;
}

Result<> ObjectSource::Read(uint64_t offset, std::span<std::byte> out) {
  if (!RangeFits(offset, out.size(), size())) {
    return MakeError(Code::kInvalid, "{}: a read past its {} bytes", name(),
                     size());
  }
  if (out.empty()) return {};
  const Clock::Time now = Clock::System().Now();
  const bool forever = timeout_ >= Clock::Time::max() - now - kDonePatience;
  ReadOptions options;
  if (!forever) options.deadline = now + timeout_;
  auto pending = std::make_shared<PendingRead>(out.size());
  const ReadId id = object_->StartRead(offset, pending->bytes, options,
                                       [pending](Result<> result) {
                                         MutexLock lock(pending->mutex);
                                         pending->result = std::move(result);
                                         pending->ended.NotifyAll();
                                       });
  for (Clock::Time until = options.deadline;;) {
    {
      MutexLock lock(pending->mutex);
      while (!pending->result) {
        if (forever) {
          pending->ended.Wait(pending->mutex);
        } else if (!pending->ended.WaitUntil(pending->mutex,
                                             until + kDonePatience) &&
                   Clock::System().Now() >= until + kDonePatience) {
          break;
        }
      }
      if (pending->result) {
        RETURN_IF_ERROR(*pending->result);
        std::copy(pending->bytes.begin(), pending->bytes.end(), out.begin());
        return {};
      }
    }
    const Clock::Time later = object_->Until(id, options.deadline);
    if (later <= until) break;
    until = later;
  }
  object_->CancelRead(id);
  return MakeError(Code::kUnavailable,
                   "{} bytes {}-{}: the read did not end at its deadline",
                   name(), offset, offset + out.size() - 1);
}

}  // namespace weightfs
