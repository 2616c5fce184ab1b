#include "cache/hub/validators.h"

#include <utility>

#include "cache/http/http_fields.h"

namespace weightfs {
namespace {

constexpr size_t kMaxEtag = 1024;  // longer ones are not kept

}  // namespace

Result<> Validators::Check(const std::string& path, const Url& url,
                           const HttpResponse& response) {
  const auto etag = response.Header("ETag");
  if (!etag || etag->empty() || etag->size() > kMaxEtag ||
      etag->starts_with("W/")) {
    return {};
  }
  Entry& entry = entries_[path];
  if (std::string place = url.Redacted(); place != entry.place) {
    entry = {std::move(place), std::string(*etag)};
    return {};
  }
  if (entry.etag == *etag) return {};
  return MakeError(Code::kUnavailable,
                   "the file changed at the server: its ETag was {} and is {}",
                   PrintableText(entry.etag), PrintableText(*etag));
}

}  // namespace weightfs
