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

namespace weightfs {
namespace {

using Json = nlohmann::json;
using Kind = HubTarget::Kind;

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

void Put(HubReply& reply, std::string name, std::string value) {
  reply.headers.emplace_back(std::move(name), std::move(value));
}

std::string Quoted(const std::string& text) { return "\"" + text + "\""; }

std::string BearerToken(const TestHubRequest& request) {
  constexpr std::string_view kScheme = "Bearer ";
  const std::string& header = request.authorization;
  return header.starts_with(kScheme) ? header.substr(kScheme.size()) : header;
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
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
  if (target.kind == Kind::kFiles) return AnswerHubFiles(hub, request, target);
  if (target.kind != Kind::kCdn) return refuse(404, "NoSuchKey", "no such key");
  if (!hub.SignatureHolds(request.path, request.query)) {
    return refuse(403, "AccessDenied", "Request has expired or is not signed");
  }
  const size_t folder = request.path.rfind('/');
  const size_t parent = request.path.rfind('/', folder - 1);
  const auto entry = hub.FindByDigest(
      request.path.substr(parent + 1, folder - parent - 1), target.path);
  if (!entry) return refuse(404, "NoSuchKey", "no such key");
  reply = HubBytes(request, entry->content, target.path);
  Put(reply, "Content-Type", "application/octet-stream");
  Put(reply, "Cache-Control", "public, max-age=31536000");
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
  Put(reply, "X-Repo-Commit", commit.id);
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
    const auto number = Number(*asked);
    if (!number || *number == 0) {
      return HubJsonError(400, "", "\"limit\" must be a positive number");
    }
    limit = std::min(limit, *number);
  }
  uint64_t start = 0;
  if (const auto cursor = QueryValue(request.query, "cursor")) {
    const auto number = Number(*cursor);
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
  Put(reply, "X-Repo-Commit", commit.id);
  if (end < listed.size()) {
    const std::string& origin = settings.next_page_origin;
    std::string next = (origin.empty() ? hub.url() : origin) + request.path;
    next += "?recursive=" +
            std::string(IsTrue(request.query, "recursive") ? "true" : "false");
    next += std::string("&expand=") + (expand ? "true" : "false");
    next += "&limit=" + std::to_string(limit);
    next += "&cursor=" + std::to_string(end);
    Put(reply, "Link", "<" + next + ">; rel=\"next\"");
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
  Put(reply, "X-Repo-Commit", found.commit->id);
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
    Put(reply, "Location", hub.SignedUrl(target.repo, entry, target.path));
    Put(reply, "X-Linked-Size", std::to_string(entry.content->size()));
    Put(reply, "X-Linked-Etag", Quoted(entry.content->Sha256()));
    Put(reply, "Accept-Ranges", "bytes");
  } else {
    const std::string etag = Quoted(entry.content->GitBlobSha1());
    reply.status = 307;
    SetHubBody(reply, "Temporary Redirect", "text/plain");
    Put(reply, "Location",
        "/api/resolve-cache/" + ApiType(target.repo) + "/" +
            BareId(target.repo) + "/" + commit.id + "/" +
            PercentEncode(target.path, "/") + "?" +
            PercentEncode(request.path, "") +
            "=&etag=" + PercentEncode(etag, ""));
  }
  Put(reply, "X-Repo-Commit", commit.id);
  Put(reply, "Vary", "Origin");
  return reply;
}

HubReply AnswerResolveCache(const TestHub::State& hub,
                            const TestHubRequest& request,
                            const HubTarget& target, const Found& found) {
  const HubCommit& commit = *found.commit;
  const auto file = commit.files.find(target.path);
  if (file == commit.files.end()) return EntryMissing(target, commit);
  const std::string etag = file->second.content->GitBlobSha1();
  if (QueryValue(request.query, "etag") != Quoted(etag)) {
    return HubJsonError(400, "", "the redirect's query was not kept");
  }
  HubReply reply = HubBytes(request, file->second.content, etag);
  Put(reply, "Content-Type", "text/plain; charset=utf-8");
  Put(reply, "X-Repo-Commit", commit.id);
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
  Put(reply, "WWW-Authenticate",
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
  const bool bytes =
      target.kind == Kind::kResolve || target.kind == Kind::kResolveCache;
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
  Put(reply, "Location", std::move(url));
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
  if (target.kind == Kind::kRefs) return AnswerRefs(*repo);
  const Found found = {*repo, FindCommit(*repo, target.rev)};
  if (found.commit == nullptr) {
    return HubJsonError(404, "RevisionNotFound",
                        "Invalid rev id: " + target.rev);
  }
  switch (target.kind) {
    case Kind::kInfo:
      return AnswerInfo(request, target, found);
    case Kind::kTree:
      return AnswerTree(hub, request, target, found);
    case Kind::kPathsInfo:
      return AnswerPathsInfo(request, target, found, body,
                             hub.settings().tree_has_pointer_size);
    case Kind::kCommits:
      return AnswerCommits(*found.commit);
    case Kind::kXetToken:
      return AnswerXetToken(hub);
    case Kind::kResolve:
      return AnswerResolve(hub, request, target, found);
    case Kind::kResolveCache:
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
  Put(reply, "Content-Type", std::move(type));
}

HubReply HubJsonError(int status, const std::string& code,
                      const std::string& message) {
  HubReply reply = JsonReply({{"error", message}});
  reply.status = status;
  if (!code.empty()) Put(reply, "X-Error-Code", code);
  Put(reply, "X-Error-Message", message);
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
      target.kind != Kind::kPathsInfo) {
    return HubJsonError(405, "", "GET and HEAD only");
  }
  switch (target.kind) {
    case Kind::kHarnesses:
      return JsonReply(Json::object());
    case Kind::kWhoami:
      if (token.empty()) return RepoMissing(false);
      return JsonReply({{"type", "user"}, {"name", "test-user"}});
    case Kind::kUnknown:
    case Kind::kControl:
    case Kind::kCdn:
    case Kind::kFiles:
      return HubJsonError(404, "", "Sorry, we can't find the page");
    default:
      return AnswerRepo(hub, request, target, body);
  }
}

}  // namespace weightfs
