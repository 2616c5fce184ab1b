#include "cache/hub/hub_origin.h"

#include <atomic>
#include <unordered_map>
#include <utility>

#include "cache/hub/hub_context.h"
#include "cache/hub/hub_fetch.h"
#include "cache/hub/hub_listing.h"
#include "cache/hub/hub_url.h"
#include "formats/base/checked.h"
#include "formats/base/log.h"
#include "formats/base/mutex.h"

namespace weightfs {
namespace {

// The fetches that are not done. Shared with them, since they outlive the
// moment in which the last one tells the origin's destructor.
class Running {
 public:
  void Add(FetchId id, std::shared_ptr<HubFetch> fetch) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    fetches_.emplace(id, std::move(fetch));
  }
  void Remove(FetchId id) EXCLUDES(mutex_) {
    std::shared_ptr<HubFetch> last;  // destroyed without the lock
    MutexLock lock(mutex_);
    const auto it = fetches_.find(id);
    if (it == fetches_.end()) return;
    last = std::move(it->second);
    fetches_.erase(it);
    if (fetches_.empty()) none_.NotifyAll();
  }
  std::shared_ptr<HubFetch> Find(FetchId id) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    const auto it = fetches_.find(id);
    return it == fetches_.end() ? nullptr : it->second;
  }
  std::vector<std::shared_ptr<HubFetch>> All() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    std::vector<std::shared_ptr<HubFetch>> all;
    all.reserve(fetches_.size());
    for (const auto& [id, fetch] : fetches_) all.push_back(fetch);
    return all;
  }
  void WaitForNone() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!fetches_.empty()) none_.Wait(mutex_);
  }

 private:
  Mutex mutex_;  // a leaf
  CondVar none_;
  std::unordered_map<FetchId, std::shared_ptr<HubFetch>> fetches_
      GUARDED_BY(mutex_);
};

class HubOrigin final : public Origin {
 public:
  HubOrigin(std::shared_ptr<const HubContext> context, SnapshotStore* store)
      : context_(std::move(context)),
        store_(store),
        memory_(std::make_shared<HubMemory>(context_->clock)),
        running_(std::make_shared<Running>()) {}

  ~HubOrigin() override {
    for (auto& fetch : running_->All()) Cancel(std::move(fetch));
    running_->WaitForNone();
  }

  const std::string& name() const override { return context_->name; }
  const std::string& cache_namespace() const override {
    return context_->endpoint_name;
  }

  Result<std::shared_ptr<const Snapshot>> List() override EXCLUDES(mutex_);
  FetchId StartFetch(const FileInfo& file, uint64_t offset, uint64_t length,
                     std::shared_ptr<FetchSink> sink) override;
  void CancelFetch(FetchId id) override {
    if (auto fetch = running_->Find(id)) Cancel(std::move(fetch));
  }

 private:
  // One call of ListHub, whose result those who wait for it share.
  struct Flight {
    std::optional<Result<HubListing>> result;
  };

  void Cancel(std::shared_ptr<HubFetch> fetch) {
    context_->http.Post([fetch = std::move(fetch)] { fetch->Cancel(); });
  }
  // Why the range cannot be fetched at all.
  Result<HubListing> Bound(const FileInfo& file, uint64_t offset,
                           uint64_t length) EXCLUDES(mutex_);

  const std::shared_ptr<const HubContext> context_;
  SnapshotStore* const store_;
  const std::shared_ptr<HubMemory> memory_;  // the loop thread's
  const std::shared_ptr<Running> running_;
  std::atomic<FetchId> next_id_{1};

  Mutex mutex_;
  CondVar listed_;
  std::optional<HubListing> listing_ GUARDED_BY(mutex_);
  std::shared_ptr<Flight> flight_ GUARDED_BY(mutex_);
};

Result<std::shared_ptr<const Snapshot>> HubOrigin::List() {
  std::shared_ptr<Flight> flight;
  {
    MutexLock lock(mutex_);
    if (listing_) return listing_->snapshot;
    if (flight_ != nullptr) {
      flight = flight_;
      while (!flight->result) listed_.Wait(mutex_);
      RETURN_IF_ERROR(*flight->result);
      return (*flight->result)->snapshot;
    }
    flight = flight_ = std::make_shared<Flight>();
  }
  auto result = ListHub(*context_, store_);
  MutexLock lock(mutex_);
  if (result) listing_ = *result;
  flight->result = result;
  flight_.reset();
  listed_.NotifyAll();
  RETURN_IF_ERROR(result);
  return result->snapshot;
}

Result<HubListing> HubOrigin::Bound(const FileInfo& file, uint64_t offset,
                                    uint64_t length) {
  if (length == 0 || !RangeFits(offset, length, file.size)) {
    return MakeError(Code::kInvalid, "{}: {}: no such range", context_->name,
                     file.path);
  }
  if (context_->options.offline) {
    return MakeError(Code::kOffline,
                     "{}: {} bytes {}-{} are not in the cache, and the mount "
                     "is offline",
                     context_->name, file.path, offset, offset + length - 1);
  }
  MutexLock lock(mutex_);
  if (listing_) return *listing_;
  return MakeError(Code::kInvalid, "{}: {}: not listed yet", context_->name,
                   file.path);
}

FetchId HubOrigin::StartFetch(const FileInfo& file, uint64_t offset,
                              uint64_t length,
                              std::shared_ptr<FetchSink> sink) {
  const FetchId id = next_id_++;
  auto listing = Bound(file, offset, length);
  if (!listing) {
    // The fetch ends on the origin's thread like any other.
    context_->http.Post([sink = std::move(sink), error = listing.error()] {
      sink->OnDone(error);
    });
    return id;
  }
  HubFetchOrder order;
  order.id = listing->id;
  order.commit = listing->snapshot->commit;
  order.file = file;
  order.offset = offset;
  order.length = length;
  // Here and not on the loop thread, which a slow disk would hold up.
  order.token = context_->token_provider.Get();
  order.sink = std::move(sink);
  order.finished = [running = running_, id] { running->Remove(id); };
  auto fetch = std::make_shared<HubFetch>(context_, memory_, std::move(order));
  running_->Add(id, fetch);
  context_->http.Post([fetch = std::move(fetch)] { fetch->Run(); });
  return id;
}

bool IsLoopback(const Url& url) {
  return url.host() == "localhost" || url.host() == "[::1]" ||
         url.host().starts_with("127.");
}

}  // namespace

Result<std::unique_ptr<Origin>> CreateHubOrigin(const HubOptions& options,
                                                HttpClient& http,
                                                TokenProvider& token,
                                                SnapshotStore* store,
                                                const Clock& clock) {
  ASSIGN_OR_RETURN(Url endpoint, ParseHubEndpoint(options.endpoint));
  RETURN_IF_ERROR(CheckHubRepoId(options.repo));
  RETURN_IF_ERROR(CheckRevision(options.revision));
  std::string endpoint_name = EndpointName(endpoint);
  std::string name = endpoint_name + "/" + options.repo;
  if (endpoint.scheme() == "http" && !IsLoopback(endpoint) &&
      token.Get().has_value()) {
    LogWarning(
        "an access token would cross the network in the clear "
        "endpoint={}",
        endpoint_name);
  }
  auto context = std::make_shared<const HubContext>(
      HubContext{options, std::move(endpoint), std::move(endpoint_name),
                 std::move(name), http, token, clock});
  return std::unique_ptr<Origin>(
      std::make_unique<HubOrigin>(std::move(context), store));
}

}  // namespace weightfs
