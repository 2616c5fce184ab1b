#include "tools/options.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "formats/text.h"

namespace weightfs {
namespace {

constexpr std::string_view kDefaultEndpoint = "https://huggingface.co";
constexpr uint32_t kMaxReadAheadKb = 1 << 20;

std::string ToLower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  return lower;
}

// A variable that is set and not empty.
std::string Get(const Environment& environment, const char* name) {
  return environment(name).value_or("");
}

// The home folder, or "" if nothing says where it is.
std::string HomeFolder(const Environment& environment) {
  std::string home = Get(environment, "HOME");
  if (home.starts_with('/')) return home;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread runs yet
  const passwd* entry = ::getpwuid(::getuid());
  if (entry == nullptr || entry->pw_dir == nullptr) return "";
  return entry->pw_dir;
}

// The XDG folder that `variable` names, else $HOME/`below_home`. A relative
// path there counts as unset, as the specification says.
std::string XdgFolder(const Environment& environment, const char* variable,
                      const char* below_home) {
  std::string folder = Get(environment, variable);
  if (folder.starts_with('/')) return folder;
  const std::string home = HomeFolder(environment);
  return home.empty() ? "" : home + "/" + below_home;
}

// Absolute and without `.` and `..`; "~/" is what a shell leaves alone in
// --option=~/x.
Result<std::string> AbsolutePath(const std::string& path,
                                 const Environment& environment) {
  if (path.empty()) return path;
  std::filesystem::path result = path;
  if (path == "~" || path.starts_with("~/")) {
    const std::string home = HomeFolder(environment);
    if (!home.empty()) result = home + path.substr(1);
  }
  std::error_code failed;
  result = std::filesystem::absolute(result, failed);
  if (failed) {
    return MakeError(Code::kIo, "the working folder cannot be used: {}",
                     failed.message());
  }
  std::string text = result.lexically_normal().string();
  if (text.size() > 1 && text.ends_with('/')) text.pop_back();
  return text;
}

Result<> ResolveFolders(const Flags& flags, const Environment& environment,
                        Options* options) {
  std::string cache = flags.cache_dir;
  if (cache.empty()) cache = Get(environment, "WEIGHTFS_CACHE");
  if (cache.empty()) {
    cache = XdgFolder(environment, "XDG_CACHE_HOME", ".cache");
    if (!cache.empty()) cache += "/weightfs";
  }
  ASSIGN_OR_RETURN(options->cache_dir, AbsolutePath(cache, environment));
  options->state_dir = XdgFolder(environment, "XDG_STATE_HOME", ".local/state");
  if (!options->state_dir.empty()) options->state_dir += "/weightfs";
  const std::string runtime = Get(environment, "XDG_RUNTIME_DIR");
  if (runtime.starts_with('/')) {
    options->run_dir = runtime + "/weightfs";
  } else if (!options->cache_dir.empty()) {
    options->run_dir = options->cache_dir + "/run";
  }
  ASSIGN_OR_RETURN(options->token_file,
                   AbsolutePath(flags.token_file, environment));
  ASSIGN_OR_RETURN(options->log_file,
                   AbsolutePath(flags.log_file, environment));
  if (flags.output != "-") {
    ASSIGN_OR_RETURN(options->output, AbsolutePath(flags.output, environment));
  }
  return {};
}

// The duration of an option or, if it was not given, of a variable of the Hub's
// (seconds).
Result<> ResolveDuration(const std::string& flag, const char* flag_name,
                         const char* variable, const Environment& environment,
                         std::chrono::milliseconds* duration) {
  std::string text = flag;
  const char* name = flag_name;
  if (text.empty() && variable != nullptr) {
    text = Get(environment, variable);
    name = variable;
  }
  if (text.empty()) return {};
  auto parsed = ParseDuration(text);
  if (!parsed.has_value()) return std::move(parsed).error().AddContext(name);
  *duration = *parsed;
  return {};
}

Result<> ResolveHub(const Flags& flags, const Environment& environment,
                    Options* options) {
  std::string endpoint = flags.endpoint;
  const char* name = "--endpoint";
  if (endpoint.empty()) {
    endpoint = Get(environment, "HF_ENDPOINT");
    name = "HF_ENDPOINT";
  }
  if (endpoint.empty()) endpoint = kDefaultEndpoint;
  auto normal = NormalizeEndpoint(endpoint);
  if (!normal.has_value()) return std::move(normal).error().AddContext(name);
  options->endpoint = *std::move(normal);

  std::string offline = Get(environment, "HF_HUB_OFFLINE");
  if (offline.empty()) offline = Get(environment, "TRANSFORMERS_OFFLINE");
  options->offline = flags.offline || IsTrue(offline);

  options->user_agent = "weightfs/" WEIGHTFS_VERSION "; os/linux";
  const std::string made_for = Get(environment, "HF_HUB_USER_AGENT_ORIGIN");
  if (!made_for.empty() && std::all_of(made_for.begin(), made_for.end(),
                                       [](char c) { return c >= ' '; })) {
    options->user_agent += "; origin/" + made_for;
  }
  RETURN_IF_ERROR(ResolveDuration(flags.read_timeout, "--read-timeout", nullptr,
                                  environment, &options->read_timeout));
  RETURN_IF_ERROR(ResolveDuration(flags.metadata_timeout, "--metadata-timeout",
                                  "HF_HUB_ETAG_TIMEOUT", environment,
                                  &options->metadata_timeout));
  return ResolveDuration("", "", "HF_HUB_DOWNLOAD_TIMEOUT", environment,
                         &options->stall_timeout);
}

// Nothing: not given.
Result<std::optional<uint64_t>> ResolveSize(const std::string& flag,
                                            std::string_view name) {
  if (flag.empty()) return std::optional<uint64_t>();
  auto size = ParseSize(flag);
  if (!size.has_value()) return std::move(size).error().AddContext(name);
  return std::optional<uint64_t>(*size);
}

Result<> ResolveLimits(const Flags& flags, Options* options) {
  ASSIGN_OR_RETURN(const auto size,
                   ResolveSize(flags.cache_size, "--cache-size"));
  options->cache_size = size.value_or(UINT64_MAX);
  ASSIGN_OR_RETURN(options->cache_keep_free,
                   ResolveSize(flags.cache_keep_free, "--cache-keep-free"));
  ASSIGN_OR_RETURN(const auto rate, ResolveSize(flags.max_rate, "--max-rate"));
  if (rate == 0) {
    return Error(
        Code::kInvalid,
        "--max-rate: 0 would fetch nothing; leave it out for no limit");
  }
  options->max_rate = rate.value_or(0);
  return {};
}

Result<> ResolveWords(const Flags& flags, Options* options) {
  if (!flags.log_level.empty()) {
    const std::string level = ToLower(flags.log_level);
    if (level == "debug") {
      options->log_level = LogLevel::kDebug;
    } else if (level == "info") {
      options->log_level = LogLevel::kInfo;
    } else if (level == "warning" || level == "warn") {
      options->log_level = LogLevel::kWarning;
    } else if (level == "error") {
      options->log_level = LogLevel::kError;
    } else {
      return MakeError(Code::kInvalid,
                       "--log-level: {} is no level; give debug, info, warning "
                       "or error",
                       QuoteName(flags.log_level));
    }
  }
  if (!flags.verify.empty()) {
    const std::string verify = ToLower(flags.verify);
    if (verify != "strict" && verify != "background") {
      return MakeError(Code::kInvalid,
                       "--verify: {} is none of strict and background",
                       QuoteName(flags.verify));
    }
    options->strict = verify == "strict";
  }
  if (!flags.format.empty()) {
    const auto format = FormatFromName(flags.format);
    if (!format.has_value()) {
      return MakeError(Code::kInvalid,
                       "--format: {} is no format; give raw, npy, pt or "
                       "safetensors",
                       QuoteName(flags.format));
    }
    options->format = *format;
  }
  return {};
}

Result<> ResolveWarm(const Flags& flags, Options* options) {
  options->check = flags.check;
  options->evict = flags.evict;
  options->tensors = flags.tensors;
  if (!flags.order.empty()) {
    const std::string order = ToLower(flags.order);
    if (order != "learned" && order != "file") {
      return MakeError(Code::kInvalid,
                       "--order: {} is none of learned and file",
                       QuoteName(flags.order));
    }
    options->order =
        order == "learned" ? Options::Order::kLearned : Options::Order::kFile;
  }
  if (flags.check && flags.evict) {
    return Error(Code::kInvalid, "give --check or --evict, not both");
  }
  if ((flags.check || flags.evict) && !flags.order.empty()) {
    return Error(Code::kInvalid,
                 "--order does nothing with --check or --evict");
  }
  if (flags.evict && !flags.tensors.empty()) {
    return Error(Code::kInvalid,
                 "--evict drops all of the source; it takes no --tensors");
  }
  return {};
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const char* name) -> std::optional<std::string> {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): no thread runs yet
    const char* value = std::getenv(name);
    if (value == nullptr) return std::nullopt;
    return value;
  };
}

Result<Options> ResolveOptions(const Flags& flags,
                               const Environment& environment) {
  Options options;
  if (!flags.source.empty()) {
    ASSIGN_OR_RETURN(options.source, ParseSource(flags.source));
  }
  options.mountpoint = flags.mountpoint;
  options.tensor = flags.tensor;
  options.set = flags.set;
  RETURN_IF_ERROR(ResolveFolders(flags, environment, &options));
  RETURN_IF_ERROR(ResolveHub(flags, environment, &options));
  RETURN_IF_ERROR(ResolveLimits(flags, &options));
  RETURN_IF_ERROR(ResolveWords(flags, &options));
  RETURN_IF_ERROR(ResolveWarm(flags, &options));
  if (flags.read_ahead_kb > kMaxReadAheadKb) {
    return MakeError(Code::kInvalid,
                     "--read-ahead-kb: {} is too much; give {} at most",
                     flags.read_ahead_kb, kMaxReadAheadKb);
  }
  options.read_ahead_kb = flags.read_ahead_kb;
  if (options.strict && options.source.has_value() &&
      options.source->kind == Source::Kind::kLocal) {
    return MakeError(Code::kInvalid,
                     "--verify=strict: {} is read where it is, and no list of "
                     "hashes says what its bytes must be",
                     options.source->text);
  }
  if (flags.share_private && !flags.allow_other) {
    return Error(Code::kInvalid,
                 "--share-private does nothing without --allow-other");
  }
  options.foreground = flags.foreground;
  options.allow_other = flags.allow_other;
  options.share_private = flags.share_private;
  options.json = flags.json;
  options.all = flags.all;
  if (flags.lazy && flags.force) {
    return Error(Code::kInvalid, "give --lazy or --force, not both");
  }
  options.lazy = flags.lazy;
  options.force = flags.force;
  options.whole_cache = flags.whole_cache;
  return options;
}

void LogOptions(const Options& options) {
  LogDebug(
      "options in force: source={} endpoint={} offline={} cache_dir={} "
      "token_file={} read_timeout_ms={} metadata_timeout_ms={} "
      "stall_timeout_ms={} read_ahead_kb={} allow_other={} share_private={} "
      "strict={}",
      options.source.has_value() ? options.source->text : "", options.endpoint,
      options.offline, options.cache_dir, options.token_file,
      options.read_timeout.count(), options.metadata_timeout.count(),
      options.stall_timeout.count(), options.read_ahead_kb, options.allow_other,
      options.share_private, options.strict);
}

bool IsTrue(std::string_view value) {
  const std::string lower = ToLower(value);
  return lower == "1" || lower == "on" || lower == "yes" || lower == "true";
}

Result<std::chrono::milliseconds> ParseDuration(std::string_view text) {
  double value = 0;
  const auto [end, failed] = std::from_chars(
      text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  const std::string_view unit(end, text.data() + text.size() - end);
  double scale = 0;  // milliseconds
  if (unit.empty() || unit == "s") scale = 1000;
  if (unit == "ms") scale = 1;
  if (unit == "m") scale = 60 * 1000;
  if (unit == "h") scale = 3600 * 1000;
  const double milliseconds = value * scale;
  constexpr double kMost = 24.0 * 3600 * 1000;
  // Written so that NaN fails, too.
  if (failed != std::errc() || !(milliseconds >= 1 && milliseconds <= kMost)) {
    return MakeError(Code::kInvalid,
                     "{} is no duration; give seconds, or a number with ms, s, "
                     "m or h, a day at most",
                     QuoteName(text));
  }
  return std::chrono::milliseconds(static_cast<int64_t>(milliseconds));
}

Result<uint64_t> ParseSize(std::string_view text) {
  double value = 0;
  const auto [end, failed] = std::from_chars(
      text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  std::string unit = ToLower({end, text.data() + text.size()});
  if (unit.ends_with("ib")) {
    unit.resize(unit.size() - 2);
  } else if (unit.ends_with('b') || (unit.size() == 2 && unit[1] == 'i')) {
    unit.pop_back();
  }
  constexpr std::string_view kUnits = "kmgtp";
  double scale = 1;
  const size_t power = unit.size() == 1 ? kUnits.find(unit[0]) : 0;
  if (unit.size() == 1 && power != kUnits.npos) {
    for (size_t i = 0; i <= power; ++i) scale *= 1024;
  }
  const bool known = unit.empty() || (unit.size() == 1 && power != kUnits.npos);
  const double bytes = value * scale;
  constexpr double kMost = 9e18;
  // Written so that NaN fails, too.
  if (failed != std::errc() || !known || !(bytes >= 0 && bytes <= kMost)) {
    return MakeError(Code::kInvalid,
                     "{} is no size; give bytes, or a number with K, M, G or T",
                     QuoteName(text));
  }
  return static_cast<uint64_t>(bytes);
}

Result<std::string> NormalizeEndpoint(std::string_view url) {
  // The URL is not repeated: it may hold a password.
  const size_t scheme_end = url.find("://");
  if (scheme_end == url.npos) {
    return Error(Code::kInvalid, "no URL; give https://HOST[:PORT]");
  }
  const std::string scheme = ToLower(url.substr(0, scheme_end));
  if (scheme != "http" && scheme != "https") {
    return Error(Code::kInvalid, "the URL must start with https:// or http://");
  }
  const std::string_view rest = url.substr(scheme_end + 3);
  const size_t path_start = std::min(rest.find('/'), rest.size());
  const std::string host = ToLower(rest.substr(0, path_start));
  std::string_view path = rest.substr(path_start);
  while (path.ends_with('/')) path.remove_suffix(1);
  if (host.empty()) return Error(Code::kInvalid, "the URL has no host");
  if (host.find('@') != host.npos) {
    return Error(Code::kInvalid,
                 "the URL holds a user name; use HF_TOKEN or --token-file");
  }
  if (rest.find_first_of("?#") != rest.npos ||
      !std::all_of(rest.begin(), rest.end(),
                   [](char c) { return c > ' ' && c < 0x7f && c != '\\'; })) {
    return Error(Code::kInvalid, "the URL must be scheme, host and path only");
  }
  return fmt::format("{}://{}{}", scheme, host, path);
}

}  // namespace weightfs
