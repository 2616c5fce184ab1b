#include "tools/tensor_stream.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "formats/base/clock.h"
#include "formats/base/mutex.h"

namespace weightfs {
namespace {

// A part of the file on its way. Reused for one part after the other.
class Window {
 public:
  explicit Window(uint64_t size) : buffer_(size) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  // The buffer must not go before the reads into it ended.
  ~Window() {
    Cancel();
    WaitForReads();
  }

  Result<> Start(const VirtualFile& file,
                 std::span<const std::shared_ptr<Object>> objects,
                 uint64_t offset, uint64_t length, Clock::Time deadline) {
    used_ = std::span(buffer_).first(length);
    ASSIGN_OR_RETURN(plan_, file.Plan(offset, used_));
    {
      MutexLock lock(mutex_);
      pending_ = plan_.reads().size();
      error_.reset();
    }
    ids_.clear();
    for (const SourceRead& read : plan_.reads()) {
      Object* object = objects[read.object].get();
      ids_.emplace_back(
          object, object->StartRead(
                      read.offset, read.dest, {deadline},
                      [this](const Result<>& result) { OnDone(result); }));
    }
    return {};
  }

  // The bytes, once they are there. Valid until the next Start().
  Result<std::span<const std::byte>> Wait() {
    WaitForReads();
    {
      MutexLock lock(mutex_);
      if (error_.has_value()) return *error_;
    }
    plan_.Finish();
    return std::span<const std::byte>(used_);
  }

 private:
  void Cancel() {
    for (const auto& [object, id] : ids_) object->CancelRead(id);
  }

  void WaitForReads() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (pending_ > 0) ended_.Wait(mutex_);
  }

  void OnDone(const Result<>& result) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (!result.has_value() && !error_.has_value()) error_ = result.error();
    --pending_;
    // With the lock, since the window may go as soon as it is free.
    ended_.NotifyAll();
  }

  std::vector<std::byte> buffer_;
  std::span<std::byte> used_;
  ReadPlan plan_;
  std::vector<std::pair<Object*, ReadId>> ids_;
  Mutex mutex_;
  CondVar ended_;
  size_t pending_ GUARDED_BY(mutex_) = 0;
  std::optional<Error> error_ GUARDED_BY(mutex_);
};

}  // namespace

Result<> StreamVirtual(
    const VirtualFile& file, std::span<const std::shared_ptr<Object>> objects,
    const StreamOptions& options,
    const std::function<Result<>(std::span<const std::byte>)>& write) {
  const uint64_t size = file.size();
  const uint64_t step = options.window;
  const uint64_t parts = size / step + (size % step == 0 ? 0 : 1);
  std::vector<std::unique_ptr<Window>> windows;
  for (uint64_t i = 0; i < std::min<uint64_t>(parts, options.windows); ++i) {
    windows.push_back(std::make_unique<Window>(std::min(step, size)));
  }
  const auto start = [&](uint64_t part) {
    const uint64_t offset = part * step;
    return windows[part % windows.size()]->Start(
        file, objects, offset, std::min(step, size - offset),
        Clock::System().Now() + options.read_timeout);
  };
  for (uint64_t part = 0; part < windows.size(); ++part) {
    RETURN_IF_ERROR(start(part));
  }
  for (uint64_t part = 0; part < parts; ++part) {
    ASSIGN_OR_RETURN(const auto bytes, windows[part % windows.size()]->Wait());
    RETURN_IF_ERROR(write(bytes));
    if (part + windows.size() < parts) {
      RETURN_IF_ERROR(start(part + windows.size()));
    }
  }
  return {};
}

}  // namespace weightfs
