#include "tests/support/hub_server.h"

#include <cassert>
#include <charconv>

#include "tests/support/hub_state.h"

namespace weightfs {

TestHub::TestHub(std::unique_ptr<State> state) : state_(std::move(state)) {}
TestHub::~TestHub() = default;

Result<std::unique_ptr<TestHub>> TestHub::Start(TestHubOptions options) {
  auto state = std::make_unique<State>(std::move(options));
  RETURN_IF_ERROR(state->Open());
  return std::unique_ptr<TestHub>(new TestHub(std::move(state)));
}

const std::string& TestHub::url() const { return state_->url(); }
const std::string& TestHub::cdn_url() const { return state_->cdn_url(); }
void TestHub::Stop() { state_->Close(); }
Result<> TestHub::Restart() { return state_->Open(); }

void TestHub::Configure(const std::function<void(TestHubSettings&)>& change) {
  state_->Configure(change);
}
TestHubSettings TestHub::settings() const { return state_->settings(); }

void TestHub::SetRepo(const std::string& repo, TestHubRepoOptions options) {
  state_->SetRepo(repo, std::move(options));
}
std::string TestHub::Commit(const std::string& repo, const std::string& branch,
                            std::vector<TestHubFile> files) {
  return state_->Commit(repo, branch, std::move(files));
}
Result<std::string> TestHub::CommitFolder(const std::string& repo,
                                          const std::string& branch,
                                          const std::string& folder) {
  ASSIGN_OR_RETURN(auto files, ReadTestHubFolder(folder));
  return Commit(repo, branch, std::move(files));
}
void TestHub::SetRef(const std::string& repo, const std::string& ref,
                     const std::string& commit) {
  [[maybe_unused]] const bool set = state_->SetRef(repo, ref, commit);
  assert(set);
}
void TestHub::AddAlias(const std::string& old_id, const std::string& repo) {
  state_->AddAlias(old_id, repo);
}
void TestHub::AddToken(const std::string& token) { state_->AddToken(token); }
void TestHub::RotateSigningKey() { state_->RotateSigningKey(); }

std::optional<std::string> TestHub::Resolve(const std::string& repo,
                                            const std::string& ref) const {
  const auto found = state_->FindRepo(repo);
  if (!found) return std::nullopt;
  if (found->commits.contains(ref)) return ref;
  const auto commit = found->refs.find(ref);
  if (commit == found->refs.end()) return std::nullopt;
  return commit->second;
}

TestHubContentPtr TestHub::Content(const std::string& repo,
                                   const std::string& ref,
                                   const std::string& path) const {
  const auto commit = Resolve(repo, ref);
  if (!commit) return nullptr;
  const auto found = state_->FindRepo(repo);
  const auto& files = found->commits.at(*commit)->files;
  const auto file = files.find(path);
  return file == files.end() ? nullptr : file->second.content;
}

uint64_t TestHub::AddFault(TestHubFault fault) {
  return state_->AddFault(std::move(fault));
}
void TestHub::RemoveFault(uint64_t id) { state_->RemoveFault(id); }
uint64_t TestHub::FaultHits(uint64_t id) const { return state_->FaultHits(id); }
void TestHub::ClearFaults() { state_->ClearFaults(); }
void TestHub::ReleaseHangs() { state_->ReleaseHangs(); }

std::vector<TestHubRequest> TestHub::Requests(
    const TestHubFilter& filter) const {
  return state_->Requests(filter);
}
size_t TestHub::Count(const TestHubFilter& filter) const {
  return Requests(filter).size();
}
uint64_t TestHub::BodyBytes(const TestHubFilter& filter) const {
  uint64_t sum = 0;
  for (const TestHubRequest& request : Requests(filter)) {
    sum += request.body_bytes;
  }
  return sum;
}

std::vector<std::pair<uint64_t, uint64_t>> TestHub::Ranges(
    const TestHubFilter& filter) const {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const TestHubRequest& request : Requests(filter)) {
    uint64_t first = 0;
    uint64_t last = 0;
    const std::string_view text = request.range;
    if (!text.starts_with("bytes=")) continue;
    const char* const end = text.data() + text.size();
    const auto start = std::from_chars(text.data() + 6, end, first);
    if (start.ec != std::errc() || start.ptr == end || *start.ptr != '-') {
      continue;
    }
    if (std::from_chars(start.ptr + 1, end, last).ec != std::errc()) continue;
    ranges.emplace_back(first, last);
  }
  return ranges;
}

bool TestHub::WaitForRequests(const TestHubFilter& filter, size_t count,
                              std::chrono::milliseconds timeout) const {
  return state_->WaitFor(filter, count, false, timeout);
}
bool TestHub::WaitForDone(const TestHubFilter& filter, size_t count,
                          std::chrono::milliseconds timeout) const {
  return state_->WaitFor(filter, count, true, timeout);
}
void TestHub::ClearLog() { state_->ClearLog(); }
size_t TestHub::OpenConnections() const { return state_->Connections(); }

}  // namespace weightfs
