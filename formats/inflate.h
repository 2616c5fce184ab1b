// Inflating a zip's deflated member into memory. Pure function.

#ifndef WEIGHTFS_FORMATS_INFLATE_H_
#define WEIGHTFS_FORMATS_INFLATE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "formats/base/result.h"

namespace weightfs {

// The `size` bytes that a raw deflate stream (RFC 1951) makes. kCorrupt if it
// is none, makes more or less, or does not end where `deflated` does. Memory is
// taken as bytes come out, so a false `size` costs nothing. REQUIRES: the
// caller bounds `size`.
Result<std::string> Inflate(std::span<const std::byte> deflated, uint64_t size);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_INFLATE_H_
