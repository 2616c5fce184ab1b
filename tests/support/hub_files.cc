#include "tests/support/hub_files.h"

#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "tests/support/hub_text.h"

namespace weightfs {
namespace {

struct Range {
  uint64_t first = 0;
  uint64_t length = 0;
};

enum class RangeKind { kWhole, kPart, kUnsatisfiable };

// RFC 9110 §14.1.2; what is malformed or has several ranges means the whole.
RangeKind ParseRange(std::string_view header, uint64_t size, Range& range) {
  range = {0, size};
  if (!header.starts_with("bytes=")) return RangeKind::kWhole;
  header.remove_prefix(6);
  const size_t dash = header.find('-');
  if (dash == std::string_view::npos) return RangeKind::kWhole;
  const auto first = HubNumber(header.substr(0, dash));
  const std::string_view rest = header.substr(dash + 1);
  const auto last = HubNumber(rest);
  if (dash == 0) {  // the last N bytes
    if (!last) return RangeKind::kWhole;
    if (*last == 0 || size == 0) return RangeKind::kUnsatisfiable;
    range.length = std::min(*last, size);
    range.first = size - range.length;
    return RangeKind::kPart;
  }
  if (!first || (!last && !rest.empty())) return RangeKind::kWhole;
  if (last && *last < *first) return RangeKind::kWhole;
  if (*first >= size) return RangeKind::kUnsatisfiable;
  range.first = *first;
  range.length = (last ? std::min(*last, size - 1) : size - 1) - *first + 1;
  return RangeKind::kPart;
}

// Files and folders (with a "/") right below `folder`.
std::set<std::string> NamesBelow(const HubCommit& commit,
                                 const std::string& folder) {
  const std::string prefix = folder.empty() ? "" : folder + "/";
  std::set<std::string> names;
  for (const auto& [path, entry] : commit.files) {
    if (!path.starts_with(prefix)) continue;
    const std::string name = path.substr(prefix.size());
    names.insert(name.substr(0, std::min(name.find('/'), name.size() - 1) + 1));
  }
  return names;
}

HubReply Page(const std::set<std::string>& names) {
  std::string html = "<!DOCTYPE html>\n<html><body>\n";
  for (const std::string& name : names) {
    const std::string link = PercentEncode(name, "/");
    html += "<a href=\"" + link + "\">" + link + "</a>\n";
  }
  HubReply reply;
  SetHubBody(reply, html + "</body></html>\n", "text/html; charset=utf-8");
  return reply;
}

}  // namespace

HubReply HubBytes(const TestHubRequest& request,
                  const TestHubContentPtr& content, const std::string& etag) {
  HubReply reply;
  PutHubHeader(reply, "Accept-Ranges", "bytes");
  PutHubHeader(reply, "ETag", HubQuoted(etag));
  if (request.Header("If-None-Match") == HubQuoted(etag)) {
    reply.status = 304;
    return reply;
  }
  const std::string if_range = request.Header("If-Range");
  const bool ranged = if_range.empty() || if_range == HubQuoted(etag);
  Range range;
  const uint64_t size = content->size();
  switch (ParseRange(ranged ? request.range : "", size, range)) {
    case RangeKind::kWhole:
      break;
    case RangeKind::kPart:
      reply.status = 206;
      PutHubHeader(reply, "Content-Range",
                   "bytes " + std::to_string(range.first) + "-" +
                       std::to_string(range.first + range.length - 1) + "/" +
                       std::to_string(size));
      break;
    case RangeKind::kUnsatisfiable:
      reply.status = 416;
      PutHubHeader(reply, "Content-Range", "bytes */" + std::to_string(size));
      return reply;
  }
  reply.body = content;
  reply.offset = range.first;
  reply.length = range.length;
  return reply;
}

HubReply AnswerHubFiles(const TestHub::State& hub,
                        const TestHubRequest& request,
                        const HubTarget& target) {
  const auto missing = [&] {
    return HubJsonError(404, "", "no file " + request.path);
  };
  const auto repo = hub.FindRepo(target.repo);
  if (!repo || repo->options.is_private || repo->options.gated) {
    return missing();
  }
  const auto ref = repo->refs.find(target.rev);
  const auto commit =
      repo->commits.find(ref == repo->refs.end() ? target.rev : ref->second);
  if (commit == repo->commits.end()) return missing();
  const auto& files = commit->second->files;
  if (const auto file = files.find(target.path); file != files.end()) {
    const TestHubContentPtr& content = file->second.content;
    HubReply reply = HubBytes(request, content, content->Sha256());
    PutHubHeader(reply, "Content-Type", "application/octet-stream");
    PutHubHeader(reply, "Last-Modified", "Wed, 01 May 2024 12:00:00 GMT");
    return reply;
  }
  const auto names = NamesBelow(*commit->second, target.path);
  return names.empty() ? missing() : Page(names);
}

}  // namespace weightfs
