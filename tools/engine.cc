#include "tools/engine.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "cache/cache_space.h"
#include "cache/hub/hub_origin.h"
#include "cache/local/local_origin.h"
#include "cache/local_disk.h"
#include "formats/base/log.h"
#include "tools/memory_budget.h"
#include "tools/secrets.h"

namespace weightfs {
namespace {

// The folder itself, or what there is of those above it.
std::string ExistingParent(std::string path) {
  while (path.size() > 1 && ::access(path.c_str(), F_OK) != 0) {
    path.resize(std::max<size_t>(path.rfind('/'), 1));
  }
  return path;
}

FetcherOptions Fetching(const Options& options) {
  FetcherOptions fetching;
  // Whoever waits is to see some tries after an outage.
  fetching.max_backoff =
      std::max(fetching.first_backoff,
               std::min(fetching.max_backoff, options.read_timeout / 4));
  fetching.max_rate = options.max_rate;
  // A quarter each for what the disk has not taken and for what was fetched
  // ahead of its readers; the rest for replies and receive buffers.
  const uint64_t budget = MemoryBudget();
  fetching.max_unwritten_bytes = budget / 4;
  fetching.max_backlog_bytes = budget / 2;
  constexpr uint64_t kPerConnection = uint64_t{4} << 20;
  fetching.most_connections = std::clamp<size_t>(
      budget / kPerConnection, fetching.connections, fetching.most_connections);
  return fetching;
}

// A hub's id that was not found, where a file of that name lies around.
Error HintAtLocalPath(Error error, const Source& source) {
  struct stat attr {};
  if (error.code() != Code::kNotFound ||
      ::stat(source.text.c_str(), &attr) != 0) {
    return error;
  }
  return MakeError(Code::kNotFound, "{}; for the local path give ./{}",
                   error.message(), source.text);
}

}  // namespace

CacheLimits CacheLimitsOf(const Options& options) {
  constexpr uint64_t kMostKeptFree = uint64_t{2} << 30;
  CacheLimits limits{.max_bytes = options.cache_size, .keep_free = 0};
  struct statvfs disk {};
  if (options.cache_keep_free) {
    limits.keep_free = *options.cache_keep_free;
  } else if (::statvfs(ExistingParent(options.cache_dir).c_str(), &disk) == 0) {
    limits.keep_free =
        std::min(uint64_t{disk.f_blocks} * disk.f_frsize / 20, kMostKeptFree);
  }
  return limits;
}

Result<std::string> ResolveLocalSource(const Source& source) {
  const std::unique_ptr<char, decltype(&std::free)> resolved(
      ::realpath(source.path.c_str(), nullptr), &std::free);
  if (resolved != nullptr) return std::string(resolved.get());
  const int error = errno;
  Code code = Code::kIo;
  if (error == ENOENT || error == ENOTDIR) code = Code::kNotFound;
  if (error == EACCES) code = Code::kDenied;
  return MakeError(code, "{}: {}", source.path,
                   std::generic_category().message(error));
}

Result<std::unique_ptr<Engine>> Engine::Open(const Options& options) {
  LogOptions(options);
  std::unique_ptr<Engine> engine(new Engine);
  RETURN_IF_ERROR(engine->OpenOrigin(options));
  engine->fetcher_ = Fetcher::Create(*engine->origin_, engine->timers_,
                                     engine->pool_, Fetching(options));
  if (engine->cache_ != nullptr) {
    // A smaller limit than last time.
    engine->pool_.Submit([cache = engine->cache_.get()] { cache->Trim(); });
  }
  if (options.strict) RETURN_IF_ERROR(engine->ReadStrictly(options));
  RepoOptions repo_options;
  repo_options.metadata_timeout = options.metadata_timeout;
  auto repo = Repo::Open({.origin = engine->origin_.get(),
                          .fetcher = engine->fetcher_.get(),
                          .cache = engine->cache_.get(),
                          .indexers = &engine->indexers_,
                          .verifier = &engine->verifier_,
                          .strict = engine->strict_.get()},
                         repo_options);
  if (!repo.has_value()) {
    Error error = std::move(repo).error();
    if (options.source->kind == Source::Kind::kHub) {
      return HintAtLocalPath(std::move(error), *options.source);
    }
    return error;
  }
  engine->repo_ = *std::move(repo);
  return engine;
}

Engine::~Engine() { Stop(); }

std::string Engine::TokenSource() const {
  return token_ == nullptr ? "none" : token_->Source();
}

void Engine::Stop() {
  // The fetcher ends what indexers wait for; what it ends is completed on the
  // pool, which therefore stops last.
  if (fetcher_ != nullptr) fetcher_->Stop();
  if (strict_ != nullptr) strict_->Stop();
  verifier_.Stop();
  indexers_.Stop();
  timers_.Stop();
  pool_.Stop();
}

Result<> Engine::ReadStrictly(const Options& options) {
  if (cache_ == nullptr) {
    return MakeError(Code::kIo,
                     "--verify=strict: what is read is checked in the cache, "
                     "and the cache {} cannot be used (the log says why)",
                     options.cache_dir);
  }
  strict_ = std::make_unique<StrictReads>(
      StrictReads::Parts{.timers = &timers_,
                         .pool = &pool_,
                         .verifier = &verifier_,
                         .largest = LargestWholeObject(options.cache_size),
                         .patience = options.read_timeout});
  return {};
}

Result<> Engine::OpenOrigin(const Options& options) {
  const Source& source = *options.source;
  if (source.kind == Source::Kind::kLocal) {
    ASSIGN_OR_RETURN(const std::string path, ResolveLocalSource(source));
    ASSIGN_OR_RETURN(origin_, CreateLocalOrigin(path));
    return {};
  }
  RETURN_IF_ERROR(OpenCache(options));
  token_ = std::make_unique<TokenProvider>(options.token_file);
  WipeTokenVariables();
  HttpClientOptions http_options;
  http_options.user_agent = options.user_agent;
  // The fetcher limits itself; what hangs must not keep it from going on.
  http_options.connections_per_host = 4 * FetcherOptions().connections;
  ASSIGN_OR_RETURN(http_, HttpClient::Create(http_options));
  HubOptions hub;
  hub.endpoint = options.endpoint;
  hub.repo = source.repo;
  hub.revision = source.revision;
  hub.offline = options.offline;
  hub.metadata_timeout = options.metadata_timeout;
  // Silence leaves a read time for another try.
  hub.stall_timeout =
      std::min(options.stall_timeout, options.read_timeout * 2 / 3);
  ASSIGN_OR_RETURN(origin_,
                   CreateHubOrigin(hub, *http_, *token_, store_.get()));
  return {};
}

Result<> Engine::OpenCache(const Options& options) {
  using Opened = Result<std::unique_ptr<ObjectCache>>;
  auto opening = std::make_shared<Opened>(nullptr);
  auto local = std::make_shared<bool>(false);
  Opened opened =
      Error(Code::kInvalid,
            "neither HOME nor WEIGHTFS_CACHE says where; give --cache-dir");
  if (!options.cache_dir.empty()) {
    const bool ended = cache_opening_.Run([opening, local, options] {
      *opening = ObjectCache::Open(options.cache_dir, CacheLimitsOf(options));
      *local = opening->has_value() && IsOnLocalDisk(options.cache_dir);
    });
    opened =
        ended ? std::move(*opening)
              : Opened(Error(Code::kUnavailable, "its disk does not answer"));
  }
  if (opened.has_value()) {
    cache_ = *std::move(opened);
    cache_is_local_ = *local;
    store_ = std::make_unique<SnapshotStore>(options.cache_dir);
    return {};
  }
  Error error = std::move(opened).error();
  error.AddContext(
      fmt::format("the cache {} cannot be used", options.cache_dir));
  if (options.offline) {
    return MakeError(Code::kUnavailable, "offline, and {}", error.message());
  }
  LogWarning("{}; what is read is fetched each time", error.message());
  return {};
}

}  // namespace weightfs
