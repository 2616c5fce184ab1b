// The commands of `weightfs`. Each returns the program's exit code, after one
// line on standard error if it failed.

#ifndef WEIGHTFS_TOOLS_COMMANDS_H_
#define WEIGHTFS_TOOLS_COMMANDS_H_

#include "formats/base/error.h"
#include "tools/options.h"

namespace weightfs {

int RunMount(const Options& options);
int RunUmount(const Options& options);
int RunLs(const Options& options);
int RunInfo(const Options& options);
int RunCat(const Options& options);
int RunVerify(const Options& options);
int RunWarm(const Options& options);
int RunStatus(const Options& options);

// The whole program: reads the command line, runs a command, catches what is
// thrown.
int RunProgramMain(int argc, const char* const* argv);

// Prints "weightfs: <message>" on standard error; the exit code for it.
int ReportError(const Error& error);
// As a line to print.
void PrintNote(std::string_view line);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_COMMANDS_H_
