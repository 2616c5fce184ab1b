#include "tests/support/fake_origin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace weightfs {
namespace {

constexpr std::chrono::seconds kPatience{60};

}  // namespace

std::vector<std::byte> FakeBytes(const std::string& path, uint64_t offset,
                                 uint64_t length) {
  uint64_t seed = 0xcbf29ce484222325ULL;
  for (const char c : path) {
    seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  std::vector<std::byte> bytes(length);
  for (uint64_t i = 0; i < length; ++i) {
    const uint64_t word = ((offset + i) / 8 + 1) * 0x9e3779b97f4a7c15ULL + seed;
    bytes[i] = static_cast<std::byte>((word ^ (word >> 29)) >>
                                      (8 * ((offset + i) % 8)));
  }
  return bytes;
}

FakeOrigin::FakeOrigin(std::string cache_namespace)
    : cache_namespace_(std::move(cache_namespace)), canceller_("fake", 1) {}

FakeOrigin::~FakeOrigin() {
  players_.reset();
  canceller_.Stop();
}

FileInfo FakeOrigin::AddFile(const std::string& path, uint64_t size) {
  FileInfo info{path, size, {ContentId::Kind::kGit, "id-of-" + path}};
  MutexLock lock(mutex_);
  files_.push_back(info);
  return info;
}

void FakeOrigin::Play(size_t threads, Script script) {
  players_ = std::make_unique<WorkerPool>("player", threads);
  MutexLock lock(mutex_);
  script_ = std::move(script);
}

void FakeOrigin::HangOnCancel() {
  MutexLock lock(mutex_);
  hang_on_cancel_ = true;
}

std::vector<FakeOrigin::Start> FakeOrigin::starts() const {
  settle_();
  MutexLock lock(mutex_);
  std::vector<Start> starts;
  for (const auto& fetch : fetches_) starts.push_back(fetch->start);
  return starts;
}

std::vector<FakeOrigin::Start> FakeOrigin::WaitForStarts(size_t count) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  {
    MutexLock lock(mutex_);
    while (fetches_.size() < count) {
      if (!changed_.WaitUntil(mutex_, until)) {
        ADD_FAILURE() << fetches_.size() << " fetches, waited for " << count;
        break;
      }
    }
  }
  return starts();
}

void FakeOrigin::WaitForCancels(size_t count) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  MutexLock lock(mutex_);
  auto cancels = [&]() REQUIRES(mutex_) {
    return static_cast<size_t>(
        std::count_if(fetches_.begin(), fetches_.end(),
                      [](const auto& f) { return f->start.cancelled; }));
  };
  while (cancels() < count) {
    if (!changed_.WaitUntil(mutex_, until)) {
      ADD_FAILURE() << cancels() << " cancels, waited for " << count;
      return;
    }
  }
}

bool FakeOrigin::Give(size_t index, uint64_t bytes) {
  settle_();
  std::vector<std::byte> data;
  {
    MutexLock lock(mutex_);
    const Fetch& fetch = *fetches_.at(index);
    data = FakeBytes(fetch.start.path, fetch.start.offset + fetch.given, bytes);
  }
  return GiveRaw(index, data);
}

bool FakeOrigin::GiveRaw(size_t index, std::span<const std::byte> bytes) {
  settle_();
  std::shared_ptr<FetchSink> sink;
  {
    MutexLock lock(mutex_);
    Fetch& fetch = *fetches_.at(index);
    sink = fetch.sink;
    fetch.given += bytes.size();
  }
  return sink != nullptr && sink->OnData(bytes);
}

std::shared_ptr<FetchSink> FakeOrigin::TakeSink(Fetch& fetch) {
  MutexLock lock(mutex_);
  fetch.start.ended = true;
  return std::exchange(fetch.sink, nullptr);
}

void FakeOrigin::End(size_t index, Result<> result) {
  settle_();
  std::shared_ptr<Fetch> fetch;
  {
    MutexLock lock(mutex_);
    fetch = fetches_.at(index);
  }
  if (auto sink = TakeSink(*fetch)) sink->OnDone(std::move(result));
}

void FakeOrigin::Refuse(size_t index, int status) {
  settle_();
  std::shared_ptr<Fetch> fetch;
  {
    MutexLock lock(mutex_);
    fetch = fetches_.at(index);
  }
  if (auto sink = TakeSink(*fetch)) {
    sink->OnStatus(status);
    sink->OnDone(MakeError(Code::kUnavailable, "HTTP {}", status));
  }
}

void FakeOrigin::Finish(size_t index) {
  settle_();
  uint64_t left = 0;
  {
    MutexLock lock(mutex_);
    const Fetch& fetch = *fetches_.at(index);
    if (!fetch.sink) return;
    left = fetch.start.length - fetch.given;
  }
  Give(index, left);
  End(index, {});
}

void FakeOrigin::FinishAll(size_t index) {
  for (;; ++index) {
    settle_();
    {
      MutexLock lock(mutex_);
      if (index >= fetches_.size()) return;
    }
    Finish(index);
  }
}

Result<std::shared_ptr<const Snapshot>> FakeOrigin::List() {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->repo = "org/name";
  snapshot->commit = std::string(40, 'c');
  MutexLock lock(mutex_);
  snapshot->files = files_;
  std::sort(
      snapshot->files.begin(), snapshot->files.end(),
      [](const FileInfo& a, const FileInfo& b) { return a.path < b.path; });
  return snapshot;
}

FetchId FakeOrigin::StartFetch(const FileInfo& file, uint64_t offset,
                               uint64_t length,
                               std::shared_ptr<FetchSink> sink) {
  EXPECT_GT(length, 0u);
  EXPECT_LE(offset + length, file.size);
  auto fetch = std::make_shared<Fetch>();
  Script script;
  {
    MutexLock lock(mutex_);
    fetch->start = {fetches_.size() + 1, file.path, offset, length};
    fetch->sink = std::move(sink);
    fetches_.push_back(fetch);
    changed_.NotifyAll();
    script = script_;
  }
  const FetchId id = fetch->start.id;
  if (script) {
    players_->Submit([this, fetch, script] { RunScript(fetch, script); });
  }
  return id;
}

bool FakeOrigin::IsCancelled(const Fetch& fetch) {
  MutexLock lock(mutex_);
  return fetch.start.cancelled;
}

void FakeOrigin::RunScript(const std::shared_ptr<Fetch>& fetch,
                           const Script& script) {
  const Plot plot = script(fetch->start);
  const auto sink = fetch->sink;
  const Error stopped(Code::kCancelled, "stopped");
  Result<> result = plot.result;
  while (fetch->given < plot.give) {
    const uint64_t left = fetch->start.length - fetch->given;
    uint64_t n = std::min(plot.chunk, plot.give - fetch->given);
    if (plot.give == UINT64_MAX) n = std::min(n, left);
    if (n == 0) break;
    if (IsCancelled(*fetch) ||
        !sink->OnData(FakeBytes(fetch->start.path,
                                fetch->start.offset + fetch->given, n))) {
      result = stopped;
      break;
    }
    fetch->given += n;
  }
  if (auto last = TakeSink(*fetch)) last->OnDone(std::move(result));
}

void FakeOrigin::CancelFetch(FetchId id) {
  std::shared_ptr<Fetch> fetch;
  bool by_hand = false;
  {
    MutexLock lock(mutex_);
    if (id == 0 || id > fetches_.size()) return;
    fetch = fetches_[id - 1];
    fetch->start.cancelled = true;
    by_hand = !script_ && !hang_on_cancel_;
    changed_.NotifyAll();
  }
  if (!by_hand) return;
  canceller_.Submit([this, fetch] {
    if (auto sink = TakeSink(*fetch)) {
      sink->OnDone(Error(Code::kCancelled, "cancelled"));
    }
  });
}

}  // namespace weightfs
