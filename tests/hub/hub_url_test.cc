#include "cache/hub/hub_url.h"

#include "cache/hub/hub_checks.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::HasSubstr;

Url Endpoint(std::string_view text) {
  auto url = ParseHubEndpoint(text);
  EXPECT_OK(url) << text;
  return *url;
}

TEST(HubUrlTest, EndpointsLoseTheirTrailingSlashes) {
  EXPECT_EQ(EndpointName(Endpoint("https://Huggingface.co")),
            "https://huggingface.co");
  EXPECT_EQ(EndpointName(Endpoint("https://huggingface.co//")),
            "https://huggingface.co");
  EXPECT_EQ(EndpointName(Endpoint("http://mirror:8080/hf/")),
            "http://mirror:8080/hf");
  for (const char* text : {"", "huggingface.co", "ftp://h", "https://u:p@h",
                           "https://h/?x=1", "file:///h"}) {
    EXPECT_THAT(ParseHubEndpoint(text), HasCode(Code::kInvalid)) << text;
  }
}

TEST(HubUrlTest, RepositoryIdsAreChecked) {
  for (const char* id : {"gpt2", "org/name", "a.b/c_d-e.f", "O1/N2", "_x/y_"}) {
    EXPECT_OK(CheckHubRepoId(id)) << id;
  }
  for (const char* id :
       {"",       "/",     "a/",    "/a",           "a/b/c", "a--b",
        "a/b--c", "..",    "a/..",  "a/b..c",       "a b",   "a/b?x",
        "a/b#x",  "a%2Fb", "-a/b",  "a/b-",         ".a/b",  "a/b.",
        "a\\b",   "ä/b",   "a/b\n", "org/name@main"}) {
    EXPECT_THAT(CheckHubRepoId(id), HasCode(Code::kInvalid)) << id;
  }
  EXPECT_THAT(CheckHubRepoId(std::string(300, 'a')), HasCode(Code::kInvalid));
}

TEST(HubUrlTest, RevisionsAreChecked) {
  for (const char* revision : {"main", "v1.0", "refs/pr/1", "feature/x#1", "ü",
                               "0123456789012345678901234567890123456789"}) {
    EXPECT_OK(CheckRevision(revision)) << revision;
  }
  for (const char* revision : {"", "a b", "a..b", "../x", "/a", "a/", "a//b",
                               "a\nb", "a?b", "a:b", "a\\b"}) {
    EXPECT_THAT(CheckRevision(revision), HasCode(Code::kInvalid)) << revision;
  }
}

TEST(HubUrlTest, UrlsAreEncodedAsTheHubWants) {
  const Url hub = Endpoint("https://hub");
  const Url mirror = Endpoint("https://mirror/hf");
  EXPECT_EQ(HubInfoUrl(hub, "org/name", "refs/pr/1").ToString(),
            "https://hub/api/models/org/name/revision/refs%2Fpr%2F1");
  EXPECT_EQ(HubInfoUrl(mirror, "gpt2", "main").ToString(),
            "https://mirror/hf/api/models/gpt2/revision/main");
  EXPECT_EQ(
      HubTreeUrl(hub, "org/name", "c0").ToString(),
      "https://hub/api/models/org/name/tree/c0?recursive=true&expand=false");
  EXPECT_EQ(HubResolveUrl(mirror, "org/name", "c0", "a/b c?#%.bin").ToString(),
            "https://mirror/hf/org/name/resolve/c0/a/b%20c%3F%23%25.bin");
}

TEST(HubUrlTest, TheNextPageStaysAtTheEndpoint) {
  const Url page = HubTreeUrl(Endpoint("https://mirror/hf"), "org/name", "c0");
  for (const char* link :
       {"https://huggingface.co/api/models/org/name/tree/c0?cursor=1",
        "http://evil:99/steal?cursor=1", "//evil/?cursor=1", "?cursor=1",
        "/api/models/org/name/tree/c0?cursor=1"}) {
    auto next = HubNextPage(page, link);
    ASSERT_OK(next) << link;
    EXPECT_EQ(next->ToString(),
              "https://mirror/hf/api/models/org/name/tree/c0?cursor=1");
  }
  EXPECT_THAT(HubNextPage(page, "https://h/x"), HasCode(Code::kCorrupt));
  EXPECT_FALSE(HubNextPage(page, "ftp://h/x?y").has_value());
}

HttpResponse To(std::string location) {
  return HttpResponse{302, {{"Location", std::move(location)}}};
}

TEST(HubRedirectsTest, LeavesTheEndpointForGood) {
  const Url hub = Endpoint("http://hub:1");
  using Start = HubRedirects::Start;
  HubRedirects chain(hub, hub.WithPath("/a"), Start::kAtEndpoint);
  EXPECT_TRUE(chain.at_endpoint());
  EXPECT_OK(chain.Follow(To("/b?q=1")));
  EXPECT_EQ(chain.url().ToString(), "http://hub:1/b?q=1");
  EXPECT_TRUE(chain.at_endpoint());
  EXPECT_OK(chain.Follow(To("http://hub:2/c")));  // only the port differs
  EXPECT_FALSE(chain.at_endpoint());
  EXPECT_OK(chain.Follow(To("http://hub:1/d")));  // back at the endpoint
  EXPECT_FALSE(chain.at_endpoint());

  HubRedirects other_scheme(hub, hub, Start::kAtEndpoint);
  EXPECT_OK(other_scheme.Follow(To("https://hub:1/")));
  EXPECT_FALSE(other_scheme.at_endpoint());
  HubRedirects other_host(hub, hub, Start::kAtEndpoint);
  EXPECT_OK(other_host.Follow(To("//hub.evil:1/")));
  EXPECT_FALSE(other_host.at_endpoint());
  EXPECT_FALSE(HubRedirects(hub, hub, Start::kElsewhere).at_endpoint());
}

TEST(HubRedirectsTest, StopsAtCirclesLongChainsAndNonsense) {
  const Url hub = Endpoint("https://hub");
  using Start = HubRedirects::Start;
  HubRedirects circle(hub, hub.WithPath("/a"), Start::kAtEndpoint);
  EXPECT_OK(circle.Follow(To("/b")));
  EXPECT_THAT(circle.Follow(To("/a")), HasCode(Code::kUnavailable));
  HubRedirects far(hub, hub.WithPath("/0"), Start::kAtEndpoint);
  for (int i = 1; i <= 20; ++i) {
    EXPECT_OK(far.Follow(To("/" + std::to_string(i))));
  }
  EXPECT_THAT(far.Follow(To("/21")), HasMessage(HasSubstr("more than 20")));
  HubRedirects chain(hub, hub, Start::kAtEndpoint);
  EXPECT_THAT(chain.Follow(HttpResponse{302, {}}), HasCode(Code::kUnavailable));
  EXPECT_THAT(chain.Follow(To("http://u:p@hub/")), HasCode(Code::kUnavailable));
  EXPECT_THAT(chain.Follow(To("file:///etc/passwd")),
              HasCode(Code::kUnavailable));
  EXPECT_THAT(chain.Follow(To("http://hub/")), HasCode(Code::kDenied));
  EXPECT_EQ(chain.url().ToString(), "https://hub/");
}

TEST(HubRedirectsTest, APublicServerDoesNotLeadIntoThisNetwork) {
  const Url hub = Endpoint("http://hub");
  using Start = HubRedirects::Start;
  const auto from_public = [](std::string location) {
    HttpResponse response = To(std::move(location));
    response.redirects = HttpReach::kPublic;
    return response;
  };
  for (const char* target :
       {"http://127.0.0.1/", "http://10.1.2.3:80/x", "http://169.254.169.254/",
        "http://[::1]/", "http://[fc00::1]/", "http://[::ffff:10.0.0.1]/",
        "//localhost/", "http://127.1/", "http://0177.0.0.1/"}) {
    HubRedirects chain(hub, hub, Start::kAtEndpoint);
    EXPECT_THAT(chain.Follow(from_public(target)), HasCode(Code::kDenied))
        << target;
    // A name or a detour of its own makes no difference.
    HubRedirects later(hub, hub, Start::kAtEndpoint);
    EXPECT_OK(later.Follow(from_public("http://other/")));
    EXPECT_EQ(later.reach(), HttpReach::kPublic);
    EXPECT_THAT(later.Follow(To(target)), HasCode(Code::kDenied)) << target;
    HubRedirects found(hub, hub, Start::kElsewhere, HttpReach::kPublic);
    EXPECT_THAT(found.Follow(To(target)), HasCode(Code::kDenied)) << target;
    // From a private endpoint all may be reached.
    HubRedirects own(hub, hub, Start::kAtEndpoint);
    EXPECT_OK(own.Follow(To(target))) << target;
    EXPECT_EQ(own.reach(), HttpReach::kAnywhere);
  }
}

const std::string kGitId(40, 'a');
const std::string kLfsId(64, 'b');

FileInfo Plain() { return {"p", 100, {ContentId::Kind::kGit, kGitId}}; }
FileInfo Lfs() { return {"l", 100, {ContentId::Kind::kSha256, kLfsId}}; }

TEST(HubChecksTest, MetadataMustBeTheListings) {
  const auto check = [](const FileInfo& file, std::string name,
                        std::string value) {
    return CheckHubMetadata(
        HttpResponse{200, {{std::move(name), std::move(value)}}}, kGitId, file);
  };
  EXPECT_OK(check(Lfs(), "X-Repo-Commit", kGitId));
  EXPECT_THAT(check(Lfs(), "X-Repo-Commit", std::string(40, 'c')),
              HasCode(Code::kStale));
  EXPECT_OK(check(Lfs(), "X-Linked-Size", "100"));
  EXPECT_THAT(check(Lfs(), "X-Linked-Size", "101"), HasCode(Code::kStale));
  EXPECT_THAT(check(Lfs(), "X-Linked-Size", "many"), HasCode(Code::kStale));
  EXPECT_OK(check(Lfs(), "X-Linked-Etag", "\"" + kLfsId + "\""));
  EXPECT_THAT(check(Lfs(), "X-Linked-Etag", std::string(64, 'c')),
              HasCode(Code::kStale));
  EXPECT_THAT(check(Lfs(), "X-Linked-Etag", kGitId), HasCode(Code::kStale));
  EXPECT_OK(check(Plain(), "ETag", "W/\"" + kGitId + "\""));
  EXPECT_THAT(check(Plain(), "ETag", std::string(40, 'c')),
              HasCode(Code::kStale));
  // Not ids: a multipart ETag, an MD5, a git id where a SHA-256 is listed.
  EXPECT_OK(check(Plain(), "ETag", "\"abc-12\""));
  EXPECT_OK(check(Plain(), "ETag", std::string(32, 'c')));
  EXPECT_OK(check(Lfs(), "ETag", std::string(40, 'c')));
}

HttpResponse Partial(std::string range, std::string name = "X-None",
                     std::string value = "") {
  return HttpResponse{206,
                      {{"Content-Range", std::move(range)},
                       {std::move(name), std::move(value)}}};
}

TEST(HubChecksTest, APartMustBeExactlyTheRange) {
  EXPECT_OK(CheckPartial(Partial("bytes 10-19/100"), 10, 10, 100));
  EXPECT_OK(CheckPartial(Partial("bytes 10-19/100", "Content-Length", "10"), 10,
                         10, 100));
  EXPECT_OK(CheckPartial(
      Partial("bytes 10-19/100", "Content-Encoding", "Identity"), 10, 10, 100));
  EXPECT_THAT(CheckPartial(Partial("bytes 10-19/101"), 10, 10, 100),
              HasCode(Code::kStale));
  for (const HttpResponse& response :
       {Partial("bytes 10-18/100"), Partial("bytes 10-20/100"),
        Partial("bytes 11-19/100"), Partial("bytes 0-9/100"),
        Partial("bytes 10-19/*"), Partial("bytes */100"), Partial("x"),
        HttpResponse{206, {}},
        Partial("bytes 10-19/100", "Content-Length", "11"),
        Partial("bytes 10-19/100", "Content-Length", "9"),
        Partial("bytes 10-19/100", "Content-Length", "-10"),
        Partial("bytes 10-19/100", "Content-Length", "10, 10"),
        Partial("bytes 10-19/100", "Content-Length", "18446744073709551626"),
        Partial("bytes 10-19/100", "Content-Encoding", "gzip"),
        Partial("bytes 10-19/100", "content-range", "bytes 0-9/100"),
        Partial("bytes 10-19/100", "Content-Type",
                "Multipart/byteranges; boundary=x")}) {
    EXPECT_THAT(CheckPartial(response, 10, 10, 100),
                HasCode(Code::kUnavailable));
  }
}

TEST(HubChecksTest, AWholeFileMustHaveItsLength) {
  const auto check = [](std::string name, std::string value) {
    return CheckWhole(HttpResponse{200, {{std::move(name), std::move(value)}}},
                      100);
  };
  EXPECT_OK(check("Content-Length", "100"));
  EXPECT_FALSE(check("Content-Length", "99").has_value());
  EXPECT_FALSE(check("Content-Length", "1e2").has_value());
  EXPECT_OK(check("X-None", ""));  // its body has to show
  const HttpResponse zipped{
      200, {{"Content-Length", "100"}, {"Content-Encoding", "br"}}};
  EXPECT_FALSE(CheckWhole(zipped, 100).has_value());
}

}  // namespace
}  // namespace weightfs
