// UnreadBytes: granules that the disk has and that nobody has read yet. They
// stay in memory for a while, since the reader that they were fetched for is
// not far behind: it need not read them back and hash them.
//
// Not thread-safe: FetchCore's mutex guards it, and FetchFile::unread.

#ifndef WEIGHTFS_CACHE_UNREAD_BYTES_H_
#define WEIGHTFS_CACHE_UNREAD_BYTES_H_

#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "cache/read_op.h"
#include "formats/base/clock.h"

namespace weightfs {

class UnreadBytes {
 public:
  // How long they stay.
  static constexpr std::chrono::seconds kLife{5};

  using BytesPtr = std::shared_ptr<const GranuleBytes>;
  // Last references, to be let go without the mutex.
  using Dropped = std::vector<std::shared_ptr<void>>;

  // `read`: bytes of it that readers took. What is in it stays as it is.
  void Add(const std::shared_ptr<FetchFile>& file, uint64_t granule,
           BytesPtr bytes, uint64_t read, Clock::Time now);
  // Null: it is not there. Takes `length` bytes of it: it goes once readers
  // took as many as it has.
  BytesPtr Read(FetchFile& file, uint64_t granule, uint64_t length);
  // Lets go the oldest until no more than `most` bytes are left.
  void Shrink(uint64_t most, Dropped& dropped);
  // Lets go what is older than kLife. When to come again: max() if all is gone.
  Clock::Time Age(Clock::Time now, Dropped& dropped);

 private:
  void DropOldest(Dropped& dropped);

  std::list<UnreadGranule> entries_;  // the oldest first
  uint64_t bytes_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_UNREAD_BYTES_H_
