#include "tests/support/hub_http.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace weightfs {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint64_t kBlock = uint64_t{256} << 10;
constexpr Clock::time_point kForever = Clock::time_point::max();

enum class Woken { kTimeout, kStopped, kClientGone, kReleased };

// Lives as long as one TCP connection, whose thread alone uses it.
struct Connection {
  uint64_t id = 0;
  Clock::time_point paced_until;
  bool paced_by_kernel = false;
};

// Lives as long as one request.
struct Call {
  std::string uri;
  std::string upload;
  bool answered = false;
  uint64_t id = 0;
  HubReply reply;
  int fd = -1;
  Connection* connection = nullptr;
  class Listener* listener = nullptr;
  // Of a body that the kernel sends: what it had acknowledged before.
  std::optional<uint64_t> acknowledged;
};

uint64_t Acknowledged(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size);
  return info.tcpi_bytes_acked;
}

// 0: no limit.
void PaceByKernel(const Call& call, uint64_t bytes_per_second) {
  const uint64_t rate = bytes_per_second == 0 ? ~uint64_t{0} : bytes_per_second;
  ::setsockopt(call.fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate);
  call.connection->paced_by_kernel = bytes_per_second != 0;
}

// The bytes of the body that went out, as far as is known.
uint64_t BytesSent(const Call& call, MHD_RequestTerminationCode code) {
  if (code == MHD_REQUEST_TERMINATED_COMPLETED_OK) return call.reply.length;
  const uint64_t now = Acknowledged(call.fd);
  return std::min(now - std::min(now, *call.acknowledged), call.reply.length);
}

class Listener : public HubHttpListener {
 public:
  Listener(TestHubListener name, HubHttpHandler& handler)
      : name_(name), handler_(handler) {}
  ~Listener() override {
    stop_.Set();
    if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  Result<> Open(uint16_t port);
  uint16_t port() const override { return port_; }
  size_t connections() const override {
    const auto* info =
        MHD_get_daemon_info(daemon_, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
    return info == nullptr ? 0 : info->num_connections;
  }

  MHD_Result Handle(MHD_Connection* connection, const char* method,
                    const char* upload, size_t* upload_size, Call& call);
  ssize_t Produce(Call& call, uint64_t position, char* out, size_t max);
  HubHttpHandler& handler() { return handler_; }

 private:
  // Until `deadline`, Stop, the client's end, or `release` (may be null).
  Woken Wait(int fd, Clock::time_point deadline,
             const HubEvent* release = nullptr) const;
  bool Hang(const Call& call);  // false: stopped, or the client left
  bool Pace(Call& call, size_t& size);
  void SendRaw(int fd, std::string_view bytes, milliseconds every) const;
  MHD_Result Respond(MHD_Connection* connection, Call& call);

  const TestHubListener name_;
  HubHttpHandler& handler_;
  HubEvent stop_;
  MHD_Daemon* daemon_ = nullptr;
  uint16_t port_ = 0;
};

// --- libmicrohttpd's callbacks ---

void* OnUri(void* listener, const char* uri, MHD_Connection* /*connection*/) {
  auto call = std::make_unique<Call>();
  call->uri = uri;
  call->listener = static_cast<Listener*>(listener);
  return call.release();
}

MHD_Result OnRequest(void* listener, MHD_Connection* connection,
                     const char* /*url*/, const char* method,
                     const char* /*version*/, const char* upload,
                     size_t* upload_size, void** state) {
  return static_cast<Listener*>(listener)->Handle(
      connection, method, upload, upload_size, *static_cast<Call*>(*state));
}

void OnCompleted(void* listener, MHD_Connection* /*connection*/, void** state,
                 MHD_RequestTerminationCode code) {
  const std::unique_ptr<Call> call(static_cast<Call*>(*state));
  *state = nullptr;
  if (call != nullptr && call->id != 0) {
    if (call->acknowledged) {
      static_cast<Listener*>(listener)->handler().OnBody(
          call->id, BytesSent(*call, code));
    }
    static_cast<Listener*>(listener)->handler().OnDone(call->id);
  }
}

void OnConnection(void* listener, MHD_Connection* /*connection*/, void** state,
                  MHD_ConnectionNotificationCode code) {
  if (code == MHD_CONNECTION_NOTIFY_STARTED) {
    auto connection = std::make_unique<Connection>();
    connection->id =
        static_cast<Listener*>(listener)->handler().NextConnection();
    *state = connection.release();
  } else {
    const std::unique_ptr<Connection> ended(static_cast<Connection*>(*state));
    *state = nullptr;
  }
}

ssize_t OnProduce(void* state, uint64_t position, char* out, size_t max) {
  auto& call = *static_cast<Call*>(state);
  return call.listener->Produce(call, position, out, max);
}

MHD_Result OnHeader(void* state, MHD_ValueKind /*kind*/, const char* key,
                    const char* value) {
  static_cast<TestHubHeaders*>(state)->emplace_back(
      key, value == nullptr ? "" : value);
  return MHD_YES;
}

std::error_code LastError() { return {errno, std::generic_category()}; }

Result<UniqueFd> Listen(uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int yes = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) !=
          0 ||
      ::listen(fd.get(), 1024) != 0) {
    return MakeError(Code::kIo, "127.0.0.1:{}: {}", port,
                     LastError().message());
  }
  return fd;
}

// RST now: what the kernel has not sent is dropped, so wait for that (≤ 1 s).
// A linger of 0 would do it only after libmicrohttpd's orderly FIN.
void Reset(int fd) {
  const auto deadline = Clock::now() + std::chrono::seconds(1);
  int unsent = 0;
  while (::ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent > 0 &&
         Clock::now() < deadline) {
    ::poll(nullptr, 0, 1);
  }
  sockaddr nowhere = {};
  nowhere.sa_family = AF_UNSPEC;
  (void)::connect(fd, &nowhere, sizeof nowhere);
}

Result<> Listener::Open(uint16_t port) {
  ASSIGN_OR_RETURN(UniqueFd fd, Listen(port));
  sockaddr_in address = {};
  socklen_t size = sizeof address;
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  daemon_ = MHD_start_daemon(
      MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
          MHD_USE_POLL,
      0, nullptr, nullptr, &OnRequest, this, MHD_OPTION_LISTEN_SOCKET, fd.get(),
      MHD_OPTION_CONNECTION_LIMIT, 4096U, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
      size_t{256} << 10, MHD_OPTION_URI_LOG_CALLBACK, &OnUri, this,
      MHD_OPTION_NOTIFY_COMPLETED, &OnCompleted, this,
      MHD_OPTION_NOTIFY_CONNECTION, &OnConnection, this, MHD_OPTION_END);
  if (daemon_ == nullptr) return Error(Code::kIo, "MHD_start_daemon failed");
  fd.Release();  // the daemon closes it
  return {};
}

// libmicrohttpd does not send more than it announced.
std::string Overrun(const HubReply& reply) {
  std::string text =
      "HTTP/1.1 " + std::to_string(reply.status) + " Overrun\r\n";
  for (const auto& [name, value] : reply.headers) {
    text += name + ": " + value + "\r\n";
  }
  text += "Content-Length: " + std::to_string(reply.length) + "\r\n\r\n";
  if (reply.body != nullptr) {
    text += reply.body->ReadRange(reply.offset, reply.length);
  }
  return text + std::string(reply.overrun, '\xaa');
}

// `every` 0: as fast as they go.
void Listener::SendRaw(int fd, std::string_view bytes,
                       milliseconds every) const {
  while (!bytes.empty()) {
    pollfd writable = {fd, POLLOUT, 0};
    if (::poll(&writable, 1, 1000) <= 0) return;
    const ssize_t sent = ::send(
        fd, bytes.data(), every.count() > 0 ? 1 : bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return;
    if (sent > 0) bytes.remove_prefix(static_cast<size_t>(sent));
    if (every.count() > 0 &&
        Wait(fd, Clock::now() + every) != Woken::kTimeout) {
      return;
    }
  }
}

Woken Listener::Wait(int fd, Clock::time_point deadline,
                     const HubEvent* release) const {
  std::array<pollfd, 3> watched = {
      {{stop_.fd(), POLLIN, 0},
       {fd, POLLRDHUP, 0},
       {release == nullptr ? -1 : release->fd(), POLLIN, 0}}};
  for (;;) {
    int timeout = -1;
    if (deadline != kForever) {
      const auto left =
          std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
      timeout = static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000));
    }
    const int ready = ::poll(watched.data(), watched.size(), timeout);
    if (ready < 0 && errno == EINTR) continue;
    if (watched[0].revents != 0) return Woken::kStopped;
    if (watched[1].revents != 0) return Woken::kClientGone;
    if (watched[2].revents != 0) return Woken::kReleased;
    if (ready <= 0 && Clock::now() >= deadline) return Woken::kTimeout;
  }
}

bool Listener::Hang(const Call& call) {
  const auto release = handler_.ReleaseEvent();
  return Wait(call.fd, kForever, release.get()) == Woken::kReleased;
}

// Waits for this block's turn, and makes it smaller if need be.
bool Listener::Pace(Call& call, size_t& size) {
  const HubReply& reply = call.reply;
  if (reply.trickle_bytes > 0) {
    size = std::min<size_t>(size, reply.trickle_bytes);
    return Wait(call.fd, Clock::now() + reply.trickle_every) == Woken::kTimeout;
  }
  if (reply.bytes_per_second == 0) return true;
  Clock::time_point& until = call.connection->paced_until;
  if (until > Clock::now() && Wait(call.fd, until) != Woken::kTimeout) {
    return false;
  }
  size = std::min<size_t>(
      size, std::max<uint64_t>(1024, reply.bytes_per_second / 50));
  const std::chrono::duration<double> cost(
      static_cast<double>(size) / static_cast<double>(reply.bytes_per_second));
  // Credit for waits that came late, but none for idle time.
  until = std::max(until, Clock::now() - milliseconds(20)) +
          std::chrono::duration_cast<Clock::duration>(cost);
  return true;
}

ssize_t Listener::Produce(Call& call, uint64_t position, char* out,
                          size_t max) {
  HubReply& reply = call.reply;
  const uint64_t end = reply.length + reply.extra;
  if (reply.reset_at && position >= *reply.reset_at) {
    Reset(call.fd);
    return MHD_CONTENT_READER_END_WITH_ERROR;
  }
  if (reply.close_at && position >= *reply.close_at) {
    return MHD_CONTENT_READER_END_WITH_ERROR;
  }
  if (reply.hang_at && position >= *reply.hang_at) {
    if (!Hang(call)) return MHD_CONTENT_READER_END_WITH_ERROR;
    reply.hang_at.reset();
  }
  uint64_t limit = position < reply.length ? reply.length : end;
  for (const auto& stop : {reply.reset_at, reply.close_at, reply.hang_at}) {
    if (stop) limit = std::min(limit, *stop);
  }
  size_t size = std::min<uint64_t>(max, limit - position);
  if (!Pace(call, size)) return MHD_CONTENT_READER_END_WITH_ERROR;
  const auto bytes = std::as_writable_bytes(std::span(out, size));
  if (position >= reply.length) {
    std::memset(out, 0xaa, size);
  } else {
    const uint64_t at = reply.offset + position;
    if (!reply.body->Read(at, bytes)) return MHD_CONTENT_READER_END_WITH_ERROR;
    for (const uint64_t flip : reply.flips) {
      if (flip >= at && flip - at < size) bytes[flip - at] ^= std::byte{1};
    }
    if (reply.inverted) {
      for (std::byte& byte : bytes) byte = ~byte;
    }
  }
  handler_.OnBody(call.id, size);
  return static_cast<ssize_t>(size);
}

// By sendfile(); the response closes its descriptor.
MHD_Response* FileResponse(Call& call) {
  const HubReply& reply = call.reply;
  PaceByKernel(call, reply.bytes_per_second);
  call.acknowledged = Acknowledged(call.fd);
  return MHD_create_response_from_fd_at_offset64(
      reply.length, ::fcntl(reply.body->fd(), F_DUPFD_CLOEXEC, 0),
      reply.offset);
}

MHD_Response* ProducedResponse(Call& call) {
  const HubReply& reply = call.reply;
  if (call.connection->paced_by_kernel) PaceByKernel(call, 0);
  const uint64_t length = reply.length + reply.extra;
  const uint64_t size = reply.hide_length ? MHD_SIZE_UNKNOWN : length;
  return MHD_create_response_from_callback(
      size, std::clamp<uint64_t>(length, 1, kBlock), &OnProduce, &call,
      nullptr);
}

MHD_Result Listener::Respond(MHD_Connection* connection, Call& call) {
  const HubReply& reply = call.reply;
  MHD_Response* response =
      reply.CanSendFile() ? FileResponse(call) : ProducedResponse(call);
  if (response == nullptr) return MHD_NO;
  for (const auto& [name, value] : reply.headers) {
    MHD_add_response_header(response, name.c_str(), value.c_str());
  }
  const MHD_Result queued = MHD_queue_response(
      connection, static_cast<unsigned>(reply.status), response);
  MHD_destroy_response(response);
  return queued;
}

MHD_Result Listener::Handle(MHD_Connection* connection, const char* method,
                            const char* upload, size_t* upload_size,
                            Call& call) {
  constexpr size_t kMaxUpload = size_t{64} << 20;
  if (*upload_size > 0) {
    call.upload.append(upload, *upload_size);
    *upload_size = 0;
    return call.upload.size() <= kMaxUpload ? MHD_YES : MHD_NO;
  }
  // The first call for a request with a body comes before the body.
  if (!call.answered && call.connection == nullptr) {
    call.fd =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)
            ->connect_fd;
    call.connection = static_cast<Connection*>(
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)
            ->socket_context);
    return MHD_YES;
  }
  call.answered = true;
  TestHubRequest request;
  request.listener = name_;
  request.connection = call.connection->id;
  request.method = method;
  request.path = call.uri.substr(0, call.uri.find('?'));
  if (request.path.size() < call.uri.size()) {
    request.query = call.uri.substr(request.path.size() + 1);
  }
  MHD_get_connection_values(connection, MHD_HEADER_KIND, &OnHeader,
                            &request.headers);
  request.range = request.Header("Range");
  request.authorization = request.Header("Authorization");
  call.reply = handler_.Answer(request, call.upload);
  call.id = request.id;

  const HubReply& reply = call.reply;
  if (reply.no_answer && !Hang(call)) return MHD_NO;
  if (reply.delay.count() > 0 &&
      Wait(call.fd, Clock::now() + reply.delay) != Woken::kTimeout) {
    return MHD_NO;
  }
  if (reply.overrun > 0) {
    SendRaw(call.fd, Overrun(reply), milliseconds(0));
    handler_.OnBody(call.id, reply.length + reply.overrun);
    return MHD_NO;
  }
  if (reply.raw) {
    SendRaw(call.fd, *reply.raw, reply.raw_every);
    return MHD_NO;
  }
  return Respond(connection, call);
}

}  // namespace

HubEvent::HubEvent() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

void HubEvent::Set() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof one);
}

Result<std::unique_ptr<HubHttpListener>> HubHttpListener::Start(
    TestHubListener name, uint16_t port, HubHttpHandler& handler) {
  auto listener = std::make_unique<Listener>(name, handler);
  RETURN_IF_ERROR(listener->Open(port));
  return std::unique_ptr<HubHttpListener>(std::move(listener));
}

}  // namespace weightfs
