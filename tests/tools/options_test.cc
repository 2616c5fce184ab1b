#include "tools/options.h"

#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class OptionsTest : public ::testing::Test {
 protected:
  Result<Options> Resolve() {
    return ResolveOptions(flags_, [this](const char* name) {
      const auto found = environment_.find(name);
      return found == environment_.end() ? std::nullopt
                                         : std::optional(found->second);
    });
  }

  Flags flags_;
  std::map<std::string, std::string> environment_ = {{"HOME", "/home/u"}};
};

TEST_F(OptionsTest, DefaultsAreTheHubs) {
  const auto options = Resolve();
  ASSERT_OK(options);
  EXPECT_EQ(options->endpoint, "https://huggingface.co");
  EXPECT_EQ(options->cache_dir, "/home/u/.cache/weightfs");
  EXPECT_EQ(options->state_dir, "/home/u/.local/state/weightfs");
  EXPECT_EQ(options->run_dir, "/home/u/.cache/weightfs/run");
  EXPECT_FALSE(options->offline);
  EXPECT_EQ(options->read_timeout, milliseconds(300'000));
  EXPECT_EQ(options->metadata_timeout, milliseconds(30'000));
  EXPECT_EQ(options->stall_timeout, milliseconds(10'000));
  EXPECT_EQ(options->read_ahead_kb, 4096u);
  EXPECT_EQ(options->format, Format::kRaw);
}

TEST_F(OptionsTest, ARateIsBytesPerSecond) {
  EXPECT_EQ(Resolve()->max_rate, 0u);
  flags_.max_rate = "50M";
  EXPECT_EQ(Resolve()->max_rate, uint64_t{50} << 20);
  for (const char* bad : {"0", "fast", "-1"}) {
    flags_.max_rate = bad;
    EXPECT_THAT(Resolve(), AllOf(HasCode(Code::kInvalid),
                                 HasMessage(HasSubstr("--max-rate"))))
        << bad;
  }
}

TEST_F(OptionsTest, CacheFolderComesFromTheNearestSetting) {
  environment_["XDG_CACHE_HOME"] = "/xdg";
  EXPECT_EQ(Resolve()->cache_dir, "/xdg/weightfs");
  environment_["WEIGHTFS_CACHE"] = "/var/wfs/";
  EXPECT_EQ(Resolve()->cache_dir, "/var/wfs");
  flags_.cache_dir = "/opt/../opt/wfs/./x";
  EXPECT_EQ(Resolve()->cache_dir, "/opt/wfs/x");
}

TEST_F(OptionsTest, RelativePathsAreTakenAgainstTheWorkingFolder) {
  flags_.cache_dir = "c";
  flags_.token_file = "~/t";
  const auto options = Resolve();
  ASSERT_OK(options);
  EXPECT_EQ(options->cache_dir,
            (std::filesystem::current_path() / "c").string());
  EXPECT_EQ(options->token_file, "/home/u/t");
}

TEST_F(OptionsTest, IgnoresRelativeXdgFolders) {
  environment_["XDG_CACHE_HOME"] = "relative";
  environment_["XDG_RUNTIME_DIR"] = "relative";
  EXPECT_EQ(Resolve()->cache_dir, "/home/u/.cache/weightfs");
  EXPECT_EQ(Resolve()->run_dir, "/home/u/.cache/weightfs/run");
}

TEST_F(OptionsTest, RuntimeFolderHoldsTheStateOfMounts) {
  environment_["XDG_RUNTIME_DIR"] = "/run/user/1";
  EXPECT_EQ(Resolve()->run_dir, "/run/user/1/weightfs");
}

TEST_F(OptionsTest, OfflineMeansWhatItMeansToTheHubsClients) {
  for (const char* yes : {"1", "ON", "on", "Yes", "TRUE", "true"}) {
    environment_["HF_HUB_OFFLINE"] = yes;
    EXPECT_TRUE(Resolve()->offline) << yes;
  }
  for (const char* no : {"0", "no", "off", "2", "y", " 1"}) {
    environment_["HF_HUB_OFFLINE"] = no;
    EXPECT_FALSE(Resolve()->offline) << no;
  }
}

TEST_F(OptionsTest, TransformersOfflineCountsWhereTheHubsIsUnsetOrEmpty) {
  environment_["TRANSFORMERS_OFFLINE"] = "1";
  EXPECT_TRUE(Resolve()->offline);
  environment_["HF_HUB_OFFLINE"] = "";
  EXPECT_TRUE(Resolve()->offline);
  environment_["HF_HUB_OFFLINE"] = "0";
  EXPECT_FALSE(Resolve()->offline);
  flags_.offline = true;
  EXPECT_TRUE(Resolve()->offline);
}

TEST_F(OptionsTest, EndpointOptionWinsOverTheEnvironment) {
  environment_["HF_ENDPOINT"] = "HTTP://Mirror.Example:8080/Path//";
  EXPECT_EQ(Resolve()->endpoint, "http://mirror.example:8080/Path");
  flags_.endpoint = "https://other";
  EXPECT_EQ(Resolve()->endpoint, "https://other");
  environment_["HF_ENDPOINT"] = "not a url";
  EXPECT_OK(Resolve());
  flags_.endpoint = "";
  EXPECT_THAT(Resolve(), AllOf(HasCode(Code::kInvalid),
                               HasMessage(HasSubstr("HF_ENDPOINT"))));
  environment_["HF_ENDPOINT"] = "";
  EXPECT_EQ(Resolve()->endpoint, "https://huggingface.co");
}

TEST_F(OptionsTest, RefusesEndpointsThatAreNoPlainUrlWithoutRepeatingThem) {
  for (const char* bad :
       {"h", "ftp://h", "https://", "https:///p", "https://u:secret@h",
        "https://h/secret?q", "https://h#secret", "https://h/sec ret",
        "https://h\n"}) {
    flags_.endpoint = bad;
    EXPECT_THAT(Resolve(), HasCode(Code::kInvalid)) << bad;
    EXPECT_THAT(Resolve(), HasMessage(Not(HasSubstr("secret")))) << bad;
  }
}

TEST_F(OptionsTest, HubTimeoutsComeFromItsVariables) {
  environment_["HF_HUB_DOWNLOAD_TIMEOUT"] = "25";
  environment_["HF_HUB_ETAG_TIMEOUT"] = "7";
  auto options = Resolve();
  ASSERT_OK(options);
  EXPECT_EQ(options->stall_timeout, milliseconds(25'000));
  EXPECT_EQ(options->metadata_timeout, milliseconds(7'000));
  flags_.metadata_timeout = "90s";
  flags_.read_timeout = "10m";
  options = Resolve();
  ASSERT_OK(options);
  EXPECT_EQ(options->metadata_timeout, milliseconds(90'000));
  EXPECT_EQ(options->read_timeout, milliseconds(600'000));
}

TEST_F(OptionsTest, SaysWhichSettingIsWrong) {
  environment_["HF_HUB_DOWNLOAD_TIMEOUT"] = "soon";
  EXPECT_THAT(Resolve(),
              AllOf(HasCode(Code::kInvalid),
                    HasMessage(HasSubstr("HF_HUB_DOWNLOAD_TIMEOUT"))));
  environment_.clear();
  flags_.read_timeout = "0";
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("--read-timeout")));
  flags_.read_timeout = "";
  flags_.log_level = "loud";
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("--log-level")));
  flags_.log_level = "";
  flags_.format = "gif";
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("--format")));
  flags_.format = "";
  flags_.read_ahead_kb = 1 << 30;
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("--read-ahead-kb")));
}

TEST_F(OptionsTest, SharePrivateNeedsAllowOther) {
  flags_.share_private = true;
  EXPECT_THAT(Resolve(), HasCode(Code::kInvalid));
  flags_.allow_other = true;
  EXPECT_OK(Resolve());
}

TEST_F(OptionsTest, UserAgentNamesWhoItWorksFor) {
  EXPECT_THAT(Resolve()->user_agent,
              ::testing::MatchesRegex("weightfs/[0-9.]+; os/linux"));
  environment_["HF_HUB_USER_AGENT_ORIGIN"] = "lab";
  EXPECT_THAT(Resolve()->user_agent, ::testing::EndsWith("; origin/lab"));
  environment_["HF_HUB_USER_AGENT_ORIGIN"] = "lab\r\nX-Evil: 1";
  EXPECT_THAT(Resolve()->user_agent, Not(HasSubstr("Evil")));
}

TEST(ParseDurationTest, TakesNumbersWithUnits) {
  EXPECT_THAT(ParseDuration("300"), IsOkAndHolds(milliseconds(300'000)));
  EXPECT_THAT(ParseDuration("1.5"), IsOkAndHolds(milliseconds(1'500)));
  EXPECT_THAT(ParseDuration("500ms"), IsOkAndHolds(milliseconds(500)));
  EXPECT_THAT(ParseDuration("2m"), IsOkAndHolds(milliseconds(120'000)));
  EXPECT_THAT(ParseDuration("24h"), IsOkAndHolds(milliseconds(86'400'000)));
}

TEST(ParseSizeTest, TakesNumbersWithUnits) {
  EXPECT_THAT(ParseSize("0"), IsOkAndHolds(0u));
  EXPECT_THAT(ParseSize("4096"), IsOkAndHolds(4096u));
  EXPECT_THAT(ParseSize("200M"), IsOkAndHolds(200u << 20));
  EXPECT_THAT(ParseSize("1.5k"), IsOkAndHolds(1536u));
  for (const char* same : {"50G", "50g", "50GB", "50Gi", "50GiB"}) {
    EXPECT_THAT(ParseSize(same), IsOkAndHolds(uint64_t{50} << 30)) << same;
  }
  EXPECT_THAT(ParseSize("2T"), IsOkAndHolds(uint64_t{2} << 40));
}

TEST(ParseSizeTest, RefusesAllElse) {
  for (const char* bad : {"", "G", "-1", "1 G", "1X", "1Gx", "nan", "inf",
                          "1e30", "99999999P", "0x10", "50%", "1i"}) {
    EXPECT_THAT(ParseSize(bad), HasCode(Code::kInvalid)) << bad;
  }
}

TEST(ParseDurationTest, RefusesAllElse) {
  for (const char* bad : {"", "s", "-1", "0", "0.5ms", "1d", "1 s", "1s ",
                          "nan", "inf", "1e400", "25h", "0x10", "+5"}) {
    EXPECT_THAT(ParseDuration(bad), HasCode(Code::kInvalid)) << bad;
  }
}

TEST_F(OptionsTest, WarmsInOneWay) {
  EXPECT_EQ(Resolve()->order, Options::Order::kAny);
  flags_.order = "File";
  EXPECT_EQ(Resolve()->order, Options::Order::kFile);
  flags_.order = "learned";
  flags_.tensors = {"a*", "[b]"};
  EXPECT_EQ(Resolve()->order, Options::Order::kLearned);
  EXPECT_EQ(Resolve()->tensors, flags_.tensors);
  flags_.order = "best";
  EXPECT_THAT(Resolve(), AllOf(HasCode(Code::kInvalid),
                               HasMessage(HasSubstr("learned and file"))));
  flags_.order = "";
  flags_.check = true;
  EXPECT_TRUE(Resolve()->check);
  flags_.order = "file";
  EXPECT_THAT(Resolve(), HasCode(Code::kInvalid));
  flags_.order = "";
  flags_.evict = true;
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("not both")));
  flags_.check = false;
  EXPECT_THAT(Resolve(), HasMessage(HasSubstr("no --tensors")));
  flags_.tensors.clear();
  EXPECT_TRUE(Resolve()->evict);
}

}  // namespace
}  // namespace weightfs
