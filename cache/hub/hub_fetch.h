// HubFetch: one attempt to get a byte range of one file, from the Hub's resolve
// URL through its redirects, or from the signed URL that an earlier fetch
// found.
//
// Thread-safety: everything runs on the HTTP client's loop thread, but for the
// constructor. Kept alive by what it waits for.

#ifndef WEIGHTFS_CACHE_HUB_HUB_FETCH_H_
#define WEIGHTFS_CACHE_HUB_HUB_FETCH_H_

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/http/http_client.h"
#include "cache/hub/hub_context.h"
#include "cache/hub/hub_url.h"
#include "cache/hub/signed_urls.h"
#include "cache/hub/validators.h"
#include "cache/origin.h"

namespace weightfs {

// What the fetches of one origin know from each other; the loop thread's.
struct HubMemory {
  explicit HubMemory(const Clock& clock) : urls(clock) {}
  SignedUrls urls;
  Validators validators;
};

struct HubFetchOrder {
  std::string id;      // the repository's present name
  std::string commit;  // 40 hex digits
  FileInfo file;
  uint64_t offset = 0;
  uint64_t length = 0;
  std::optional<std::string> token;
  std::shared_ptr<FetchSink> sink;
  std::function<void()> finished;  // runs after the sink's OnDone
};

class HubFetch : public std::enable_shared_from_this<HubFetch> {
 public:
  HubFetch(std::shared_ptr<const HubContext> context,
           std::shared_ptr<HubMemory> memory, HubFetchOrder order);

  void Run();
  void Cancel();

 private:
  class Hop;
  friend class Hop;

  // What to do with the answer that is being received. Each hop starts at
  // kNone; OnResponse decides.
  enum class Plan {
    kNone,      // no answer (yet)
    kData,      // the bytes
    kRedirect,  // go to the chain's new URL
    kAnew,      // of no use: ask the Hub once more, and go where it says then
    kNoRange,   // the range was ignored: ask for the whole (small) file
    kHubError,  // keep the body, which says what is wrong
    kFail,      // end with error_
  };

  void Follow(const SignedUrls::Lead& lead);
  void AskHub();
  void Send();
  bool OnResponse(const HttpResponse& response);
  bool OnBody(std::span<const std::byte> bytes);
  void OnHopDone(const Result<>& result);

  Plan Judge(const HttpResponse& response);
  Plan JudgeData(const HttpResponse& response);
  Plan JudgeRefusal(const HttpResponse& response);
  // kAnew the first time (of kStale, and of others): it may have been a slip,
  // or an old URL.
  Plan AnewOrFail(const Error& error);
  Plan FailWith(const Error& error);
  void Found(const HttpResponse& response);
  bool Deliver(std::span<const std::byte> bytes);
  uint64_t BodyLength() const;  // of the answer that was asked for
  bool Gather(std::span<const std::byte> bytes);
  void FinishData(const Result<>& result);
  void FinishRefused(Error error);
  void FinishUnanswered(const Result<>& result);
  void AskAnew();
  void Finish(Result<> result);

  bool at_hub() const { return chain_ && chain_->at_endpoint(); }
  Error Explain(Error error) const;
  Error Cancelled() const;
  HubCall Call() const;

  const std::shared_ptr<const HubContext> context_;
  const std::shared_ptr<HubMemory> memory_;
  SignedUrls* const urls_;  // in *memory_
  HubFetchOrder order_;

  // How far it is.
  bool cancelled_ = false;
  bool done_ = false;
  bool parked_ = false;      // waits for another fetch that asks the Hub
  bool asking_ = false;      // others wait for this one: Put, PutDirect or Fail
  bool asked_anew_ = false;  // since a signed URL was refused
  bool doubted_ = false;     // asked anew since an answer was of another file
  bool whole_ = false;       // without a Range
  std::optional<HubRedirects> chain_;
  uint64_t generation_ = 0;  // of the signed URL in use; 0: none
  HttpId http_id_ = 0;

  // The present hop.
  Plan plan_ = Plan::kNone;
  std::string asked_;  // the host, "https://host"
  HttpResponse response_;
  std::optional<Error> error_;
  std::string body_;      // of an error
  uint64_t drained_ = 0;  // bytes read and thrown away

  uint64_t position_ = 0;  // in the body
  // A body whose end nothing marks is not passed on before it is known to be
  // all there.
  std::optional<std::vector<std::byte>> gathered_;
  uint64_t delivered_ = 0;
  bool sink_stopped_ = false;
  bool too_long_ = false;
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_FETCH_H_
