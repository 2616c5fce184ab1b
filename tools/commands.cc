#include "tools/commands.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>
#include <variant>

#include "tools/cli.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/secrets.h"
#include "tools/text.h"

namespace weightfs {
namespace {

// So that no file of ours gets a number that means standard output.
void OpenStandardFiles() {
  int fd = 0;
  do {
    fd = ::open("/dev/null", O_RDWR);
  } while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd >= 0) ::close(fd);
}

int RunCommand(Command command, const Options& options) {
  switch (command) {
    case Command::kMount:
      return RunMount(options);
    case Command::kUmount:
      return RunUmount(options);
    case Command::kLs:
      return RunLs(options);
    case Command::kInfo:
      return RunInfo(options);
    case Command::kCat:
      return RunCat(options);
    case Command::kVerify:
      return RunVerify(options);
    case Command::kWarm:
      return RunWarm(options);
    case Command::kStatus:
      return RunStatus(options);
  }
  return kExitUsage;
}

int RunArguments(int argc, const char* const* argv) {
  const auto parsed = ParseCommandLine(argc, argv);
  if (!parsed.has_value()) return ReportError(parsed.error());
  if (const auto* text = std::get_if<std::string>(&*parsed)) {
    return PrintOut(*text);
  }
  const auto& invocation = std::get<Invocation>(*parsed);
  const auto options = ResolveOptions(invocation.flags, ProcessEnvironment());
  if (!options.has_value()) return ReportError(options.error());
  return RunCommand(invocation.command, *options);
}

}  // namespace

int RunProgramMain(int argc, const char* const* argv) {
  HideProcess();
  OpenStandardFiles();
  try {
    return RunArguments(argc, argv);
  } catch (const std::bad_alloc&) {
    PrintNote("out of memory");
  } catch (const std::exception& error) {
    PrintNote(fmt::format("internal error: {}", error.what()));
  } catch (...) {
    PrintNote("internal error");
  }
  return kExitFailure;
}

int ReportError(const Error& error) {
  // Only a pipe that nobody reads any more ends a command so.
  if (error.code() == Code::kCancelled) EndByBrokenPipe();
  PrintNote(error.message());
  return ExitCodeFor(error.code());
}

void PrintNote(std::string_view line) {
  const std::string text = fmt::format("weightfs: {}\n", Printable(line));
  // Nobody is left to tell if it fails.
  (void)WriteAll(STDERR_FILENO, std::as_bytes(std::span(text)));
}

}  // namespace weightfs
