#include "cache/http/http_client.h"

#include <curl/curl.h>
#include <strings.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <thread>
#include <unordered_map>

#include "cache/http/address.h"
#include "cache/http/http_transfer.h"
#include "cache/http/proxy.h"
#include "cache/http/url.h"
#include "formats/base/mutex.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr long kReceiveBuffer = 128 << 10;   // CURLOPT_BUFFERSIZE
constexpr long kIdleConnections = 64;        // kept open, all hosts
constexpr milliseconds kIdlePoll{60'000};    // nothing to do: a wakeup ends it
constexpr milliseconds kBrokenPollWait{10};  // poll failed: do not spin
// libcurl before 8.4.0 sets no timer and watches no socket when it goes on to
// the next address of a name: two that refuse would cost seconds.
constexpr milliseconds kConnectPoll{20};

struct FreeMulti {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};
struct FreeShare {
  void operator()(CURLSH* share) const { curl_share_cleanup(share); }
};
using CurlMulti = std::unique_ptr<CURLM, FreeMulti>;
using CurlShare = std::unique_ptr<CURLSH, FreeShare>;

bool IsNamed(std::string_view header, std::string_view name) {
  return header.size() == name.size() &&
         strncasecmp(header.data(), name.data(), name.size()) == 0;
}

std::string_view Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool IsFolder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// Where trusted certificates are, if the environment says so. libcurl itself
// does not look; its command and the Hub's clients do.
struct Certificates {
  std::string file;
  std::string folder;
};

Certificates FindCertificates() {
  Certificates found;
  for (const char* name :
       {"CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}) {
    const std::string path(Environment(name));
    if (path.empty()) continue;
    (IsFolder(path) ? found.folder : found.file) = path;
    return found;
  }
  found.folder = Environment("SSL_CERT_DIR");
  return found;
}

// A header that would smuggle in another, or a method that is none.
bool IsSendable(const HttpRequest& request) {
  const auto clean = [](std::string_view text) {
    return text.find_first_of(std::string_view("\r\n\0", 3)) ==
           std::string_view::npos;
  };
  if (request.method != "GET" && request.method != "HEAD") return false;
  return std::all_of(request.headers.begin(), request.headers.end(),
                     [&](const auto& header) {
                       return !header.first.empty() && clean(header.first) &&
                              clean(header.second) && !header.second.empty();
                     });
}

class CurlHttpClient final : public HttpClient {
 public:
  CurlHttpClient(const HttpClientOptions& options, CurlMulti multi,
                 CurlShare share)
      : options_(options),
        certificates_(FindCertificates()),
        share_(std::move(share)),
        multi_(std::move(multi)),
        thread_(StartThread("wfs-http", [this] { Run(); })) {}

  ~CurlHttpClient() override {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    curl_multi_wakeup(multi_.get());
    thread_.join();
  }

  HttpId Start(HttpRequest request,
               std::shared_ptr<HttpHandler> handler) override {
    auto transfer = std::make_unique<HttpTransfer>();
    transfer->request = std::move(request);
    transfer->handler = std::move(handler);
    transfer->requested = std::chrono::steady_clock::now();
    if (auto url = Url::Parse(transfer->request.url); !url) {
      transfer->error = url.error();
    } else if (!IsSendable(transfer->request)) {
      transfer->error =
          transfer->Fail(Code::kInvalid, "a method or header not to be sent");
    } else {
      transfer->origin = url->Origin();
      transfer->host = KindOfHost(url->host());
      transfer->proxy = ProxyFor(*url, [](const char* name) {
        return std::string(Environment(name));
      });
      if (!transfer->proxy.empty() && !transfer->TakeConnection({})) {
        transfer->error = transfer->ResultOf(CURLE_COULDNT_CONNECT).error();
      }
    }
    HttpId id = 0;
    {
      MutexLock lock(mutex_);
      id = transfer->id = next_id_++;
      started_.push_back(std::move(transfer));
    }
    curl_multi_wakeup(multi_.get());
    return id;
  }

  void Cancel(HttpId id) override {
    {
      MutexLock lock(mutex_);
      cancelled_.push_back(id);
    }
    curl_multi_wakeup(multi_.get());
  }

  void Post(std::function<void()> task) override {
    {
      MutexLock lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    curl_multi_wakeup(multi_.get());
  }

 private:
  using TransferPtr = std::unique_ptr<HttpTransfer>;

  void Run() {
    while (!TakeOrders()) {
      Admit();
      int running = 0;
      curl_multi_perform(multi_.get(), &running);
      // In this order: after the process was stopped for a while, bytes that
      // wait in sockets are read before anybody is called stalled.
      TakeFinished();
      EndOverdue();
      if (HasOrders()) continue;
      Admit();
      const CURLMcode code =
          curl_multi_poll(multi_.get(), nullptr, 0, PollTimeout(), nullptr);
      if (code != CURLM_OK) std::this_thread::sleep_for(kBrokenPollWait);
    }
    EndEverything();
  }

  bool HasOrders() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return stopping_ || !started_.empty() || !cancelled_.empty() ||
           !tasks_.empty();
  }

  // Carries out what other threads and handlers asked for. True: stop.
  bool TakeOrders() EXCLUDES(mutex_) {
    for (;;) {
      std::deque<TransferPtr> started;
      std::vector<HttpId> cancelled;
      std::deque<std::function<void()>> tasks;
      bool stopping = false;
      {
        MutexLock lock(mutex_);
        started.swap(started_);
        cancelled.swap(cancelled_);
        tasks.swap(tasks_);
        stopping = stopping_;
      }
      if (started.empty() && cancelled.empty() && tasks.empty()) {
        return stopping;
      }
      for (TransferPtr& transfer : started) {
        if (stopping && !transfer->error) {
          transfer->error = transfer->Fail(Code::kCancelled, "shutting down");
        }
        if (transfer->error) {
          transfer->handler->OnDone(*transfer->error);
        } else {
          queued_.push_back(std::move(transfer));
        }
      }
      for (HttpId id : cancelled) CancelNow(id);
      for (auto& task : tasks) task();
    }
  }

  void CancelNow(HttpId id) {
    if (const auto it = active_.find(id); it != active_.end()) {
      End(*it->second, it->second->Fail(Code::kCancelled, "cancelled"));
      return;
    }
    const auto it = std::find_if(
        queued_.begin(), queued_.end(),
        [id](const TransferPtr& queued) { return queued->id == id; });
    if (it == queued_.end()) return;
    const TransferPtr transfer = std::move(*it);
    queued_.erase(it);
    transfer->handler->OnDone(transfer->Fail(Code::kCancelled, "cancelled"));
  }

  // Hands waiting requests to curl, as far as their hosts' limits allow.
  void Admit() {
    for (auto it = queued_.begin(); it != queued_.end();) {
      size_t& connections = connections_[(*it)->origin];
      if (connections >= options_.connections_per_host) {
        ++it;
        continue;
      }
      TransferPtr transfer = std::move(*it);
      it = queued_.erase(it);
      if (!SetUp(*transfer)) {
        // Handlers may only start requests, which does not touch queued_.
        transfer->handler->OnDone(
            transfer->Fail(Code::kUnavailable, "out of memory"));
        continue;
      }
      ++connections;
      const HttpId id = transfer->id;
      active_.emplace(id, std::move(transfer));
    }
  }

  bool SetUp(HttpTransfer& transfer) {
    transfer.easy.reset(curl_easy_init());
    if (transfer.easy == nullptr) return false;
    for (const auto& [name, value] : transfer.request.headers) {
      const std::string line = fmt::format("{}: {}", name, value);
      curl_slist* grown =
          curl_slist_append(transfer.headers.get(), line.c_str());
      if (grown == nullptr) return false;
      (void)transfer.headers.release();  // `grown` is the same list, or its new
      transfer.headers.reset(grown);     // head
    }
    SetProtocolOptions(transfer);
    SetLookUpOptions(transfer);
    transfer.SetCallbacks();
    transfer.started = std::chrono::steady_clock::now();
    return curl_multi_add_handle(multi_.get(), transfer.easy.get()) == CURLM_OK;
  }

  void SetProtocolOptions(const HttpTransfer& transfer) {
    CURL* easy = transfer.easy.get();
    const HttpRequest& request = transfer.request;
    curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
    curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
                     static_cast<long>(CURL_HTTP_VERSION_1_1));
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_HTTP_CONTENT_DECODING, 0L);
    curl_easy_setopt(easy, CURLOPT_HTTP09_ALLOWED, 0L);
    curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(easy, CURLOPT_PROXY, transfer.proxy.c_str());
    curl_easy_setopt(easy, CURLOPT_NOPROXY, transfer.proxy.empty() ? "*" : "");
    // Whatever ~/.netrc holds is for others.
    curl_easy_setopt(easy, CURLOPT_NETRC, long{CURL_NETRC_IGNORED});
    // What is meant for the server is not shown to a proxy's CONNECT.
    curl_easy_setopt(easy, CURLOPT_HEADEROPT,
                     static_cast<long>(CURLHEADER_SEPARATE));
    if (request.method == "HEAD") curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer.headers.get());
    if (!options_.user_agent.empty()) {
      curl_easy_setopt(easy, CURLOPT_USERAGENT, options_.user_agent.c_str());
    }
    if (!certificates_.file.empty()) {
      curl_easy_setopt(easy, CURLOPT_CAINFO, certificates_.file.c_str());
    }
    if (!certificates_.folder.empty()) {
      curl_easy_setopt(easy, CURLOPT_CAPATH, certificates_.folder.c_str());
    }
    curl_easy_setopt(easy, CURLOPT_SHARE, share_.get());
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, kReceiveBuffer);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS,
                     static_cast<long>(request.connect_timeout.count()));
  }

  void SetLookUpOptions(const HttpTransfer& transfer) {
    CURL* easy = transfer.easy.get();
    // One that hangs in the resolver is left behind, not waited for.
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
    // Connections beside others spread over all addresses of a name: each asks
    // anew (libcurl shuffles what it puts into its cache, not what it takes
    // out) and passes over an address that refuses. One that is alone keeps the
    // system's order, which knows what family works here (RFC 6724); and
    // localhost is one server, whatever else listens at its other address.
    if (transfer.host != HostKind::kName) return;
    if (const auto it = connections_.find(transfer.origin);
        it == connections_.end() || it->second == 0) {
      return;
    }
    curl_easy_setopt(easy, CURLOPT_DNS_SHUFFLE_ADDRESSES, 1L);
    curl_easy_setopt(easy, CURLOPT_DNS_CACHE_TIMEOUT, 0L);
  }

  void TakeFinished() {
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi_.get(), &left)) {
      if (message->msg != CURLMSG_DONE) continue;
      // `message` dies with curl_multi_remove_handle.
      const CURLcode code = message->data.result;
      HttpTransfer* transfer = nullptr;
      curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
      End(*transfer, transfer->ResultOf(code));
    }
  }

  // Takes an active transfer from curl and tells its handler.
  void End(HttpTransfer& transfer, Result<> result) {
    curl_multi_remove_handle(multi_.get(), transfer.easy.get());
    if (const auto it = connections_.find(transfer.origin);
        it != connections_.end() && --it->second == 0) {
      connections_.erase(it);
    }
    const auto node = active_.extract(transfer.id);
    transfer.easy.reset();
    transfer.handler->OnDone(std::move(result));
  }

  void EndOverdue() {
    const SteadyTime now = std::chrono::steady_clock::now();
    std::vector<HttpTransfer*> overdue;
    for (const auto& [id, transfer] : active_) {
      if (transfer->Deadline() <= now) overdue.push_back(transfer.get());
    }
    for (HttpTransfer* transfer : overdue)
      End(*transfer, transfer->Overdue(now));
    std::vector<TransferPtr> late;
    for (auto it = queued_.begin(); it != queued_.end();) {
      if ((*it)->Deadline() > now) {
        ++it;
        continue;
      }
      late.push_back(std::move(*it));
      it = queued_.erase(it);
    }
    for (const TransferPtr& transfer : late) {
      transfer->handler->OnDone(transfer->Overdue(now));
    }
  }

  int PollTimeout() const {
    const SteadyTime now = std::chrono::steady_clock::now();
    SteadyTime next = SteadyTime::max();
    for (const auto& [id, transfer] : active_) {
      next = std::min(next, transfer->Deadline());
      if (!transfer->connected) next = std::min(next, now + kConnectPoll);
    }
    for (const TransferPtr& transfer : queued_) {
      next = std::min(next, transfer->Deadline());
    }
    if (next == SteadyTime::max()) return static_cast<int>(kIdlePoll.count());
    const auto wait = std::chrono::ceil<milliseconds>(next - now);
    return static_cast<int>(
        std::clamp(wait, milliseconds(0), kIdlePoll).count());
  }

  // Handlers may start more while they are told: those end at once, too.
  void EndEverything() {
    while (!active_.empty()) {
      HttpTransfer& transfer = *active_.begin()->second;
      End(transfer, transfer.Fail(Code::kCancelled, "shutting down"));
    }
    while (!queued_.empty()) {
      const TransferPtr transfer = std::move(queued_.front());
      queued_.pop_front();
      transfer->handler->OnDone(
          transfer->Fail(Code::kCancelled, "shutting down"));
    }
    TakeOrders();
  }

  const HttpClientOptions options_;
  const Certificates certificates_;
  // TLS sessions, so that a new connection to a known host resumes one. Used by
  // the loop thread alone, hence without locks.
  const CurlShare share_;
  const CurlMulti multi_;  // the loop thread's, but for wakeups

  // The loop thread's.
  std::deque<TransferPtr> queued_;
  std::unordered_map<HttpId, TransferPtr> active_;
  std::unordered_map<std::string, size_t> connections_;  // active, by origin

  Mutex mutex_;  // a leaf: no other lock and no callback inside
  std::deque<TransferPtr> started_ GUARDED_BY(mutex_);
  std::vector<HttpId> cancelled_ GUARDED_BY(mutex_);
  std::deque<std::function<void()>> tasks_ GUARDED_BY(mutex_);
  HttpId next_id_ GUARDED_BY(mutex_) = 1;
  bool stopping_ GUARDED_BY(mutex_) = false;

  std::jthread thread_;
};

}  // namespace

std::optional<std::string_view> HttpResponse::Header(
    std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (IsNamed(key, name)) return value;
  }
  return std::nullopt;
}

bool HttpResponse::Agrees(std::string_view name) const {
  const auto first = Header(name);
  return std::all_of(headers.begin(), headers.end(), [&](const auto& header) {
    return !IsNamed(header.first, name) || header.second == *first;
  });
}

Result<std::unique_ptr<HttpClient>> HttpClient::Create(
    const HttpClientOptions& options) {
  static const CURLcode kInitialised = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (kInitialised != CURLE_OK) {
    return MakeError(Code::kIo, "libcurl: {}",
                     curl_easy_strerror(kInitialised));
  }
  CurlMulti multi(curl_multi_init());
  CurlShare share(curl_share_init());
  if (multi == nullptr || share == nullptr ||
      curl_multi_wakeup(multi.get()) != CURLM_OK) {
    return Error(Code::kIo,
                 "libcurl: cannot start (out of memory or file descriptors)");
  }
  curl_multi_setopt(multi.get(), CURLMOPT_PIPELINING,
                    static_cast<long>(CURLPIPE_NOTHING));
  curl_multi_setopt(multi.get(), CURLMOPT_MAXCONNECTS, kIdleConnections);
#if LIBCURL_VERSION_NUM >= 0x081400  // 8.20.0: look-ups are the multi's
  curl_multi_setopt(multi.get(), CURLMOPT_QUICK_EXIT, 1L);
#endif
  curl_share_setopt(share.get(), CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION);
  return std::unique_ptr<HttpClient>(std::make_unique<CurlHttpClient>(
      options, std::move(multi), std::move(share)));
}

}  // namespace weightfs
