// A hub with one small model, and verbs to ask it. One per test.

#ifndef WEIGHTFS_TESTS_HUBSERVER_HUB_FIXTURE_H_
#define WEIGHTFS_TESTS_HUBSERVER_HUB_FIXTURE_H_

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/hubserver/raw_client.h"
#include "tests/support/hub_server.h"
#include "tests/support/matchers.h"

namespace weightfs {

class TestHubTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSize = 3'000'000;
  static constexpr uint64_t kSeed = 7;
  static constexpr const char* kConfig = "{\"a\": 1}\n";

  void SetUp() override {
    auto hub = TestHub::Start();
    ASSERT_OK(hub);
    hub_ = *std::move(hub);
    weights_ = PatternContent(kSize, kSeed);
    commit_ = hub_->Commit(
        "org/name", "main",
        {{"config.json", MemoryContent(kConfig), std::nullopt},
         {"model.safetensors", weights_, std::nullopt},
         {"sub/deep/notes.txt", MemoryContent("notes"), std::nullopt}});
  }

  RawReply Get(const std::string& target, const RawHeaders& headers = {}) {
    return RawClient(hub_->url()).Ask("GET", target, headers);
  }
  RawReply Head(const std::string& target, const RawHeaders& headers = {}) {
    return RawClient(hub_->url()).Ask("HEAD", target, headers);
  }
  nlohmann::json GetJson(const std::string& target) {
    return nlohmann::json::parse(Get(target).body, nullptr, false);
  }
  // Path and query of the signed URL, for the CDN.
  std::string Signed(const std::string& file = "model.safetensors") {
    const std::string url =
        Head("/org/name/resolve/main/" + file).Header("Location");
    EXPECT_TRUE(url.starts_with(hub_->cdn_url())) << url;
    return url.substr(hub_->cdn_url().size());
  }
  RawReply GetCdn(const std::string& target, const RawHeaders& headers = {}) {
    return RawClient(hub_->cdn_url()).Ask("GET", target, headers);
  }
  std::string Weights(uint64_t offset, uint64_t length) {
    return weights_->ReadRange(offset, length);
  }

  std::unique_ptr<TestHub> hub_;
  TestHubContentPtr weights_;
  std::string commit_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_HUBSERVER_HUB_FIXTURE_H_
