#include "cache/hub/signed_urls.h"

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;
using Kind = SignedUrls::Lead::Kind;

class SetClock final : public Clock {
 public:
  Time Now() const override { return now; }
  WallTime WallNow() const override { return wall; }
  Time now{std::chrono::hours(5)};
  WallTime wall = std::chrono::system_clock::from_time_t(1'700'000'000);
};

Url U(std::string_view text) { return *Url::Parse(text); }

TEST(SignatureLifeTest, ReadsEachKindOfSignature) {
  const auto now = std::chrono::system_clock::from_time_t(1'700'000'000);
  EXPECT_EQ(SignatureLife(U("https://c/x"), now), std::nullopt);
  EXPECT_EQ(SignatureLife(U("https://c/x?Expires=1700000100&Signature=s"), now),
            seconds(100));
  EXPECT_EQ(SignatureLife(U("https://c/x?Expires=1699999900"), now),
            seconds(-100));
  EXPECT_EQ(SignatureLife(U("https://c/x?X-Amz-Date=20231114T221320Z"
                            "&X-Amz-Expires=3600"),
                          now),
            seconds(3600));
  EXPECT_EQ(SignatureLife(U("https://c/x?X-Goog-Date=20231114T221310Z"
                            "&X-Goog-Expires=20"),
                          now),
            seconds(10));
  EXPECT_EQ(SignatureLife(U("https://c/x?Expires=1700000100"
                            "&X-Amz-Date=20231114T221320Z&X-Amz-Expires=50"),
                          now),
            seconds(50));
  for (const char* text :
       {"https://c/x?Expires=", "https://c/x?Expires=-5",
        "https://c/x?Expires=99999999999999999999",
        "https://c/x?X-Amz-Expires=3600",
        "https://c/x?X-Amz-Date=yesterday&X-Amz-Expires=3600"}) {
    EXPECT_EQ(SignatureLife(U(text), now), std::nullopt) << text;
  }
}

class SignedUrlsTest : public ::testing::Test {
 protected:
  std::optional<SignedUrls::Lead> Take() {
    return urls_.Take(
        "p", [this](const SignedUrls::Lead& lead) { woken_.push_back(lead); });
  }
  Kind TakeKind() {
    const auto lead = Take();
    EXPECT_TRUE(lead.has_value());
    return lead->kind;
  }
  Url Signed(seconds life) {
    return U("https://c/x?Signature=s&Expires=" +
             std::to_string(1'700'000'000 + life.count()));
  }

  SetClock clock_;
  SignedUrls urls_{clock_};
  std::vector<SignedUrls::Lead> woken_;
};

TEST_F(SignedUrlsTest, OneAsksAndTheOthersWait) {
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  EXPECT_FALSE(Take().has_value());
  urls_.Put("p", Signed(minutes(60)), clock_.wall);
  ASSERT_EQ(woken_.size(), 2u);
  EXPECT_EQ(woken_[0].kind, Kind::kUse);
  EXPECT_EQ(woken_[1].url->ToString(), Signed(minutes(60)).ToString());
  EXPECT_EQ(TakeKind(), Kind::kUse);
}

TEST_F(SignedUrlsTest, KeepsWhatTheChainMightReach) {
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  urls_.Put("p", Signed(seconds(3600)), clock_.WallNow(), HttpReach::kPublic);
  ASSERT_EQ(woken_.size(), 1);
  EXPECT_EQ(woken_[0].reach, HttpReach::kPublic);
  EXPECT_EQ(Take()->reach, HttpReach::kPublic);
}

TEST_F(SignedUrlsTest, IsUsedFor50MinutesAndRenewedByOneAfter40) {
  urls_.Put("p", Signed(minutes(600)), clock_.wall);
  clock_.now += minutes(40) - seconds(1);
  EXPECT_EQ(TakeKind(), Kind::kUse);
  clock_.now += seconds(1);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_EQ(TakeKind(), Kind::kUse);
  clock_.now += minutes(10);
  EXPECT_FALSE(Take().has_value());  // too old, and somebody asks
}

TEST_F(SignedUrlsTest, IsNotUsedInTheLastMinuteOfItsSignature) {
  urls_.Put("p", Signed(minutes(20)), clock_.wall);
  clock_.now += seconds(19 * 60 * 4 / 5 - 1);
  EXPECT_EQ(TakeKind(), Kind::kUse);
  clock_.now += seconds(1);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  urls_.Fail("p", Error(Code::kUnavailable, "down"));
  EXPECT_EQ(TakeKind(), Kind::kUse);  // it still works
  clock_.now = SetClock().now + minutes(19);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
}

TEST_F(SignedUrlsTest, AShortSignatureKeepsAShareOfItsLife) {
  urls_.Put("p", Signed(seconds(30)), clock_.wall);
  EXPECT_EQ(TakeKind(), Kind::kUse);
  clock_.now += seconds(24);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
}

TEST_F(SignedUrlsTest, AnExpiredSignatureStillServesThoseWhoWaited) {
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  urls_.Put("p", Signed(seconds(-5)), clock_.wall);
  ASSERT_EQ(woken_.size(), 1u);
  EXPECT_EQ(woken_[0].kind, Kind::kUse);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
}

TEST_F(SignedUrlsTest, OnlyTheRefusedUrlIsDropped) {
  const uint64_t old = urls_.Put("p", Signed(minutes(60)), clock_.wall);
  const uint64_t renewed = urls_.Put("p", Signed(minutes(70)), clock_.wall);
  EXPECT_NE(old, renewed);
  urls_.Drop("p", old);
  EXPECT_EQ(TakeKind(), Kind::kUse);
  urls_.Drop("p", renewed);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  urls_.Drop("unknown", 1);
}

TEST_F(SignedUrlsTest, AFailureIsSharedAndACancellationPassedOn) {
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  EXPECT_FALSE(Take().has_value());
  urls_.Fail("p", Error(Code::kCancelled, "gone"));
  ASSERT_EQ(woken_.size(), 1u);
  EXPECT_EQ(woken_[0].kind, Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  urls_.Fail("p", Error(Code::kUnavailable, "down"));
  ASSERT_EQ(woken_.size(), 3u);
  EXPECT_EQ(woken_[2].kind, Kind::kFailed);
  EXPECT_EQ(woken_[2].error->code(), Code::kUnavailable);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
}

TEST_F(SignedUrlsTest, AFileOfTheHubItselfNeedsNoWaiting) {
  EXPECT_EQ(TakeKind(), Kind::kAsk);
  EXPECT_FALSE(Take().has_value());
  urls_.PutDirect("p");
  ASSERT_EQ(woken_.size(), 1u);
  EXPECT_EQ(woken_[0].kind, Kind::kDirect);
  EXPECT_EQ(TakeKind(), Kind::kDirect);
  EXPECT_EQ(TakeKind(), Kind::kDirect);
  clock_.now += minutes(50);
  EXPECT_EQ(TakeKind(), Kind::kAsk);
}

}  // namespace
}  // namespace weightfs
