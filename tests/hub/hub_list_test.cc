#include <future>
#include <thread>

#include "tests/hub/hub_testing.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

class HubListTest : public HubTest {
 protected:
  static TestHubFilter Info() { return {.contains = "/revision/"}; }
  static TestHubFilter Tree() { return {.contains = "/tree/"}; }

  void PublishMany(int files) {
    std::vector<TestHubFile> all;
    for (int i = 0; i < files; ++i) {
      all.push_back({fmt::format("sub/{:04}.txt", i),
                     MemoryContent(std::to_string(i)),
                     {}});
    }
    commit_ = hub_->Commit(kRepo, "main", std::move(all));
  }
};

TEST_F(HubListTest, BindsARevisionToItsCommit) {
  Publish();
  auto snapshot = origin().List();
  ASSERT_OK(snapshot);
  EXPECT_EQ((*snapshot)->repo, kRepo);
  EXPECT_EQ((*snapshot)->revision, "main");
  EXPECT_EQ((*snapshot)->commit, commit_);
  EXPECT_FALSE((*snapshot)->restricted);
  ASSERT_THAT((*snapshot)->files, SizeIs(2));
  EXPECT_EQ((*snapshot)->files[0],
            (FileInfo{"config.json",
                      config_.size(),
                      {ContentId::Kind::kGit,
                       MemoryContent(config_)->GitBlobSha1()}}));
  EXPECT_EQ((*snapshot)->files[1],
            (FileInfo{"model.safetensors",
                      3u << 20,
                      {ContentId::Kind::kSha256, weights_->Sha256()}}));
  EXPECT_EQ(origin().name(), hub_->url() + "/org/name");
  EXPECT_EQ(origin().cache_namespace(), hub_->url());
  // The branch moves on; this origin does not.
  hub_->Commit(kRepo, "main", {{"other", MemoryContent("x"), {}}});
  EXPECT_THAT(origin().List(), IsOkAndHolds(*snapshot));
  EXPECT_EQ(hub_->Count(), 2u);
  EXPECT_EQ(hub_->Count(Info()), 1u);
  EXPECT_EQ(hub_->Requests()[0].Header("User-Agent"),
            "weightfs/test; os/linux");
  EXPECT_EQ(hub_->Requests()[0].authorization, "");
}

TEST_F(HubListTest, PointerSizesAreNotTaken) {
  Publish();
  hub_->Configure(
      [](auto& settings) { settings.tree_has_pointer_size = true; });
  EXPECT_EQ(File("model.safetensors").size, 3u << 20);
}

TEST_F(HubListTest, ConcurrentCallsAskOnce) {
  Publish();
  hub_->Configure([](auto& settings) { settings.latency = milliseconds(50); });
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&one = origin()] { EXPECT_OK(one.List()); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(hub_->Count(), 2u);
}

TEST_F(HubListTest, RevisionsAreEncodedWhole) {
  Publish();
  hub_->SetRef(kRepo, "refs/pr/1", commit_);
  options_.revision = "refs/pr/1";
  EXPECT_OK(origin().List());
  EXPECT_EQ(hub_->Count({.contains = "/revision/refs%2Fpr%2F1"}), 1u);
}

TEST_F(HubListTest, FollowsPages) {
  PublishMany(25);
  hub_->Configure([](auto& settings) { settings.tree_page_size = 10; });
  auto snapshot = origin().List();
  ASSERT_OK(snapshot);
  EXPECT_THAT((*snapshot)->files, SizeIs(25));
  EXPECT_EQ(hub_->Count(Tree()), 3u);
}

TEST_F(HubListTest, PagesOfAMirrorStayAtTheMirror) {
  PublishMany(25);
  WriteToken(kToken);
  hub_->AddToken(kToken);
  hub_->Configure([this](auto& settings) {
    settings.tree_page_size = 10;
    settings.next_page_origin = hub_->cdn_url();  // in place of huggingface.co
  });
  EXPECT_OK(origin().List());
  EXPECT_EQ(hub_->Count(Tree()), 3u);
  EXPECT_EQ(CdnRequests(), 0u);
  EXPECT_THAT(hub_->Requests(), Each(Field(&TestHubRequest::authorization,
                                           std::string("Bearer ") + kToken)));
}

TEST_F(HubListTest, PagesInACircleAreRefused) {
  PublishMany(25);
  hub_->Configure([](auto& settings) { settings.tree_page_size = 10; });
  hub_->AddFault(TestHubFault::SetHeader("Link", "<?cursor=10>; rel=\"next\"")
                     .On("/tree/"));
  EXPECT_THAT(origin().List(), HasCode(Code::kCorrupt));
  EXPECT_LE(hub_->Count(Tree()), 3u);
}

TEST_F(HubListTest, APageThatFailsIsAskedAgain) {
  PublishMany(25);
  hub_->Configure([](auto& settings) { settings.tree_page_size = 10; });
  hub_->AddFault(TestHubFault::Status(503).On("/tree/").Skip(1).Times(2));
  hub_->AddFault(TestHubFault::Reset(10).On("/tree/").Skip(4).Times(1));
  auto snapshot = origin().List();
  ASSERT_OK(snapshot);
  EXPECT_THAT((*snapshot)->files, SizeIs(25));
}

TEST_F(HubListTest, GarbageIsAskedAgainAndThenRefused) {
  Publish();
  hub_->AddFault(
      TestHubFault::Body("<html>login</html>").On("/tree/").Times(1));
  EXPECT_OK(NewOrigin()->List());
  hub_->Commit(kRepo, "main", {{"new", MemoryContent("n"), {}}});
  hub_->ClearLog();
  hub_->AddFault(TestHubFault::Body("[{]").On("/tree/"));
  store_ = std::make_unique<SnapshotStore>(folder_ + "/other");
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kCorrupt));
  EXPECT_EQ(hub_->Count(Tree()), 3u);
}

TEST_F(HubListTest, AListingThatIsStoredIsNotAskedForAgain) {
  Publish();
  auto first = NewOrigin()->List();
  ASSERT_OK(first);
  hub_->ClearLog();
  auto second = NewOrigin()->List();
  ASSERT_OK(second);
  EXPECT_EQ((*second)->files, (*first)->files);
  EXPECT_EQ((*second)->revision, "main");
  EXPECT_EQ(hub_->Count(), 1u);
  EXPECT_EQ(hub_->Count(Info()), 1u);
  // A commit that is known needs nobody.
  hub_->ClearLog();
  options_.revision = commit_;
  EXPECT_OK(NewOrigin()->List());
  EXPECT_EQ(hub_->Count(), 0u);
}

TEST_F(HubListTest, ANewCommitIsListed) {
  Publish();
  ASSERT_OK(NewOrigin()->List());
  const std::string moved =
      hub_->Commit(kRepo, "main", {{"new", MemoryContent("n"), {}}});
  auto snapshot = NewOrigin()->List();
  ASSERT_OK(snapshot);
  EXPECT_EQ((*snapshot)->commit, moved);
  EXPECT_NE((*snapshot)->Find("new"), nullptr);
}

TEST_F(HubListTest, ARenamedRepositoryIsFollowed) {
  Publish();
  hub_->AddAlias("old/one", kRepo);
  options_.repo = "old/one";
  auto snapshot = origin().List();
  ASSERT_OK(snapshot);
  EXPECT_EQ((*snapshot)->repo, "old/one");
  EXPECT_THAT((*snapshot)->files, SizeIs(2));
  EXPECT_EQ(hub_->Count({.contains = "old/one"}), 1u);
}

// --- offline ---

TEST_F(HubListTest, OfflineUsesWhatWasSavedAndAsksNobody) {
  Publish();
  auto online = NewOrigin()->List();
  ASSERT_OK(online);
  hub_->ClearLog();
  options_.offline = true;
  auto offline = NewOrigin()->List();
  ASSERT_OK(offline);
  EXPECT_EQ((*offline)->commit, commit_);
  EXPECT_EQ((*offline)->files, (*online)->files);
  options_.revision = commit_;
  EXPECT_OK(NewOrigin()->List());
  EXPECT_EQ(hub_->Count(), 0u);
}

TEST_F(HubListTest, OfflineSaysWhatToDoForWhatWasNeverMounted) {
  Publish();
  options_.offline = true;
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kOffline),
                    HasMessage(AllOf(HasSubstr("org/name"),
                                     HasSubstr("never mounted online"),
                                     HasSubstr("mount it once")))));
  store_.reset();
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kOffline));
  EXPECT_EQ(hub_->Count(), 0u);
}

TEST_F(HubListTest, AHubThatIsDownIsReplacedByWhatItSaidLast) {
  Publish();
  ASSERT_OK(NewOrigin()->List());
  hub_->Commit(kRepo, "main", {{"new", MemoryContent("n"), {}}});
  hub_->Stop();
  auto snapshot = NewOrigin()->List();
  ASSERT_OK(snapshot);
  EXPECT_EQ((*snapshot)->commit, commit_);
  EXPECT_THAT(LogCapture::Text(),
              AllOf(HasSubstr("WARNING the Hub cannot be used"),
                    HasSubstr("commit=" + commit_)));
}

TEST_F(HubListTest, EveryKindOfOutageFallsBack) {
  Publish();
  ASSERT_OK(NewOrigin()->List());
  options_.stall_timeout = milliseconds(100);
  for (const TestHubFault& fault :
       {TestHubFault::Status(500), TestHubFault::Status(503),
        TestHubFault::Status(429), TestHubFault::RateLimited(3000),
        TestHubFault::NoAnswer(), TestHubFault::Hang(3), TestHubFault::Reset(0),
        TestHubFault::ShortBody(5), TestHubFault::Raw("garbage\r\n\r\n"),
        TestHubFault::Body("<html>"), TestHubFault::RedirectLoop(),
        TestHubFault::Status(204)}) {
    const uint64_t id = hub_->AddFault(fault);
    auto snapshot = NewOrigin()->List();
    ASSERT_OK(snapshot) << ToString(fault.kind) << fault.number;
    EXPECT_EQ((*snapshot)->commit, commit_);
    EXPECT_GE(hub_->FaultHits(id), 1u) << ToString(fault.kind);
    hub_->ClearFaults();
  }
}

TEST_F(HubListTest, AHubThatIsDownWithNothingSavedIsAnErrorInTime) {
  Publish();
  hub_->Stop();
  options_.metadata_timeout = milliseconds(300);
  const auto begin = steady_clock::now();
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kUnavailable),
                    HasMessage(AllOf(HasSubstr("gave up after"),
                                     HasSubstr("attempts")))));
  EXPECT_LT(steady_clock::now() - begin, seconds(10));
}

TEST_F(HubListTest, AHubThatComesBackIsWaitedFor) {
  Publish();
  hub_->AddFault(TestHubFault::Status(502).Times(3));
  hub_->AddFault(TestHubFault::Reset(0).Skip(3).Times(1));
  EXPECT_OK(NewOrigin()->List());
  EXPECT_EQ(hub_->Count(Info()), 5u);
}

TEST_F(HubListTest, AHostThatDoesNotExistIsUnavailable) {
  options_.endpoint = "http://hub.invalid";
  options_.metadata_timeout = milliseconds(500);
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kUnavailable));
}

TEST_F(HubListTest, AnAnswerIsNeverReplacedByWhatWasSaved) {
  Publish();
  ASSERT_OK(NewOrigin()->List());
  hub_->SetRepo(kRepo, {.is_private = true});
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kNotFound));
  hub_->SetRepo(kRepo, {});
  hub_->AddFault(TestHubFault::Status(403));
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kDenied));
}

// --- rate limits ---

TEST_F(HubListTest, WaitsAsLongAsTheHubSays) {
  Publish();
  hub_->AddFault(TestHubFault::RateLimited(1).Times(1));
  const auto begin = steady_clock::now();
  EXPECT_OK(NewOrigin()->List());
  EXPECT_GE(steady_clock::now() - begin, seconds(1));
  EXPECT_EQ(hub_->Count(Info()), 2u);
}

TEST_F(HubListTest, DoesNotWaitLongerThanItMay) {
  Publish();
  for (const bool ratelimit : {false, true}) {
    hub_->ClearLog();
    hub_->ClearFaults();
    const int seconds_named = ratelimit ? 55 : 77;
    hub_->AddFault(TestHubFault::RateLimited(seconds_named, ratelimit));
    auto result = NewOrigin()->List();
    ASSERT_THAT(result, HasCode(Code::kUnavailable));
    EXPECT_EQ(result.error().retry_after(), seconds(ratelimit ? 56 : 77));
    EXPECT_THAT(result, HasMessage(HasSubstr("rate limit")));
    EXPECT_EQ(hub_->Count(), 1u);
  }
}

// --- who may ---

TEST_F(HubListTest, MissingAndPrivateAreToldWithWhatToDo) {
  Publish();
  options_.repo = "org/missing";
  EXPECT_THAT(
      NewOrigin()->List(),
      AllOf(HasCode(Code::kNotFound),
            HasMessage(AllOf(HasSubstr("org/missing"), HasSubstr("private"),
                             HasSubstr("no token was sent"),
                             HasSubstr("HF_TOKEN")))));
  EXPECT_EQ(hub_->Count(), 1u);
  hub_->AddToken(kToken);
  WriteToken(kToken);
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kNotFound),
                    HasMessage(AllOf(HasSubstr("private"),
                                     HasSubstr(folder_ + "/token"),
                                     Not(HasSubstr(kToken))))));
}

TEST_F(HubListTest, APrivateRepositoryNeedsATokenThatReadsIt) {
  Publish();
  hub_->SetRepo(kRepo, {.is_private = true, .readers = {kToken}});
  EXPECT_THAT(NewOrigin()->List(), HasCode(Code::kNotFound));
  WriteToken(kToken);
  auto snapshot = NewOrigin()->List();
  ASSERT_OK(snapshot);
  EXPECT_TRUE((*snapshot)->restricted);
  options_.offline = true;
  auto offline = NewOrigin()->List();
  ASSERT_OK(offline);
  EXPECT_TRUE((*offline)->restricted);
}

TEST_F(HubListTest, AGatedRepositoryIsListedAndRestricted) {
  Publish();
  hub_->SetRepo(kRepo, {.gated = true});
  auto snapshot = NewOrigin()->List();
  ASSERT_OK(snapshot);
  EXPECT_TRUE((*snapshot)->restricted);
}

TEST_F(HubListTest, ARepositoryThatBecomesPrivateIsSavedAsRestricted) {
  Publish();
  ASSERT_OK(NewOrigin()->List());
  hub_->SetRepo(kRepo, {.is_private = true, .readers = {kToken}});
  WriteToken(kToken);
  ASSERT_OK(NewOrigin()->List());
  options_.offline = true;
  auto offline = NewOrigin()->List();
  ASSERT_OK(offline);
  EXPECT_TRUE((*offline)->restricted);
}

TEST_F(HubListTest, OtherRefusalsAreToldApart) {
  Publish();
  options_.revision = "v9";
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kNotFound),
                    HasMessage(HasSubstr("no revision \"v9\""))));
  options_.revision = "main";
  hub_->SetRepo(kRepo, {.disabled = true});
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kDenied), HasMessage(HasSubstr("disabled"))));
  hub_->SetRepo(kRepo, {});
  WriteToken("hf_WrongOne");
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kDenied),
                    HasMessage(AllOf(HasSubstr("does not accept the token"),
                                     HasSubstr(folder_ + "/token"),
                                     Not(HasSubstr("hf_WrongOne"))))));
  hub_->AddToken("hf_WrongOne");
  hub_->AddFault(TestHubFault::Status(
      403, {}, R"({"error":"token hf_WrongOne lacks the scope"})"));
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kDenied),
                    HasMessage(AllOf(HasSubstr("scope"), HasSubstr("[token]"),
                                     Not(HasSubstr("hf_WrongOne"))))));
}

TEST_F(HubListTest, ATokenThatCannotBeSentIsNotSent) {
  Publish();
  WriteToken("hf_two\nhf_lines");
  EXPECT_THAT(NewOrigin()->List(),
              AllOf(HasCode(Code::kDenied), HasMessage(Not(HasSubstr("hf_")))));
  EXPECT_EQ(hub_->Count(), 0u);
}

TEST_F(HubListTest, ATokenRenewedInItsFileIsPickedUp) {
  Publish();
  hub_->SetRepo(kRepo, {.is_private = true, .readers = {kToken}});
  WriteToken("hf_WrongOne");
  EXPECT_THAT(origin().List(), HasCode(Code::kDenied));
  WriteToken(kToken);
  EXPECT_OK(origin().List());
}

TEST_F(HubListTest, TheTokenDoesNotFollowARedirectElsewhere) {
  Publish();
  hub_->AddToken(kToken);
  WriteToken(kToken);
  hub_->AddFault(TestHubFault::Redirect(hub_->cdn_url() + "/api/models/x", 308)
                     .AtHub()
                     .On("/revision/"));
  EXPECT_FALSE(NewOrigin()->List().has_value());
  const auto requests = hub_->Requests({.listener = TestHubListener::kCdn});
  ASSERT_THAT(requests, Not(SizeIs(0)));
  EXPECT_THAT(requests, Each(Field(&TestHubRequest::authorization, "")));
}

TEST_F(HubListTest, ArgumentsThatCannotBeAreRefused) {
  const auto create = [this](auto change) {
    HubOptions options = options_;
    change(options);
    return CreateHubOrigin(options, *http_, *token_, store_.get());
  };
  EXPECT_THAT(create([](auto& o) { o.endpoint = "huggingface.co"; }),
              HasCode(Code::kInvalid));
  EXPECT_THAT(
      create([](auto& o) { o.endpoint = "http://u:hf_p@h"; }),
      AllOf(HasCode(Code::kInvalid), HasMessage(Not(HasSubstr("hf_p")))));
  EXPECT_THAT(create([](auto& o) { o.repo = "a/b/c"; }),
              HasCode(Code::kInvalid));
  EXPECT_THAT(create([](auto& o) { o.repo = "a--b/c"; }),
              HasCode(Code::kInvalid));
  EXPECT_THAT(create([](auto& o) { o.revision = ""; }),
              HasCode(Code::kInvalid));
}

}  // namespace
}  // namespace weightfs
