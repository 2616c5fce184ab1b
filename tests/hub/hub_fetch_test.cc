#include <future>
#include <set>

#include "tests/hub/hub_testing.h"
#include "tests/support/origin_contract.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

constexpr seconds kPatience{20};

class HubFetchTest : public HubTest {
 protected:
  HubFetchTest() { Publish(); }

  Result<std::string> Fetch(const std::string& path, uint64_t offset,
                            uint64_t length) {
    return FetchRange(origin(), File(path), offset, length);
  }
  // The weights' bytes must be right.
  void ExpectRight(uint64_t offset, uint64_t length) {
    auto bytes = Fetch("model.safetensors", offset, length);
    ASSERT_OK(bytes);
    EXPECT_TRUE(*bytes == Weights(offset, length));
  }
  std::shared_ptr<CollectingSink> Start(const std::string& path,
                                        uint64_t offset, uint64_t length,
                                        FetchId* id = nullptr) {
    auto sink = std::make_shared<CollectingSink>();
    const FetchId started =
        origin().StartFetch(File(path), offset, length, sink);
    if (id != nullptr) *id = started;
    return sink;
  }
  void UseToken() {
    hub_->AddToken(kToken);
    WriteToken(kToken);
  }
};

// --- the way to the bytes ---

TEST_F(HubFetchTest, ABigFileComesFromTheCdnByOneResolve) {
  UseToken();
  ExpectRight(0, 1000);
  ExpectRight(1'000'000, 5);
  ExpectRight((3 << 20) - 1, 1);
  EXPECT_EQ(Resolves(), 1u);
  EXPECT_EQ(
      hub_->Ranges({.listener = TestHubListener::kCdn}),
      (std::vector<std::pair<uint64_t, uint64_t>>{
          {0, 999}, {1'000'000, 1'000'004}, {(3 << 20) - 1, (3 << 20) - 1}}));
  // Only the port differs between the two.
  EXPECT_THAT(hub_->Requests({.listener = TestHubListener::kCdn}),
              Each(Field(&TestHubRequest::authorization, "")));
  EXPECT_THAT(hub_->Requests({.listener = TestHubListener::kHub}),
              Each(Field(&TestHubRequest::authorization,
                         std::string("Bearer ") + kToken)));
  for (const auto& request :
       hub_->Requests({.listener = TestHubListener::kCdn})) {
    EXPECT_EQ(request.Header("Accept-Encoding"), "identity");
  }
  EXPECT_EQ(hub_->Count({.contains = "/resolve/" + commit_ + "/model"}), 1u);
}

TEST_F(HubFetchTest, APlainFileComesByARelativeRedirectWithItsQuery) {
  UseToken();
  EXPECT_THAT(Fetch("config.json", 2, 10), IsOkAndHolds(config_.substr(2, 10)));
  const auto cached = hub_->Requests({.contains = "/api/resolve-cache/"});
  ASSERT_THAT(cached, SizeIs(1));
  EXPECT_THAT(cached[0].query, HasSubstr("etag="));
  EXPECT_EQ(cached[0].range, "bytes=2-11");
  EXPECT_EQ(cached[0].authorization, std::string("Bearer ") + kToken);
  EXPECT_EQ(CdnRequests(), 0u);
}

TEST_F(HubFetchTest, ManyRangesShareOneResolve) {
  hub_->Configure([](auto& settings) { settings.latency = milliseconds(30); });
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  constexpr uint64_t kStep = 100'000;
  for (uint64_t i = 0; i < 16; ++i) {
    sinks.push_back(Start("model.safetensors", i * kStep, kStep));
  }
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_OK(sinks[i]->Wait());
    EXPECT_TRUE(sinks[i]->bytes() == Weights(i * kStep, kStep)) << i;
  }
  EXPECT_EQ(Resolves(), 1u);
  EXPECT_EQ(CdnRequests(), 16u);
}

TEST_F(HubFetchTest, AfterARenameTheNewNameIsAsked) {
  hub_->AddAlias("old/one", kRepo);
  options_.repo = "old/one";
  ExpectRight(0, 10);
  EXPECT_EQ(hub_->Count({.contains = "old/one"}), 1u);
}

TEST_F(HubFetchTest, ARedirectWithinTheHubKeepsTheToken) {
  UseToken();
  hub_->AddAlias("old/one", kRepo);
  options_.repo = "old/one";
  // The info's answer does not tell the new name.
  ASSERT_OK(origin().List());
  hub_->ClearLog();
  ExpectRight(0, 10);
  EXPECT_THAT(hub_->Requests({.listener = TestHubListener::kHub}),
              Each(Field(&TestHubRequest::authorization,
                         std::string("Bearer ") + kToken)));
}

TEST_F(HubFetchTest, TheTokenIsNotSentAgainAfterTheChainCameBack) {
  UseToken();
  ASSERT_OK(origin().List());
  hub_->ClearLog();
  hub_->AddFault(TestHubFault::Redirect(hub_->url() + "/org/name/resolve/" +
                                        commit_ + "/config.json?back")
                     .AtCdn());
  EXPECT_FALSE(Fetch("model.safetensors", 0, 10).has_value());
  const auto back = hub_->Requests({.contains = "config.json"});
  ASSERT_THAT(back, Not(SizeIs(0)));
  EXPECT_THAT(back, Each(Field(&TestHubRequest::authorization, "")));
  // Nor when what was found there is used again.
  EXPECT_FALSE(Fetch("model.safetensors", 0, 10).has_value());
  EXPECT_THAT(hub_->Requests({.contains = "config.json"}),
              Each(Field(&TestHubRequest::authorization, "")));
}

TEST_F(HubFetchTest, ARedirectLoopEndsSoon) {
  const uint64_t id =
      hub_->AddFault(TestHubFault::RedirectLoop().On("/resolve/"));
  EXPECT_THAT(
      Fetch("model.safetensors", 0, 10),
      AllOf(HasCode(Code::kUnavailable), HasMessage(HasSubstr("circle"))));
  EXPECT_LE(hub_->FaultHits(id), 2u);
}

// --- signed URLs ---

TEST_F(HubFetchTest, AnExpiredSignatureIsRenewedBeforeItIsUsed) {
  ExpectRight(0, 10);
  clock_.Move(minutes(45));  // past 80 % of its use: renewed on the way
  ExpectRight(10, 10);
  EXPECT_EQ(Resolves(), 2u);
  ExpectRight(20, 10);
  EXPECT_EQ(Resolves(), 2u);
  clock_.Move(minutes(51));
  ExpectRight(30, 10);
  EXPECT_EQ(Resolves(), 3u);
  EXPECT_EQ(hub_->Count({.listener = TestHubListener::kCdn, .status = 403}),
            0u);
}

TEST_F(HubFetchTest, ShortSignaturesAreStillShared) {
  hub_->Configure(
      [](auto& settings) { settings.signature_lifetime = seconds(30); });
  for (uint64_t i = 0; i < 5; ++i) ExpectRight(i * 10, 10);
  EXPECT_EQ(Resolves(), 1u);
}

TEST_F(HubFetchTest, AWrongWallClockDoesNotMatter) {
  clock_.MisSet(std::chrono::hours(24 * 365));
  for (uint64_t i = 0; i < 5; ++i) ExpectRight(i * 10, 10);
  EXPECT_EQ(Resolves(), 1u);
}

TEST_F(HubFetchTest, ASignatureRefusedTooEarlyIsRenewedOnce) {
  ExpectRight(0, 10);
  hub_->RotateSigningKey();
  ExpectRight(10, 10);
  EXPECT_EQ(Resolves(), 2u);
  EXPECT_EQ(hub_->Count({.listener = TestHubListener::kCdn, .status = 403}),
            1u);
}

TEST_F(HubFetchTest, ManyRangesRenewARefusedSignatureTogether) {
  ExpectRight(0, 10);
  hub_->RotateSigningKey();
  hub_->Configure([](auto& settings) { settings.latency = milliseconds(30); });
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t i = 0; i < 16; ++i) {
    sinks.push_back(Start("model.safetensors", i * 1000, 1000));
  }
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_OK(sinks[i]->Wait());
    EXPECT_TRUE(sinks[i]->bytes() == Weights(i * 1000, 1000)) << i;
  }
  EXPECT_EQ(Resolves(), 2u);
}

TEST_F(HubFetchTest, ASignatureAlwaysRefusedIsGivenUp) {
  hub_->AddFault(TestHubFault::RefuseSignature().AtCdn());
  EXPECT_THAT(Fetch("model.safetensors", 0, 10),
              AllOf(HasCode(Code::kUnavailable),
                    HasMessage(AllOf(
                        HasSubstr("HTTP 403"), HasSubstr("model.safetensors"),
                        HasSubstr("bytes 0-9"), Not(HasSubstr("Signature"))))));
  EXPECT_EQ(Resolves(), 2u);
  EXPECT_EQ(CdnRequests(), 2u);
}

// --- whose turn it is to ask ---

TEST_F(HubFetchTest, WhenTheAskerIsCancelledTheNextAsks) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::NoAnswer().On("/resolve/").Times(1));
  FetchId first_id = 0;
  auto first = Start("model.safetensors", 0, 10, &first_id);
  ASSERT_TRUE(hub_->WaitForRequests({.contains = "/resolve/"}, 1, kPatience));
  auto second = Start("model.safetensors", 10, 10);
  auto third = Start("model.safetensors", 20, 10);
  origin().CancelFetch(first_id);
  EXPECT_THAT(first->Wait(), HasCode(Code::kCancelled));
  EXPECT_OK(second->Wait());
  EXPECT_OK(third->Wait());
  EXPECT_TRUE(second->bytes() == Weights(10, 10));
  EXPECT_EQ(Resolves(), 2u);
}

TEST_F(HubFetchTest, AFetchThatWaitsForTheAskerIsCancelledAtOnce) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::NoAnswer().On("/resolve/").Times(1));
  auto first = Start("model.safetensors", 0, 10);
  ASSERT_TRUE(hub_->WaitForRequests({.contains = "/resolve/"}, 1, kPatience));
  FetchId second_id = 0;
  auto second = Start("model.safetensors", 10, 10, &second_id);
  origin().CancelFetch(second_id);
  EXPECT_THAT(second->Wait(), HasCode(Code::kCancelled));
  EXPECT_FALSE(first->done());
  // The hub counts a request before it hangs: it may not hang yet.
  while (!first->done()) {
    hub_->ReleaseHangs();
    std::this_thread::yield();
  }
  EXPECT_OK(first->Wait());
}

TEST_F(HubFetchTest, OneRefusalOfTheHubIsEverybodysAnswer) {
  ASSERT_OK(origin().List());
  hub_->Configure([](auto& settings) { settings.latency = milliseconds(30); });
  hub_->AddFault(TestHubFault::Status(503).On("/resolve/").Times(1));
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t i = 0; i < 8; ++i) {
    sinks.push_back(Start("model.safetensors", i * 10, 10));
  }
  for (auto& sink : sinks) {
    EXPECT_THAT(sink->Wait(), HasCode(Code::kUnavailable));
  }
  EXPECT_EQ(Resolves(), 1u);
  ExpectRight(0, 10);
}

// --- bytes that must not be taken ---

TEST_F(HubFetchTest, WrongAnswersAreNeverTakenForTheBytes) {
  hub_->Commit(kRepo, "main",
               {{"model.safetensors", PatternContent(9 << 20, 5), {}}});
  weights_ = PatternContent(9 << 20, 5);
  ASSERT_OK(origin().List());
  const struct {
    TestHubFault fault;
    Code code;
  } cases[] = {
      {TestHubFault::WrongRangeStart(1), Code::kUnavailable},
      {TestHubFault::WrongRangeTotal(9'000'000), Code::kStale},
      {TestHubFault::WrongRangeTotal(123), Code::kUnavailable},
      {TestHubFault::IgnoreRange(), Code::kUnavailable},
      {TestHubFault::LongBody(7), Code::kUnavailable},
      {TestHubFault::ShortBody(400), Code::kUnavailable},
      {TestHubFault::ShortBody(0), Code::kUnavailable},
      {TestHubFault::Reset(400), Code::kUnavailable},
      {TestHubFault::Gzip(), Code::kUnavailable},
      {TestHubFault::DropHeader("Content-Range"), Code::kUnavailable},
      {TestHubFault::SetHeader("Content-Range", "bytes 100-1099/*"),
       Code::kUnavailable},
      {TestHubFault::Raw("HTTP/1.1 206 OK\r\nContent-Length: 3\r\n\r\nabc"),
       Code::kUnavailable},
      {TestHubFault::Raw("nonsense\r\n\r\n"), Code::kUnavailable},
      {TestHubFault::Status(500), Code::kUnavailable},
      {TestHubFault::Status(504), Code::kUnavailable},
      {TestHubFault::Status(408), Code::kUnavailable},
      {TestHubFault::Status(204), Code::kUnavailable},
      {TestHubFault::Status(304), Code::kUnavailable},
      {TestHubFault::Status(416), Code::kStale},
      {TestHubFault::Status(400), Code::kIo},
      {TestHubFault::Status(451), Code::kIo},
      {TestHubFault::AddHeader("Content-Range", "bytes 0-9/10"),
       Code::kUnavailable},
      {TestHubFault::AddHeader("Content-Type", "multipart/byteranges"),
       Code::kUnavailable},
  };
  for (const auto& [fault, code] : cases) {
    const uint64_t id = hub_->AddFault(fault.AtCdn());
    auto sink = Start("model.safetensors", 100, 1000);
    EXPECT_THAT(sink->Wait(), HasCode(code)) << ToString(fault.kind);
    EXPECT_GE(hub_->FaultHits(id), 1u);
    // What was given before is right, and no more than asked.
    EXPECT_TRUE(Weights(100, 1000).starts_with(sink->bytes()))
        << ToString(fault.kind) << " " << sink->bytes().size();
    hub_->ClearFaults();
    ExpectRight(100, 1000);
  }
}

TEST_F(HubFetchTest, BytesBeyondTheAnnouncedLengthAreNotPassedOn) {
  hub_->AddFault(TestHubFault::Overrun(50).AtCdn());
  auto sink = Start("model.safetensors", 100, 1000);
  (void)sink->Wait();
  EXPECT_TRUE(sink->bytes() == Weights(100, 1000));
}

TEST_F(HubFetchTest, AChunkedPartThatIsTooLongIsRefused) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::Raw("HTTP/1.1 206 Partial Content\r\n"
                                   "Content-Range: bytes 0-3/3145728\r\n"
                                   "Transfer-Encoding: chunked\r\n\r\n"
                                   "6\r\n" +
                                   Weights(0, 4) + "zz\r\n0\r\n\r\n")
                     .AtCdn());
  auto sink = Start("model.safetensors", 0, 4);
  EXPECT_THAT(sink->Wait(), HasCode(Code::kUnavailable));
  EXPECT_EQ(sink->bytes(), Weights(0, 4));
}

TEST_F(HubFetchTest, ASmallFileOfAServerWithoutRangesIsReadWhole) {
  hub_->AddFault(TestHubFault::IgnoreRange().AtCdn());
  ExpectRight(1'000'000, 1000);
  ExpectRight(0, 3 << 20);
  const auto requests = hub_->Requests({.listener = TestHubListener::kCdn});
  EXPECT_EQ(requests.back().range, "");
  hub_->ClearFaults();
  hub_->AddFault(TestHubFault::IgnoreRange().On("/api/resolve-cache/"));
  EXPECT_THAT(Fetch("config.json", 3, 4), IsOkAndHolds(config_.substr(3, 4)));
}

TEST_F(HubFetchTest, AWholeAnswerOfTheWrongLengthIsRefused) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::Raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
                                   "Connection: close\r\n\r\nhello")
                     .AtCdn());
  auto sink = Start("model.safetensors", 0, 4);
  EXPECT_THAT(sink->Wait(), HasCode(Code::kUnavailable));
  EXPECT_EQ(sink->bytes(), "");
}

TEST_F(HubFetchTest, WhatTheHubSaysOfTheFileMustBeTheListings) {
  ASSERT_OK(origin().List());
  for (const TestHubFault& fault :
       {TestHubFault::WrongEtag(std::string(64, 'e')),
        TestHubFault::WrongLinkedSize(77),
        TestHubFault::SetHeader("X-Repo-Commit", std::string(40, 'c'))}) {
    hub_->AddFault(fault.AtHub());
    EXPECT_THAT(Fetch("model.safetensors", 0, 10), HasCode(Code::kStale))
        << ToString(fault.kind);
    hub_->ClearFaults();
  }
  EXPECT_EQ(CdnRequests(), 0u);
  hub_->AddFault(TestHubFault::WrongEtag(std::string(40, 'e')).AtHub());
  EXPECT_THAT(Fetch("config.json", 0, 10), HasCode(Code::kStale));
}

// --- silence ---

TEST_F(HubFetchTest, SilenceIsAnErrorInTime) {
  options_.stall_timeout = milliseconds(150);
  ASSERT_OK(origin().List());
  for (const TestHubFault& fault :
       {TestHubFault::NoAnswer().AtHub(), TestHubFault::NoAnswer().AtCdn(),
        TestHubFault::Hang(0).AtCdn(), TestHubFault::Hang(500).AtCdn()}) {
    hub_->AddFault(fault);
    auto sink = Start("model.safetensors", 0, 1000);
    EXPECT_THAT(sink->Wait(), AllOf(HasCode(Code::kUnavailable),
                                    HasMessage(HasSubstr("stalled"))));
    EXPECT_TRUE(Weights(0, 1000).starts_with(sink->bytes()));
    hub_->ClearFaults();
    hub_->ReleaseHangs();
  }
  ExpectRight(0, 1000);
}

TEST_F(HubFetchTest, CancelEndsAFetchThatHangs) {
  hub_->AddFault(TestHubFault::Hang(500).AtCdn());
  FetchId id = 0;
  auto sink = Start("model.safetensors", 0, 1000, &id);
  sink->WaitForBytes(1);
  origin().CancelFetch(id);
  EXPECT_THAT(sink->Wait(), HasCode(Code::kCancelled));
}

TEST_F(HubFetchTest, DestructionCancelsWhatHangs) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::NoAnswer());
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (uint64_t i = 0; i < 20; ++i) {
    sinks.push_back(
        Start(i % 2 == 0 ? "model.safetensors" : "config.json", i, 1));
  }
  const auto begin = steady_clock::now();
  origin_.reset();
  EXPECT_LT(steady_clock::now() - begin, seconds(5));
  for (auto& sink : sinks) EXPECT_THAT(sink->Wait(), HasCode(Code::kCancelled));
}

TEST_F(HubFetchTest, TheClientsEndEndsTheFetches) {
  ASSERT_OK(origin().List());
  hub_->AddFault(TestHubFault::NoAnswer());
  auto sink = Start("model.safetensors", 0, 10);
  auto waiting = Start("model.safetensors", 10, 10);
  ASSERT_TRUE(hub_->WaitForRequests({.contains = "/resolve/"}, 1, kPatience));
  http_.reset();
  EXPECT_THAT(sink->Wait(), HasCode(Code::kCancelled));
  EXPECT_THAT(waiting->Wait(), HasCode(Code::kCancelled));
}

// --- refusals ---

TEST_F(HubFetchTest, RateLimitsSayHowLongToWait) {
  ASSERT_OK(origin().List());
  for (const bool at_cdn : {false, true}) {
    const TestHubFault fault = TestHubFault::RateLimited(7, true);
    hub_->AddFault(at_cdn ? fault.AtCdn() : fault.AtHub());
    auto result = Fetch("model.safetensors", 0, 10);
    ASSERT_THAT(result, HasCode(Code::kUnavailable));
    EXPECT_EQ(result.error().retry_after(), seconds(8));
    EXPECT_THAT(result, HasMessage(HasSubstr("429")));
    hub_->ClearFaults();
  }
}

TEST_F(HubFetchTest, AGatedFileNamesWhereToAsk) {
  hub_->SetRepo(kRepo, {.gated = true, .readers = {kToken}});
  EXPECT_THAT(Fetch("model.safetensors", 0, 10),
              AllOf(HasCode(Code::kDenied),
                    HasMessage(AllOf(HasSubstr("gated"),
                                     HasSubstr(hub_->url() + "/org/name"),
                                     HasSubstr("no token was sent")))));
  // A token that came meanwhile is used.
  WriteToken(kToken);
  ExpectRight(0, 10);
}

TEST_F(HubFetchTest, AMissingFileIsNotFound) {
  ASSERT_OK(origin().List());
  FileInfo file = File("config.json");
  file.path = "gone.json";
  EXPECT_THAT(FetchRange(origin(), file, 0, 1), HasCode(Code::kNotFound));
}

TEST_F(HubFetchTest, AnOfflineOriginFetchesNothing) {
  ASSERT_OK(NewOrigin()->List());
  hub_->ClearLog();
  options_.offline = true;
  EXPECT_THAT(Fetch("model.safetensors", 0, 10),
              AllOf(HasCode(Code::kOffline), HasMessage(HasSubstr("offline"))));
  EXPECT_EQ(hub_->Count(), 0u);
}

TEST_F(HubFetchTest, RangesOutsideTheFileAndUnlistedFilesAreInvalid) {
  const FileInfo file = File("config.json");
  EXPECT_THAT(FetchRange(origin(), file, 0, 0), HasCode(Code::kInvalid));
  EXPECT_THAT(FetchRange(origin(), file, file.size, 1),
              HasCode(Code::kInvalid));
  EXPECT_THAT(FetchRange(origin(), file, UINT64_MAX, 2),
              HasCode(Code::kInvalid));
  EXPECT_THAT(FetchRange(*NewOrigin(), file, 0, 1), HasCode(Code::kInvalid));
}

TEST_F(HubFetchTest, ATokenRenewedInItsFileIsUsedByTheNextFetch) {
  hub_->SetRepo(kRepo, {.is_private = true, .readers = {"hf_old", "hf_new"}});
  WriteToken("hf_old");
  ExpectRight(0, 10);
  hub_->SetRepo(kRepo, {.is_private = true, .readers = {"hf_new"}});
  EXPECT_FALSE(Fetch("config.json", 0, 5).has_value());
  WriteToken("hf_new");
  EXPECT_OK(Fetch("config.json", 0, 5));
}

// --- the suite of every origin ---

class HubHost final : public OriginHost {
 public:
  explicit HubHost(bool lfs) : lfs_(lfs) {
    hub_ = std::move(TestHub::Start()).value();
    http_ = std::move(HttpClient::Create({"weightfs/test", 16})).value();
  }
  ~HubHost() override {
    origin_.reset();
    http_.reset();
  }
  void Serve(const std::map<std::string, std::string>& files) override {
    std::vector<TestHubFile> all;
    for (const auto& [path, content] : files) {
      all.push_back({path, MemoryContent(content), lfs_ && !content.empty()});
    }
    hub_->Commit("org/name", "main", std::move(all));
    HubOptions options;
    options.endpoint = hub_->url();
    options.repo = "org/name";
    origin_ =
        std::move(CreateHubOrigin(options, *http_, token_, nullptr)).value();
  }
  Origin& origin() override { return *origin_; }

 private:
  const bool lfs_;
  std::unique_ptr<TestHub> hub_;
  std::unique_ptr<HttpClient> http_;
  TokenProvider token_{"/nonexistent/token"};
  std::unique_ptr<Origin> origin_;
};

INSTANTIATE_TEST_SUITE_P(HubLfs, OriginContractTest, ::testing::Values([] {
                           return std::unique_ptr<OriginHost>(
                               std::make_unique<HubHost>(true));
                         }));
INSTANTIATE_TEST_SUITE_P(HubPlain, OriginContractTest, ::testing::Values([] {
                           return std::unique_ptr<OriginHost>(
                               std::make_unique<HubHost>(false));
                         }));

}  // namespace
}  // namespace weightfs
