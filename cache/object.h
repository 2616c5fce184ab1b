// Object: one file of a repository, open for reading from wherever its bytes
// are: the cache, the origin, a local folder. What fs and the parsers read.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_OBJECT_H_
#define WEIGHTFS_CACHE_OBJECT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "cache/lent_bytes.h"
#include "cache/origin.h"
#include "formats/base/byte_source.h"
#include "formats/base/clock.h"
#include "formats/base/result.h"

namespace weightfs {

// Identifies a started read of one object; never 0, never reused.
using ReadId = uint64_t;

struct ReadOptions {
  // When the read ends with kUnavailable if its bytes are not there yet. The
  // message says file, range, tier, last HTTP status, attempts.
  Clock::Time deadline = Clock::Time::max();
};

class Object {
 public:
  // Runs exactly once per started read, on a thread of a pool, with no lock of
  // the object held. It must not block on the network.
  using Done = std::function<void(Result<>)>;

  virtual ~Object() = default;

  virtual const FileInfo& info() const = 0;

  // Fills `out` from `offset` if that needs no waiting, neither for the network
  // nor for the disk; false (and `out` unspecified) if it would. REQUIRES: the
  // range is in the file; so for the other calls.
  virtual bool TryRead(uint64_t offset, std::span<std::byte> out) = 0;

  // As TryRead, but lends the bytes where they lie, if that is possible now.
  virtual std::optional<LentBytes> TryLend(uint64_t /*offset*/,
                                           uint64_t /*length*/) {
    return std::nullopt;
  }

  // Starts a read. `out` must live until `done` ran.
  virtual ReadId StartRead(uint64_t offset, std::span<std::byte> out,
                           const ReadOptions& options, Done done) = 0;
  // The read's `done` runs soon, with kCancelled unless it ended otherwise
  // first. Once `done` ran, unknown ids included, this does nothing.
  virtual void CancelRead(ReadId id) = 0;

  // When the read ends at the latest, as things are: its deadline, or later
  // where that counts from the last byte that came. `deadline`: the read's.
  virtual Clock::Time Until(ReadId /*id*/, Clock::Time deadline) const {
    return deadline;
  }
  // What the read waits for now, for logs: "the cache", the origin's name.
  virtual std::string WaitsFor(ReadId id) const = 0;

  // Asks for bytes that nobody waits for yet. Demand goes first; failures are
  // silent. Returns how many from `offset` on need not be asked for again:
  // fewer than `length` where no more can be fetched ahead now.
  virtual uint64_t Prefetch(uint64_t offset, uint64_t length) = 0;

  // The share of the file that is cached locally, 0 to 1; 1 for a local file.
  virtual double CachedFraction() const = 0;
};

// Blocking reads of an object, for parsers. Not for FUSE threads. Shares the
// object.
class ObjectSource final : public ByteSource {
 public:
  // Each ReadAt ends within `timeout`, or when the object's Until() says.
  ObjectSource(std::shared_ptr<Object> object, Clock::Time::duration timeout)
      : object_(std::move(object)), timeout_(timeout) {}

  uint64_t size() const override { return object_->info().size; }
  const std::string& name() const override { return object_->info().path; }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override;
  // Whether a ReadAt failed: a parser's error is then about the origin, and
  // says nothing of the bytes.
  bool failed() const { return failed_; }

 private:
  Result<> Read(uint64_t offset, std::span<std::byte> out);

  const std::shared_ptr<Object> object_;
  const Clock::Time::duration timeout_;
  std::atomic<bool> failed_{false};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_OBJECT_H_
