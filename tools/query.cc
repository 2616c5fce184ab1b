#include "tools/query.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <memory>
#include <utility>

#include "tools/child.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/log_sink.h"
#include "tools/output.h"
#include "tools/watchdog.h"

namespace weightfs {

namespace {

// From the query's end to the process's.
constexpr std::chrono::milliseconds kQueryEndLimit{2'000};

}  // namespace

Result<std::unique_ptr<Engine>> OpenForQuery(const Options& options) {
  // A closed pipe or connection is an error to handle, not the end.
  std::signal(SIGPIPE, SIG_IGN);
  RETURN_IF_ERROR(
      InstallLog({.file = options.log_file,
                  .for_terminal = options.log_file.empty(),
                  .least = options.log_level.value_or(LogLevel::kWarning)}));
  return Engine::Open(options);
}

int RunQuery(const Options& options, const std::function<int(Engine&)>& query) {
  // In a process of its own: threads that wait for a disk may outlive it.
  return RunAside([&](const Leave& leave) {
    std::atomic<int> code = kExitFailure;
    ShutdownWatchdog watchdog(kQueryEndLimit, [&] { leave(code); });
    const auto engine = OpenForQuery(options);
    code = engine.has_value() ? query(**engine) : ReportError(engine.error());
    watchdog.Arm();
    return code.load();
  });
}

std::vector<Repo::Indexed> LoadIndexes(Repo& repo,
                                       const std::vector<uint32_t>& sets) {
  for (const uint32_t set : sets) {
    repo.WhenIndexed(set, [](const Repo::Indexed&) {});
  }
  std::vector<Repo::Indexed> indexes;
  indexes.reserve(sets.size());
  for (const uint32_t set : sets) indexes.push_back(repo.WaitForIndex(set));
  return indexes;
}

std::vector<uint32_t> ShownSets(const Catalog& catalog) {
  std::vector<uint32_t> sets;
  for (const auto& [folder, set] : catalog.shown()) sets.push_back(set);
  return sets;
}

std::vector<uint32_t> AllSets(const Catalog& catalog) {
  std::vector<uint32_t> sets(catalog.sets().size());
  for (uint32_t i = 0; i < sets.size(); ++i) sets[i] = i;
  return sets;
}

uint64_t TensorBytes(const TensorInfo& tensor) {
  // The reader checked it.
  return DenseSize(tensor.dtype, tensor.shape).value_or(0);
}

std::string ShapeText(const TensorInfo& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.shape, ","));
}

std::string FilesText(const Repo& repo, const IndexedSet& set,
                      const TensorInfo& tensor) {
  std::vector<uint32_t> objects;
  for (const SourceRange& range : tensor.data) {
    if (std::find(objects.begin(), objects.end(), range.object) ==
        objects.end()) {
      objects.push_back(range.object);
    }
  }
  if (objects.empty() && set.files.size() == 1) objects.push_back(0);
  if (objects.empty()) return "-";
  std::string text;
  for (const uint32_t object : objects) {
    if (!text.empty()) text += ", ";
    text += repo.snapshot().files[set.files[object]].path;
  }
  return text;
}

}  // namespace weightfs
