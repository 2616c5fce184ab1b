#include "tests/support/hub_state.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>
#include <ctime>

#include "tests/support/hub_text.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;

std::string DigestOf(const EVP_MD* kind, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned int size = 0;
  EVP_Digest(text.data(), text.size(), out.data(), &size, kind, nullptr);
  return HubHex(std::span(out).first(size));
}

std::string RandomKey() {
  std::array<unsigned char, 32> bytes{};
  RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
  return HubHex(bytes);
}

int64_t UnixMs() {
  return std::chrono::duration_cast<milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Stands for the content in a commit's id without hashing gigabytes.
std::string Fingerprint(const TestHubContent& content) {
  constexpr uint64_t kEdge = 65536;
  const uint64_t edge = std::min(kEdge, content.size());
  return std::to_string(content.size()) + HubSha1(content.ReadRange(0, edge)) +
         HubSha1(content.ReadRange(content.size() - edge, edge));
}

std::string CdnFolder(const std::string& repo) {
  const std::string hash = HubSha256(repo);
  return "/repos/" + hash.substr(0, 2) + "/" + hash.substr(2, 2) + "/" + hash;
}

}  // namespace

std::string HubHmac(std::string_view key, std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(),
       out.data(), &size);
  return HubHex(std::span(out).first(size));
}

std::string HubSha256(std::string_view text) {
  return DigestOf(EVP_sha256(), text);
}

std::string HubSha1(std::string_view text) {
  return DigestOf(EVP_sha1(), text);
}

TestHub::State::State(TestHubOptions options)
    : options_(std::move(options)),
      settings_(options_.settings),
      signing_key_(RandomKey()),
      release_(std::make_shared<HubEvent>()) {
  if (!options_.log_file.empty()) {
    log_file_.open(options_.log_file, std::ios::app);
  }
}

TestHub::State::~State() {
  std::jthread outage;
  {
    const MutexLock lock(mutex_);
    outage.swap(outage_);
  }
  if (outage.joinable()) {
    outage.request_stop();
    outage.join();
  }
  Close();
}

Result<> TestHub::State::Open() {
  const MutexLock lock(listeners_mutex_);
  if (hub_ != nullptr) return {};
  ASSIGN_OR_RETURN(auto hub, HubHttpListener::Start(TestHubListener::kHub,
                                                    options_.port, *this));
  auto cdn =
      HubHttpListener::Start(TestHubListener::kCdn, options_.cdn_port, *this);
  if (cdn.has_value() && url_.empty()) {
    options_.port = hub->port();
    options_.cdn_port = (*cdn)->port();
    url_ = "http://127.0.0.1:" + std::to_string(hub->port());
    cdn_url_ = "http://127.0.0.1:" + std::to_string((*cdn)->port());
  }
  // A request may have come already: it waits for the URLs.
  opened_ = true;
  opened_.notify_all();
  RETURN_IF_ERROR(cdn);
  hub_ = std::move(hub);
  cdn_ = *std::move(cdn);
  return {};
}

void TestHub::State::Close() {
  const MutexLock lock(listeners_mutex_);
  hub_.reset();
  cdn_.reset();
}

size_t TestHub::State::Connections() {
  const MutexLock lock(listeners_mutex_);
  if (hub_ == nullptr) return 0;
  return hub_->connections() + cdn_->connections();
}

void TestHub::State::Outage(milliseconds length) {
  const MutexLock lock(mutex_);
  // One at a time: the thread of the last may be closing this connection.
  if (outage_running_) return;
  outage_running_ = true;
  outage_ = std::jthread([this, length](const std::stop_token& stop) {
    Close();
    std::condition_variable_any ended;
    std::mutex mutex;
    std::unique_lock<std::mutex> wait(mutex);
    ended.wait_for(wait, stop, length, [] { return false; });
    if (!stop.stop_requested()) (void)Open();
    const MutexLock done(mutex_);
    outage_running_ = false;
  });
}

void TestHub::State::Configure(
    const std::function<void(TestHubSettings&)>& change) {
  const MutexLock lock(mutex_);
  change(settings_);
}

TestHubSettings TestHub::State::settings() const {
  const MutexLock lock(mutex_);
  return settings_;
}

void TestHub::State::SetRepo(const std::string& repo,
                             TestHubRepoOptions options) {
  const MutexLock lock(mutex_);
  tokens_.insert(options.readers.begin(), options.readers.end());
  repos_[repo].options = std::move(options);
}

std::string TestHub::State::Commit(const std::string& repo,
                                   const std::string& branch,
                                   std::vector<TestHubFile> files) {
  auto commit = std::make_shared<HubCommit>();
  std::string text = repo;
  for (TestHubFile& file : files) {
    text += "\n" + file.path + " " + Fingerprint(*file.content);
    const bool lfs =
        file.lfs.value_or(IsLfsByDefault(file.path, file.content->size()));
    commit->files[file.path] = {std::move(file.content), lfs};
  }
  const MutexLock lock(mutex_);
  HubRepo& target = repos_[repo];
  commit->id = HubSha1(text + std::to_string(target.commits.size()));
  target.refs[branch] = commit->id;
  std::string id = commit->id;
  target.commits[id] = std::move(commit);
  return id;
}

bool TestHub::State::SetRef(const std::string& repo, const std::string& ref,
                            const std::string& commit) {
  const MutexLock lock(mutex_);
  const auto found = repos_.find(repo);
  if (found == repos_.end() || !found->second.commits.contains(commit)) {
    return false;
  }
  found->second.refs[ref] = commit;
  return true;
}

void TestHub::State::AddAlias(const std::string& old_id,
                              const std::string& repo) {
  const MutexLock lock(mutex_);
  aliases_[old_id] = repo;
}

void TestHub::State::AddToken(const std::string& token) {
  const MutexLock lock(mutex_);
  tokens_.insert(token);
}

void TestHub::State::RotateSigningKey() {
  const MutexLock lock(mutex_);
  signing_key_ = RandomKey();
}

std::optional<HubRepo> TestHub::State::FindRepo(const std::string& repo) const {
  const MutexLock lock(mutex_);
  const auto found = repos_.find(repo);
  if (found == repos_.end()) return std::nullopt;
  return found->second;
}

std::optional<std::string> TestHub::State::FindAlias(
    const std::string& repo) const {
  const MutexLock lock(mutex_);
  const auto found = aliases_.find(repo);
  if (found == aliases_.end()) return std::nullopt;
  return found->second;
}

bool TestHub::State::KnowsToken(const std::string& token) const {
  const MutexLock lock(mutex_);
  return tokens_.contains(token);
}

// --- the CDN's URLs ---

std::string TestHub::State::Sign(const std::string& text) const {
  return HubHmac(signing_key_, text);
}

std::string TestHub::State::SignedUrl(const std::string& repo,
                                      const HubEntry& entry,
                                      const std::string& path) const {
  const std::string object = CdnFolder(repo) + "/" + entry.content->Sha256();
  const std::string name = path.substr(path.rfind('/') + 1);
  const MutexLock lock(mutex_);
  const int64_t expires =
      UnixMs() / 1000 + settings_.signature_lifetime.count();
  const std::string signed_part =
      "response-content-disposition=" +
      PercentEncode("inline; filename=\"" + name + "\";", "") +
      "&repo=" + PercentEncode(repo, "") + "&path=" + PercentEncode(path, "") +
      "&Expires=" + std::to_string(expires);
  return cdn_url_ + object + "?" + signed_part +
         "&Signature=" + Sign(object + "?" + signed_part) +
         "&Key-Pair-Id=KTESTHUB";
}

bool TestHub::State::SignatureHolds(const std::string& path,
                                    const std::string& query) const {
  const size_t at = query.find("&Signature=");
  const auto expires = QueryValue(query, "Expires");
  const auto signature = QueryValue(query, "Signature");
  if (at == std::string::npos || !expires || !signature) return false;
  const MutexLock lock(mutex_);
  return *signature == Sign(path + "?" + query.substr(0, at)) &&
         std::strtoll(expires->c_str(), nullptr, 10) > UnixMs() / 1000;
}

std::optional<HubEntry> TestHub::State::FindByDigest(
    std::string_view folder, std::string_view sha256) const {
  std::vector<HubEntry> entries;
  {
    const MutexLock lock(mutex_);
    for (const auto& [id, repo] : repos_) {
      if (HubSha256(id) != folder) continue;
      for (const auto& [commit_id, commit] : repo.commits) {
        for (const auto& [path, entry] : commit->files) {
          if (entry.lfs) entries.push_back(entry);
        }
      }
    }
  }
  for (HubEntry& entry : entries) {
    if (entry.content->Sha256() == sha256) return std::move(entry);
  }
  return std::nullopt;
}

// --- faults ---

uint64_t TestHub::State::AddFault(TestHubFault fault) {
  const MutexLock lock(mutex_);
  const uint64_t id = next_fault_++;
  faults_.push_back({id, std::move(fault)});
  return id;
}

void TestHub::State::RemoveFault(uint64_t id) {
  const MutexLock lock(mutex_);
  std::erase_if(faults_, [&](const PlacedFault& f) { return f.id == id; });
}

uint64_t TestHub::State::FaultHits(uint64_t id) const {
  const MutexLock lock(mutex_);
  const auto found = fault_hits_.find(id);
  return found == fault_hits_.end() ? 0 : found->second;
}

void TestHub::State::ClearFaults() {
  const MutexLock lock(mutex_);
  faults_.clear();
}

void TestHub::State::ReleaseHangs() {
  const MutexLock lock(mutex_);
  release_->Set();
  release_ = std::make_shared<HubEvent>();
}

std::shared_ptr<const HubEvent> TestHub::State::ReleaseEvent() {
  const MutexLock lock(mutex_);
  return release_;
}

// --- requests ---

uint64_t TestHub::State::NextConnection() {
  const MutexLock lock(mutex_);
  return next_connection_++;
}

TestHubRequest* TestHub::State::Logged(uint64_t id) {
  if (log_.empty() || id < log_.front().id || id > log_.back().id) {
    return nullptr;
  }
  return &log_[id - log_.front().id];
}

std::vector<TestHubFault> TestHub::State::Begin(TestHubRequest& request) {
  std::vector<PlacedFault> candidates;
  {
    const MutexLock lock(mutex_);
    candidates = faults_;
  }
  // Predicates are the test's code: not under the lock.
  std::set<uint64_t> selected;
  for (const PlacedFault& placed : candidates) {
    if (placed.fault.Selects(request)) selected.insert(placed.id);
  }
  std::vector<TestHubFault> taken;
  const MutexLock lock(mutex_);
  request.id = next_request_++;
  for (PlacedFault& placed : faults_) {
    TestHubFault& fault = placed.fault;
    if (!selected.contains(placed.id)) continue;
    if (fault.skip > 0) {
      --fault.skip;
      continue;
    }
    if (fault.times == 0) continue;
    --fault.times;
    ++fault_hits_[placed.id];
    taken.push_back(fault);
    if (!request.fault.empty()) request.fault += ',';
    request.fault += ToString(fault.kind);
  }
  log_.push_back(request);
  changed_.NotifyAll();
  return taken;
}

HubReply TestHub::State::Answer(TestHubRequest& request,
                                const std::string& body) {
  const HubTarget target = ParseHubTarget(request.listener, request.path);
  if (target.kind == HubTarget::Kind::kControl) {
    return AnswerHubControl(*this, body);
  }
  opened_.wait(false);
  request.unix_ms = UnixMs();
  request.arrived = std::chrono::steady_clock::now();
  request.repo = target.repo;
  request.file = target.path;
  if (target.kind == HubTarget::Kind::kCdn) {
    request.repo = QueryValue(request.query, "repo").value_or("");
    request.file = QueryValue(request.query, "path").value_or("");
  }
  const std::vector<TestHubFault> faults = Begin(request);

  TestHubRequest asked = request;
  for (const TestHubFault& fault : faults) {
    if (fault.kind == TestHubFault::Kind::kIgnoreRange) asked.range.clear();
    if (fault.callback) fault.callback(request);
  }
  HubReply reply = BuildHubReply(*this, asked, target, body);
  const TestHubSettings settings = this->settings();
  reply.delay = settings.latency;
  reply.bytes_per_second = settings.bytes_per_second;
  reply.sendfile = settings.sendfile && request.method == "GET";
  for (const TestHubFault& fault : faults) {
    ApplyHubFault(fault, request, reply);
  }
  const MutexLock lock(mutex_);
  if (TestHubRequest* logged = Logged(request.id);
      logged != nullptr && !reply.no_answer && !reply.raw) {
    logged->status = reply.status;
  }
  return reply;
}

void TestHub::State::OnBody(uint64_t id, uint64_t bytes) {
  const MutexLock lock(mutex_);
  if (TestHubRequest* logged = Logged(id)) logged->body_bytes += bytes;
}

void TestHub::State::OnDone(uint64_t id) {
  const MutexLock lock(mutex_);
  TestHubRequest* logged = Logged(id);
  if (logged == nullptr) return;
  logged->done = true;
  if (log_file_.is_open()) {
    log_file_ << HubLogLine(*logged) << '\n' << std::flush;
  }
  changed_.NotifyAll();
}

std::vector<TestHubRequest> TestHub::State::Requests(
    const TestHubFilter& filter) const {
  std::vector<TestHubRequest> found;
  const MutexLock lock(mutex_);
  std::copy_if(log_.begin(), log_.end(), std::back_inserter(found),
               [&](const TestHubRequest& r) { return filter.Matches(r); });
  return found;
}

bool TestHub::State::WaitFor(const TestHubFilter& filter, size_t count,
                             bool done, milliseconds timeout) const {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const MutexLock lock(mutex_);
  for (;;) {
    const auto found =
        std::count_if(log_.begin(), log_.end(), [&](const TestHubRequest& r) {
          return (r.done || !done) && filter.Matches(r);
        });
    if (static_cast<size_t>(found) >= count) return true;
    if (!changed_.WaitUntil(mutex_, deadline)) return false;
  }
}

void TestHub::State::ClearLog() {
  const MutexLock lock(mutex_);
  log_.clear();
}

}  // namespace weightfs
