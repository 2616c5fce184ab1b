#include "cache/hub/hub_error.h"

#include <algorithm>

#include "cache/http/http_fields.h"
#include "cache/hub/hub_json.h"

namespace weightfs {
namespace {

constexpr std::string_view kInvalidToken =
    "Invalid credentials in Authorization header";
constexpr std::string_view kDisabled = "Access to this resource is disabled.";

// The server's own words, with the token blotted out should it repeat it.
std::string ServerMessage(const HubCall& call, const HttpResponse& response,
                          std::string_view body) {
  const std::string secret = call.token.value_or("");
  std::string text;
  if (const auto header = response.Header("X-Error-Message")) {
    text = PrintableText(*header, secret);
  }
  return text.empty() ? ParseHubErrorMessage(body, secret) : text;
}

std::string TokenSent(const HubCall& call) {
  return call.token ? "the token from " + call.token_source + " was sent"
                    : std::string("no token was sent");
}

Error Missing(const HubCall& call) {
  if (call.token) {
    return MakeError(Code::kNotFound,
                     "{}: {} has no repository {}, or it is private and the "
                     "token from {} may not read it: check the name and the "
                     "token's permissions",
                     call.subject, call.endpoint, call.repo, call.token_source);
  }
  return MakeError(Code::kNotFound,
                   "{}: {} has no repository {}, or it is private and no token "
                   "was sent: check the name, or give a token (HF_TOKEN, "
                   "--token-file, or `hf auth login`)",
                   call.subject, call.endpoint, call.repo);
}

Error Gated(const HubCall& call) {
  return MakeError(
      Code::kDenied,
      "{}: {} is gated ({}): request access at {}/{}, then try again{}",
      call.subject, call.repo, TokenSent(call), call.endpoint, call.repo,
      call.token ? "" : " with a token of the account that has it");
}

Error BadToken(const HubCall& call) {
  return MakeError(Code::kDenied,
                   "{}: {} does not accept the token from {}: it is wrong or "
                   "expired; renew it, or remove it for public repositories",
                   call.subject, call.endpoint, call.token_source);
}

std::string WithWords(const std::string& text, const std::string& words) {
  return words.empty() ? text : text + ": " + words;
}

Error Passing(const HubCall& call, const HttpResponse& response,
              const std::string& words) {
  const bool limited = response.status == 429;
  std::string what = fmt::format("{}: HTTP {}{}", call.subject, response.status,
                                 limited ? " (rate limit)" : "");
  if (limited && !call.token)
    what += ", no token was sent: one raises the limit";
  Error error(Code::kUnavailable, WithWords(what, words));
  const auto wait = RetryAfter(response);
  return wait ? std::move(error).WithRetryAfter(*wait) : std::move(error);
}

}  // namespace

Error HubError(const HubCall& call, const HttpResponse& response,
               std::string_view body) {
  const int status = response.status;
  const std::string words = ServerMessage(call, response, body);
  if (IsPassing(status)) {
    return Passing(call, response, words);
  }
  const std::string code(response.Header("X-Error-Code").value_or(""));
  if (code == "RevisionNotFound") {
    return MakeError(Code::kNotFound, "{}: {} has no revision \"{}\"",
                     call.subject, call.repo, call.revision);
  }
  if (code == "EntryNotFound") {
    return MakeError(Code::kNotFound, "{}: no such file at this commit",
                     call.subject);
  }
  if (code == "GatedRepo") return Gated(call);
  if (words == kDisabled) {
    return MakeError(Code::kDenied, "{}: access to {} is disabled by {}",
                     call.subject, call.repo, call.endpoint);
  }
  if (status == 401 && words == kInvalidToken) return BadToken(call);
  if (code == "RepoNotFound" || status == 401) return Missing(call);
  if (status == 403) {
    return MakeError(
        Code::kDenied, "{}",
        WithWords(fmt::format("{}: forbidden (HTTP 403; {}): the token's "
                              "scope or permissions do not cover {}",
                              call.subject, TokenSent(call), call.repo),
                  words));
  }
  const std::string what =
      WithWords(fmt::format("{}: HTTP {}", call.subject, status), words);
  if (status == 404) return Error(Code::kNotFound, what);
  if (status == 416) return Error(Code::kStale, what);
  return Error(Code::kUnsupported, what);
}

Result<> CheckToken(const std::optional<std::string>& token,
                    std::string_view source) {
  if (!token || std::all_of(token->begin(), token->end(),
                            [](char c) { return c > 0x20 && c < 0x7f; })) {
    return {};
  }
  return MakeError(Code::kDenied,
                   "the token from {} holds white space or bytes that are not "
                   "ASCII: it cannot be a token",
                   source);
}

}  // namespace weightfs
