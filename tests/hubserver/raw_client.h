// A blocking HTTP client over a bare socket, so that tests see what is on the
// wire: resets, bodies that are too long, headers as they came. Follows no
// redirect. Not thread-safe.

#ifndef WEIGHTFS_TESTS_HUBSERVER_RAW_CLIENT_H_
#define WEIGHTFS_TESTS_HUBSERVER_RAW_CLIENT_H_

#include <netinet/in.h>
#include <poll.h>
#include <strings.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "formats/base/unique_fd.h"

namespace weightfs {

struct RawReply {
  int status = 0;  // 0: no header came
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // Content-Length bytes, or fewer
  std::string more;  // what came after them (only if the peer closed)
  enum class End { kComplete, kClosed, kReset, kTimeout, kRefused } end;

  std::string Header(const std::string& name) const {
    for (const auto& [key, value] : headers) {
      if (::strcasecmp(key.c_str(), name.c_str()) == 0) return value;
    }
    return "";
  }
};

using RawHeaders = std::vector<std::pair<std::string, std::string>>;

class RawClient {
 public:
  // `url` is "http://127.0.0.1:PORT" and ignored after that.
  explicit RawClient(const std::string& url) { Connect(url); }

  bool connected() const { return fd_.valid(); }

  void Send(const std::string& method, const std::string& target,
            const RawHeaders& headers = {}, const std::string& body = "") {
    head_only_ = method == "HEAD";
    std::string text = method + " " + target + " HTTP/1.1\r\nHost: test\r\n";
    for (const auto& [name, value] : headers) {
      text += name + ": " + value + "\r\n";
    }
    if (!body.empty()) {
      text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    }
    text += "\r\n" + body;
    (void)::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }

  // `to_end` reads until the peer closes, whatever Content-Length says.
  RawReply Receive(
      std::chrono::milliseconds timeout = std::chrono::milliseconds(10'000),
      bool to_end = false) {
    RawReply reply;
    if (!fd_.valid()) {
      reply.end = RawReply::End::kRefused;
      return reply;
    }
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    uint64_t length = 0;
    for (;;) {
      if (reply.status == 0 && ParseHead(reply, length)) {
        if (head_only_) length = 0;
      }
      if (reply.status != 0 && !to_end && buffer_.size() >= length) {
        reply.end = RawReply::End::kComplete;
        break;
      }
      reply.end = Fill(deadline);
      if (reply.end != RawReply::End::kComplete) break;
    }
    if (reply.status != 0) {
      reply.body = buffer_.substr(0, length);
      buffer_.erase(0, reply.body.size());
      if (reply.end == RawReply::End::kClosed && reply.body.size() == length &&
          !to_end) {
        reply.end = RawReply::End::kComplete;
      }
    }
    if (to_end) reply.more = std::exchange(buffer_, "");
    return reply;
  }

  RawReply Ask(const std::string& method, const std::string& target,
               const RawHeaders& headers = {}, const std::string& body = "") {
    Send(method, target, headers, body);
    return Receive();
  }

 private:
  void Connect(const std::string& url) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port =
        htons(static_cast<uint16_t>(std::stoi(url.substr(url.rfind(':') + 1))));
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                  sizeof address) == 0) {
      fd_ = std::move(fd);
    }
  }

  // kComplete: some bytes came.
  RawReply::End Fill(std::chrono::steady_clock::time_point deadline) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd readable = {fd_.get(), POLLIN, 0};
    if (left.count() <= 0 ||
        ::poll(&readable, 1, static_cast<int>(left.count())) <= 0) {
      return RawReply::End::kTimeout;
    }
    char block[65536];
    const ssize_t got = ::recv(fd_.get(), block, sizeof block, 0);
    if (got < 0) {
      return errno == ECONNRESET ? RawReply::End::kReset
                                 : RawReply::End::kClosed;
    }
    if (got == 0) return RawReply::End::kClosed;
    buffer_.append(block, static_cast<size_t>(got));
    return RawReply::End::kComplete;
  }

  bool ParseHead(RawReply& reply, uint64_t& length) {
    const size_t end = buffer_.find("\r\n\r\n");
    if (end == std::string::npos || !buffer_.starts_with("HTTP/1.1 ")) {
      return false;
    }
    reply.status = std::stoi(buffer_.substr(9, 3));
    size_t at = buffer_.find("\r\n") + 2;
    while (at < end + 2) {
      const size_t line = buffer_.find("\r\n", at);
      const size_t colon = buffer_.find(": ", at);
      reply.headers.emplace_back(buffer_.substr(at, colon - at),
                                 buffer_.substr(colon + 2, line - colon - 2));
      at = line + 2;
    }
    buffer_.erase(0, end + 4);
    const std::string text = reply.Header("Content-Length");
    length = text.empty() ? 0 : std::stoull(text);
    return true;
  }

  UniqueFd fd_;
  std::string buffer_;
  bool head_only_ = false;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_HUBSERVER_RAW_CLIENT_H_
