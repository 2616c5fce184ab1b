// Caller: a reader thread's system calls on the mounts: each is timed, shown on
// the board while it runs, and what it brought is compared with the source.
//
// Belongs to one thread; an OpenedFile may be shared by the threads of a
// process.

#ifndef WEIGHTFS_TESTS_CHAOS_CALLER_H_
#define WEIGHTFS_TESTS_CHAOS_CALLER_H_

#include <pthread.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/unique_fd.h"
#include "tests/chaos/board.h"
#include "tests/chaos/source.h"

namespace weightfs {

struct OpenedFile {
  UniqueFd fd;
  const ChaosSource::File* file = nullptr;
  uint32_t ordinal = 0;  // of the file in the source
  uint32_t mount = 0;
  bool direct = false;
  bool shared = false;  // by threads: its position is nobody's
  int64_t opened = 0;
};

// A mapping of a whole file, unmapped at the end.
class Mapping {
 public:
  // Errors are left in errno.
  Mapping(const OpenedFile& file, CallKind kind);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  bool valid() const { return base_ != nullptr; }
  std::byte* base() const { return base_; }
  size_t size() const { return size_; }  // in whole pages
  bool writable() const { return writable_; }

 private:
  std::byte* base_ = nullptr;
  size_t size_ = 0;
  bool writable_ = false;
};

// For the whole process: SIGINT interrupts the calls of these threads (all of
// them run, and live as long as the process), SIGBUS fails a mapped read.
void CatchReaderSignals(const std::vector<pthread_t>* threads);

class Caller {
 public:
  struct Place {
    const ChaosSource* source = nullptr;
    Board* board = nullptr;
    const std::vector<std::string>* mounts = nullptr;
    size_t slot = 0;
    std::string who;  // for reports
  };
  Caller(Place place, std::mt19937_64& random);

  // Null if it failed.
  std::shared_ptr<OpenedFile> Open(uint32_t mount, uint32_t ordinal,
                                   bool direct);
  // Compares the names in repo/.
  void List(uint32_t mount);
  // Reads and compares; `length` may go past the end of the file. False if the
  // file must be opened anew.
  bool Read(OpenedFile& file, CallKind kind, uint64_t offset, uint64_t length);
  bool ReadMapped(const OpenedFile& file, const Mapping& mapping, CallKind kind,
                  uint64_t offset, uint64_t length);
  // Writes into a private mapping's page, which nobody else may see, and drops
  // the page again.
  bool Scribble(const OpenedFile& file, const Mapping& mapping,
                uint64_t offset);

 private:
  using RawRead = std::function<ssize_t(uint64_t, std::span<std::byte>)>;

  ssize_t Timed(CallKind kind, uint32_t mount, int64_t opened,
                const std::function<ssize_t()>& call);
  RawRead RawReadOf(const OpenedFile& file, CallKind kind);
  ssize_t Preadv(int fd, uint64_t offset, std::span<std::byte> out);
  ssize_t SpliceOnce(int fd, uint64_t offset, std::span<std::byte> out);
  ssize_t ThroughFile(int fd, CallKind kind, uint64_t offset,
                      std::span<std::byte> out);
  bool Fill(OpenedFile& file, CallKind kind, uint64_t offset,
            std::span<std::byte> out);
  void Compare(const OpenedFile& file, CallKind kind, uint64_t offset,
               std::span<const std::byte> found);
  // Counts a failed call; reports it if nothing explains it.
  void Failed(CallKind kind, int error, std::string_view what);
  void Report(std::string_view event, CallKind kind, std::string_view more);

  const Place place_;
  Board& board_;
  Slot& slot_;
  std::mt19937_64& random_;
  Call last_;  // as Timed left it
  bool last_signalled_ = false;
  const std::unique_ptr<std::byte, decltype(&std::free)> buffer_;
  std::vector<std::byte> expected_;
  UniqueFd pipe_out_;
  UniqueFd pipe_in_;
  UniqueFd scratch_;  // a memory file
};

// One line of JSON on standard output, whole.
void WriteLine(std::string_view line);

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CHAOS_CALLER_H_
