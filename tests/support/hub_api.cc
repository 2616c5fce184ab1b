// The test hub's answers: the Hub's API and resolve, and the CDN, before any
// fault is applied.

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/hub_files.h"
#include "tests/support/hub_state.h"
#include "tests/support/hub_text.h"

namespace weightfs {
namespace {

using Json = nlohmann::json;
using TargetKind = HubTarget::Kind;

constexpr std::string_view kModified = "2024-05-01T12:00:00.000Z";

// Of a hub request that has passed the checks on repo and revision.
struct Found {
  HubRepo repo;
  HubCommitPtr commit;
};

std::string ApiType(const std::string& repo) {
  if (repo.starts_with("datasets/")) return "datasets";
  if (repo.starts_with("spaces/")) return "spaces";
  return "models";
}

std::string BareId(const std::string& repo) {
  const std::string type = ApiType(repo);
  return type == "models" ? repo : repo.substr(type.size() + 1);
}

HubReply JsonReply(const Json& json) {
  HubReply reply;
  SetHubBody(reply, json.dump(), "application/json; charset=utf-8");
  return reply;
}

std::string BearerToken(const TestHubRequest& request) {
  constexpr std::string_view kScheme = "Bearer ";
  const std::string& header = request.authorization;
  return header.starts_with(kScheme) ? header.substr(kScheme.size()) : header;
}

// --- the CDN ---

HubReply AnswerCdn(const TestHub::State& hub, const TestHubRequest& request,
                   const HubTarget& target) {
  HubReply reply;
  const auto refuse = [&reply](int status, const std::string& code,
                               const std::string& message) {
    reply.status = status;
    SetHubBody(reply,
               "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>" +
                   code + "</Code><Message>" + message + "</Message></Error>",
               "application/xml");
    return reply;
  };
  if (!request.authorization.empty()) {
    return refuse(400, "InvalidArgument",
                  "Only one auth mechanism allowed; the token leaked");
  }
  if (request.method != "GET" && request.method != "HEAD") {
    return refuse(405, "MethodNotAllowed", "GET and HEAD only");
  }
  if (target.kind == TargetKind::kFiles)
    return AnswerHubFiles(hub, request, target);
  if (target.kind != TargetKind::kCdn)
    return refuse(404, "NoSuchKey", "no such key");
  if (!hub.SignatureHolds(request.path, request.query)) {
    return refuse(403, "AccessDenied", "Request has expired or is not signed");
  }
  const size_t folder = request.path.rfind('/');
  const size_t parent = request.path.rfind('/', folder - 1);
  const auto entry = hub.FindByDigest(
      request.path.substr(parent + 1, folder - parent - 1), target.path);
  if (!entry) return refuse(404, "NoSuchKey", "no such key");
  reply = HubBytes(request, entry->content, target.path);
  PutHubHeader(reply, "Content-Type", "application/octet-stream");
  PutHubHeader(reply, "Cache-Control", "public, max-age=31536000");
  return reply;
}

// --- the API ---

Json LfsJson(const TestHubContent& content, const char* digest_key) {
  return {{digest_key, content.Sha256()},
          {"size", content.size()},
          {"pointerSize", content.PointerSize()}};
}

Json EntryJson(const std::string& path, const HubEntry& entry,
               bool pointer_size, bool expand) {
  const TestHubContent& content = *entry.content;
  Json json = {{"type", "file"}, {"path", path}, {"size", content.size()}};
  if (entry.lfs) {
    json["oid"] = content.PointerSha1();
    json["lfs"] = LfsJson(content, "oid");
    if (pointer_size) json["size"] = content.PointerSize();
  } else {
    json["oid"] = content.GitBlobSha1();
  }
  if (expand) {
    json["lastCommit"] = {
        {"id", std::string(40, '0')}, {"title", "Upload"}, {"date", kModified}};
    json["securityFileStatus"] = {{"status", "safe"}};
  }
  return json;
}

Json FolderJson(const std::string& path) {
  return {{"type", "directory"},
          {"path", path},
          {"size", 0},
          {"oid", HubSha1("tree " + path)}};
}

HubReply AnswerInfo(const TestHubRequest& request, const HubTarget& target,
                    const Found& found) {
  const HubCommit& commit = *found.commit;
  const bool blobs =
      QueryValue(request.query, "blobs").value_or("") == "true" ||
      QueryValue(request.query, "blobs").value_or("") == "True";
  Json siblings = Json::array();
  for (const auto& [path, entry] : commit.files) {
    Json sibling = {{"rfilename", path}};
    if (blobs) {
      sibling["size"] = entry.content->size();
      if (entry.lfs) {
        sibling["blobId"] = entry.content->PointerSha1();
        sibling["lfs"] = LfsJson(*entry.content, "sha256");
      } else {
        sibling["blobId"] = entry.content->GitBlobSha1();
      }
    }
    siblings.push_back(std::move(sibling));
  }
  const std::string id = BareId(target.repo);
  Json json = {{"_id", HubSha1(target.repo).substr(0, 24)},
               {"id", id},
               {"modelId", id},
               {"author", id.substr(0, id.find('/'))},
               {"sha", commit.id},
               {"lastModified", kModified},
               {"createdAt", kModified},
               {"private", found.repo.options.is_private},
               {"disabled", found.repo.options.disabled},
               {"gated", false},
               {"downloads", 0},
               {"likes", 0},
               {"tags", Json::array()},
               {"siblings", std::move(siblings)}};
  if (found.repo.options.gated) json["gated"] = "manual";
  return JsonReply(json);
}

struct Listed {
  std::string path;
  const HubEntry* file = nullptr;  // null: a directory
};

// Every file and directory under `folder` ("": the root), sorted by path.
std::vector<Listed> ListTree(const HubCommit& commit, const std::string& folder,
                             bool recursive) {
  const std::string prefix = folder.empty() ? "" : folder + "/";
  std::map<std::string, const HubEntry*> all;
  for (const auto& [path, entry] : commit.files) {
    if (!path.starts_with(prefix)) continue;
    size_t slash = path.find('/', prefix.size());
    while (slash != std::string::npos) {
      all.emplace(path.substr(0, slash), nullptr);
      if (!recursive) break;
      slash = path.find('/', slash + 1);
    }
    if (slash == std::string::npos) all[path] = &entry;
  }
  std::vector<Listed> listed;
  listed.reserve(all.size());
  for (const auto& [path, entry] : all) listed.push_back({path, entry});
  return listed;
}

bool IsTrue(const std::string& query, std::string_view key) {
  const std::string value = QueryValue(query, key).value_or("");
  return value == "true" || value == "True" || value == "1";
}

HubReply EntryMissing(const HubTarget& target, const HubCommit& commit) {
  HubReply reply =
      HubJsonError(404, "EntryNotFound",
                   target.path + " does not exist on \"" + target.rev + "\"");
  PutHubHeader(reply, "X-Repo-Commit", commit.id);
  return reply;
}

HubReply AnswerTree(const TestHub::State& hub, const TestHubRequest& request,
                    const HubTarget& target, const Found& found) {
  const HubCommit& commit = *found.commit;
  const TestHubSettings settings = hub.settings();
  const auto listed =
      ListTree(commit, target.path, IsTrue(request.query, "recursive"));
  if (listed.empty() && !target.path.empty()) {
    return EntryMissing(target, commit);
  }
  const bool expand = IsTrue(request.query, "expand");
  uint64_t limit = settings.tree_page_size;
  if (const auto asked = QueryValue(request.query, "limit")) {
    const auto number = HubNumber(*asked);
    if (!number || *number == 0) {
      return HubJsonError(400, "", "\"limit\" must be a positive number");
    }
    limit = std::min(limit, *number);
  }
  uint64_t start = 0;
  if (const auto cursor = QueryValue(request.query, "cursor")) {
    const auto number = HubNumber(*cursor);
    if (!number) return HubJsonError(400, "", "bad cursor");
    start = std::min<uint64_t>(*number, listed.size());
  }
  const uint64_t end = std::min<uint64_t>(start + limit, listed.size());
  Json page = Json::array();
  for (uint64_t i = start; i < end; ++i) {
    const auto& [path, file] = listed[i];
    page.push_back(
        file == nullptr
            ? FolderJson(path)
            : EntryJson(path, *file, settings.tree_has_pointer_size, expand));
  }
  HubReply reply = JsonReply(page);
  PutHubHeader(reply, "X-Repo-Commit", commit.id);
  if (end < listed.size()) {
    const std::string& origin = settings.next_page_origin;
    std::string next = (origin.empty() ? hub.url() : origin) + request.path;
    next += "?recursive=" +
            std::string(IsTrue(request.query, "recursive") ? "true" : "false");
    next += std::string("&expand=") + (expand ? "true" : "false");
    next += "&limit=" + std::to_string(limit);
    next += "&cursor=" + std::to_string(end);
    PutHubHeader(reply, "Link", "<" + next + ">; rel=\"next\"");
  }
  return reply;
}

HubReply AnswerPathsInfo(const TestHubRequest& request, const HubTarget& target,
                         const Found& found, const std::string& body,
                         bool pointer_size) {
  if (request.method != "POST") return HubJsonError(405, "", "POST only");
  std::vector<std::string> paths;
  bool expand = IsTrue(body, "expand");
  const Json json = Json::parse(body, nullptr, false);
  if (json.is_object()) {
    for (const Json& path : json.value("paths", Json::array())) {
      if (path.is_string()) paths.push_back(path.get<std::string>());
    }
    expand = json.contains("expand") && json["expand"] == true;
  } else {
    for (size_t at = 0; at < body.size();) {
      const size_t end = std::min(body.find('&', at), body.size());
      const std::string_view field(body.data() + at, end - at);
      if (const auto path = QueryValue(field, "paths")) paths.push_back(*path);
      at = end + 1;
    }
  }
  Json entries = Json::array();
  for (const std::string& path : paths) {
    const auto file = found.commit->files.find(path);
    if (file != found.commit->files.end()) {
      entries.push_back(EntryJson(path, file->second, pointer_size, expand));
    } else if (!ListTree(*found.commit, path, false).empty()) {
      entries.push_back(FolderJson(path));
    }
  }
  HubReply reply = JsonReply(entries);
  PutHubHeader(reply, "X-Repo-Commit", found.commit->id);
  (void)target;
  return reply;
}

HubReply AnswerRefs(const HubRepo& repo) {
  Json branches = Json::array();
  Json pulls = Json::array();
  for (const auto& [name, commit] : repo.refs) {
    const bool pull = name.starts_with("refs/");
    (pull ? pulls : branches)
        .push_back({{"name", name},
                    {"ref", pull ? name : "refs/heads/" + name},
                    {"targetCommit", commit}});
  }
  return JsonReply({{"branches", branches},
                    {"tags", Json::array()},
                    {"converts", Json::array()},
                    {"pullRequests", pulls}});
}

HubReply AnswerCommits(const HubCommit& commit) {
  return JsonReply(Json::array({{{"id", commit.id},
                                 {"title", "Upload"},
                                 {"message", ""},
                                 {"date", kModified},
                                 {"authors", Json::array()}}}));
}

// hf-mount asks for it at start, even where no file is Xet's.
HubReply AnswerXetToken(const TestHub::State& hub) {
  return JsonReply({{"casUrl", hub.url()},
                    {"exp", 4102444800},
                    {"accessToken", "xet-test-token"}});
}

// --- resolve ---

HubReply AnswerResolve(const TestHub::State& hub, const TestHubRequest& request,
                       const HubTarget& target, const Found& found) {
  const HubCommit& commit = *found.commit;
  const auto file = commit.files.find(target.path);
  if (file == commit.files.end()) return EntryMissing(target, commit);
  const HubEntry& entry = file->second;
  HubReply reply;
  if (entry.lfs) {
    reply.status = 302;
    SetHubBody(reply, "Found. Redirecting to the CDN", "text/plain");
    PutHubHeader(reply, "Location",
                 hub.SignedUrl(target.repo, entry, target.path));
    PutHubHeader(reply, "X-Linked-Size", std::to_string(entry.content->size()));
    PutHubHeader(reply, "X-Linked-Etag", HubQuoted(entry.content->Sha256()));
    PutHubHeader(reply, "Accept-Ranges", "bytes");
  } else {
    const std::string etag = HubQuoted(entry.content->GitBlobSha1());
    reply.status = 307;
    SetHubBody(reply, "Temporary Redirect", "text/plain");
    PutHubHeader(reply, "Location",
                 "/api/resolve-cache/" + ApiType(target.repo) + "/" +
                     BareId(target.repo) + "/" + commit.id + "/" +
                     PercentEncode(target.path, "/") + "?" +
                     PercentEncode(request.path, "") +
                     "=&etag=" + PercentEncode(etag, ""));
  }
  PutHubHeader(reply, "X-Repo-Commit", commit.id);
  PutHubHeader(reply, "Vary", "Origin");
  return reply;
}

HubReply AnswerResolveCache(const TestHub::State& hub,
                            const TestHubRequest& request,
                            const HubTarget& target, const Found& found) {
  const HubCommit& commit = *found.commit;
  const auto file = commit.files.find(target.path);
  if (file == commit.files.end()) return EntryMissing(target, commit);
  const std::string etag = file->second.content->GitBlobSha1();
  if (QueryValue(request.query, "etag") != HubQuoted(etag)) {
    return HubJsonError(400, "", "the redirect's query was not kept");
  }
  HubReply reply = HubBytes(request, file->second.content, etag);
  PutHubHeader(reply, "Content-Type", "text/plain; charset=utf-8");
  PutHubHeader(reply, "X-Repo-Commit", commit.id);
  reply.hide_length =
      request.method == "HEAD" && hub.settings().head_without_size;
  return reply;
}

// --- who may, and where it moved ---

HubReply RepoMissing(bool with_token) {
  if (with_token) {
    return HubJsonError(404, "RepoNotFound", "Repository not found");
  }
  // The Hub does not tell strangers whether a private repo exists.
  HubReply reply =
      HubJsonError(401, "RepoNotFound", "Invalid username or password.");
  PutHubHeader(reply, "WWW-Authenticate",
               "Bearer realm=\"Authentication required\", charset=\"UTF-8\"");
  return reply;
}

std::optional<HubReply> CheckAccess(const HubRepo& repo,
                                    const TestHubRequest& request,
                                    const HubTarget& target) {
  const TestHubRepoOptions& options = repo.options;
  const std::string token = BearerToken(request);
  const bool reader = options.readers.contains(token);
  if (options.is_private && !reader) return RepoMissing(!token.empty());
  if (options.disabled) {
    return HubJsonError(403, "", "Access to this resource is disabled.");
  }
  const bool bytes = target.kind == TargetKind::kResolve ||
                     target.kind == TargetKind::kResolveCache;
  if (options.gated && bytes && !reader) {
    const std::string id = BareId(target.repo);
    if (token.empty()) {
      return HubJsonError(401, "GatedRepo",
                          "Access to model " + id +
                              " is restricted. You must have access to it and "
                              "be authenticated to access it. Please log in.");
    }
    return HubJsonError(403, "GatedRepo",
                        "Access to model " + id +
                            " is restricted and you are not in the authorized "
                            "list. Visit https://huggingface.co/" +
                            id + " to ask for access.");
  }
  return std::nullopt;
}

HubCommitPtr FindCommit(const HubRepo& repo, const std::string& rev) {
  const auto ref = repo.refs.find(rev);
  const auto commit =
      repo.commits.find(ref == repo.refs.end() ? rev : ref->second);
  return commit == repo.commits.end() ? nullptr : commit->second;
}

HubReply Moved(const TestHubRequest& request, const std::string& from,
               const std::string& to) {
  std::string url = request.path;
  const std::string old_id = BareId(from);
  if (const size_t at = url.find(old_id); at != std::string::npos) {
    url.replace(at, old_id.size(), BareId(to));
  }
  if (!request.query.empty()) url += "?" + request.query;
  HubReply reply;
  reply.status = 307;
  PutHubHeader(reply, "Location", std::move(url));
  return reply;
}

HubReply AnswerRepo(const TestHub::State& hub, const TestHubRequest& request,
                    const HubTarget& target, const std::string& body) {
  auto repo = hub.FindRepo(target.repo);
  if (!repo) {
    if (const auto alias = hub.FindAlias(target.repo)) {
      return Moved(request, target.repo, *alias);
    }
    return RepoMissing(!request.authorization.empty());
  }
  if (auto refused = CheckAccess(*repo, request, target)) {
    return std::move(*refused);
  }
  if (target.kind == TargetKind::kRefs) return AnswerRefs(*repo);
  const Found found = {*repo, FindCommit(*repo, target.rev)};
  if (found.commit == nullptr) {
    return HubJsonError(404, "RevisionNotFound",
                        "Invalid rev id: " + target.rev);
  }
  switch (target.kind) {
    case TargetKind::kInfo:
      return AnswerInfo(request, target, found);
    case TargetKind::kTree:
      return AnswerTree(hub, request, target, found);
    case TargetKind::kPathsInfo:
      return AnswerPathsInfo(request, target, found, body,
                             hub.settings().tree_has_pointer_size);
    case TargetKind::kCommits:
      return AnswerCommits(*found.commit);
    case TargetKind::kXetToken:
      return AnswerXetToken(hub);
    case TargetKind::kResolve:
      return AnswerResolve(hub, request, target, found);
    case TargetKind::kResolveCache:
      return AnswerResolveCache(hub, request, target, found);
    default:
      return HubJsonError(404, "", "Sorry, we can't find the page");
  }
}

}  // namespace

void SetHubBody(HubReply& reply, std::string text, std::string type) {
  reply.body = MemoryContent(std::move(text));
  reply.offset = 0;
  reply.length = reply.body->size();
  PutHubHeader(reply, "Content-Type", std::move(type));
}

HubReply HubJsonError(int status, const std::string& code,
                      const std::string& message) {
  HubReply reply = JsonReply({{"error", message}});
  reply.status = status;
  if (!code.empty()) PutHubHeader(reply, "X-Error-Code", code);
  PutHubHeader(reply, "X-Error-Message", message);
  return reply;
}

HubReply BuildHubReply(TestHub::State& hub, const TestHubRequest& request,
                       const HubTarget& target, const std::string& body) {
  if (request.listener == TestHubListener::kCdn) {
    return AnswerCdn(hub, request, target);
  }
  const std::string token = BearerToken(request);
  if (!token.empty() && !hub.KnowsToken(token)) {
    return HubJsonError(401, "", "Invalid credentials in Authorization header");
  }
  if (request.method != "GET" && request.method != "HEAD" &&
      target.kind != TargetKind::kPathsInfo) {
    return HubJsonError(405, "", "GET and HEAD only");
  }
  switch (target.kind) {
    case TargetKind::kHarnesses:
      return JsonReply(Json::object());
    case TargetKind::kWhoami:
      if (token.empty()) return RepoMissing(false);
      return JsonReply({{"type", "user"}, {"name", "test-user"}});
    case TargetKind::kUnknown:
    case TargetKind::kControl:
    case TargetKind::kCdn:
    case TargetKind::kFiles:
      return HubJsonError(404, "", "Sorry, we can't find the page");
    default:
      return AnswerRepo(hub, request, target, body);
  }
}

}  // namespace weightfs
