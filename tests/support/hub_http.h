// The test hub's HTTP half: one listening socket over libmicrohttpd, a thread
// per connection, and the ways in which an answer can go wrong on the wire.
// Only TestHub uses it.
//
// Thread-safety: safe for concurrent use; HubHttpHandler is called on many
// threads at once.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_HTTP_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_HTTP_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/base/result.h"
#include "formats/base/unique_fd.h"
#include "tests/support/hub_content.h"
#include "tests/support/hub_fault.h"

namespace weightfs {

// An event that stays set: poll() on its fd wakes every waiter.
class HubEvent {
 public:
  HubEvent();
  void Set() const;
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

struct HubReply {
  int status = 200;
  TestHubHeaders headers;  // without Content-Length
  TestHubContentPtr body;  // may be null: empty
  uint64_t offset = 0;     // of the part of `body` that is sent
  uint64_t length = 0;
  bool hide_length = false;  // no Content-Length (HEAD)

  // How it is sent.
  std::chrono::milliseconds delay{0};
  uint64_t bytes_per_second = 0;
  bool sendfile = false;  // if it can be: see CanSendFile
  uint64_t trickle_bytes = 0;
  std::chrono::milliseconds trickle_every{0};

  // How it goes wrong; positions count body bytes sent.
  uint64_t extra = 0;    // bytes after the body, announced
  uint64_t overrun = 0;  // bytes after the body, not announced
  std::optional<uint64_t> reset_at;
  std::optional<uint64_t> close_at;
  std::optional<uint64_t> hang_at;
  bool no_answer = false;
  std::optional<std::string> raw;
  std::chrono::milliseconds raw_every{0};  // a byte of `raw`
  std::vector<uint64_t> flips;             // offsets in `body`
  bool inverted = false;                   // every byte of `body`

  // Whether the body goes out as it lies in a file.
  bool CanSendFile() const {
    return sendfile && body != nullptr && body->fd() >= 0 && length > 0 &&
           !hide_length && trickle_bytes == 0 && extra == 0 && !reset_at &&
           !close_at && !hang_at && flips.empty() && !inverted;
  }
};

class HubHttpHandler {
 public:
  virtual ~HubHttpHandler() = default;
  // `request` is as received; the handler sets its id.
  virtual HubReply Answer(TestHubRequest& request, const std::string& body) = 0;
  virtual void OnBody(uint64_t id, uint64_t bytes) = 0;
  virtual void OnDone(uint64_t id) = 0;
  // Ends the hangs that begin now, when set.
  virtual std::shared_ptr<const HubEvent> ReleaseEvent() = 0;
  virtual uint64_t NextConnection() = 0;
};

class HubHttpListener {
 public:
  // Port 0: any free one. `handler` must outlive it.
  static Result<std::unique_ptr<HubHttpListener>> Start(
      TestHubListener name, uint16_t port, HubHttpHandler& handler);
  // Wakes what hangs, closes every connection, joins every thread.
  virtual ~HubHttpListener() = default;
  virtual uint16_t port() const = 0;
  virtual size_t connections() const = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_HTTP_H_
