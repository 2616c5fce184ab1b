// Answers that are in doubt: asked for once more, gathered before they are
// passed on, or never put together with others.

#include "cache/hub/validators.h"
#include "tests/hub/hub_testing.h"
#include "tests/support/collecting_sink.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class HubDoubtTest : public HubTest {
 protected:
  HubDoubtTest() { Publish(); }

  std::shared_ptr<CollectingSink> Start(const std::string& path,
                                        uint64_t offset, uint64_t length) {
    auto sink = std::make_shared<CollectingSink>();
    origin().StartFetch(File(path), offset, length, sink);
    return sink;
  }
  void ExpectRight(uint64_t offset, uint64_t length) {
    auto sink = Start("model.safetensors", offset, length);
    ASSERT_OK(sink->Wait());
    EXPECT_TRUE(sink->bytes() == Weights(offset, length));
  }
  // What a server says that knows no ranges and sends no length.
  void GiveWholeConfig(const std::string& answer) {
    hub_->AddFault(TestHubFault::IgnoreRange().On("/resolve-cache/"));
    hub_->AddFault(TestHubFault::Raw(answer).On("/resolve-cache/"));
  }
};

TEST_F(HubDoubtTest, OneSlipAboutTheFileIsForgiven) {
  ASSERT_OK(origin().List());
  const TestHubFault slips[] = {
      TestHubFault::WrongEtag(std::string(64, 'e')).AtHub().On("/resolve/"),
      TestHubFault::WrongLinkedSize(77).AtHub().On("/resolve/"),
      TestHubFault::SetHeader("X-Repo-Commit", std::string(40, 'c')).AtHub(),
      TestHubFault::WrongRangeTotal(9'000'000).AtCdn(),
      TestHubFault::Status(416).AtCdn(),
      TestHubFault::Status(400).AtCdn(),
  };
  for (const TestHubFault& slip : slips) {
    hub_->RotateSigningKey();  // what is asked for is asked for anew
    const uint64_t id = hub_->AddFault(slip.Times(1));
    ExpectRight(100, 1000);
    EXPECT_EQ(hub_->FaultHits(id), 1u) << ToString(slip.kind);
    hub_->ClearFaults();
  }
}

TEST_F(HubDoubtTest, ASlipTwiceIsTheAnswer) {
  hub_->AddFault(TestHubFault::Status(416).AtCdn());
  EXPECT_THAT(Start("model.safetensors", 0, 10)->Wait(),
              AllOf(HasCode(Code::kStale), HasMessage(HasSubstr("HTTP 416"))));
  EXPECT_EQ(CdnRequests(), 2u);
}

TEST_F(HubDoubtTest, BytesUnderAnotherEtagAreNotPutTogether) {
  ExpectRight(0, 10);
  hub_->AddFault(TestHubFault::OtherFile().AtCdn());
  auto sink = Start("model.safetensors", 10, 10);
  EXPECT_THAT(sink->Wait(), AllOf(HasCode(Code::kUnavailable),
                                  HasMessage(HasSubstr("ETag was"))));
  EXPECT_EQ(sink->bytes(), "");
  hub_->ClearFaults();
  ExpectRight(10, 10);
}

TEST_F(HubDoubtTest, AWholeFileWithoutALengthIsTakenOnceItIsAllThere) {
  const std::string head = "HTTP/1.0 200 OK\r\n\r\n";
  GiveWholeConfig(head + "{body}");
  auto sink = Start("config.json", 3, 4);
  ASSERT_OK(sink->Wait());
  EXPECT_EQ(sink->bytes(), config_.substr(3, 4));
  const std::string broken[] = {
      head + "{\"mod",
      head + "{body}x",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"mod\r\n"
      "0\r\n\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{body}",
  };
  for (const std::string& answer : broken) {
    hub_->ClearFaults();
    GiveWholeConfig(answer);
    sink = Start("config.json", 0, 4);
    EXPECT_THAT(sink->Wait(), HasCode(Code::kUnavailable)) << answer;
    EXPECT_EQ(sink->bytes(), "") << answer;
  }
}

TEST_F(HubDoubtTest, APartWithoutAnEndIsTakenOnceItIsAllThere) {
  const std::string head =
      "HTTP/1.0 206 OK\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n";
  hub_->AddFault(TestHubFault::Raw(head + "{body}").AtCdn());
  ExpectRight(1000, 100'000);
  hub_->ClearFaults();
  hub_->AddFault(TestHubFault::Raw(head + "an error page").AtCdn());
  auto sink = Start("model.safetensors", 1000, 100'000);
  EXPECT_THAT(sink->Wait(), HasCode(Code::kUnavailable));
  EXPECT_EQ(sink->bytes(), "");
}

TEST_F(HubDoubtTest, MessagesNameStatusAndServer) {
  ASSERT_OK(origin().List());
  const struct {
    TestHubFault fault;
    std::string says;
  } cases[] = {
      {TestHubFault::Status(503).AtCdn(), "HTTP 503 from " + hub_->cdn_url()},
      {TestHubFault::RateLimited(1).AtCdn(),
       "HTTP 429 from " + hub_->cdn_url()},
      {TestHubFault::RateLimited(1).AtHub(), "HTTP 429"},
      {TestHubFault::Status(401).AtHub(), "HTTP 401 from " + hub_->url()},
      {TestHubFault::ShortBody(5).AtCdn(),
       "HTTP 206 from " + hub_->cdn_url() + ", after 5 of 100 bytes"},
      {TestHubFault::RedirectLoop().AtHub(), "HTTP 302 from " + hub_->url()},
      {TestHubFault::Raw("").AtCdn(), "no HTTP answer"},
  };
  for (const auto& [fault, says] : cases) {
    hub_->RotateSigningKey();  // so that the Hub is asked, too
    hub_->AddFault(fault);
    EXPECT_THAT(Start("model.safetensors", 0, 100)->Wait(),
                HasMessage(AllOf(HasSubstr(says),
                                 HasSubstr("model.safetensors bytes 0-99"))));
    hub_->ClearFaults();
  }
}

TEST(ValidatorsTest, KeepsOneStrongEtagForEachFileAndPlace) {
  Validators validators;
  const Url here = *Url::Parse("http://a.test/x?signature=1");
  const auto check = [&](const std::string& path, const Url& url,
                         const std::string& etag) {
    return validators
        .Check(path, url,
               etag.empty() ? HttpResponse{206, {}}
                            : HttpResponse{206, {{"ETag", etag}}})
        .has_value();
  };
  EXPECT_TRUE(check("f", here, "\"1\""));
  EXPECT_TRUE(check("f", here.WithQuery("signature=2"), "\"1\""));
  EXPECT_FALSE(check("f", here.WithQuery("signature=2"), "\"2\""));
  EXPECT_TRUE(check("f", here, ""));         // says nothing
  EXPECT_TRUE(check("f", here, "W/\"3\""));  // promises nothing
  EXPECT_TRUE(check("g", here, "\"2\""));    // another file
  EXPECT_TRUE(check("f", here.WithPath("/y"), "\"2\""));
  EXPECT_FALSE(check("f", here.WithPath("/y"), "\"1\""));
}

}  // namespace
}  // namespace weightfs
