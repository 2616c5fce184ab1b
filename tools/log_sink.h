// Where log lines go: standard error, or a file that may be renamed or removed
// under a running daemon. The only user of spdlog.
//
// Thread-safety: lines may come from any thread; the functions here are called
// from main while no other thread logs.

#ifndef WEIGHTFS_TOOLS_LOG_SINK_H_
#define WEIGHTFS_TOOLS_LOG_SINK_H_

#include <functional>
#include <string>
#include <string_view>

#include "formats/base/log.h"
#include "formats/base/result.h"

namespace weightfs {

struct LogConfig {
  // Absolute; empty: standard error. When the path no longer names the file
  // that is open (log rotation), it is opened anew within a second.
  std::string file;
  // Standard output and error are the file, too, and follow it.
  bool redirects_stdio = false;
  // "weightfs: warning: …" instead of time, level, thread.
  bool for_terminal = false;
  LogLevel least = LogLevel::kInfo;
};

// Opens a log file to append to, 0600, its folder made (0700). One that has
// grown over 16 MiB is renamed to FILE.1 first.
Result<int> OpenLogFile(const std::string& file);

Result<> InstallLog(const LogConfig& config);

// Until it is set again (to null), each line of warning level and above also
// goes to `tee`.
void SetLogTee(std::function<void(std::string_view line)> tee);

// The level's name in options and lines: "debug", "info", …
std::string_view LogLevelName(LogLevel level);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_LOG_SINK_H_
