#include <optional>

#include "cache/http/http_client.h"
#include "cache/http/http_fields.h"
#include "cache/http/url.h"
#include "formats/base/mutex.h"

namespace weightfs {
namespace {

class Collector final : public HttpHandler {
 public:
  Collector(const HttpRequest& request, uint64_t max_body)
      : name_(request.method + " " + RedactUrl(request.url)),
        has_body_(request.method != "HEAD"),
        max_body_(max_body) {}

  bool OnResponse(const HttpResponse& response) override {
    reply_.response = response;
    too_long_ = has_body_ && ContentLength(response).value_or(0) > max_body_;
    return !too_long_;
  }
  bool OnBody(std::span<const std::byte> bytes) override {
    too_long_ = bytes.size() > max_body_ - reply_.body.size();
    if (too_long_) return false;
    reply_.body.append(reinterpret_cast<const char*>(bytes.data()),
                       bytes.size());
    return true;
  }
  void OnDone(Result<> result) override {
    MutexLock lock(mutex_);
    result_ = std::move(result);
    done_.NotifyAll();
  }

  Result<HttpReply> Wait() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (!result_) done_.Wait(mutex_);
    if (too_long_) {
      return MakeError(Code::kUnsupported, "{}: an answer of over {} bytes",
                       name_, max_body_);
    }
    RETURN_IF_ERROR(*result_);
    return std::move(reply_);
  }

 private:
  const std::string name_;
  const bool has_body_;
  const uint64_t max_body_;
  // Written by the loop thread before OnDone, read after it.
  HttpReply reply_;
  bool too_long_ = false;
  Mutex mutex_;
  CondVar done_;
  std::optional<Result<>> result_ GUARDED_BY(mutex_);
};

}  // namespace

Result<HttpReply> HttpFetch(HttpClient& client, HttpRequest request,
                            uint64_t max_body) {
  auto collector = std::make_shared<Collector>(request, max_body);
  client.Start(std::move(request), collector);
  return collector->Wait();
}

}  // namespace weightfs
