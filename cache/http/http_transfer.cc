#include "cache/http/http_transfer.h"

#include <algorithm>
#include <span>

#include "cache/http/http_fields.h"
#include "cache/http/url.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

constexpr size_t kMaxHeaderBytes = 128 << 10;  // of one response
constexpr size_t kMaxHeaders = 512;

// "HTTP/1.1 206 Partial Content" gives 206.
std::optional<int> StatusOf(std::string_view line) {
  const size_t space = line.find(' ');
  if (!line.starts_with("HTTP/") || space == std::string_view::npos) {
    return std::nullopt;
  }
  const auto status = ParseDecimal(line.substr(space + 1, 3));
  if (!status || *status < 100 || *status > 999) return std::nullopt;
  return static_cast<int>(*status);
}

std::string_view StripLine(std::string_view line) {
  while (!line.empty() && (line.back() == '\r' || line.back() == '\n')) {
    line.remove_suffix(1);
  }
  return line;
}

void AddHeader(std::string_view line, HttpResponse& response) {
  const size_t colon = line.find(':');
  // A line that starts with a blank continues the one before: obsolete, and no
  // header that matters here is written so.
  if (colon == 0 || colon == std::string_view::npos || line.front() == ' ' ||
      line.front() == '\t') {
    return;
  }
  std::string_view value = line.substr(colon + 1);
  const size_t first = value.find_first_not_of(" \t");
  value = first == std::string_view::npos
              ? std::string_view()
              : value.substr(first, value.find_last_not_of(" \t") - first + 1);
  response.headers.emplace_back(line.substr(0, colon), value);
}

// False stops the transfer.
bool TakeHeaderLine(HttpTransfer& transfer, std::string_view line) {
  transfer.header_bytes += line.size();
  if (transfer.header_bytes > kMaxHeaderBytes ||
      transfer.response.headers.size() > kMaxHeaders) {
    transfer.error = transfer.Fail(Code::kUnavailable, "headers too large");
    return false;
  }
  if (transfer.responded) return true;  // a trailer
  line = StripLine(line);
  if (line.starts_with("HTTP/")) {
    const auto status = StatusOf(line);
    if (!status) {
      transfer.error = transfer.Fail(Code::kUnavailable, "a bad status line");
      return false;
    }
    transfer.response = HttpResponse{*status, {}, transfer.response.redirects};
    return true;
  }
  if (!line.empty()) {
    AddHeader(line, transfer.response);
    return true;
  }
  if (transfer.response.status < 200) return true;  // the final one follows
  transfer.responded = true;
  return transfer.handler->OnResponse(transfer.response);
}

size_t HeaderCallback(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  const size_t bytes = size * count;
  transfer.CountBytes(bytes);
  return TakeHeaderLine(transfer, {data, bytes}) ? bytes : 0;
}

size_t BodyCallback(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  const size_t bytes = size * count;
  transfer.CountBytes(bytes);
  const bool go_on =
      transfer.handler->OnBody(std::as_bytes(std::span(data, bytes)));
  return go_on ? bytes : CURL_WRITEFUNC_ERROR;
}

bool MayReach(const HttpTransfer& transfer, bool is_public) {
  return transfer.request.reach == HttpReach::kAnywhere || is_public;
}

// The address that a name led to just now, whatever it led to before.
curl_socket_t OpenSocketCallback(void* user, curlsocktype purpose,
                                 curl_sockaddr* address) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  if (purpose == CURLSOCKTYPE_IPCXN && transfer.proxy.empty() &&
      !MayReach(transfer, IsPublicAddress(address->addr))) {
    transfer.kept_out = true;
    return CURL_SOCKET_BAD;
  }
  return ::socket(address->family, address->socktype | SOCK_CLOEXEC,
                  address->protocol);
}

// Also for a connection that another request opened.
int ConnectedCallback(void* user, char* remote_ip, char* /*local_ip*/,
                      int /*remote_port*/, int /*local_port*/) {
  auto& transfer = *static_cast<HttpTransfer*>(user);
  if (!transfer.TakeConnection(KindOfHost(remote_ip))) {
    return CURL_PREREQFUNC_ABORT;
  }
  transfer.connected = true;
  transfer.window_start = std::chrono::steady_clock::now();
  return CURL_PREREQFUNC_OK;
}

Code CodeOf(CURLcode code) {
  switch (code) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
      return Code::kDenied;
    default:  // URLs were checked before: it is the server or the network
      return Code::kUnavailable;
  }
}

}  // namespace

void HttpTransfer::SetCallbacks() {
  CURL* handle = easy.get();
  curl_easy_setopt(handle, CURLOPT_PRIVATE, this);
  curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, curl_message.data());
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, &HeaderCallback);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, this);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, &BodyCallback);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, this);
  curl_easy_setopt(handle, CURLOPT_OPENSOCKETFUNCTION, &OpenSocketCallback);
  curl_easy_setopt(handle, CURLOPT_OPENSOCKETDATA, this);
  curl_easy_setopt(handle, CURLOPT_PREREQFUNCTION, &ConnectedCallback);
  curl_easy_setopt(handle, CURLOPT_PREREQDATA, this);
}

void HttpTransfer::CountBytes(size_t count) {
  bytes += count;
  if (bytes - window_bytes < request.stall_bytes) return;
  window_start = std::chrono::steady_clock::now();
  window_bytes = bytes;
}

bool HttpTransfer::TakeConnection(HostKind address) {
  // A proxy's address says nothing of the server's; of a name that only the
  // proxy looks up nothing is known.
  if (!proxy.empty()) address = host;
  const bool is_private = address == HostKind::kPrivate;
  response.redirects = is_private ? HttpReach::kAnywhere : HttpReach::kPublic;
  if (MayReach(*this, !is_private)) return true;
  kept_out = true;
  return false;
}

Result<> HttpTransfer::ResultOf(CURLcode code) const {
  if (error) return *error;
  if (code != CURLE_OK && kept_out && !responded) {
    return Fail(Code::kDenied,
                "refused, since a public server led there and it is an address "
                "of this machine or its network");
  }
  if (code == CURLE_WRITE_ERROR || code == CURLE_ABORTED_BY_CALLBACK) {
    return Fail(Code::kCancelled, "stopped by its reader");
  }
  if (code == CURLE_OK && responded) return {};
  if (code == CURLE_OK) return Fail(Code::kUnavailable, "no response");
  // May quote what the server sent.
  const std::string detail = PrintableText(curl_message.data());
  return Fail(CodeOf(code), detail.empty() ? curl_easy_strerror(code) : detail);
}

Error HttpTransfer::Fail(Code code, std::string_view what) const {
  return MakeError(code, "{} {}: {}", request.method, RedactUrl(request.url),
                   what);
}

HttpTransfer::Time HttpTransfer::Deadline() const {
  Time deadline = Time::max();
  if (request.total_timeout.count() > 0) {
    deadline = requested + request.total_timeout;
  }
  if (easy == nullptr) return deadline;  // waits for a connection
  return std::min(deadline, connected ? window_start + request.stall_timeout
                                      : started + request.connect_timeout);
}

Error HttpTransfer::Overdue(Time now) const {
  if (request.total_timeout.count() > 0 &&
      requested + request.total_timeout <= now) {
    return Fail(Code::kUnavailable, fmt::format("not done after {} ms",
                                                request.total_timeout.count()));
  }
  if (!connected) {
    return Fail(Code::kUnavailable,
                fmt::format("no connection after {} ms",
                            request.connect_timeout.count()));
  }
  return Fail(Code::kUnavailable,
              fmt::format("stalled: {} bytes, then fewer than {} in {} ms",
                          window_bytes, request.stall_bytes,
                          request.stall_timeout.count()));
}

}  // namespace weightfs
