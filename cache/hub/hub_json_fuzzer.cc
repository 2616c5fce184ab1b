// Fuzzes hub_json.h and hub_error.h. The first byte says what the rest is: 'i'
// the answer about a repository, 'e' an error (the token that was sent, a
// header and the body, a line each), else pages of a listing, NUL between them.
// Whatever the bytes: no crash; what is accepted obeys the header's rules; what
// is refused says why in plain text; no message repeats the token.

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "cache/hub/hub_error.h"
#include "cache/hub/hub_json.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckPlain(std::string_view text) {
  for (const char c : text) Require(c >= 0x20 && c < 0x7f);
}

void CheckRefused(const Error& error) {
  Require(error.code() == Code::kCorrupt && !error.message().empty());
  CheckPlain(error.message());
}

void CheckInfo(std::string_view text) {
  const auto info = ParseHubRepoInfo(text);
  if (!info.has_value()) return CheckRefused(info.error());
  Require(IsHexId(info->commit, 40));
}

void CheckFile(const FileInfo& file) {
  Require(IsSafePath(file.path) && file.path.size() <= kMaxHubPath);
  Require(file.size <= static_cast<uint64_t>(INT64_MAX));
  const bool lfs = file.id.kind == ContentId::Kind::kSha256;
  Require(lfs || file.id.kind == ContentId::Kind::kGit);
  Require(IsHexId(file.id.value, lfs ? 64 : 40));
}

// Sorted, each path once, none below another.
void CheckListing(const std::vector<FileInfo>& files) {
  for (size_t i = 1; i < files.size(); ++i) {
    const std::string& before = files[i - 1].path;
    Require(before < files[i].path);
  }
  for (size_t i = 0; i < files.size() && files.size() < 200; ++i) {
    for (const FileInfo& other : files) {
      Require(!other.path.starts_with(files[i].path + "/"));
    }
  }
}

void CheckTree(std::string_view text) {
  std::vector<FileInfo> files;
  while (true) {
    const size_t end = std::min(text.find('\0'), text.size());
    const auto parsed = ParseHubTreePage(text.substr(0, end), files);
    if (!parsed.has_value()) return CheckRefused(parsed.error());
    if (end == text.size()) break;
    text.remove_prefix(end + 1);
  }
  for (const FileInfo& file : files) CheckFile(file);
  const size_t count = files.size();
  auto twice = files;
  twice.insert(twice.end(), files.begin(), files.end());
  const auto finished = FinishHubListing(files);
  Require(files.size() == count);
  if (!finished.has_value()) return CheckRefused(finished.error());
  CheckListing(files);
  Require(FinishHubListing(twice).has_value() == files.empty());
}

void CheckError(std::string_view text) {
  const auto take_line = [&] {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string line(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    return line;
  };
  HubCall call;
  call.token = take_line();
  // Other texts may be in a message's own words.
  const bool token = call.token->starts_with("hf_") &&
                     std::all_of(call.token->begin() + 3, call.token->end(),
                                 [](char c) { return std::isalnum(c) != 0; });
  const std::string header = take_line();
  for (const int status : {401, 403, 404, 416, 429, 503}) {
    const Error error =
        HubError(call, {status, {{"X-Error-Message", header}}}, text);
    CheckPlain(error.message());
    Require(!error.message().empty() && error.message().size() < 1000);
    Require(!token || error.message().find(*call.token) == std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(data + 1, data + size);
  switch (data[0]) {
    case 'i':
      CheckInfo(bytes);
      return 0;
    case 'e':
      CheckError(bytes);
      return 0;
    default:
      CheckTree(bytes);
      return 0;
  }
}
