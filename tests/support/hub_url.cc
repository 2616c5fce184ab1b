// The URLs that the test hub understands (hub_state.h).

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/hub_state.h"

namespace weightfs {
namespace {

using TargetKind = HubTarget::Kind;

std::vector<std::string_view> Split(std::string_view path) {
  std::vector<std::string_view> parts;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    parts.push_back(path.substr(0, slash));
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return parts;
}

std::string Join(const std::vector<std::string_view>& parts, size_t first,
                 size_t last) {
  std::string text;
  for (size_t i = first; i < last && i < parts.size(); ++i) {
    if (i > first) text += '/';
    text += PercentDecode(parts[i]);
  }
  return text;
}

bool IsCommitId(std::string_view text) {
  return text.size() == 40 &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isxdigit(c) != 0; });
}

std::string Prefix(std::string_view type) {
  return type == "models" ? "" : std::string(type) + "/";
}

bool IsRepoType(std::string_view text) {
  return text == "models" || text == "datasets" || text == "spaces";
}

struct Verb {
  std::string_view word;
  TargetKind kind;
};
constexpr std::array<Verb, 6> kVerbs = {
    {{"revision", TargetKind::kInfo},
     {"tree", TargetKind::kTree},
     {"paths-info", TargetKind::kPathsInfo},
     {"refs", TargetKind::kRefs},
     {"commits", TargetKind::kCommits},
     {"xet-read-token", TargetKind::kXetToken}}};

// parts: "api", type, id…, [verb, rev, path…]; an id has one part or two.
HubTarget ParseApi(const std::vector<std::string_view>& parts) {
  HubTarget target;
  target.rev = "main";
  for (const size_t at : {size_t{3}, size_t{4}}) {
    if (at == parts.size()) {
      if (at == 3) continue;  // an id of one part, looked at below
      target.kind = TargetKind::kInfo;
      target.repo = Prefix(parts[1]) + Join(parts, 2, at);
      return target;
    }
    if (at > parts.size()) break;
    for (const auto& [word, kind] : kVerbs) {
      if (parts[at] != word) continue;
      if (kind != TargetKind::kRefs && parts.size() < at + 2) continue;
      target.kind = kind;
      target.repo = Prefix(parts[1]) + Join(parts, 2, at);
      if (parts.size() > at + 1) target.rev = PercentDecode(parts[at + 1]);
      target.path = Join(parts, at + 2, parts.size());
      return target;
    }
  }
  if (parts.size() == 3) {
    target.kind = TargetKind::kInfo;
    target.repo = Prefix(parts[1]) + Join(parts, 2, 3);
  }
  return target;
}

// parts: "api", "resolve-cache", type, id…, commit, path…
HubTarget ParseResolveCache(const std::vector<std::string_view>& parts) {
  HubTarget target;
  for (const size_t at : {size_t{4}, size_t{5}}) {
    if (parts.size() <= at + 1 || !IsCommitId(parts[at])) continue;
    target.kind = TargetKind::kResolveCache;
    target.repo = Prefix(parts[2]) + Join(parts, 3, at);
    target.rev = parts[at];
    target.path = Join(parts, at + 1, parts.size());
    return target;
  }
  return target;
}

// parts: ["datasets" | "spaces",] id…, "resolve", rev, path…
HubTarget ParseResolve(const std::vector<std::string_view>& parts) {
  HubTarget target;
  const bool typed =
      !parts.empty() && parts[0] != "models" && IsRepoType(parts[0]);
  const size_t first = typed ? 1 : 0;
  for (const size_t at : {first + 1, first + 2}) {
    if (parts.size() < at + 3 || parts[at] != "resolve") continue;
    target.kind = TargetKind::kResolve;
    target.repo = Join(parts, 0, at);
    target.rev = PercentDecode(parts[at + 1]);
    target.path = Join(parts, at + 2, parts.size());
    return target;
  }
  return target;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string PercentDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexValue(text[i + 1]) >= 0 &&
        HexValue(text[i + 2]) >= 0) {
      out +=
          static_cast<char>(HexValue(text[i + 1]) * 16 + HexValue(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string PercentEncode(std::string_view text, std::string_view safe) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  static constexpr std::string_view kUnreserved = "-._~";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || kUnreserved.find(c) != std::string::npos ||
        safe.find(c) != std::string::npos) {
      out += c;
    } else {
      out += '%';
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15];
    }
  }
  return out;
}

std::optional<std::string> QueryValue(std::string_view query,
                                      std::string_view key) {
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view field = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = std::min(field.find('='), field.size());
    if (PercentDecode(field.substr(0, equals)) != key) continue;
    std::string value(field.substr(std::min(equals + 1, field.size())));
    std::replace(value.begin(), value.end(), '+', ' ');
    return PercentDecode(value);
  }
  return std::nullopt;
}

HubTarget ParseHubTarget(TestHubListener listener, std::string_view path) {
  HubTarget target;
  if (!path.starts_with("/")) return target;
  const auto parts = Split(path.substr(1));
  if (listener == TestHubListener::kCdn) {
    if (parts.size() == 5 && parts[0] == "repos") {
      target.kind = TargetKind::kCdn;
      target.path = parts[4];
    } else if (parts.size() >= 4 && parts[0] == "files") {
      target.kind = TargetKind::kFiles;
      target.repo = Join(parts, 1, 3);
      target.rev = PercentDecode(parts[3]);
      target.path = Join(parts, 4, parts.size());
    }
    return target;
  }
  if (path == "/_control") {
    target.kind = TargetKind::kControl;
  } else if (path == "/api/agent-harnesses") {
    target.kind = TargetKind::kHarnesses;
  } else if (path == "/api/whoami-v2") {
    target.kind = TargetKind::kWhoami;
  } else if (parts.size() >= 3 && parts[0] == "api" &&
             parts[1] == "resolve-cache") {
    return ParseResolveCache(parts);
  } else if (parts.size() >= 3 && parts[0] == "api" && IsRepoType(parts[1])) {
    return ParseApi(parts);
  } else {
    return ParseResolve(parts);
  }
  return target;
}

}  // namespace weightfs
