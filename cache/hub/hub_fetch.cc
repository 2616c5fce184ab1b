#include "cache/hub/hub_fetch.h"

#include <algorithm>
#include <utility>

#include "cache/http/http_fields.h"
#include "cache/hub/hub_checks.h"
#include "cache/hub/hub_error.h"

namespace weightfs {
namespace {

constexpr uint64_t kMaxErrorBody = 16 << 10;
// Of a redirect: read to its end, so that the connection can be kept.
constexpr uint64_t kMaxDrained = 64 << 10;
// A file whose server does not know ranges is read whole up to this size.
constexpr uint64_t kMaxWhole = 8 << 20;

}  // namespace

// Passes one request's events on.
class HubFetch::Hop final : public HttpHandler {
 public:
  explicit Hop(std::shared_ptr<HubFetch> fetch) : fetch_(std::move(fetch)) {}
  bool OnResponse(const HttpResponse& response) override {
    return fetch_->OnResponse(response);
  }
  bool OnBody(std::span<const std::byte> bytes) override {
    return fetch_->OnBody(bytes);
  }
  void OnDone(Result<> result) override { fetch_->OnHopDone(result); }

 private:
  const std::shared_ptr<HubFetch> fetch_;
};

HubFetch::HubFetch(std::shared_ptr<const HubContext> context,
                   std::shared_ptr<HubMemory> memory, HubFetchOrder order)
    : context_(std::move(context)),
      memory_(std::move(memory)),
      urls_(&memory_->urls),
      order_(std::move(order)) {}

void HubFetch::Run() {
  if (cancelled_) return Finish(Cancelled());
  auto lead = urls_->Take(order_.file.path, [self = shared_from_this()](
                                                const SignedUrls::Lead& found) {
    if (self->parked_) {
      self->parked_ = false;
      self->Follow(found);
    } else if (found.kind == SignedUrls::Lead::Kind::kAsk) {
      // Cancelled meanwhile: the duty goes to the next who waits.
      self->urls_->Fail(self->order_.file.path, self->Cancelled());
    }
  });
  if (lead) {
    Follow(*lead);
  } else {
    parked_ = true;
  }
}

void HubFetch::Cancel() {
  if (done_ || cancelled_) return;
  cancelled_ = true;
  if (http_id_ != 0) return context_->http.Cancel(http_id_);
  if (!parked_) return;  // not yet run
  parked_ = false;
  Finish(Cancelled());
}

void HubFetch::Follow(const SignedUrls::Lead& lead) {
  switch (lead.kind) {
    case SignedUrls::Lead::Kind::kUse:
      generation_ = lead.generation;
      chain_.emplace(context_->endpoint, *lead.url,
                     HubRedirects::Start::kElsewhere, lead.reach);
      return Send();
    case SignedUrls::Lead::Kind::kAsk:
      asking_ = true;
      return AskHub();
    case SignedUrls::Lead::Kind::kDirect:
      return AskHub();
    case SignedUrls::Lead::Kind::kFailed:
      return Finish(*lead.error);
  }
}

void HubFetch::AskHub() {
  generation_ = 0;
  if (auto valid = CheckToken(order_.token, context_->token_provider.Source());
      !valid) {
    return Finish(Explain(std::move(valid).error()));
  }
  chain_.emplace(context_->endpoint,
                 HubResolveUrl(context_->endpoint, order_.id, order_.commit,
                               order_.file.path),
                 HubRedirects::Start::kAtEndpoint);
  Send();
}

void HubFetch::Send() {
  plan_ = Plan::kNone;
  error_.reset();
  body_.clear();
  drained_ = 0;
  position_ = 0;
  gathered_.reset();
  asked_ = chain_->url().Origin();
  HttpRequest request;
  request.url = chain_->url().ToString();
  request.headers.emplace_back("Accept-Encoding", "identity");
  if (!whole_) {
    request.headers.emplace_back(
        "Range", fmt::format("bytes={}-{}", order_.offset,
                             order_.offset + order_.length - 1));
  }
  if (at_hub() && order_.token) {
    request.headers.emplace_back("Authorization", "Bearer " + *order_.token);
  }
  request.stall_timeout = context_->options.stall_timeout;
  request.stall_bytes = LeastBytes(request.stall_timeout);
  request.reach = chain_->reach();
  http_id_ = context_->http.Start(std::move(request),
                                  std::make_shared<Hop>(shared_from_this()));
}

bool HubFetch::OnResponse(const HttpResponse& response) {
  response_ = response;
  order_.sink->OnStatus(response.status);
  plan_ = Judge(response);
  return plan_ != Plan::kFail && plan_ != Plan::kNoRange;
}

HubFetch::Plan HubFetch::Judge(const HttpResponse& response) {
  if (at_hub() && response.status < 400) {
    auto checked = CheckHubMetadata(response, order_.commit, order_.file);
    if (!checked) return AnewOrFail(checked.error());
  }
  if (IsRedirect(response.status)) {
    if (auto next = chain_->Follow(response); !next) {
      return FailWith(next.error());
    }
    // What looks signed will give the bytes: those who wait may start.
    if (!at_hub() && !chain_->url().query().empty()) Found(response);
    return Plan::kRedirect;
  }
  if (response.status == 416) {
    return AnewOrFail(Error(
        Code::kStale, "the server says that the file ends before the range"));
  }
  if (response.status >= 400) return JudgeRefusal(response);
  return JudgeData(response);
}

HubFetch::Plan HubFetch::JudgeData(const HttpResponse& response) {
  const uint64_t size = order_.file.size;
  if (response.status == 200 && !whole_) {
    if (size <= kMaxWhole) return Plan::kNoRange;
    return FailWith(Error(Code::kUnavailable, "the server ignored the range"));
  }
  const bool expected = response.status == (whole_ ? 200 : 206);
  if (!expected) {
    return FailWith(Error(Code::kUnavailable, "an unexpected answer"));
  }
  auto checked =
      whole_ ? CheckWhole(response, size)
             : CheckPartial(response, order_.offset, order_.length, size);
  if (checked) {
    checked =
        memory_->validators.Check(order_.file.path, chain_->url(), response);
  }
  if (!checked) {
    // What the URL leads to is not the file: the next attempt asks anew.
    if (generation_ != 0) urls_->Drop(order_.file.path, generation_);
    return checked.error().code() == Code::kStale ? AnewOrFail(checked.error())
                                                  : FailWith(checked.error());
  }
  const bool measured = response.Header("Content-Length") ||
                        (!whole_ && response.Header("Transfer-Encoding"));
  if (!measured) gathered_.emplace();
  Found(response);
  return Plan::kData;
}

HubFetch::Plan HubFetch::JudgeRefusal(const HttpResponse& response) {
  if (at_hub()) return Plan::kHubError;
  const int status = response.status;
  // Some stores answer 400 once a signature has expired.
  if (status == 400 || status == 401 || status == 403 || status == 404 ||
      status == 410) {
    if (asked_anew_ && generation_ != 0) {
      urls_->Drop(order_.file.path, generation_);
    }
    return AnewOrFail(Error(
        status == 400 ? Code::kIo : Code::kUnavailable,
        "the server of the bytes refuses a URL that the Hub just signed"));
  }
  if (!IsPassing(status)) {
    return FailWith(Error(Code::kIo, "refused by the server of the bytes"));
  }
  Error error(Code::kUnavailable, "the server of the bytes failed");
  const auto wait = RetryAfter(response);
  return FailWith(wait ? std::move(error).WithRetryAfter(*wait) : error);
}

HubFetch::Plan HubFetch::AnewOrFail(const Error& error) {
  bool& before = error.code() == Code::kStale ? doubted_ : asked_anew_;
  if (before) return FailWith(error);
  before = true;
  return Plan::kAnew;
}

HubFetch::Plan HubFetch::FailWith(const Error& error) {
  Error told = MakeError(error.code(), "HTTP {} from {}: {}", response_.status,
                         asked_, error.message());
  error_ = Explain(error.retry_after()
                       ? std::move(told).WithRetryAfter(*error.retry_after())
                       : std::move(told));
  return Plan::kFail;
}

// The chain's URL has the bytes, or will.
void HubFetch::Found(const HttpResponse& response) {
  const std::string& path = order_.file.path;
  if (at_hub()) {
    if (asking_) urls_->PutDirect(path);
    asking_ = false;
    return;
  }
  // Neither does a URL's use renew it, nor need its first hop be told again.
  if (generation_ != 0 && !IsRedirect(response.status)) return;
  const auto date = response.Header("Date");
  const auto now = date ? ParseHttpDate(*date) : std::nullopt;
  generation_ =
      urls_->Put(path, chain_->url(), now.value_or(context_->clock.WallNow()),
                 chain_->reach());
  asking_ = false;
}

bool HubFetch::OnBody(std::span<const std::byte> bytes) {
  switch (plan_) {
    case Plan::kData:
      return gathered_ ? Gather(bytes) : Deliver(bytes);
    case Plan::kRedirect:
    case Plan::kAnew:
      drained_ += bytes.size();
      return drained_ <= kMaxDrained;
    case Plan::kHubError: {
      const size_t room = kMaxErrorBody - body_.size();
      for (std::byte byte : bytes.first(std::min(room, bytes.size()))) {
        body_.push_back(static_cast<char>(byte));
      }
      return body_.size() < kMaxErrorBody;
    }
    case Plan::kNone:
    case Plan::kNoRange:
    case Plan::kFail:
      return false;
  }
  return false;
}

bool HubFetch::Deliver(std::span<const std::byte> bytes) {
  if (whole_) {
    const uint64_t skip = std::min<uint64_t>(
        bytes.size(), order_.offset - std::min(order_.offset, position_));
    position_ += bytes.size();
    bytes = bytes.subspan(skip);
    bytes = bytes.first(
        std::min<uint64_t>(bytes.size(), order_.length - delivered_));
    if (bytes.empty()) return true;
  }
  const uint64_t missing = order_.length - delivered_;
  const auto wanted = bytes.first(std::min<uint64_t>(bytes.size(), missing));
  if (!wanted.empty()) {
    delivered_ += wanted.size();
    if (!order_.sink->OnData(wanted)) {
      sink_stopped_ = true;
      return false;
    }
  }
  too_long_ = wanted.size() < bytes.size();
  return !too_long_;
}

uint64_t HubFetch::BodyLength() const {
  return whole_ ? order_.file.size : order_.length;
}

bool HubFetch::Gather(std::span<const std::byte> bytes) {
  too_long_ = bytes.size() > BodyLength() - gathered_->size();
  if (!too_long_) {
    gathered_->insert(gathered_->end(), bytes.begin(), bytes.end());
  }
  return !too_long_;
}

void HubFetch::OnHopDone(const Result<>& result) {
  http_id_ = 0;
  switch (plan_) {
    case Plan::kNone:
      return FinishUnanswered(result);
    case Plan::kData:
      return FinishData(result);
    case Plan::kFail:
      return Finish(*error_);
    case Plan::kHubError:
      if (cancelled_) break;
      return FinishRefused(HubError(Call(), response_, body_));
    case Plan::kRedirect:
      if (cancelled_) break;
      return Send();
    case Plan::kAnew:
      if (cancelled_) break;
      return AskAnew();
    case Plan::kNoRange:
      if (cancelled_) break;
      whole_ = true;
      return Send();
  }
  Finish(Cancelled());
}

void HubFetch::AskAnew() {
  if (generation_ != 0) urls_->Drop(order_.file.path, generation_);
  generation_ = 0;
  if (asking_) return AskHub();
  Run();
}

void HubFetch::FinishRefused(Error error) {
  // For a reader it is no question of what weightfs can do.
  if (error.code() == Code::kUnsupported) {
    error = Error(Code::kIo, error.message());
  }
  if (error.message().find("HTTP ") == std::string::npos) {
    error.AddContext(fmt::format("HTTP {} from {}", response_.status, asked_));
  }
  Finish(std::move(error));
}

void HubFetch::FinishData(const Result<>& result) {
  if (gathered_ && result && gathered_->size() == BodyLength()) {
    Deliver(*gathered_);
  }
  if (sink_stopped_) return Finish(Cancelled());
  // Whatever came of the connection then: the bytes are all there.
  if (delivered_ == order_.length && !too_long_) return Finish({});
  if (cancelled_) return Finish(Cancelled());
  Error error = too_long_ ? Error(Code::kUnavailable,
                                  "the server sent more bytes than asked")
                : result  ? Error(Code::kUnavailable, "the answer ended early")
                          : result.error();
  error.AddContext(fmt::format("HTTP {} from {}, after {} of {} bytes",
                               response_.status, asked_, delivered_,
                               order_.length));
  Finish(Explain(std::move(error)));
}

void HubFetch::FinishUnanswered(const Result<>& result) {
  if (cancelled_) return Finish(Cancelled());
  // The Hub may know another host for the bytes.
  if (generation_ != 0) urls_->Drop(order_.file.path, generation_);
  Error error = result ? Error(Code::kUnavailable, "it ended") : result.error();
  error.AddContext("no HTTP answer");
  Finish(Explain(std::move(error)));
}

void HubFetch::Finish(Result<> result) {
  if (done_) return;
  done_ = true;
  if (asking_) {
    asking_ = false;
    urls_->Fail(order_.file.path, result
                                      ? Error(Code::kUnavailable, "no answer")
                                      : result.error());
  }
  order_.sink->OnDone(std::move(result));
  order_.sink.reset();
  order_.finished();
}

HubCall HubFetch::Call() const {
  return context_->Call(
      fmt::format("{}: {} bytes {}-{}", context_->name, order_.file.path,
                  order_.offset, order_.offset + order_.length - 1),
      order_.token);
}

Error HubFetch::Explain(Error error) const {
  return std::move(error.AddContext(Call().subject));
}

Error HubFetch::Cancelled() const {
  return Explain(Error(Code::kCancelled, "cancelled"));
}

}  // namespace weightfs
