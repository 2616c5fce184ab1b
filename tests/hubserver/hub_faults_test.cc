// Each fault of the test hub does on the wire what it says, to the requests
// that it selects and to no other.

#include <atomic>
#include <fstream>
#include <thread>

#include "tests/hubserver/hub_fixture.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using End = RawReply::End;

class HubFaultsTest : public TestHubTest {
 protected:
  RawReply GetRange() {
    return GetCdn(Signed(), {{"Range", "bytes=1000-200999"}});
  }
  static milliseconds Since(Clock::time_point start) {
    return std::chrono::duration_cast<milliseconds>(Clock::now() - start);
  }
};

TEST_F(HubFaultsTest, SelectsByListenerPathMatchAndCount) {
  const uint64_t id = hub_->AddFault(TestHubFault::Status(503)
                                         .AtHub()
                                         .On("config.json")
                                         .Method("HEAD")
                                         .Skip(1)
                                         .Times(2));
  const std::string config = "/org/name/resolve/main/config.json";
  EXPECT_EQ(Head("/org/name/resolve/main/model.safetensors").status, 302);
  EXPECT_EQ(Get(config).status, 307);
  EXPECT_EQ(Head(config).status, 307);
  EXPECT_EQ(Head(config).status, 503);
  EXPECT_EQ(Head(config).status, 503);
  EXPECT_EQ(Head(config).status, 307);
  EXPECT_EQ(hub_->FaultHits(id), 2U);
  EXPECT_EQ(hub_->Count({.status = 503}), 2U);

  // The CDN's path has no file name: faults see it all the same.
  hub_->AddFault(TestHubFault::Status(500).AtCdn().On("model.safetensors"));
  EXPECT_EQ(GetRange().status, 500);
  hub_->ClearFaults();
  EXPECT_EQ(GetRange().status, 206);
  hub_->AddFault(TestHubFault::Status(500).If(
      [](const TestHubRequest& r) { return r.range == "bytes=1000-200999"; }));
  EXPECT_EQ(GetRange().status, 500);
  EXPECT_EQ(GetCdn(Signed(), {{"Range", "bytes=0-0"}}).status, 206);
}

TEST_F(HubFaultsTest, RateLimits) {
  hub_->AddFault(TestHubFault::RateLimited(7).Times(1));
  const RawReply plain = Get("/api/models/org/name");
  EXPECT_EQ(plain.status, 429);
  EXPECT_EQ(plain.Header("Retry-After"), "7");
  EXPECT_EQ(plain.Header("RateLimit"), "");
  hub_->AddFault(TestHubFault::RateLimited(-1, true).Times(1));
  const RawReply modern = Get("/api/models/org/name");
  EXPECT_EQ(modern.Header("Retry-After"), "");
  EXPECT_EQ(modern.Header("RateLimit"), "\"api\";r=0;t=1");
  EXPECT_EQ(modern.Header("RateLimit-Policy"),
            "\"fixed window\";\"api\";q=500;w=300");
}

TEST_F(HubFaultsTest, ResetsAfterSomeBytes) {
  hub_->AddFault(TestHubFault::Reset(70'000).AtCdn().Times(1));
  const RawReply reply = GetRange();
  EXPECT_EQ(reply.status, 206);
  EXPECT_EQ(reply.end, End::kReset);
  EXPECT_EQ(reply.body, Weights(1000, 70'000));
  EXPECT_TRUE(GetRange().body == Weights(1000, 200'000));
}

TEST_F(HubFaultsTest, ClosesAfterSomeBytes) {
  hub_->AddFault(TestHubFault::ShortBody(70'000).AtCdn());
  const RawReply reply = GetRange();
  EXPECT_EQ(reply.Header("Content-Length"), "200000");
  EXPECT_EQ(reply.end, End::kClosed);
  EXPECT_TRUE(reply.body == Weights(1000, 70'000));
}

TEST_F(HubFaultsTest, BodiesTooLong) {
  hub_->AddFault(TestHubFault::LongBody(10).AtCdn().Times(1));
  const RawReply longer = GetRange();
  EXPECT_EQ(longer.Header("Content-Length"), "200010");
  EXPECT_EQ(longer.Header("Content-Range"), "bytes 1000-200999/3000000");
  EXPECT_EQ(longer.body, Weights(1000, 200'000) + std::string(10, '\xaa'));

  hub_->AddFault(TestHubFault::Overrun(10).AtCdn().Times(1));
  RawClient client(hub_->cdn_url());
  client.Send("GET", Signed(),
              {{"Range", "bytes=1000-200999"}, {"Connection", "close"}});
  const RawReply over = client.Receive(milliseconds(10'000), true);
  EXPECT_EQ(over.Header("Content-Length"), "200000");
  EXPECT_TRUE(over.body == Weights(1000, 200'000));
  EXPECT_EQ(over.more, std::string(10, '\xaa'));
}

TEST_F(HubFaultsTest, HangsMidBodyAndGoesOnWhenReleased) {
  hub_->AddFault(TestHubFault::Hang(70'000).AtCdn().Times(1));
  RawClient client(hub_->cdn_url());
  client.Send("GET", Signed(), {{"Range", "bytes=1000-200999"}});
  const RawReply part = client.Receive(milliseconds(300));
  EXPECT_EQ(part.end, End::kTimeout);
  EXPECT_TRUE(part.body == Weights(1000, 70'000));
  hub_->ReleaseHangs();
  EXPECT_TRUE(hub_->WaitForDone({.listener = TestHubListener::kCdn}, 1,
                                milliseconds(10'000)));
  EXPECT_EQ(hub_->BodyBytes({.listener = TestHubListener::kCdn}), 200'000U);
}

TEST_F(HubFaultsTest, NeverAnswers) {
  hub_->AddFault(TestHubFault::NoAnswer().Times(1));
  RawClient client(hub_->url());
  client.Send("GET", "/api/models/org/name");
  EXPECT_EQ(client.Receive(milliseconds(200)).status, 0);
  EXPECT_EQ(hub_->Count({.status = 0}), 1U);
  EXPECT_FALSE(hub_->Requests()[0].done);
  hub_->ReleaseHangs();
  EXPECT_EQ(client.Receive().status, 200);
}

TEST_F(HubFaultsTest, AHangEndsWithItsClient) {
  hub_->AddFault(TestHubFault::NoAnswer());
  {
    RawClient client(hub_->url());
    client.Send("GET", "/api/models/org/name");
    ASSERT_TRUE(hub_->WaitForRequests({}, 1, milliseconds(10'000)));
  }
  EXPECT_TRUE(hub_->WaitForDone({}, 1, milliseconds(10'000)));
}

TEST_F(HubFaultsTest, StopEndsWhateverHangs) {
  hub_->AddFault(TestHubFault::NoAnswer().AtHub().On("/api/"));
  hub_->AddFault(TestHubFault::Hang(10).AtCdn().Times(1));
  hub_->AddFault(TestHubFault::Trickle(1, milliseconds(60'000)).AtCdn());
  const std::string target = Signed();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<RawClient>(hub_->url()));
    clients.back()->Send("GET", "/api/models/org/name");
    clients.push_back(std::make_unique<RawClient>(hub_->cdn_url()));
    clients.back()->Send("GET", target);
  }
  const RawClient idle(hub_->url());
  ASSERT_TRUE(hub_->WaitForRequests({}, 41, milliseconds(10'000)));
  const auto start = Clock::now();
  hub_->Stop();
  EXPECT_LT(Since(start), milliseconds(1000));
  EXPECT_FALSE(RawClient(hub_->url()).connected());
  EXPECT_FALSE(RawClient(hub_->cdn_url()).connected());

  const std::string url = hub_->url();
  ASSERT_OK(hub_->Restart());
  hub_->ClearFaults();
  EXPECT_EQ(hub_->url(), url);
  EXPECT_EQ(Get("/api/models/org/name").status, 200);
  EXPECT_EQ(GetRange().status, 206);
}

TEST_F(HubFaultsTest, LiesAboutTheRange) {
  hub_->AddFault(TestHubFault::WrongRangeStart(5).AtCdn().Times(1));
  EXPECT_EQ(GetRange().Header("Content-Range"), "bytes 1005-201004/3000000");
  hub_->AddFault(TestHubFault::WrongRangeTotal(42).AtCdn().Times(1));
  EXPECT_EQ(GetRange().Header("Content-Range"), "bytes 1000-200999/42");
  hub_->AddFault(TestHubFault::IgnoreRange().AtCdn().Times(1));
  const RawReply whole = GetRange();
  EXPECT_EQ(whole.status, 200);
  EXPECT_TRUE(whole.body == weights_->ReadAll());
  // The log has the range that was asked.
  EXPECT_EQ(hub_->Ranges({.listener = TestHubListener::kCdn, .status = 200}),
            (std::vector<std::pair<uint64_t, uint64_t>>{{1000, 200'999}}));
}

TEST_F(HubFaultsTest, LiesAboutIdentity) {
  const std::string file = "/org/name/resolve/main/model.safetensors";
  hub_->AddFault(TestHubFault::WrongEtag("beef"));
  EXPECT_EQ(Head(file).Header("X-Linked-Etag"), "\"beef\"");
  EXPECT_EQ(Head(file).Header("ETag"), "");
  EXPECT_EQ(GetRange().Header("ETag"), "\"beef\"");
  hub_->AddFault(TestHubFault::WrongLinkedSize(5));
  EXPECT_EQ(Head(file).Header("X-Linked-Size"), "5");
  hub_->AddFault(TestHubFault::DropHeader("x-repo-commit"));
  EXPECT_EQ(Head(file).Header("X-Repo-Commit"), "");
  hub_->AddFault(TestHubFault::SetHeader("X-Xet-Hash", "00"));
  EXPECT_EQ(Head(file).Header("X-Xet-Hash"), "00");
}

TEST_F(HubFaultsTest, TricklesAndDelays) {
  hub_->AddFault(
      TestHubFault::Trickle(1, milliseconds(10)).On("resolve-cache"));
  const std::string location =
      Head("/org/name/resolve/main/config.json").Header("Location");
  auto start = Clock::now();
  EXPECT_EQ(Get(location).body, kConfig);
  EXPECT_GE(Since(start), milliseconds(90));  // 9 bytes
  hub_->AddFault(TestHubFault::Delay(milliseconds(150)).On("/api/models/"));
  start = Clock::now();
  EXPECT_EQ(Get("/api/models/org/name").status, 200);
  EXPECT_GE(Since(start), milliseconds(150));
}

TEST_F(HubFaultsTest, RefusesSignaturesAndRedirects) {
  hub_->AddFault(TestHubFault::RefuseSignature().Times(1));
  EXPECT_EQ(GetRange().status, 403);
  EXPECT_EQ(GetRange().status, 206);
  const std::string file = "/org/name/resolve/main/model.safetensors";
  hub_->AddFault(TestHubFault::RedirectLoop().On("resolve").Times(1));
  EXPECT_EQ(Head(file).Header("Location"), file);
  hub_->AddFault(
      TestHubFault::Redirect("http://10.0.0.1/x").On("resolve").Times(1));
  const RawReply other = Head(file);
  EXPECT_EQ(other.status, 302);
  EXPECT_EQ(other.Header("Location"), "http://10.0.0.1/x");
}

TEST_F(HubFaultsTest, SpoilsBodies) {
  hub_->AddFault(TestHubFault::Body("{\"sha\": ").AtHub().Times(1));
  const RawReply garbage = Get("/api/models/org/name");
  EXPECT_EQ(garbage.status, 200);
  EXPECT_EQ(garbage.body, "{\"sha\": ");

  hub_->AddFault(TestHubFault::FlipBit(1500).AtCdn().Times(1));
  std::string flipped = Weights(1000, 200'000);
  flipped[500] = static_cast<char>(flipped[500] ^ 1);
  EXPECT_TRUE(GetRange().body == flipped);
  EXPECT_TRUE(GetRange().body == Weights(1000, 200'000));

  hub_->AddFault(TestHubFault::Raw("HTTP/1.1 299 Odd\r\n\r\nxx").Times(1));
  RawClient client(hub_->url());
  client.Send("GET", "/api/models/org/name");
  const RawReply raw = client.Receive(milliseconds(10'000), true);
  EXPECT_EQ(raw.status, 299);
  EXPECT_EQ(raw.more, "xx");
}

TEST_F(HubFaultsTest, RawAnswersHoldWhatWasAskedFor) {
  hub_->AddFault(
      TestHubFault::Raw("HTTP/1.1 206 Odd\r\nContent-Range: bytes "
                        "{first}-{last}/{size}\r\n\r\n{length}:{body}")
          .AtCdn()
          .Times(1));
  RawClient client(hub_->cdn_url());
  client.Send("GET", Signed(), {{"Range", "bytes=1000-1099"}});
  const RawReply raw = client.Receive(milliseconds(10'000), true);
  EXPECT_EQ(raw.Header("Content-Range"), "bytes 1000-1099/3000000");
  EXPECT_EQ(raw.more, "100:" + Weights(1000, 100));
}

TEST_F(HubFaultsTest, BecomesAnotherFile) {
  const std::string etag = GetRange().Header("ETag");
  hub_->AddFault(TestHubFault::OtherFile().AtCdn().Times(1));
  const RawReply other = GetRange();
  EXPECT_NE(other.Header("ETag"), etag);
  std::string inverted = Weights(1000, 200'000);
  for (char& byte : inverted) byte = static_cast<char>(~byte);
  EXPECT_TRUE(other.body == inverted);
  EXPECT_TRUE(GetRange().body == Weights(1000, 200'000));
}

TEST_F(HubFaultsTest, AddsHeadersAndNumbersRedirects) {
  hub_->AddFault(TestHubFault::AddHeader("ETag", "\"second\"").AtCdn());
  const RawReply two = GetRange();
  EXPECT_EQ(std::count_if(two.headers.begin(), two.headers.end(),
                          [](const auto& h) { return h.first == "ETag"; }),
            2);
  hub_->AddFault(TestHubFault::Redirect("/x?hop={id}").On("resolve"));
  const std::string file = "/org/name/resolve/main/model.safetensors";
  EXPECT_NE(Head(file).Header("Location"), Head(file).Header("Location"));
}

TEST_F(HubFaultsTest, GzipsUnasked) {
  hub_->AddFault(TestHubFault::Gzip().AtCdn().Times(1));
  const RawReply reply = GetRange();
  EXPECT_EQ(reply.Header("Content-Encoding"), "gzip");
  // 4 stored blocks: 10 of head, 5 for each, 8 of tail.
  EXPECT_EQ(reply.body.size(), 200'000U + 10 + 4 * 5 + 8);
  EXPECT_TRUE(reply.body.substr(15, 65535) == Weights(1000, 65535));
}

TEST_F(HubFaultsTest, CallbacksRunBeforeTheAnswer) {
  std::atomic<int> calls = 0;
  hub_->AddFault(
      TestHubFault::Call([&](const TestHubRequest& request) {
        ++calls;
        EXPECT_EQ(request.file, "config.json");
        hub_->Commit("org/name", "main", {{"x", MemoryContent("x"), {}}});
      }).Times(1));
  EXPECT_EQ(Head("/org/name/resolve/main/config.json").status, 404);
  EXPECT_EQ(calls, 1);
}

TEST_F(HubFaultsTest, LatencyAndBandwidthHold) {
  hub_->Configure([](TestHubSettings& s) {
    s.latency = milliseconds(100);
    s.bytes_per_second = 1'000'000;
  });
  auto start = Clock::now();
  EXPECT_EQ(Get("/api/agent-harnesses").status, 200);
  EXPECT_GE(Since(start), milliseconds(100));
  const std::string target = Signed();
  start = Clock::now();
  EXPECT_EQ(GetCdn(target, {{"Range", "bytes=0-299999"}}).body.size(),
            300'000U);
  EXPECT_GE(Since(start),
            milliseconds(340));  // 100 + 300 - first block, credit
}

TEST_F(HubFaultsTest, LogKnowsConnectionsAndBytes) {
  const std::string target = Signed();
  hub_->ClearLog();
  RawClient client(hub_->cdn_url());
  client.Ask("GET", target, {{"Range", "bytes=0-99"}, {"X-Note", "one"}});
  client.Ask("GET", target, {{"Range", "bytes=200-399"}});
  GetCdn(target, {{"Range", "bytes=10-19"}});
  const TestHubFilter weights = {.contains = "model.safetensors"};
  const auto seen = hub_->Requests(weights);
  ASSERT_EQ(seen.size(), 3U);
  EXPECT_EQ(seen[0].connection, seen[1].connection);
  EXPECT_NE(seen[0].connection, seen[2].connection);
  EXPECT_EQ(seen[0].Header("x-note"), "one");
  EXPECT_EQ(seen[0].repo, "org/name");
  EXPECT_EQ(hub_->BodyBytes(weights), 310U);
  EXPECT_EQ(hub_->Ranges(weights), (std::vector<std::pair<uint64_t, uint64_t>>{
                                       {0, 99}, {200, 399}, {10, 19}}));
}

TEST_F(HubFaultsTest, ServesManyConnectionsAtOnce) {
  const std::string target = Signed();
  std::atomic<int> right = 0;
  std::vector<std::jthread> threads;
  for (uint64_t t = 0; t < 32; ++t) {
    threads.emplace_back([&, t] {
      RawClient client(hub_->cdn_url());
      for (uint64_t i = 0; i < 20; ++i) {
        const uint64_t first = (t * 20 + i) * 4001 % (kSize - 5000);
        const std::string range = "bytes=" + std::to_string(first) + "-" +
                                  std::to_string(first + 4999);
        if (client.Ask("GET", target, {{"Range", range}}).body ==
            Weights(first, 5000)) {
          ++right;
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(right, 640);
}

TEST_F(HubFaultsTest, ControlEndpointDoesTheSame) {
  const auto control = [this](const nlohmann::json& order) {
    const RawReply reply =
        RawClient(hub_->url()).Ask("POST", "/_control", {}, order.dump());
    auto answer = nlohmann::json::parse(reply.body, nullptr, false);
    answer["_status"] = reply.status;
    return answer;
  };
  EXPECT_EQ(control({{"op", "add_fault"},
                     {"kind", "status"},
                     {"number", 502},
                     {"contains", "/api/"},
                     {"times", 1}})["_status"],
            200);
  EXPECT_EQ(Get("/api/models/org/name").status, 502);
  EXPECT_EQ(Get("/api/models/org/name").status, 200);
  const auto log = control({{"op", "log"}, {"contains", "/api/"}});
  ASSERT_EQ(log["requests"].size(), 2U);
  EXPECT_EQ(log["requests"][0]["fault"], "status");
  EXPECT_EQ(control({{"op", "add_fault"}, {"kind", "nonsense"}})["_status"],
            400);
  EXPECT_EQ(control({{"op", "nonsense"}})["_status"], 400);
  const auto made = control({{"op", "commit"},
                             {"repo", "org/made"},
                             {"generate", "tensors=3,tensor_bytes=64"}});
  EXPECT_EQ(GetJson("/api/models/org/made")["sha"], made["commit"]);
  control({{"op", "settings"}, {"tree_page_size", 1}});
  EXPECT_NE(Get("/api/models/org/made/tree/main").Header("Link"), "");
}

TEST_F(HubFaultsTest, OutageRefusesAndComesBack) {
  RawClient(hub_->url())
      .Ask("POST", "/_control", {}, R"({"op":"outage","ms":300})");
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  bool refused = false;
  while (Clock::now() < deadline) {
    const bool connected = RawClient(hub_->url()).connected();
    if (refused && connected) break;
    refused = refused || !connected;
  }
  EXPECT_TRUE(refused);
  EXPECT_EQ(Get("/api/models/org/name").status, 200);
}

TEST(HubLogFileTest, HasALineForEachFinishedRequest) {
  const std::string path = ::testing::TempDir() + "/hub_log.jsonl";
  std::remove(path.c_str());
  TestHubOptions options;
  options.log_file = path;
  auto hub = TestHub::Start(options);
  ASSERT_OK(hub);
  RawClient((*hub)->url()).Ask("GET", "/api/agent-harnesses?x=%FF\x80");
  ASSERT_TRUE((*hub)->WaitForDone({}, 1, milliseconds(10'000)));
  std::ifstream file(path);
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const auto entry = nlohmann::json::parse(line, nullptr, false);
  EXPECT_EQ(entry["path"], "/api/agent-harnesses");
  EXPECT_EQ(entry["status"], 200);
  EXPECT_EQ(entry["body_bytes"], 2);
}

}  // namespace
}  // namespace weightfs
