// TestHub's state: repos, settings, faults, log and the two listeners. Only
// the hub_*.cc files use it.
//
// Thread-safety: safe for concurrent use. mutex_ guards all but the listeners;
// it is held for look-ups only, never while bytes are read, hashed or sent.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_STATE_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_STATE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "formats/base/mutex.h"
#include "tests/support/hub_http.h"
#include "tests/support/hub_server.h"

namespace weightfs {

struct HubEntry {
  TestHubContentPtr content;
  bool lfs = false;
};

struct HubCommit {
  std::string id;  // 40 hex
  std::map<std::string, HubEntry> files;
};
using HubCommitPtr = std::shared_ptr<const HubCommit>;

struct HubRepo {
  TestHubRepoOptions options;
  std::map<std::string, std::string> refs;
  std::map<std::string, HubCommitPtr> commits;
};

// What a URL of the hub asks for.
struct HubTarget {
  enum class Kind {
    kUnknown,
    kInfo,
    kTree,
    kPathsInfo,
    kRefs,
    kCommits,
    kXetToken,
    kResolve,
    kResolveCache,
    kWhoami,
    kHarnesses,
    kControl,
    kCdn,
    kFiles,
  };
  Kind kind = Kind::kUnknown;
  std::string repo;  // as in TestHub: with "datasets/" or "spaces/"
  std::string rev;   // decoded
  std::string path;  // decoded; at the CDN the sha256
};
HubTarget ParseHubTarget(TestHubListener listener, std::string_view path);
std::string PercentDecode(std::string_view text);
std::string PercentEncode(std::string_view text, std::string_view safe);
// The decoded value of a query's or a form's key.
std::optional<std::string> QueryValue(std::string_view query,
                                      std::string_view key);

class TestHub::State : public HubHttpHandler {
 public:
  explicit State(TestHubOptions options);
  ~State() override;

  Result<> Open() EXCLUDES(listeners_mutex_);
  void Close() EXCLUDES(listeners_mutex_);
  size_t Connections() EXCLUDES(listeners_mutex_);
  // Close, and Open after `length`, from a thread of its own.
  void Outage(std::chrono::milliseconds length) EXCLUDES(mutex_);
  const std::string& url() const { return url_; }
  const std::string& cdn_url() const { return cdn_url_; }

  // HubHttpHandler
  HubReply Answer(TestHubRequest& request, const std::string& body) override;
  void OnBody(uint64_t id, uint64_t bytes) override EXCLUDES(mutex_);
  void OnDone(uint64_t id) override EXCLUDES(mutex_);
  std::shared_ptr<const HubEvent> ReleaseEvent() override EXCLUDES(mutex_);
  uint64_t NextConnection() override EXCLUDES(mutex_);

  // Behind TestHub's functions of the same names.
  void Configure(const std::function<void(TestHubSettings&)>& change)
      EXCLUDES(mutex_);
  TestHubSettings settings() const EXCLUDES(mutex_);
  void SetRepo(const std::string& repo, TestHubRepoOptions options)
      EXCLUDES(mutex_);
  std::string Commit(const std::string& repo, const std::string& branch,
                     std::vector<TestHubFile> files) EXCLUDES(mutex_);
  bool SetRef(const std::string& repo, const std::string& ref,
              const std::string& commit) EXCLUDES(mutex_);
  void AddAlias(const std::string& old_id, const std::string& repo)
      EXCLUDES(mutex_);
  void AddToken(const std::string& token) EXCLUDES(mutex_);
  void RotateSigningKey() EXCLUDES(mutex_);
  uint64_t AddFault(TestHubFault fault) EXCLUDES(mutex_);
  void RemoveFault(uint64_t id) EXCLUDES(mutex_);
  uint64_t FaultHits(uint64_t id) const EXCLUDES(mutex_);
  void ClearFaults() EXCLUDES(mutex_);
  void ReleaseHangs() EXCLUDES(mutex_);
  std::vector<TestHubRequest> Requests(const TestHubFilter& filter) const
      EXCLUDES(mutex_);
  bool WaitFor(const TestHubFilter& filter, size_t count, bool done,
               std::chrono::milliseconds timeout) const EXCLUDES(mutex_);
  void ClearLog() EXCLUDES(mutex_);

  // Copies of what the answers are made from.
  std::optional<HubRepo> FindRepo(const std::string& repo) const
      EXCLUDES(mutex_);
  std::optional<std::string> FindAlias(const std::string& repo) const
      EXCLUDES(mutex_);
  bool KnowsToken(const std::string& token) const EXCLUDES(mutex_);
  // A signed URL of the CDN, and its check.
  std::string SignedUrl(const std::string& repo, const HubEntry& entry,
                        const std::string& path) const EXCLUDES(mutex_);
  bool SignatureHolds(const std::string& path, const std::string& query) const
      EXCLUDES(mutex_);
  // The entry of that digest in the repo whose CDN folder this is.
  std::optional<HubEntry> FindByDigest(std::string_view folder,
                                       std::string_view sha256) const
      EXCLUDES(mutex_);

 private:
  std::string Sign(const std::string& text) const REQUIRES(mutex_);
  // Logs the request and takes the faults that apply to it.
  std::vector<TestHubFault> Begin(TestHubRequest& request) EXCLUDES(mutex_);
  TestHubRequest* Logged(uint64_t id) REQUIRES(mutex_);

  struct PlacedFault {
    uint64_t id = 0;
    TestHubFault fault;
  };

  TestHubOptions options_;  // ports are set at the first Open
  std::atomic<bool> opened_{false};
  std::string url_;  // constant once opened_, as cdn_url_
  std::string cdn_url_;

  mutable Mutex listeners_mutex_;  // before mutex_
  std::unique_ptr<HubHttpListener> hub_ GUARDED_BY(listeners_mutex_);
  std::unique_ptr<HubHttpListener> cdn_ GUARDED_BY(listeners_mutex_);

  mutable Mutex mutex_;
  mutable CondVar changed_;  // the log
  TestHubSettings settings_ GUARDED_BY(mutex_);
  std::map<std::string, HubRepo> repos_ GUARDED_BY(mutex_);
  std::map<std::string, std::string> aliases_ GUARDED_BY(mutex_);
  std::set<std::string> tokens_ GUARDED_BY(mutex_);
  std::string signing_key_ GUARDED_BY(mutex_);
  std::vector<PlacedFault> faults_ GUARDED_BY(mutex_);
  std::map<uint64_t, uint64_t> fault_hits_ GUARDED_BY(mutex_);
  uint64_t next_fault_ GUARDED_BY(mutex_) = 1;
  std::shared_ptr<const HubEvent> release_ GUARDED_BY(mutex_);
  std::deque<TestHubRequest> log_ GUARDED_BY(mutex_);  // ids are consecutive
  uint64_t next_request_ GUARDED_BY(mutex_) = 1;
  uint64_t next_connection_ GUARDED_BY(mutex_) = 1;
  std::ofstream log_file_ GUARDED_BY(mutex_);
  std::jthread outage_ GUARDED_BY(mutex_);
  bool outage_running_ GUARDED_BY(mutex_) = false;
};

// The answer without its faults, and what faults do to it (hub_api.cc,
// hub_faults.cc).
HubReply BuildHubReply(TestHub::State& hub, const TestHubRequest& request,
                       const HubTarget& target, const std::string& body);
void ApplyHubFault(const TestHubFault& fault, const TestHubRequest& request,
                   HubReply& reply);
// POST /_control (hub_control.cc).
HubReply AnswerHubControl(TestHub::State& hub, const std::string& body);
// One log entry as a JSON object in one line.
std::string HubLogLine(const TestHubRequest& request);

void SetHubBody(HubReply& reply, std::string text, std::string type);
HubReply HubJsonError(int status, const std::string& code,
                      const std::string& message);
// The hex HMAC-SHA256, and SHA-256, SHA-1 of a text.
std::string HubHmac(std::string_view key, std::string_view text);
std::string HubSha256(std::string_view text);
std::string HubSha1(std::string_view text);

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_STATE_H_
