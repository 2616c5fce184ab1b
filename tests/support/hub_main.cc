// weightfs-test-hub: the test hub as a program, for demos, benchmarks and tests
// in other languages. Prints one JSON line with its URLs when it serves; ends
// on SIGTERM or SIGINT, and with --until-stdin-closes when its parent dies.

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "formats/base/unique_fd.h"
#include "nlohmann/json.hpp"
#include "tests/support/hub_server.h"

namespace weightfs {
namespace {

struct MainOptions {
  std::vector<std::string> folders;    // org/name[@branch]=FOLDER
  std::vector<std::string> generated;  // org/name[@branch]=SPEC
  std::vector<std::string> privates;
  std::vector<std::string> gated;
  std::vector<std::string> tokens;
  uint64_t latency_ms = 0;
  bool until_stdin_closes = false;
  TestHubOptions hub;
};

// "org/name@branch=VALUE"
struct RepoArgument {
  std::string repo;
  std::string branch = "main";
  std::string value;
};

Result<RepoArgument> ParseRepoArgument(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return MakeError(Code::kInvalid, "{}: expected org/name=…", text);
  }
  RepoArgument argument;
  argument.repo = text.substr(0, equals);
  argument.value = text.substr(equals + 1);
  if (const size_t at = argument.repo.find('@'); at != std::string::npos) {
    argument.branch = argument.repo.substr(at + 1);
    argument.repo.resize(at);
  }
  return argument;
}

void AddOptions(CLI::App& app, MainOptions& options) {
  app.add_option("--repo", options.folders,
                 "Serve a folder: org/name[@branch]=FOLDER");
  app.add_option("--generate", options.generated,
                 "Serve a made-up model: org/name[@branch]=SPEC, SPEC being\n"
                 "tensors=100,shards=1,size=1G,dtype=F32,seed=1");
  app.add_option("--private", options.privates, "Repos that need a --token");
  app.add_option("--gated", options.gated, "Repos gated without a --token");
  app.add_option("--token", options.tokens, "Tokens that may read every repo");
  app.add_option("--port", options.hub.port, "Port of the hub (0: any)");
  app.add_option("--cdn-port", options.hub.cdn_port, "Port of the CDN");
  app.add_option("--latency-ms", options.latency_ms, "Wait before each answer");
  app.add_option("--bandwidth", options.hub.settings.bytes_per_second,
                 "Bytes per second and connection (0: no limit)");
  app.add_option("--page-size", options.hub.settings.tree_page_size,
                 "Entries per page of a tree");
  app.add_option("--log", options.hub.log_file,
                 "Append each finished request as a JSON line");
  app.add_flag("--until-stdin-closes", options.until_stdin_closes,
               "End when standard input does");
}

Result<> AddRepos(const MainOptions& options, TestHub& hub) {
  for (const std::string& token : options.tokens) hub.AddToken(token);
  std::map<std::string, TestHubRepoOptions> restricted;
  for (const std::string& repo : options.privates) {
    restricted[repo].is_private = true;
  }
  for (const std::string& repo : options.gated) restricted[repo].gated = true;
  for (auto& [repo, access] : restricted) {
    access.readers.insert(options.tokens.begin(), options.tokens.end());
    hub.SetRepo(repo, access);
  }
  for (const std::string& text : options.folders) {
    ASSIGN_OR_RETURN(const RepoArgument repo, ParseRepoArgument(text));
    RETURN_IF_ERROR(hub.CommitFolder(repo.repo, repo.branch, repo.value));
  }
  for (const std::string& text : options.generated) {
    ASSIGN_OR_RETURN(const RepoArgument repo, ParseRepoArgument(text));
    ASSIGN_OR_RETURN(const auto spec, ParseTestHubModelSpec(repo.value));
    ASSIGN_OR_RETURN(auto files, MakeTestHubModel(spec));
    // Hashed now, so that the first listing is not the one that waits for it.
    for (const TestHubFile& file : files) (void)file.content->Sha256();
    hub.Commit(repo.repo, repo.branch, std::move(files));
  }
  return {};
}

void WaitForEnd(const UniqueFd& signals, bool watch_stdin) {
  std::array<pollfd, 2> watched = {
      {{signals.get(), POLLIN, 0}, {watch_stdin ? 0 : -1, POLLIN, 0}}};
  for (;;) {
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;
    if (watched[0].revents != 0) return;
    if (watched[1].revents == 0) continue;
    std::array<char, 4096> ignored{};
    if (::read(0, ignored.data(), ignored.size()) <= 0) return;
  }
}

int Run(MainOptions options) {
  // Blocked before any thread starts, so that only the signalfd takes them.
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  const UniqueFd signals(::signalfd(-1, &ends, SFD_CLOEXEC));

  options.hub.settings.latency = std::chrono::milliseconds(options.latency_ms);
  auto hub = TestHub::Start(options.hub);
  if (!hub) {
    std::cerr << "weightfs-test-hub: " << hub.error().ToString() << '\n';
    return 1;
  }
  const auto added = AddRepos(options, **hub);
  if (!added) {
    std::cerr << "weightfs-test-hub: " << added.error().ToString() << '\n';
    return 1;
  }
  const nlohmann::json ready = {{"url", (*hub)->url()},
                                {"cdn_url", (*hub)->cdn_url()},
                                {"control", (*hub)->url() + "/_control"},
                                {"pid", ::getpid()}};
  std::cout << ready.dump() << std::endl;  // NOLINT: the parent waits for it
  WaitForEnd(signals, options.until_stdin_closes);
  return 0;
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  CLI::App app("A Hugging Face Hub on loopback, for tests and demos");
  weightfs::MainOptions options;
  weightfs::AddOptions(app, options);
  CLI11_PARSE(app, argc, argv);
  return weightfs::Run(std::move(options));
}
