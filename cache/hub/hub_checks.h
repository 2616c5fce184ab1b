// Decides from an answer's headers whether its body is the bytes that were
// asked for. Pure functions; what they refuse is not read.

#ifndef WEIGHTFS_CACHE_HUB_HUB_CHECKS_H_
#define WEIGHTFS_CACHE_HUB_HUB_CHECKS_H_

#include <cstdint>
#include <string>

#include "cache/http/http_client.h"
#include "cache/origin.h"
#include "formats/base/result.h"

namespace weightfs {

// kStale if the Hub's answer about `file` (its bytes or a redirect) names
// another commit, size or id than the listing.
Result<> CheckHubMetadata(const HttpResponse& response,
                          const std::string& commit, const FileInfo& file);

// kUnavailable for an answer that is compressed, though nobody asked for that.
Result<> CheckEncoding(const HttpResponse& response);

// A 206 that holds exactly bytes [offset, offset + length) of `size`. kStale if
// its total is another, kUnavailable for anything else.
Result<> CheckPartial(const HttpResponse& response, uint64_t offset,
                      uint64_t length, uint64_t size);

// A 200 to a request without a Range that holds all `size` bytes, unencoded;
// one without a length may hold them, which its body has to show.
Result<> CheckWhole(const HttpResponse& response, uint64_t size);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_CHECKS_H_
