// TestHub: a Hugging Face Hub in this process, on loopback, that tests program.
//
// Two listeners of their own port, as the real one has two hosts: the hub (API
// and resolve) and the CDN, which takes signed, expiring URLs and refuses a
// request that carries a token. Plain files: 307 to /api/resolve-cache/…; LFS
// files (TestHubFile::lfs): 302 to the CDN. It records each request and
// misbehaves on demand (hub_fault.h).
//
//   auto hub = *TestHub::Start();
//   const std::string commit = hub->Commit("org/name", "main",
//       {{"config.json", MemoryContent("{}")},
//        {"model.safetensors", PatternContent(1 << 20, 7)}});
//   … hub->url() …
//   EXPECT_EQ(hub->Count({.contains = "model.safetensors"}), 2);
//
// Repo ids are "org/name", "name", "datasets/org/name" or "spaces/org/name".
//
// Thread-safety: safe for concurrent use. Fault callbacks run on a connection's
// thread, with no lock held.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_SERVER_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_SERVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "formats/base/result.h"
#include "tests/support/hub_content.h"
#include "tests/support/hub_fault.h"

namespace weightfs {

// May be changed at any time (TestHub::Configure).
struct TestHubSettings {
  std::chrono::milliseconds latency{0};  // before each answer
  uint64_t bytes_per_second = 0;         // per connection; 0: no limit
  // Files of a folder go from the page cache to the socket, paced by the
  // kernel, where no fault applies: it costs the least, for benchmarks.
  // What the log says of their body's bytes comes when the answer is done.
  bool sendfile = false;
  uint64_t tree_page_size = 1000;  // a request's `limit` may lower it
  // Put in place of the hub's own origin in Link rel="next".
  std::string next_page_origin;
  std::chrono::seconds signature_lifetime{3600};
  // Answers of plain files carry no Content-Length on HEAD, only on GET.
  bool head_without_size = false;
  // `size` in the tree is the LFS pointer's, as some mirrors have it.
  bool tree_has_pointer_size = false;
};

struct TestHubOptions {
  uint16_t port = 0;  // 0: any free one; kept over Stop() and Start()
  uint16_t cdn_port = 0;
  std::string log_file;  // JSON lines, one per finished request, if not empty
  TestHubSettings settings;
};

struct TestHubRepoOptions {
  bool is_private = false;  // without a token of `readers`: RepoNotFound
  bool gated = false;       // resolve without one of `readers`: GatedRepo
  bool disabled = false;
  std::set<std::string> readers = {};  // tokens; they are known tokens, too
};

class TestHub {
 public:
  // Serves when it returns.
  static Result<std::unique_ptr<TestHub>> Start(TestHubOptions options = {});
  ~TestHub();  // as Stop
  TestHub(const TestHub&) = delete;
  TestHub& operator=(const TestHub&) = delete;

  const std::string& url() const;      // "http://127.0.0.1:PORT"
  const std::string& cdn_url() const;  // the same with the CDN's port

  // Closes every connection and refuses new ones; < 1 s, whatever hangs.
  void Stop();
  Result<> Restart();  // on the same ports, same repos, log and faults

  void Configure(const std::function<void(TestHubSettings&)>& change);
  TestHubSettings settings() const;

  // --- repos ---
  // Makes the repo, or changes its options.
  void SetRepo(const std::string& repo, TestHubRepoOptions options);
  // A new commit with exactly these files, and `branch` moved to it. Makes the
  // repo if need be. Returns the commit's 40-hex id.
  std::string Commit(const std::string& repo, const std::string& branch,
                     std::vector<TestHubFile> files);
  // As Commit with the files of a folder on disk.
  Result<std::string> CommitFolder(const std::string& repo,
                                   const std::string& branch,
                                   const std::string& folder);
  // Branch, tag or "refs/pr/1". REQUIRES: `commit` was returned by Commit.
  void SetRef(const std::string& repo, const std::string& ref,
              const std::string& commit);
  // Requests for `old_id` get a 307 to `repo`, path only, as after a rename.
  void AddAlias(const std::string& old_id, const std::string& repo);
  // A valid token that reads public repos only.
  void AddToken(const std::string& token);
  // Every signed URL handed out so far is refused from now on.
  void RotateSigningKey();
  // The commit that a ref names; nothing if there is none.
  std::optional<std::string> Resolve(const std::string& repo,
                                     const std::string& ref) const;
  TestHubContentPtr Content(const std::string& repo, const std::string& ref,
                            const std::string& path) const;  // or null

  // --- faults ---
  uint64_t AddFault(TestHubFault fault);  // an id, for the two below
  void RemoveFault(uint64_t id);
  uint64_t FaultHits(uint64_t id) const;  // requests that it was applied to
  void ClearFaults();
  void ReleaseHangs();  // those that hang now go on as if nothing was

  // --- log ---
  std::vector<TestHubRequest> Requests(const TestHubFilter& filter = {}) const;
  size_t Count(const TestHubFilter& filter = {}) const;
  uint64_t BodyBytes(const TestHubFilter& filter = {}) const;
  // Inclusive ends as in the header; requests without a Range are left out.
  std::vector<std::pair<uint64_t, uint64_t>> Ranges(
      const TestHubFilter& filter = {}) const;
  // Until that many have arrived (`WaitForDone`: and were finished); false if
  // they did not within `timeout`.
  bool WaitForRequests(const TestHubFilter& filter, size_t count,
                       std::chrono::milliseconds timeout) const;
  bool WaitForDone(const TestHubFilter& filter, size_t count,
                   std::chrono::milliseconds timeout) const;
  void ClearLog();
  size_t OpenConnections() const;  // hub and CDN together

  class State;  // the implementation's own

 private:
  explicit TestHub(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_SERVER_H_
