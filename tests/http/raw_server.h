// RawServer: a loopback TCP server that says what a test scripts, byte for
// byte, for answers that no HTTP library would give.
//
// Thread-safety: the script runs on a thread of its connection.

#ifndef WEIGHTFS_TESTS_HTTP_RAW_SERVER_H_
#define WEIGHTFS_TESTS_HTTP_RAW_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class RawConnection {
 public:
  RawConnection(int fd, int number) : fd_(fd), number_(number) {}

  int number() const { return number_; }  // 0, 1, … in order of accept
  // The next request's head, or "" once the client has closed.
  std::string ReadHead() {
    std::string head;
    char c = 0;
    while (!head.ends_with("\r\n\r\n")) {
      if (::recv(fd_, &c, 1, 0) != 1) return "";
      head += c;
    }
    return head;
  }
  // False once the client has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent =
          ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // Until the client closes, or the server stops.
  void WaitForClose() {
    std::array<char, 4096> rest;
    while (::recv(fd_, rest.data(), rest.size(), 0) > 0) {
    }
  }
  void Reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  }

 private:
  const int fd_;
  const int number_;
};

class RawServer {
 public:
  using Script = std::function<void(RawConnection&)>;

  // `script` runs for each connection, which is closed when it returns.
  explicit RawServer(Script script)
      : script_(std::move(script)),
        listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_.get(), generic, size) != 0 ||
        ::listen(listener_.get(), 128) != 0 ||
        ::getsockname(listener_.get(), generic, &size) != 0) {
      abort();
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~RawServer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    {
      MutexLock lock(mutex_);
      for (const UniqueFd& fd : fds_) ::shutdown(fd.get(), SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
  }

  std::string Url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }
  uint16_t port() const { return port_; }
  int connections() const { return connections_; }

 private:
  void Accept() {
    for (;;) {
      const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      {
        MutexLock lock(mutex_);
        fds_.emplace_back(fd);
      }
      threads_.emplace_back([this, fd, number = connections_++] {
        RawConnection connection(fd, number);
        script_(connection);
        MutexLock lock(mutex_);
        for (UniqueFd& open : fds_) {
          if (open.get() == fd) open.Reset();
        }
      });
    }
  }

  const Script script_;
  const UniqueFd listener_;
  uint16_t port_ = 0;
  std::atomic<int> connections_{0};
  Mutex mutex_;
  std::vector<UniqueFd> fds_ GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;  // the acceptor's until it is joined
  std::thread acceptor_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_HTTP_RAW_SERVER_H_
