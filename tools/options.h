// Options: what the command line and the environment ask for, checked once.
//
// The environment's names are the Hub's own and mean here what they mean there;
// an option wins over them. Values that are not understood are errors, never
// ignored.

#ifndef WEIGHTFS_TOOLS_OPTIONS_H_
#define WEIGHTFS_TOOLS_OPTIONS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/log.h"
#include "formats/base/result.h"
#include "formats/writer.h"
#include "tools/source.h"

namespace weightfs {

// The command line as it was typed; empty: not given.
struct Flags {
  std::string source;
  std::string mountpoint;
  std::string tensor;
  std::string set;
  std::string cache_dir;
  std::string cache_size;
  std::string cache_keep_free;
  std::string max_rate;
  std::string endpoint;
  std::string token_file;
  std::string read_timeout;
  std::string metadata_timeout;
  std::string log_file;
  std::string log_level;
  std::string format;
  std::string verify;
  std::string output;
  std::string order;
  std::vector<std::string> tensors;
  uint32_t read_ahead_kb = 4096;
  bool offline = false;
  bool foreground = false;
  bool allow_other = false;
  bool share_private = false;
  bool json = false;
  bool all = false;
  bool lazy = false;
  bool force = false;
  bool whole_cache = false;
  bool check = false;
  bool evict = false;
};

struct Options {
  std::optional<Source> source;
  std::string mountpoint;  // as given
  std::string tensor;
  std::string set;
  // Absolute paths, or empty.
  std::string cache_dir;
  std::string state_dir;
  std::string run_dir;  // state files of running mounts
  std::string token_file;
  std::string log_file;
  std::string output;  // also "": standard output

  // Bytes of the disk. No limit: UINT64_MAX. Not given: what suits the disk.
  uint64_t cache_size = UINT64_MAX;
  std::optional<uint64_t> cache_keep_free;

  uint64_t max_rate = 0;  // bytes per second of weights; 0: no limit
  std::string endpoint;
  std::string user_agent;
  bool offline = false;
  std::chrono::milliseconds read_timeout{300'000};
  std::chrono::milliseconds metadata_timeout{30'000};
  std::chrono::milliseconds stall_timeout{10'000};

  std::optional<LogLevel> log_level;  // else each command's own
  Format format = Format::kRaw;
  uint32_t read_ahead_kb = 4096;
  bool foreground = false;
  bool allow_other = false;
  bool share_private = false;
  bool strict = false;  // no byte is given before its whole file was verified
  bool json = false;
  bool all = false;
  bool lazy = false;
  bool force = false;
  bool whole_cache = false;
  bool check = false;
  bool evict = false;

  // Of `warm`. Shell patterns; none: everything.
  std::vector<std::string> tensors;
  enum class Order { kAny, kLearned, kFile };
  Order order = Order::kAny;  // kAny: learned if there is one
};

// A variable's value, or nothing if it is not set.
using Environment = std::function<std::optional<std::string>(const char* name)>;
// The process's own.
Environment ProcessEnvironment();

// kInvalid and kUnsupported say what to change. Paths become absolute against
// the working folder.
Result<Options> ResolveOptions(const Flags& flags,
                               const Environment& environment);

// One line at debug level: what is in force. No secrets.
void LogOptions(const Options& options);

// "1", "ON", "YES", "TRUE", in any case: as the Hub's clients read booleans.
bool IsTrue(std::string_view value);
// "300", "1.5", "500ms", "30s", "5m", "2h": positive, a day at most.
Result<std::chrono::milliseconds> ParseDuration(std::string_view text);
// "50G", "1.5T", "200M", "4096": bytes; K, M, G, T are powers of 1024, also
// as Ki or KiB; "0" is 0.
Result<uint64_t> ParseSize(std::string_view text);
// Scheme and host in lower case, no slash at the end. kInvalid unless it is
// http(s)://host[:port][/path].
Result<std::string> NormalizeEndpoint(std::string_view url);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_OPTIONS_H_
