#include "formats/base/log.h"

#include <atomic>

namespace weightfs {
namespace {

std::atomic<LogSink> log_sink{nullptr};
std::atomic<LogLevel> log_least{LogLevel::kInfo};

}  // namespace

void SetLogSink(LogSink sink, LogLevel least) {
  log_least = least;
  log_sink = sink;
}

bool LogEnabled(LogLevel level) {
  return log_sink.load(std::memory_order_relaxed) != nullptr &&
         level >= log_least.load(std::memory_order_relaxed);
}

void LogLine(LogLevel level, std::string_view line) {
  if (LogSink sink = log_sink.load()) sink(level, line);
}

}  // namespace weightfs
