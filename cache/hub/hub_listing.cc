#include "cache/hub/hub_listing.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "cache/http/http_fields.h"
#include "cache/hub/hub_checks.h"
#include "cache/hub/hub_json.h"
#include "cache/hub/hub_url.h"
#include "formats/base/log.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr size_t kMaxPages = 2'000;
constexpr uint64_t kMaxListingBytes = 1 << 30;  // of all pages
// A listing of many pages may take this many times the metadata timeout.
constexpr int kPagesTimeouts = 10;
// Answers that are no JSON, in a row, before that is the answer.
constexpr int kMaxGarbage = 3;

SteadyTime Now() { return std::chrono::steady_clock::now(); }

std::string Seconds(milliseconds time) {
  return fmt::format("{:.1f} s", static_cast<double>(time.count()) / 1000);
}

class Lister {
 public:
  Lister(const HubContext& context, SnapshotStore* store)
      : context_(context),
        options_(context.options),
        store_(store),
        patience_(context.options.metadata_timeout) {}

  Result<HubListing> Run();

 private:
  using Parse = std::function<Result<>(const HttpReply&)>;

  // What the store has for the revision; kNotFound.
  Result<HubListing> Stored();
  Result<HubListing> Offline();
  Result<HubListing> Online();
  Result<HubRepoInfo> AskCommit();
  Result<HubListing> Bind(const HubRepoInfo& info);
  Result<std::vector<FileInfo>> AskFiles(const std::string& id,
                                         const std::string& commit);
  void Save(const Snapshot& snapshot);

  // GETs `url` until `parse` takes the answer, an error is final, or the
  // deadline has come.
  Result<> Get(const Url& url, SteadyTime deadline, const Parse& parse);
  Result<HttpReply> GetOnce(const Url& url, SteadyTime deadline);
  // Waits before the next try; false if there is no time for one.
  bool BackOff(const Error& error, int attempt, SteadyTime deadline);

  const HubContext& context_;
  const HubOptions& options_;
  SnapshotStore* const store_;
  milliseconds patience_;  // with the Hub, for one answer
  std::minstd_rand jitter_{std::random_device{}()};
};

Result<HubListing> Lister::Stored() {
  if (store_ == nullptr) {
    return Error(Code::kNotFound, "no store of listings");
  }
  std::string commit = options_.revision;
  if (!IsHexId(commit, 40)) {
    ASSIGN_OR_RETURN(commit, store_->LoadRef(context_.endpoint_name,
                                             options_.repo, options_.revision));
  }
  ASSIGN_OR_RETURN(auto stored, store_->LoadListing(context_.endpoint_name,
                                                    options_.repo, commit));
  auto snapshot = std::make_shared<Snapshot>(*stored);
  snapshot->revision = options_.revision;
  return HubListing{std::move(snapshot), options_.repo};
}

Result<HubListing> Lister::Offline() {
  auto stored = Stored();
  if (stored || stored.error().code() != Code::kNotFound) return stored;
  return MakeError(Code::kOffline,
                   "{} at revision \"{}\" was never mounted online: mount it "
                   "once with the Hub reachable (without --offline and "
                   "HF_HUB_OFFLINE)",
                   context_.name, options_.revision);
}

Result<HubListing> Lister::Run() {
  if (options_.offline) return Offline();
  auto stored = Stored();
  // A commit never changes: nobody needs to be asked.
  if (stored && IsHexId(options_.revision, 40)) return stored;
  if (stored) patience_ = std::min(options_.outage_patience, patience_);
  auto online = Online();
  if (online || !stored) return online;
  const Code code = online.error().code();
  // Refused, gated, missing: an answer, which no older one may replace.
  if (code != Code::kUnavailable && code != Code::kCorrupt) return online;
  LogWarning(
      "the Hub cannot be used; going on with the commit that it last named "
      "repo={} revision={} commit={} error=\"{}\"",
      context_.name, options_.revision, stored->snapshot->commit,
      online.error().ToString());
  return stored;
}

Result<HubListing> Lister::Online() {
  ASSIGN_OR_RETURN(const HubRepoInfo info, AskCommit());
  if (info.disabled) {
    return MakeError(Code::kDenied, "{}: access is disabled by {}",
                     context_.name, context_.endpoint_name);
  }
  if (IsHexId(options_.revision, 40) && info.commit != options_.revision) {
    return MakeError(Code::kStale, "{}: asked for commit {}, the Hub gave {}",
                     context_.name, options_.revision, info.commit);
  }
  return Bind(info);
}

Result<HubRepoInfo> Lister::AskCommit() {
  HubRepoInfo info;
  RETURN_IF_ERROR(
      Get(HubInfoUrl(context_.endpoint, options_.repo, options_.revision),
          Now() + patience_, [&info](const HttpReply& reply) -> Result<> {
            ASSIGN_OR_RETURN(info, ParseHubRepoInfo(reply.body));
            return {};
          }));
  return info;
}

Result<HubListing> Lister::Bind(const HubRepoInfo& info) {
  HubListing listing;
  // After a rename each request to the old name costs a redirect.
  listing.id = CheckHubRepoId(info.id) ? info.id : options_.repo;
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->repo = options_.repo;
  snapshot->commit = info.commit;
  snapshot->restricted = info.is_private || info.gated;
  std::shared_ptr<const Snapshot> known;
  if (store_ != nullptr) {
    auto loaded =
        store_->LoadListing(context_.endpoint_name, options_.repo, info.commit);
    if (loaded) known = std::move(*loaded);
  }
  if (known != nullptr) {
    snapshot->files = known->files;
  } else {
    ASSIGN_OR_RETURN(snapshot->files, AskFiles(listing.id, info.commit));
  }
  snapshot->revision = options_.revision;
  if (known == nullptr || known->restricted != snapshot->restricted) {
    Save(*snapshot);
  } else if (auto saved = store_->SaveRef(context_.endpoint_name, options_.repo,
                                          options_.revision, info.commit);
             !saved) {
    LogWarning("cannot keep what {} is, for use offline; {}", options_.revision,
               saved.error().ToString());
  }
  LogInfo("bound repo={} revision={} commit={} files={}", context_.name,
          options_.revision, snapshot->commit, snapshot->files.size());
  listing.snapshot = std::move(snapshot);
  return listing;
}

void Lister::Save(const Snapshot& snapshot) {
  if (store_ == nullptr) return;
  // The listing first: a ref without one is of no use.
  auto saved = store_->SaveListing(context_.endpoint_name, snapshot);
  if (saved) {
    saved = store_->SaveRef(context_.endpoint_name, options_.repo,
                            options_.revision, snapshot.commit);
  }
  if (!saved) {
    LogWarning("cannot keep the listing of {} for use offline; {}",
               context_.name, saved.error().ToString());
  }
}

Result<std::vector<FileInfo>> Lister::AskFiles(const std::string& id,
                                               const std::string& commit) {
  std::vector<FileInfo> files;
  const SteadyTime last = Now() + kPagesTimeouts * options_.metadata_timeout;
  Url page = HubTreeUrl(context_.endpoint, id, commit);
  std::set<std::string> seen;
  uint64_t bytes = 0;
  while (seen.insert(page.ToString()).second) {
    if (seen.size() > kMaxPages) {
      return MakeError(Code::kCorrupt, "{}: a listing of over {} pages",
                       context_.name, kMaxPages);
    }
    std::optional<std::string> next;
    const size_t before = files.size();
    RETURN_IF_ERROR(Get(page, std::min(last, Now() + patience_),
                        [&](const HttpReply& reply) -> Result<> {
                          files.resize(before);
                          bytes += reply.body.size();
                          next = NextLink(reply.response);
                          return ParseHubTreePage(reply.body, files);
                        }));
    if (bytes > kMaxListingBytes) {
      return MakeError(Code::kCorrupt, "{}: a listing of over {} bytes",
                       context_.name, kMaxListingBytes);
    }
    if (!next) {
      if (auto finished = FinishHubListing(files); !finished) {
        return std::move(finished).error().AddContext(context_.name);
      }
      return files;
    }
    ASSIGN_OR_RETURN(page, HubNextPage(page, *next));
  }
  return MakeError(Code::kCorrupt, "{}: the listing's pages go in a circle",
                   context_.name);
}

Result<> Lister::Get(const Url& url, SteadyTime deadline, const Parse& parse) {
  const SteadyTime begin = Now();
  int garbage = 0;
  for (int attempt = 1;; ++attempt) {
    Result<> result;
    if (auto reply = GetOnce(url, deadline); !reply) {
      result = std::move(reply).error();
    } else {
      result = parse(*reply);
      if (!result) result.error().AddContext(url.Redacted());
    }
    if (result) return {};
    Error error = std::move(result).error();
    const bool passing =
        error.code() == Code::kUnavailable ||
        (error.code() == Code::kCorrupt && ++garbage < kMaxGarbage);
    if (!passing) return error;
    LogDebug("the Hub failed attempt={} error=\"{}\"", attempt,
             error.ToString());
    if (BackOff(error, attempt, deadline)) continue;
    const auto spent = std::chrono::ceil<milliseconds>(Now() - begin);
    return std::move(error).AddContext(
        fmt::format("gave up after {} attempt{} in {}", attempt,
                    attempt == 1 ? "" : "s", Seconds(spent)));
  }
}

bool Lister::BackOff(const Error& error, int attempt, SteadyTime deadline) {
  const int doublings = std::min(attempt - 1, 20);
  const auto longest = std::min<milliseconds>(
      options_.max_backoff, options_.first_backoff * (1 << doublings));
  std::uniform_real_distribution<double> share(0.5, 1.0);
  auto wait =
      std::chrono::duration_cast<milliseconds>(longest * share(jitter_));
  if (error.retry_after()) wait = std::max(wait, *error.retry_after());
  if (Now() + wait >= deadline) return false;
  std::this_thread::sleep_for(wait);
  return true;
}

Result<HttpReply> Lister::GetOnce(const Url& url, SteadyTime deadline) {
  const auto token = context_.token_provider.Get();
  RETURN_IF_ERROR(CheckToken(token, context_.token_provider.Source()));
  HubRedirects chain(context_.endpoint, url, HubRedirects::Start::kAtEndpoint);
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Now());
    if (left <= milliseconds(0)) {
      return MakeError(Code::kUnavailable, "{}: out of time", url.Redacted());
    }
    HttpRequest request;
    request.url = chain.url().ToString();
    request.headers = {{"Accept-Encoding", "identity"},
                       {"Accept", "application/json"}};
    const bool with_token = token && chain.at_endpoint();
    if (with_token) {
      request.headers.emplace_back("Authorization", "Bearer " + *token);
    }
    request.connect_timeout = std::min(request.connect_timeout, left);
    // Silence leaves time for another try.
    request.stall_timeout = std::min(options_.stall_timeout, left * 2 / 3);
    request.stall_bytes = LeastBytes(request.stall_timeout);
    request.total_timeout = left;
    request.reach = chain.reach();
    auto fetched =
        HttpFetch(context_.http, std::move(request), kMaxHubAnswerBytes);
    if (!fetched) {
      if (chain.url().ToString() == url.ToString()) return fetched.error();
      return std::move(fetched).error().AddContext(url.Redacted());
    }
    HttpReply& reply = *fetched;
    const int status = reply.response.status;
    if (IsRedirect(status)) {
      RETURN_IF_ERROR(chain.Follow(reply.response));
      continue;
    }
    if (status >= 400) {
      return HubError(context_.Call(chain.url().Redacted(),
                                    with_token ? token : std::nullopt),
                      reply.response, reply.body);
    }
    if (status != 200) {
      return MakeError(Code::kUnavailable, "{}: HTTP {}",
                       chain.url().Redacted(), status);
    }
    if (auto plain = CheckEncoding(reply.response); !plain) {
      return std::move(plain).error().AddContext(chain.url().Redacted());
    }
    return std::move(reply);
  }
}

}  // namespace

Result<HubListing> ListHub(const HubContext& context, SnapshotStore* store) {
  return Lister(context, store).Run();
}

}  // namespace weightfs
