#include "tools/cli.h"

#include <sstream>
#include <string>
#include <vector>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Result<std::variant<Invocation, std::string>> Parse(
    std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "weightfs");
  return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
}

class HelpTest : public ::testing::TestWithParam<std::vector<const char*>> {};

TEST_P(HelpTest, FitsATerminalOf80By40) {
  const auto parsed = Parse(GetParam());
  ASSERT_OK(parsed);
  const auto* help = std::get_if<std::string>(&*parsed);
  ASSERT_NE(help, nullptr);
  std::istringstream stream(*help);
  std::string line;
  size_t lines = 0;
  while (std::getline(stream, line)) {
    EXPECT_LE(line.size(), 80u) << line;
    ++lines;
  }
  EXPECT_LE(lines, 40u) << *help;
  EXPECT_GE(lines, 5u) << *help;
}

INSTANTIATE_TEST_SUITE_P(
    Commands, HelpTest,
    ::testing::Values(std::vector<const char*>{"--help"},
                      std::vector<const char*>{"mount", "--help"},
                      std::vector<const char*>{"umount", "-h"},
                      std::vector<const char*>{"ls", "--help"},
                      std::vector<const char*>{"info", "--help"},
                      std::vector<const char*>{"cat", "--help"},
                      std::vector<const char*>{"verify", "--help"},
                      std::vector<const char*>{"warm", "--help"},
                      std::vector<const char*>{"status", "--help"}));

TEST(CommandLineTest, HelpNamesEveryCommand) {
  const std::string help = std::get<std::string>(*Parse({"--help"}));
  for (const char* name :
       {"mount", "umount", "ls", "info", "cat", "verify", "warm", "status",
        "--version", "Examples", "Exit codes"}) {
    EXPECT_THAT(help, HasSubstr(name));
  }
}

TEST(CommandLineTest, HelpOfACommandShowsHowItIsTyped) {
  EXPECT_THAT(std::get<std::string>(*Parse({"mount", "--help"})),
              HasSubstr("Usage: weightfs mount [OPTIONS] SOURCE MOUNTPOINT"));
}

TEST(CommandLineTest, VersionIsPrinted) {
  EXPECT_THAT(std::get<std::string>(*Parse({"--version"})),
              ::testing::MatchesRegex("weightfs [0-9.]+\n"));
}

TEST(CommandLineTest, ReadsAMount) {
  const auto parsed =
      Parse({"mount", "org/name@v1", "/mnt/x", "--foreground", "--offline",
             "--read-ahead-kb", "128", "--cache-dir=/c", "--allow-other"});
  ASSERT_OK(parsed);
  const auto& invocation = std::get<Invocation>(*parsed);
  EXPECT_EQ(invocation.command, Command::kMount);
  EXPECT_EQ(invocation.flags.source, "org/name@v1");
  EXPECT_EQ(invocation.flags.mountpoint, "/mnt/x");
  EXPECT_EQ(invocation.flags.cache_dir, "/c");
  EXPECT_EQ(invocation.flags.read_ahead_kb, 128u);
  EXPECT_TRUE(invocation.flags.foreground);
  EXPECT_TRUE(invocation.flags.offline);
  EXPECT_TRUE(invocation.flags.allow_other);
  EXPECT_FALSE(invocation.flags.json);
}

TEST(CommandLineTest, TakesAnyTensorName) {
  for (const char* name : {"a b", "h.0/x", "[1,2]", "{}", "a=b", "'q'", "\"q\"",
                           "%", "x,y", "\xff"}) {
    const auto parsed = Parse({"cat", "./m", name, "-f", "npy"});
    ASSERT_OK(parsed);
    EXPECT_EQ(std::get<Invocation>(*parsed).flags.tensor, name);
  }
  const auto dashed = Parse({"cat", "./m", "--", "-x"});
  ASSERT_OK(dashed);
  EXPECT_EQ(std::get<Invocation>(*dashed).flags.tensor, "-x");
}

TEST(CommandLineTest, TakesPatternsOneAtATime) {
  const auto parsed = Parse({"warm", "--tensors", "[ab]*", "org/name",
                             "--tensors", "h.{0,1}.*", "--tensors=x y"});
  ASSERT_OK(parsed);
  const auto& invocation = std::get<Invocation>(*parsed);
  EXPECT_EQ(invocation.command, Command::kWarm);
  EXPECT_EQ(invocation.flags.source, "org/name");
  EXPECT_THAT(invocation.flags.tensors,
              ::testing::ElementsAre("[ab]*", "h.{0,1}.*", "x y"));
}

TEST(CommandLineTest, SaysOnOneLineWhatIsWrongAndWhereTheHelpIs) {
  const std::vector<std::vector<const char*>> cases = {
      {},
      {"mount"},
      {"mount", "a/b"},
      {"mount", "a/b", "/x", "/y"},
      {"mount", "a/b", "/x", "--nonsense"},
      {"mount", "a/b", "/x", "--read-ahead-kb", "many"},
      {"mount", "a/b", "/x", "--cache-dir"},
      {"nonsense"},
      {"ls", "a/b", "--foreground"}};
  for (const auto& arguments : cases) {
    const auto parsed = Parse(arguments);
    EXPECT_THAT(parsed, AllOf(HasCode(Code::kInvalid),
                              HasMessage(HasSubstr("--help"))));
    if (!parsed.has_value()) {
      EXPECT_EQ(parsed.error().message().find('\n'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace weightfs
