#include "cache/hub/token.h"

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "tests/support/matchers.h"

namespace weightfs {
namespace {

// Runs each test with none of the variables, and a home of its own.
class TokenTest : public ::testing::Test {
 protected:
  TokenTest() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "wfs-token-XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    home_ = pattern;
    for (const char* name :
         {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME",
          "XDG_CACHE_HOME", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HOME"}) {
      const char* value = std::getenv(name);
      if (value != nullptr) saved_[name] = value;
      ::unsetenv(name);
    }
    Set("HOME", home_);
  }
  ~TokenTest() override {
    for (const char* name :
         {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME",
          "XDG_CACHE_HOME", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HOME"}) {
      ::unsetenv(name);
      if (saved_.count(name)) Set(name, saved_[name]);
    }
    std::filesystem::remove_all(home_);
  }
  static void Set(const char* name, const std::string& value) {
    ::setenv(name, value.c_str(), 1);
  }
  std::string Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full =
        path.starts_with("/") ? path : home_ + "/" + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
    return full;
  }

  std::string home_;
  std::map<std::string, std::string> saved_;
};

TEST_F(TokenTest, LooksInTheUsualPlacesInOrder) {
  EXPECT_EQ(TokenProvider().Get(), std::nullopt);
  const std::string home_file =
      Write(".cache/huggingface/token", "from-home\n");
  EXPECT_EQ(TokenProvider().Get(), "from-home");
  EXPECT_EQ(TokenProvider().Source(), home_file);
  Set("XDG_CACHE_HOME", home_ + "/xdg");
  EXPECT_EQ(TokenProvider().Get(), std::nullopt);
  Write("xdg/huggingface/token", "from-xdg");
  EXPECT_EQ(TokenProvider().Get(), "from-xdg");
  Set("HF_HOME", home_ + "/hf");
  Write("hf/token", " \t from-hf-home \r\n");
  EXPECT_EQ(TokenProvider().Get(), "from-hf-home");
  Set("HF_TOKEN_PATH", "~/elsewhere");
  const std::string elsewhere = Write("elsewhere", "from-path");
  EXPECT_EQ(TokenProvider().Get(), "from-path");
  EXPECT_EQ(TokenProvider().Source(), elsewhere);
  Set("HUGGING_FACE_HUB_TOKEN", "from-old-variable");
  EXPECT_EQ(TokenProvider().Get(), "from-old-variable");
  EXPECT_EQ(TokenProvider().Source(), "HUGGING_FACE_HUB_TOKEN");
  Set("HF_TOKEN", " from-variable\n");
  EXPECT_EQ(TokenProvider().Get(), "from-variable");
  EXPECT_EQ(TokenProvider().Source(), "HF_TOKEN");
}

TEST_F(TokenTest, ATokenFileIsTheOnlyPlace) {
  Set("HF_TOKEN", "from-variable");
  Set("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
  const std::string path = Write("mine", "explicit\n");
  EXPECT_EQ(TokenProvider(path).Get(), "explicit");
  EXPECT_EQ(TokenProvider(path).Source(), path);
  EXPECT_EQ(TokenProvider(home_ + "/missing").Get(), std::nullopt);
}

TEST_F(TokenTest, ImplicitTokensCanBeSwitchedOff) {
  Set("HF_TOKEN", "x");
  for (const char* yes : {"1", "on", "ON", "Yes", "true", "TRUE"}) {
    Set("HF_HUB_DISABLE_IMPLICIT_TOKEN", yes);
    EXPECT_EQ(TokenProvider().Get(), std::nullopt) << yes;
    EXPECT_EQ(TokenProvider().Source(), "none");
  }
  for (const char* no : {"", "0", "off", "no", "false", "2", "yes please"}) {
    Set("HF_HUB_DISABLE_IMPLICIT_TOKEN", no);
    EXPECT_EQ(TokenProvider().Get(), "x") << no;
  }
}

TEST_F(TokenTest, AnEmptyVariableDoesNotCount) {
  Set("HF_TOKEN", " \n");
  Write(".cache/huggingface/token", "from-home");
  EXPECT_EQ(TokenProvider().Get(), "from-home");
}

TEST_F(TokenTest, ARenewedFileIsPickedUp) {
  const std::string path = Write("token", "old");
  const TokenProvider provider(path);
  EXPECT_EQ(provider.Get(), "old");
  Write("token", "new");
  EXPECT_EQ(provider.Get(), "new");
  std::filesystem::remove(path);
  EXPECT_EQ(provider.Get(), std::nullopt);
  Write("token", "newer");
  EXPECT_EQ(provider.Get(), "newer");
}

TEST_F(TokenTest, NeitherFoldersNorPipesNorHugeFilesHoldTokens) {
  EXPECT_EQ(TokenProvider(home_).Get(), std::nullopt);
  const std::string pipe = home_ + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(TokenProvider(pipe).Get(), std::nullopt);
  const std::string huge = Write("huge", std::string(100'000, 'a'));
  EXPECT_EQ(TokenProvider(huge).Get(), std::nullopt);
  EXPECT_EQ(TokenProvider(Write("empty", "\n")).Get(), std::nullopt);
}

}  // namespace
}  // namespace weightfs
