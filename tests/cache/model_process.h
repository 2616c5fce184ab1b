// What the tests of the cache against a model run: processes that share a cache
// folder, and clients that got descriptors from them.

#ifndef WEIGHTFS_TESTS_CACHE_MODEL_PROCESS_H_
#define WEIGHTFS_TESTS_CACHE_MODEL_PROCESS_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/object_cache.h"
#include "tests/cache/cache_model.h"
#include "tests/support/faulty_disk.h"

namespace weightfs {

// A descriptor that a client got, or a mapping of it. Hashed by nobody.
class Passed {
 public:
  Passed(UniqueFd fd, uint64_t size, bool mapped)
      : fd_(std::move(fd)), size_(size) {
    if (!mapped) return;
    map_ = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd_.get(), 0);
    EXPECT_NE(map_, MAP_FAILED);
    fd_.Reset();  // the mapping alone holds the pin
  }
  ~Passed() {
    if (map_ != nullptr) ::munmap(map_, size_);
  }
  Passed(const Passed&) = delete;
  Passed& operator=(const Passed&) = delete;

  Bytes Read() const {
    Bytes bytes(size_);
    if (map_ != nullptr) {
      std::memcpy(bytes.data(), map_, size_);
    } else {
      EXPECT_EQ(::pread(fd_.get(), bytes.data(), size_, 0),
                static_cast<ssize_t>(size_));
    }
    return bytes;
  }

 private:
  UniqueFd fd_;
  const uint64_t size_;
  void* map_ = nullptr;
};

struct Process {
  explicit Process(CacheDisk& machine) : disk(machine) {}
  void Stop() {
    pins.clear();
    files.clear();
    cache.reset();
  }

  void Forget(const Modelled& object) {
    std::erase_if(pins,
                  [&](const auto& pin) { return std::get<0>(pin) == &object; });
    files.erase(&object);
  }

  FaultyDisk disk;
  std::unique_ptr<ObjectCache> cache;
  std::map<const Modelled*, std::shared_ptr<CacheFile>> files;
  std::vector<std::tuple<const Modelled*, uint64_t, SlabPin>> pins;  // of slabs
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_MODEL_PROCESS_H_
