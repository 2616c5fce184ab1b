// ContentHash: the whole-file hash that a ContentId names: SHA-256 of the
// bytes, or SHA-1 of git's "blob SIZE\0" and the bytes.
//
// Thread-safety: not thread-safe.

#ifndef WEIGHTFS_CACHE_CONTENT_HASH_H_
#define WEIGHTFS_CACHE_CONTENT_HASH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cache/origin.h"

struct evp_md_ctx_st;

namespace weightfs {

class ContentHash {
 public:
  // REQUIRES: `kind` is kSha256 or kGit. `size`: of the whole file.
  ContentHash(ContentId::Kind kind, uint64_t size);
  ~ContentHash();
  ContentHash(ContentHash&&) noexcept;
  ContentHash& operator=(ContentHash&&) noexcept;

  // The next bytes, in order.
  void Add(std::span<const std::byte> bytes);
  uint64_t added() const { return added_; }
  // Lower-case hex; ends the hash.
  std::string Finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
  uint64_t added_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_CONTENT_HASH_H_
