#include "tests/chaos/caller.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <set>
#include <utility>

namespace weightfs {
namespace {

constexpr size_t kPage = 4096;
// The longest read, and room to misalign it.
constexpr size_t kBuffer = (2 << 20) + kPage;

// Signal handlers can reach globals only.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<uint64_t> signals_taken{0};
const std::vector<pthread_t>* interrupted_threads = nullptr;
thread_local sigjmp_buf* on_bus_error = nullptr;
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

// The kernel gives a process's signal to one of its threads: all get it.
void CountSignal(int signal, siginfo_t* info, void*) {
  signals_taken.fetch_add(1);
  if (info->si_code == SI_TKILL || interrupted_threads == nullptr) return;
  for (const pthread_t thread : *interrupted_threads) {
    ::pthread_kill(thread, signal);
  }
}

void JumpOut(int signal) {
  if (on_bus_error != nullptr) siglongjmp(*on_bus_error, 1);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

// Not memcpy: a sanitizer's would be left by a jump.
__attribute__((noinline, no_sanitize("address", "thread"))) void CopyWords(
    const volatile std::byte* from, std::byte* to, size_t size) {
  for (; size >= 8; size -= 8, from += 8, to += 8) {
    uint64_t word = 0;
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): raw memory
    word = *reinterpret_cast<const volatile uint64_t*>(from);
    __builtin_memcpy(to, &word, 8);
  }
  for (; size > 0; --size) *to++ = *from++;
}

// EIO if the mapping has no such page.
int CopyMapped(const volatile std::byte* from, std::byte* to, size_t size) {
  sigjmp_buf here;
  if (sigsetjmp(here, 1) != 0) {
    on_bus_error = nullptr;
    return EIO;
  }
  on_bus_error = &here;
  CopyWords(from, to, size);
  on_bus_error = nullptr;
  return 0;
}

int WriteMapped(volatile std::byte* at) {
  sigjmp_buf here;
  if (sigsetjmp(here, 1) != 0) {
    on_bus_error = nullptr;
    return EIO;
  }
  on_bus_error = &here;
  *at = std::byte{0x5a};
  on_bus_error = nullptr;
  return 0;
}

std::string Hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += fmt::format("{:02x}", static_cast<unsigned>(byte));
  }
  return text;
}

}  // namespace

void WriteLine(std::string_view line) {
  const std::string whole = std::string(line) + "\n";
  // A pipe takes up to PIPE_BUF bytes in one piece.
  (void)!::write(STDOUT_FILENO, whole.data(), whole.size());
}

void CatchReaderSignals(const std::vector<pthread_t>* threads) {
  interrupted_threads = threads;
  struct sigaction action {};
  action.sa_sigaction = &CountSignal;
  action.sa_flags = SA_SIGINFO;  // without SA_RESTART
  ::sigaction(SIGINT, &action, nullptr);
  action = {};
  action.sa_handler = &JumpOut;
  action.sa_flags = SA_NODEFER;
  ::sigaction(SIGBUS, &action, nullptr);
}

Mapping::Mapping(const OpenedFile& file, CallKind kind) {
  size_ = (file.file->size + kPage - 1) / kPage * kPage;
  writable_ = kind == CallKind::kMmapPrivate;
  void* const memory = ::mmap(
      nullptr, size_, writable_ ? PROT_READ | PROT_WRITE : PROT_READ,
      writable_ ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED, file.fd.get(), 0);
  if (memory != MAP_FAILED) base_ = static_cast<std::byte*>(memory);
}

Mapping::~Mapping() {
  if (base_ != nullptr) ::munmap(base_, size_);
}

Caller::Caller(Place place, std::mt19937_64& random)
    : place_(std::move(place)),
      board_(*place_.board),
      slot_(place_.board->slots[place_.slot]),
      random_(random),
      buffer_(static_cast<std::byte*>(std::aligned_alloc(kPage, kBuffer)),
              &std::free),
      scratch_(::memfd_create("chaos", MFD_CLOEXEC)) {
  std::array<int, 2> ends{-1, -1};
  (void)!::pipe2(ends.data(), O_CLOEXEC);
  pipe_out_.Reset(ends[0]);
  pipe_in_.Reset(ends[1]);
}

ssize_t Caller::Timed(CallKind kind, uint32_t mount, int64_t opened,
                      const std::function<ssize_t()>& call) {
  const uint64_t signals = signals_taken.load();
  last_ = {mount, opened, MonotonicNow(), 0,
           kind == CallKind::kOpen || kind == CallKind::kList};
  slot_.mount = mount;
  slot_.kind = static_cast<uint32_t>(kind);
  slot_.began = last_.began;
  const ssize_t result = call();
  const int error = errno;
  last_.ended = MonotonicNow();
  slot_.began = 0;
  last_signalled_ = signals_taken.load() != signals;
  board_.calls.at(static_cast<size_t>(kind)).fetch_add(1);
  const int64_t took = last_.ended - last_.began;
  board_.latency.Add(took);
  if (took > board_.Allowance(last_) && slot_.reported != last_.began) {
    board_.late.fetch_add(1);
    Report("late", kind, fmt::format(R"("took_ms":{})", took / 1'000'000));
  }
  errno = error;
  return result;
}

void Caller::Report(std::string_view event, CallKind kind,
                    std::string_view more) {
  const ChaosSource::File& file = place_.source->files()[slot_.file];
  WriteLine(fmt::format(
      R"({{"event":"{}","file":"{}","offset":{},"length":{},"mount":"{}",)"
      R"("kind":"{}","who":"{}","pid":{},"took_ms":{},"seed":{},{}}})",
      event, kind == CallKind::kList ? "repo" : file.path, slot_.offset.load(),
      slot_.length.load(), place_.mounts->at(last_.mount), CallName(kind),
      place_.who, ::getpid(), (last_.ended - last_.began) / 1'000'000,
      board_.seed, more));
}

void Caller::Failed(CallKind kind, int error, std::string_view what) {
  const bool mapped =
      kind == CallKind::kMmapShared || kind == CallKind::kMmapPrivate;
  if (mapped) board_.bus_errors.fetch_add(1);
  if (const auto excuse = board_.Explain(last_, error)) {
    board_.excused.at(static_cast<size_t>(*excuse)).fetch_add(1);
    return;
  }
  board_.unexcused.fetch_add(1);
  Report("unexpected", kind,
         fmt::format(R"("errno":{},"what":"{}")", error, what));
}

std::shared_ptr<OpenedFile> Caller::Open(uint32_t mount, uint32_t ordinal,
                                         bool direct) {
  auto opened = std::make_shared<OpenedFile>();
  opened->file = &place_.source->files()[ordinal];
  opened->ordinal = ordinal;
  opened->mount = mount;
  opened->direct = direct;
  opened->opened = MonotonicNow();
  const std::string path = place_.mounts->at(mount) + "/" + opened->file->path;
  slot_.file = ordinal;
  slot_.offset = 0;
  slot_.length = 0;
  for (;;) {
    opened->fd.Reset(
        static_cast<int>(Timed(CallKind::kOpen, mount, opened->opened, [&] {
          return ::open(path.c_str(),
                        O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
        })));
    if (opened->fd.valid()) break;
    if (errno == EINTR && last_signalled_) {
      board_.interrupted.fetch_add(1);
      continue;
    }
    Failed(CallKind::kOpen, errno, std::strerror(errno));
    return nullptr;
  }
  struct stat attributes {};
  if (Timed(CallKind::kOpen, mount, opened->opened,
            [&] { return ::fstat(opened->fd.get(), &attributes); }) != 0) {
    if (errno == EINTR && last_signalled_) {
      board_.interrupted.fetch_add(1);
    } else {
      Failed(CallKind::kOpen, errno, std::strerror(errno));
    }
    return nullptr;
  }
  if (static_cast<uint64_t>(attributes.st_size) != opened->file->size) {
    board_.wrong_reads.fetch_add(1);
    Report("wrong", CallKind::kOpen,
           fmt::format(R"("what":"a size of {}, not {}")", attributes.st_size,
                       opened->file->size));
  }
  return opened;
}

void Caller::List(uint32_t mount) {
  std::set<std::string> wanted;
  for (size_t i = 0; i < place_.source->repo_files(); ++i) {
    wanted.insert(place_.source->files()[i].path.substr(5));
  }
  const std::string path = place_.mounts->at(mount) + "/repo";
  std::set<std::string> found;
  const int64_t opened = MonotonicNow();
  const ssize_t result =
      Timed(CallKind::kList, mount, opened, [&]() -> ssize_t {
        DIR* const folder = ::opendir(path.c_str());
        if (folder == nullptr) return -1;
        errno = 0;
        // NOLINTNEXTLINE(concurrency-mt-unsafe): a stream of this thread's own
        while (const dirent* entry = ::readdir(folder)) {
          const std::string name = entry->d_name;
          if (name != "." && name != "..") found.insert(name);
        }
        const int error = errno;
        ::closedir(folder);
        errno = error;
        return error == 0 ? 0 : -1;
      });
  if (result != 0) {
    if (errno == EINTR && last_signalled_) {
      board_.interrupted.fetch_add(1);
    } else {
      Failed(CallKind::kList, errno, std::strerror(errno));
    }
  } else if (found != wanted) {
    board_.wrong_reads.fetch_add(1);
    Report("wrong", CallKind::kList,
           fmt::format(R"("what":"{} names, not {}")", found.size(),
                       wanted.size()));
  }
}

ssize_t Caller::Preadv(int fd, uint64_t offset, std::span<std::byte> out) {
  std::vector<iovec> parts;
  const size_t count = 1 + random_() % 8;
  while (!out.empty()) {
    const size_t size =
        parts.size() + 1 == count ? out.size() : 1 + random_() % out.size();
    parts.push_back({out.data(), size});
    out = out.subspan(size);
    if (parts.size() == count) break;
  }
  const auto at = static_cast<off_t>(offset);
  const auto number = static_cast<int>(parts.size());
  if (random_() % 4 == 0) {
    // Only what is in the page cache; else as ever.
    const ssize_t got = ::preadv2(fd, parts.data(), number, at, RWF_NOWAIT);
    if (got > 0) return got;
  }
  return ::preadv(fd, parts.data(), number, at);
}

ssize_t Caller::SpliceOnce(int fd, uint64_t offset, std::span<std::byte> out) {
  auto at = static_cast<off64_t>(offset);
  const ssize_t moved =
      ::splice(fd, &at, pipe_in_.get(), nullptr, out.size(), 0);
  if (moved <= 0) return moved;
  ssize_t taken = 0;
  while (taken < moved) {
    const ssize_t n = ::read(pipe_out_.get(), out.data() + taken,
                             static_cast<size_t>(moved - taken));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return -1;
    taken += n;
  }
  return moved;
}

// By sendfile or copy_file_range into a file of memory, and back.
ssize_t Caller::ThroughFile(int fd, CallKind kind, uint64_t offset,
                            std::span<std::byte> out) {
  ::lseek(scratch_.get(), 0, SEEK_SET);
  auto at = static_cast<off64_t>(offset);
  ssize_t copied = -1;
  if (kind == CallKind::kCopyFileRange) {
    copied = ::copy_file_range(fd, &at, scratch_.get(), nullptr, out.size(), 0);
    // What cp does where the kernel copies within one file system only.
    if (copied < 0 && (errno == EXDEV || errno == EOPNOTSUPP ||
                       errno == EINVAL || errno == ENOSYS)) {
      copied = ::sendfile(scratch_.get(), fd, &at, out.size());
    }
  } else {
    copied = ::sendfile(scratch_.get(), fd, &at, out.size());
  }
  if (copied <= 0) return copied;
  const auto size = static_cast<size_t>(copied);
  return ::pread(scratch_.get(), out.data(), size, 0) == copied ? copied : -1;
}

Caller::RawRead Caller::RawReadOf(const OpenedFile& file, CallKind kind) {
  const int fd = file.fd.get();
  switch (kind) {
    case CallKind::kRead:
      if (file.shared) break;
      return [fd](uint64_t offset, std::span<std::byte> out) {
        ::lseek(fd, static_cast<off_t>(offset), SEEK_SET);
        return ::read(fd, out.data(), out.size());
      };
    case CallKind::kPreadv:
      return [this, fd](uint64_t offset, std::span<std::byte> out) {
        return Preadv(fd, offset, out);
      };
    case CallKind::kSplice:
      return [this, fd](uint64_t offset, std::span<std::byte> out) {
        return SpliceOnce(fd, offset, out);
      };
    case CallKind::kSendfile:
    case CallKind::kCopyFileRange:
      return [this, fd, kind](uint64_t offset, std::span<std::byte> out) {
        return ThroughFile(fd, kind, offset, out);
      };
    default:
      break;
  }
  return [fd](uint64_t offset, std::span<std::byte> out) {
    return ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
  };
}

bool Caller::Fill(OpenedFile& file, CallKind kind, uint64_t offset,
                  std::span<std::byte> out) {
  const RawRead read = RawReadOf(file, kind);
  // These may take less than asked for at any time.
  const bool moves = kind == CallKind::kSplice || kind == CallKind::kSendfile ||
                     kind == CallKind::kCopyFileRange ||
                     kind == CallKind::kPreadv;  // RWF_NOWAIT
  const uint64_t left = file.file->size - std::min(offset, file.file->size);
  const uint64_t wanted = std::min<uint64_t>(out.size(), left);
  uint64_t filled = 0;
  bool was_short = false;
  for (;;) {
    const uint64_t asked = out.size() - filled;
    if (asked == 0) return true;
    const ssize_t got = Timed(kind, file.mount, file.opened, [&] {
      return read(offset + filled, out.subspan(filled));
    });
    if (got < 0) {
      if (errno == EINTR && last_signalled_) {
        board_.interrupted.fetch_add(1);
        continue;
      }
      Failed(kind, errno, std::strerror(errno));
      return false;
    }
    const auto size = static_cast<uint64_t>(got);
    if (size > wanted - filled) {
      board_.wrong_reads.fetch_add(1);
      Report("wrong", kind,
             fmt::format(R"("what":"{} bytes from {}, past the end")", size,
                         offset + filled));
      return false;
    }
    filled += size;
    if (filled == wanted) return true;
    if (size == 0 || (!moves && size < asked)) {
      // The kernel hides an error behind the bytes that it has before it; the
      // next call tells it, or is interrupted no more.
      if (!last_signalled_ && !board_.Explain(last_, EIO)) {
        board_.unexcused.fetch_add(1);
        Report("unexpected", kind,
               fmt::format(R"("errno":0,"what":"short: {} of {} bytes")",
                           filled, wanted));
        return false;
      }
      board_.short_reads.fetch_add(1);
      if (size == 0 && std::exchange(was_short, true)) return false;
    }
  }
}

bool Caller::Read(OpenedFile& file, CallKind kind, uint64_t offset,
                  uint64_t length) {
  const uint64_t left = file.file->size - std::min(offset, file.file->size);
  const size_t skew = random_() % 2 == 0 ? 0 : random_() % kPage;
  length = std::min<uint64_t>(length, kBuffer - kPage);
  const std::span<std::byte> out(buffer_.get() + skew, length);
  const auto used = out.first(std::min<uint64_t>(length, left));
  // So that bytes that were left as they are do not pass for what was read.
  std::fill(used.begin(), used.end(), std::byte{0xa5});
  slot_.file = file.ordinal;
  slot_.offset = offset;
  slot_.length = length;
  if (!Fill(file, kind, offset, out)) return false;
  Compare(file, kind, offset, used);
  return true;
}

bool Caller::ReadMapped(const OpenedFile& file, const Mapping& mapping,
                        CallKind kind, uint64_t offset, uint64_t length) {
  if (offset >= mapping.size()) return true;
  length = std::min({length, mapping.size() - offset,
                     static_cast<uint64_t>(kBuffer - kPage)});
  const std::span<std::byte> out(buffer_.get(), length);
  slot_.file = file.ordinal;
  slot_.offset = offset;
  slot_.length = length;
  const ssize_t error = Timed(kind, file.mount, file.opened, [&]() -> ssize_t {
    return CopyMapped(mapping.base() + offset, out.data(), out.size());
  });
  if (error != 0) {
    Failed(kind, static_cast<int>(error), "SIGBUS");
    return false;
  }
  const uint64_t left = file.file->size - std::min(offset, file.file->size);
  const auto inside = out.first(std::min<uint64_t>(length, left));
  const auto beyond = out.subspan(inside.size());
  if (!std::all_of(beyond.begin(), beyond.end(),
                   [](std::byte byte) { return byte == std::byte{0}; })) {
    board_.wrong_reads.fetch_add(1);
    Report("wrong", kind, R"("what":"the last page is not zeros at its end")");
  }
  Compare(file, kind, offset, inside);
  return true;
}

bool Caller::Scribble(const OpenedFile& file, const Mapping& mapping,
                      uint64_t offset) {
  std::byte* const page = mapping.base() + offset / kPage * kPage;
  const ssize_t error = Timed(CallKind::kMmapPrivate, file.mount, file.opened,
                              [&]() -> ssize_t { return WriteMapped(page); });
  ::madvise(page, kPage, MADV_DONTNEED);
  if (error == 0) return true;
  Failed(CallKind::kMmapPrivate, static_cast<int>(error), "SIGBUS");
  return false;
}

void Caller::Compare(const OpenedFile& file, CallKind kind, uint64_t offset,
                     std::span<const std::byte> found) {
  expected_.resize(found.size());
  place_.source->Read(*file.file, offset, expected_);
  board_.bytes_checked.fetch_add(found.size());
  board_.bytes.at(static_cast<size_t>(kind)).fetch_add(found.size());
  board_.mount_reads.at(file.mount).fetch_add(1);
  if (std::equal(found.begin(), found.end(), expected_.begin())) return;
  uint64_t wrong = 0;
  uint64_t zeros = 0;
  size_t first = found.size();
  size_t last = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i] == expected_[i]) continue;
    ++wrong;
    if (found[i] == std::byte{0}) ++zeros;
    first = std::min(first, i);
    last = i;
  }
  board_.wrong_bytes.fetch_add(wrong);
  board_.wrong_reads.fetch_add(1);
  const size_t shown = std::min<size_t>(16, found.size() - first);
  Report(
      "wrong", kind,
      fmt::format(
          R"("what":"{} wrong bytes, {} of them zeros","first":{},"last":{},)"
          R"("expected":"{}","found":"{}")",
          wrong, zeros, offset + first, offset + last,
          Hex(std::span<const std::byte>(expected_).subspan(first, shown)),
          Hex(found.subspan(first, shown))));
}

}  // namespace weightfs
