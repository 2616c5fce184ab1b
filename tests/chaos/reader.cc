#include "tests/chaos/reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <latch>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "formats/base/mutex.h"
#include "tests/chaos/caller.h"

namespace weightfs {
namespace {

constexpr uint64_t kGranule = 128 << 10;
constexpr std::array kReadKinds = {
    CallKind::kRead,          CallKind::kPread,    CallKind::kPread,
    CallKind::kPreadv,        CallKind::kDirect,   CallKind::kMmapShared,
    CallKind::kMmapPrivate,   CallKind::kSendfile, CallKind::kSplice,
    CallKind::kCopyFileRange,
};

// The file that the threads of a process share, if there is one.
class SharedFile {
 public:
  std::shared_ptr<OpenedFile> Get() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return file_;
  }
  void Set(std::shared_ptr<OpenedFile> file) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    file_ = std::move(file);
  }

 private:
  Mutex mutex_;
  std::shared_ptr<OpenedFile> file_ GUARDED_BY(mutex_);
};

class Reader {
 public:
  Reader(const ReaderProcess& process, size_t thread, SharedFile& shared)
      : process_(process),
        board_(*process.board),
        slot_(board_.slots[process.first_slot + thread]),
        shared_(shared),
        random_(Seed(process, thread)),
        caller_({process.source, process.board, &process.mounts,
                 process.first_slot + thread,
                 fmt::format("process {}.{} thread {}", process.number,
                             process.incarnation, thread)},
                random_) {}

  void Run() {
    while (!board_.ending) {
      if (board_.paused) {
        shared_.Set(nullptr);
        slot_.resting = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        continue;
      }
      slot_.resting = false;
      Session();
      Rest();
    }
    shared_.Set(nullptr);
    slot_.resting = true;
  }

 private:
  static std::mt19937_64 Seed(const ReaderProcess& process, size_t thread) {
    std::seed_seq seeds{process.board->seed, uint64_t{process.number},
                        uint64_t{thread}, process.incarnation};
    return std::mt19937_64(seeds);
  }

  uint64_t Below(uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random_);
  }
  bool OneIn(uint64_t chances) { return Below(chances) == 0; }
  bool MayGoOn() const { return !board_.paused && !board_.ending; }

  // Between two calls: random, `pace_us` in the mean.
  void Rest() {
    const uint64_t pace = board_.pace_us;
    if (pace == 0) return;
    std::this_thread::sleep_for(std::chrono::microseconds(Below(2 * pace)));
  }

  // Often the same few, so that readers meet; else any.
  uint32_t PickFile() {
    const auto& files = process_.source->files();
    const size_t repo = process_.source->repo_files();
    if (OneIn(3)) return static_cast<uint32_t>(Below(repo));
    if (OneIn(4)) {
      return static_cast<uint32_t>(
          repo + Below(std::min<uint64_t>(16, files.size() - repo)));
    }
    return static_cast<uint32_t>(repo + Below(files.size() - repo));
  }

  // From 1 byte to 256 KiB, seldom 1 MiB: every order of magnitude alike.
  uint64_t PickLength() {
    if (OneIn(40)) return 1 << 20;
    const uint64_t most = uint64_t{1} << (1 + Below(18));
    return 1 + Below(most);
  }

  uint64_t PickOffset(const ChaosSource::File& file, uint64_t last_end) {
    const uint64_t end = std::max<uint64_t>(file.size, 1);
    switch (Below(8)) {
      case 0:
        return 0;
      case 1:  // about the end of a granule
        return std::min(end - 1, std::max<uint64_t>(
                                     64, Below(end / kGranule + 1) * kGranule) -
                                     Below(64));
      case 2:  // about the end of the file
        return end - 1 - std::min(end - 1, Below(8192));
      case 3:  // a little further
        return std::min(end - 1, last_end + Below(64 << 10));
      default:
        return Below(end);
    }
  }

  std::shared_ptr<OpenedFile> PickOpened(uint32_t mount, CallKind kind) {
    const bool direct = kind == CallKind::kDirect;
    if (!direct && OneIn(4)) {
      if (auto file = shared_.Get(); file && !OneIn(6)) return file;
      auto file = caller_.Open(mount, PickFile(), false);
      if (file) {
        file->shared = true;
        shared_.Set(file);
      }
      return file;
    }
    return caller_.Open(mount, PickFile(), direct);
  }

  void Session() {
    const auto mount = static_cast<uint32_t>(Below(process_.mounts.size()));
    if (OneIn(50)) return caller_.List(mount);
    const CallKind kind = kReadKinds.at(Below(kReadKinds.size()));
    const auto file = PickOpened(mount, kind);
    if (file == nullptr) return;
    if (OneIn(300)) return Sweep(*file, kind);
    const bool mapped =
        kind == CallKind::kMmapShared || kind == CallKind::kMmapPrivate;
    const bool good = mapped ? MappedReads(*file, kind) : Reads(*file, kind);
    if (!good && file->shared && shared_.Get() == file) shared_.Set(nullptr);
  }

  // All of the file, as a loader does: so that whole files come together, and
  // are checked as such.
  void Sweep(OpenedFile& file, CallKind kind) {
    constexpr uint64_t kPiece = 512 << 10;
    for (uint64_t at = 0; at < file.file->size && MayGoOn(); at += kPiece) {
      if (!caller_.Read(file, kind, at, kPiece)) return;
    }
  }

  bool Reads(OpenedFile& file, CallKind kind) {
    const bool sequential = OneIn(3);
    uint64_t at = PickOffset(*file.file, 0);
    for (uint64_t left = 1 + Below(30); left > 0 && MayGoOn(); --left) {
      const uint64_t length = PickLength();
      if (!caller_.Read(file, kind, at, length)) return false;
      Advise(file, at, length);
      at = sequential ? at + length : PickOffset(*file.file, at + length);
      if (at >= file.file->size) at = 0;
      Rest();
    }
    return true;
  }

  void Advise(const OpenedFile& file, uint64_t offset, uint64_t length) {
    const auto at = static_cast<off_t>(offset);
    const auto size = static_cast<off_t>(length);
    switch (Below(12)) {
      case 0:
      case 1:  // cold again
        ::posix_fadvise(file.fd.get(), at, size, POSIX_FADV_DONTNEED);
        break;
      case 2:
        ::posix_fadvise(file.fd.get(), 0, 0, POSIX_FADV_DONTNEED);
        break;
      case 3:
        ::posix_fadvise(file.fd.get(), at + size, 4 * size,
                        POSIX_FADV_WILLNEED);
        break;
      case 4:
        ::posix_fadvise(file.fd.get(), 0, 0,
                        OneIn(2) ? POSIX_FADV_RANDOM : POSIX_FADV_SEQUENTIAL);
        break;
      default:
        break;
    }
  }

  bool MappedReads(const OpenedFile& file, CallKind kind) {
    const Mapping mapping(file, kind);
    if (!mapping.valid()) return false;
    constexpr std::array kAdvice = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL,
                                    MADV_WILLNEED};
    uint64_t at = PickOffset(*file.file, 0);
    for (uint64_t left = 1 + Below(30); left > 0 && MayGoOn(); --left) {
      const uint64_t length = PickLength();
      if (OneIn(6)) Map(mapping, at, length, kAdvice.at(Below(4)));
      if (!caller_.ReadMapped(file, mapping, kind, at, length)) return false;
      if (mapping.writable() && at < mapping.size() && OneIn(4) &&
          !caller_.Scribble(file, mapping, at)) {
        return false;
      }
      if (OneIn(6)) Map(mapping, at, length, MADV_DONTNEED);
      if (OneIn(6)) {
        ::posix_fadvise(file.fd.get(), 0, 0, POSIX_FADV_DONTNEED);
      }
      at = PickOffset(*file.file, at + length);
      Rest();
    }
    return true;
  }

  static void Map(const Mapping& mapping, uint64_t offset, uint64_t length,
                  int advice) {
    const uint64_t page = offset / 4096 * 4096;
    const uint64_t end = std::min<uint64_t>(mapping.size(), offset + length);
    if (page < end) ::madvise(mapping.base() + page, end - page, advice);
  }

  const ReaderProcess& process_;
  Board& board_;
  Slot& slot_;
  SharedFile& shared_;
  std::mt19937_64 random_;
  Caller caller_;
};

}  // namespace

void RunReaders(const ReaderProcess& process) {
  // Held until all threads are there to be told of them.
  sigset_t held;
  sigset_t before;
  sigemptyset(&held);
  sigaddset(&held, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &held, &before);
  std::latch caught(1);
  SharedFile shared;
  std::vector<std::thread> threads;
  std::vector<pthread_t> handles;
  for (size_t i = 0; i < process.threads; ++i) {
    threads.emplace_back([&, i] {
      caught.wait();
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      Reader(process, i, shared).Run();
    });
    handles.push_back(threads.back().native_handle());
  }
  CatchReaderSignals(&handles);
  caught.count_down();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace weightfs
