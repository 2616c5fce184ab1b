// The log facade: one line per event, a sentence and then key=value pairs.
// tools/ installs where lines go; without that they are dropped. Never log a
// token or a signed URL. formats/ does not log.
//
// Thread-safety: Log* may be called from any thread; SetLogSink only before
// threads start.

#ifndef WEIGHTFS_FORMATS_BASE_LOG_H_
#define WEIGHTFS_FORMATS_BASE_LOG_H_

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace weightfs {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogSink = void (*)(LogLevel level, std::string_view line);

// Lines below `least` are dropped before they are formatted.
void SetLogSink(LogSink sink, LogLevel least);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, std::string_view line);

template <class... Args>
void LogAt(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (!LogEnabled(level)) return;
  LogLine(level, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  LogAt(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  LogAt(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  LogAt(LogLevel::kWarning, format, std::forward<Args>(args)...);
}
template <class... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  LogAt(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_BASE_LOG_H_
