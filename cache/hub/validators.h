// Validators: by which strong ETag each file's bytes came so far. Parts under
// different strong ETags of one URL are of different bytes, and are not put
// together (RFC 9110 §15.3.7.3): what changed at the server must not be mixed.
//
// Thread-safety: none; used on the HTTP client's loop thread only.

#ifndef WEIGHTFS_CACHE_HUB_VALIDATORS_H_
#define WEIGHTFS_CACHE_HUB_VALIDATORS_H_

#include <map>
#include <string>

#include "cache/http/http_client.h"
#include "cache/http/url.h"
#include "formats/base/result.h"

namespace weightfs {

class Validators {
 public:
  // kUnavailable if the file's earlier bytes came from the same place (`url`
  // but for its query) under another strong ETag than `response` has. The first
  // one is remembered, and so is the first one of another place.
  Result<> Check(const std::string& path, const Url& url,
                 const HttpResponse& response);

 private:
  struct Entry {
    std::string place;
    std::string etag;
  };
  std::map<std::string, Entry> entries_;  // no more than files
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_VALIDATORS_H_
