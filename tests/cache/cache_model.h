// What the tests of the cache against a model know: objects of known bytes and
// what must be there of them.

#ifndef WEIGHTFS_TESTS_CACHE_CACHE_MODEL_H_
#define WEIGHTFS_TESTS_CACHE_CACHE_MODEL_H_

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cache/content_hash.h"
#include "cache/meta_file.h"
#include "tests/cache/cache_fixture.h"
#include "tests/support/sanitized.h"

namespace weightfs {

using Bytes = std::vector<std::byte>;

#ifdef WEIGHTFS_SANITIZED
inline constexpr uint64_t kModelOperations = 25'000;
#else
inline constexpr uint64_t kModelOperations = 105'000;
#endif

inline uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

// What the model knows of a granule, or of an object's verification.
enum class Known { kAbsent, kPresent, kMaybe };

// An object and what the model knows of it.
struct Modelled {
  ContentId id;
  uint64_t size = 0;
  std::map<uint64_t, Bytes> truth;  // of the granules that are used
  std::map<uint64_t, Known> known;
  Known verified = Known::kAbsent;

  Modelled() = default;
  // Bytes of a pattern, in all granules that are `used`. The id is not theirs.
  Modelled(
      uint64_t object_size, uint64_t pattern,
      const std::function<bool(uint64_t)>& used = [](uint64_t) { return true; })
      : id(Sha256Id("0123"[pattern])), size(object_size) {
    for (uint64_t g = 0; g * kGranuleSize < size; ++g) {
      if (!used(g)) continue;
      const uint64_t start = g * kGranuleSize;
      truth[g] = Pattern(start, std::min(kGranuleSize, size - start), pattern);
      known[g] = Known::kAbsent;
    }
  }

  // Gives it the id of its bytes, which it returns. REQUIRES: all are used.
  Bytes TakeRightId() {
    Bytes whole;
    for (const auto& [granule, bytes] : truth) {
      whole.insert(whole.end(), bytes.begin(), bytes.end());
    }
    ContentHash hash(ContentId::Kind::kSha256, size);
    hash.Add(whole);
    id.value = hash.Finish();
    return whole;
  }

  // Whether the bytes are those from `start` on.
  bool Matches(uint64_t start, const Bytes& bytes) const {
    for (uint64_t at = 0; at < bytes.size();) {
      const Bytes& right = truth.at((start + at) / kGranuleSize);
      const uint64_t from = (start + at) % kGranuleSize;
      const uint64_t length = std::min(bytes.size() - at, right.size() - from);
      if (std::memcmp(bytes.data() + at, right.data() + from, length) != 0) {
        return false;
      }
      at += length;
    }
    return true;
  }

  void KnowAll(Known now) {
    for (auto& [granule, known_now] : known) known_now = now;
  }
  // Whether all granules of a range, or any, are so.
  bool All(Known now, uint64_t first = 0, uint64_t last = UINT64_MAX) const {
    return std::all_of(known.lower_bound(first), known.upper_bound(last),
                       [now](const auto& item) { return item.second == now; });
  }
  bool Any(Known now, uint64_t first = 0, uint64_t last = UINT64_MAX) const {
    return std::any_of(known.lower_bound(first), known.upper_bound(last),
                       [now](const auto& item) { return item.second == now; });
  }
};

// Whether the object in the folder has a header that counts.
inline bool HasHeader(const Modelled& object, const std::string& folder) {
  const UniqueFd meta(::open((folder + "/meta").c_str(), O_RDONLY | O_CLOEXEC));
  std::array<std::byte, kMetaHeaderSize> header{};
  return ::pread(meta.get(), header.data(), header.size(), 0) ==
             static_cast<ssize_t>(header.size()) &&
         CheckMetaHeader(header, object.id, object.size).has_value();
}

// What the disk says of a granule: there if its entry is the hash of its bytes.
// By other means than the cache's.
inline Known FoundOnDisk(const Modelled& object, const std::string& folder,
                         uint64_t granule) {
  if (!HasHeader(object, folder)) return Known::kAbsent;
  const UniqueFd meta(::open((folder + "/meta").c_str(), O_RDONLY | O_CLOEXEC));
  const UniqueFd data(::open((folder + "/data").c_str(), O_RDONLY | O_CLOEXEC));
  uint64_t entry = 0;
  Bytes bytes(object.truth.at(granule).size());
  const auto entry_at =
      MetaLayout::For(object.size).entries_offset + granule * sizeof(entry);
  const bool there = ::pread(meta.get(), &entry, sizeof(entry),
                             static_cast<off_t>(entry_at)) == sizeof(entry) &&
                     ::pread(data.get(), bytes.data(), bytes.size(),
                             static_cast<off_t>(granule * kGranuleSize)) ==
                         static_cast<ssize_t>(bytes.size()) &&
                     entry == GranuleHash(bytes);
  return there ? Known::kPresent : Known::kAbsent;
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CACHE_CACHE_MODEL_H_
