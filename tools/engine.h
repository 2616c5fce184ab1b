// Engine: everything behind an open source, wired: token, cache, HTTP, origin,
// fetcher, pools, repository. Made once by a command; owns it all.
//
// Order of ends: Stop() first, then whatever uses the repository (a Vfs), then
// the Engine.

#ifndef WEIGHTFS_TOOLS_ENGINE_H_
#define WEIGHTFS_TOOLS_ENGINE_H_

#include <chrono>
#include <memory>
#include <string>

#include "cache/fetcher.h"
#include "cache/http/http_client.h"
#include "cache/hub/token.h"
#include "cache/object_cache.h"
#include "cache/origin.h"
#include "cache/patient_calls.h"
#include "cache/snapshot_store.h"
#include "cache/strict_object.h"
#include "cache/verifier.h"
#include "formats/base/timer_queue.h"
#include "formats/base/worker_pool.h"
#include "fs/repo.h"
#include "tools/options.h"

namespace weightfs {

class Engine {
 public:
  // Opens options.source and lists it (blocks; starts threads). A cache that
  // cannot be used is a warning in the log; nothing is kept then.
  static Result<std::unique_ptr<Engine>> Open(const Options& options);
  // Stops.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Repo& repo() { return *repo_; }
  WorkerPool& pool() { return pool_; }
  TimerQueue& timers() { return timers_; }
  Fetcher& fetcher() { return *fetcher_; }
  Verifier& verifier() { return verifier_; }
  // Null if nothing is kept.
  ObjectCache* cache() { return cache_.get(); }
  // Whether it lies on a disk of this machine.
  bool cache_is_local() const { return cache_is_local_; }
  // "HF_TOKEN", a path, or "none"; never the token.
  std::string TokenSource() const;

  // Ends reads and index loads with kCancelled and joins the pools; quick also
  // when the origin hangs. Idempotent.
  void Stop();

 private:
  Engine() = default;
  Result<> OpenOrigin(const Options& options);
  Result<> OpenCache(const Options& options);
  Result<> ReadStrictly(const Options& options);

  // In the order in which they are needed, so that they go in reverse.
  std::unique_ptr<TokenProvider> token_;
  std::unique_ptr<ObjectCache> cache_;
  bool cache_is_local_ = false;
  PatientCalls cache_opening_{"wfs-cache", 1, std::chrono::seconds(5)};
  std::unique_ptr<SnapshotStore> store_;
  std::unique_ptr<HttpClient> http_;
  std::unique_ptr<Origin> origin_;
  TimerQueue timers_{"wfs-timer"};
  // More than the fetcher lets into the disk at once, and some for the Vfs.
  WorkerPool pool_{"wfs-pool", 12};
  WorkerPool indexers_{"wfs-index", 2};
  Verifier verifier_;
  std::unique_ptr<Fetcher> fetcher_;
  std::unique_ptr<StrictReads> strict_;
  std::unique_ptr<Repo> repo_;
};

// What the cache may take: as the options say, and else what leaves the disk
// usable for others.
CacheLimits CacheLimitsOf(const Options& options);

// The absolute path of a local source, links resolved. kNotFound, kDenied.
Result<std::string> ResolveLocalSource(const Source& source);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_ENGINE_H_
