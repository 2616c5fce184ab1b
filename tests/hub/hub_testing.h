// A Hub on loopback, an HTTP client, a store, a clock that tests move, and the
// log's lines: what tests of cache/hub need.

#ifndef WEIGHTFS_TESTS_HUB_HUB_TESTING_H_
#define WEIGHTFS_TESTS_HUB_HUB_TESTING_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/http/http_client.h"
#include "cache/hub/hub_origin.h"
#include "cache/hub/token.h"
#include "cache/snapshot_store.h"
#include "formats/base/log.h"
#include "formats/base/mutex.h"
#include "tests/support/hub_server.h"
#include "tests/support/matchers.h"

namespace weightfs {

// The machine's clock, moved ahead.
class MovedClock final : public Clock {
 public:
  Time Now() const override {
    return Clock::System().Now() + std::chrono::seconds(ahead_);
  }
  WallTime WallNow() const override {
    return Clock::System().WallNow() + std::chrono::seconds(ahead_ + wall_);
  }
  void Move(std::chrono::seconds by) { ahead_ += by.count(); }
  // Sets only the wall clock wrong.
  void MisSet(std::chrono::seconds by) { wall_ += by.count(); }

 private:
  std::atomic<int64_t> ahead_{0};
  std::atomic<int64_t> wall_{0};
};

// Every line logged in this process.
class LogCapture {
 public:
  static void Install() { SetLogSink(&Take, LogLevel::kDebug); }
  static std::string Text() {
    MutexLock lock(Lines().mutex);
    return Lines().text;
  }
  static void Clear() {
    MutexLock lock(Lines().mutex);
    Lines().text.clear();
  }

 private:
  struct Store {
    Mutex mutex;
    std::string text GUARDED_BY(mutex);
  };
  static Store& Lines() {
    static Store store;
    return store;
  }
  static void Take(LogLevel level, std::string_view line) {
    MutexLock lock(Lines().mutex);
    Lines().text += level == LogLevel::kWarning ? "WARNING " : "";
    Lines().text.append(line).append("\n");
  }
};

class HubTest : public ::testing::Test {
 protected:
  static constexpr char kRepo[] = "org/name";
  static constexpr char kToken[] = "hf_SecretTokenOfThisTest";

  HubTest() {
    LogCapture::Install();
    LogCapture::Clear();
    auto hub = TestHub::Start();
    EXPECT_OK(hub);
    hub_ = std::move(hub).value();
    std::string pattern =
        (std::filesystem::temp_directory_path() / "wfs-hub-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    std::filesystem::create_directory(folder_ + "/cache");
    store_ = std::make_unique<SnapshotStore>(folder_ + "/cache");
    auto http = HttpClient::Create({"weightfs/test; os/linux", 16});
    EXPECT_OK(http);
    http_ = std::move(http).value();
    token_ = std::make_unique<TokenProvider>(folder_ + "/token");
    options_.endpoint = hub_->url();
    options_.repo = kRepo;
    options_.metadata_timeout = std::chrono::seconds(20);
    options_.first_backoff = std::chrono::milliseconds(5);
    options_.max_backoff = std::chrono::milliseconds(20);
    options_.outage_patience = std::chrono::milliseconds(300);
  }
  ~HubTest() override {
    origin_.reset();
    http_.reset();
    hub_.reset();
    std::filesystem::remove_all(folder_);
    // Whatever a test did: no token and no signature in any log line.
    const std::string log = LogCapture::Text();
    EXPECT_EQ(log.find("hf_"), std::string::npos) << log;
    EXPECT_EQ(log.find("Signature"), std::string::npos) << log;
  }

  // Makes the repository: a small plain file and a big LFS file.
  void Publish() {
    config_ = R"({"model_type": "test"})";
    weights_ = PatternContent(3 << 20, 5);
    commit_ = hub_->Commit(kRepo, "main",
                           {{"config.json", MemoryContent(config_), {}},
                            {"model.safetensors", weights_, {}}});
  }
  void WriteToken(const std::string& token) {
    std::ofstream(folder_ + "/token") << token << "\r\n";
  }
  // An origin of its own, as another mount would have.
  std::unique_ptr<Origin> NewOrigin() {
    auto origin =
        CreateHubOrigin(options_, *http_, *token_, store_.get(), clock_);
    EXPECT_OK(origin);
    return std::move(origin).value();
  }
  Origin& origin() {
    if (origin_ == nullptr) origin_ = NewOrigin();
    return *origin_;
  }
  FileInfo File(const std::string& path) {
    auto file = origin().Stat(path);
    EXPECT_OK(file);
    return file.value_or(FileInfo{});
  }
  std::string Weights(uint64_t offset, uint64_t length) const {
    return weights_->ReadRange(offset, length);
  }

  size_t Resolves() const {
    return hub_->Count(
        {.listener = TestHubListener::kHub, .contains = "/resolve/"});
  }
  size_t CdnRequests() const {
    return hub_->Count({.listener = TestHubListener::kCdn});
  }

  std::unique_ptr<TestHub> hub_;
  std::string folder_;
  std::unique_ptr<SnapshotStore> store_;
  std::unique_ptr<HttpClient> http_;
  std::unique_ptr<TokenProvider> token_;
  MovedClock clock_;
  HubOptions options_;
  std::unique_ptr<Origin> origin_;
  std::string config_;
  TestHubContentPtr weights_;
  std::string commit_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_HUB_HUB_TESTING_H_
