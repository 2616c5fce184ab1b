#include "cache/hub/hub_checks.h"

#include <strings.h>

#include <algorithm>

#include "cache/http/http_fields.h"
#include "cache/hub/hub_json.h"

namespace weightfs {
namespace {

// Headers that say what the body is, and say it once.
Result<> CheckFraming(const HttpResponse& response) {
  for (const char* name :
       {"Content-Range", "Content-Length", "Content-Encoding"}) {
    if (response.Agrees(name)) continue;
    return MakeError(Code::kUnavailable, "an answer with two kinds of {}",
                     name);
  }
  if (response.Header("Content-Length") && !ContentLength(response)) {
    return Error(Code::kUnavailable, "an answer with a bad Content-Length");
  }
  return CheckEncoding(response);
}

// "multipart/byteranges" has headers of its own between the bytes.
bool IsMultipart(const HttpResponse& response) {
  constexpr std::string_view kMultipart = "multipart/";
  return std::any_of(
      response.headers.begin(), response.headers.end(),
      [&](const auto& header) {
        return strcasecmp(header.first.c_str(), "Content-Type") == 0 &&
               strncasecmp(header.second.c_str(), kMultipart.data(),
                           kMultipart.size()) == 0;
      });
}

// X-Linked-Etag is the file's id. A plain ETag is, too, where it looks like
// one; the hosts of the bytes have ETags of their own kinds.
Result<> CheckEtag(const HttpResponse& response, const FileInfo& file) {
  const auto linked = response.Header("X-Linked-Etag");
  const auto header = linked ? linked : response.Header("ETag");
  if (!header) return {};
  const std::string_view etag = NormalizeEtag(*header);
  const bool is_id = IsHexId(etag, 40) || IsHexId(etag, 64);
  if (!is_id || etag == file.id.value) return {};
  if (!linked && etag.size() != file.id.value.size()) return {};
  return MakeError(Code::kStale, "the Hub now has id {}, the listing has {}",
                   etag, file.id.value);
}

}  // namespace

Result<> CheckEncoding(const HttpResponse& response) {
  const auto encoding = response.Header("Content-Encoding");
  if (!encoding || encoding->empty() ||
      strcasecmp(std::string(*encoding).c_str(), "identity") == 0) {
    return {};
  }
  return MakeError(Code::kUnavailable, "an answer encoded as {}, unasked",
                   PrintableText(*encoding));
}

Result<> CheckHubMetadata(const HttpResponse& response,
                          const std::string& commit, const FileInfo& file) {
  if (const auto named = response.Header("X-Repo-Commit");
      named && *named != commit) {
    return MakeError(Code::kStale, "the Hub answered for commit {}, not {}",
                     PrintableText(*named), commit);
  }
  if (const auto size = response.Header("X-Linked-Size");
      size && ParseDecimal(*size) != file.size) {
    return MakeError(Code::kStale,
                     "the Hub now has {} bytes, the listing has {}",
                     PrintableText(*size), file.size);
  }
  return CheckEtag(response, file);
}

Result<> CheckPartial(const HttpResponse& response, uint64_t offset,
                      uint64_t length, uint64_t size) {
  RETURN_IF_ERROR(CheckFraming(response));
  if (IsMultipart(response)) {
    return Error(Code::kUnavailable, "a body of several parts");
  }
  const auto header = response.Header("Content-Range");
  const auto range = header ? ParseContentRange(*header) : std::nullopt;
  if (!range || !range->total) {
    return MakeError(Code::kUnavailable, "a bad Content-Range \"{}\"",
                     PrintableText(header.value_or("")));
  }
  if (*range->total != size) {
    return MakeError(Code::kStale,
                     "Content-Range says {} bytes, the listing has {}",
                     *range->total, size);
  }
  if (range->first != offset || range->last != offset + length - 1) {
    return MakeError(Code::kUnavailable, "bytes {}-{} instead", range->first,
                     range->last);
  }
  if (const auto announced = ContentLength(response);
      announced && *announced != length) {
    return MakeError(Code::kUnavailable, "a body of {} bytes for {}",
                     *announced, length);
  }
  return {};
}

Result<> CheckWhole(const HttpResponse& response, uint64_t size) {
  RETURN_IF_ERROR(CheckFraming(response));
  // Without one its body has to show.
  const auto announced = ContentLength(response);
  if (!announced || *announced == size) return {};
  return MakeError(Code::kUnavailable, "a body of {} bytes for {}", *announced,
                   size);
}

}  // namespace weightfs
