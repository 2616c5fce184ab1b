// The command line: which commands and options there are, and their help. The
// only user of CLI11.

#ifndef WEIGHTFS_TOOLS_CLI_H_
#define WEIGHTFS_TOOLS_CLI_H_

#include <string>
#include <variant>

#include "formats/base/result.h"
#include "tools/options.h"

namespace weightfs {

enum class Command {
  kMount,
  kUmount,
  kLs,
  kInfo,
  kCat,
  kVerify,
  kWarm,
  kStatus,
};

struct Invocation {
  Command command;
  Flags flags;
};

// What the arguments ask for, or the text that --help or --version prints.
// kInvalid says what is wrong and where the help is.
Result<std::variant<Invocation, std::string>> ParseCommandLine(
    int argc, const char* const* argv);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_CLI_H_
