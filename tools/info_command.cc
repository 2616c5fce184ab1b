#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "fs/describe.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/query.h"
#include "tools/text.h"

namespace weightfs {
namespace {

using Rows = std::vector<std::vector<std::string>>;

uint64_t TotalBytes(const Snapshot& snapshot) {
  uint64_t total = 0;
  for (const FileInfo& file : snapshot.files) total += file.size;
  return total;
}

std::string CachedText(Repo& repo, uint64_t total) {
  uint64_t cached = 0;
  for (uint32_t i = 0; i < repo.snapshot().files.size(); ++i) {
    cached += repo.CachedBytes(i);
  }
  const double share =
      total == 0 ? 1 : static_cast<double>(cached) / static_cast<double>(total);
  return fmt::format("{} ({:.1f} %)", HumanSize(cached), 100 * share);
}

// "F32 148, I64 1".
std::string DTypesText(const TensorIndex& index) {
  std::map<std::string_view, size_t> counts;
  for (const TensorInfo& tensor : index.tensors()) {
    ++counts[DTypeName(tensor.dtype)];
  }
  std::string text;
  for (const auto& [dtype, count] : counts) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", dtype, count);
  }
  return text;
}

void AddSet(const WeightSet& set, bool shown, const Repo::Indexed& indexed,
            Rows* rows) {
  const std::string name = "  " + Printable(set.path);
  const std::string mark = shown ? "shown" : "";
  if (!indexed.has_value()) {
    rows->push_back(
        {name, mark, "-", "-", Printable(indexed.error().message())});
    return;
  }
  const TensorIndex& index = (*indexed)->index;
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : index.tensors()) bytes += TensorBytes(tensor);
  rows->push_back({name, mark,
                   fmt::format("{} tensor{}", index.tensors().size(),
                               index.tensors().size() == 1 ? "" : "s"),
                   HumanSize(bytes), DTypesText(index)});
  for (const std::string& problem : (*indexed)->problems) {
    rows->push_back({"    problem: " + Printable(problem)});
  }
}

int PrintText(Engine& engine) {
  Repo& repo = engine.repo();
  const Snapshot& snapshot = repo.snapshot();
  const uint64_t total = TotalBytes(snapshot);
  const auto indexes = LoadIndexes(repo, AllSets(repo.catalog()));
  const auto shown = ShownSets(repo.catalog());
  const bool is_local = repo.origin().cache_namespace().empty();

  Rows head = {{is_local ? "folder" : "repo", Printable(snapshot.repo)}};
  if (!is_local) head.push_back({"revision", Printable(snapshot.revision)});
  head.push_back({"commit", snapshot.commit});
  if (!is_local) head.push_back({"origin", Printable(repo.origin().name())});
  if (snapshot.restricted && !is_local)
    head.push_back({"access", "private or gated"});
  head.push_back({"files", fmt::format("{}, {}", snapshot.files.size(),
                                       HumanSize(total))});
  if (engine.cache() != nullptr) {
    head.push_back({"cached", CachedText(repo, total)});
  }
  head.push_back({"sets", std::to_string(indexes.size())});

  Rows rows;
  int code = kExitOk;
  for (uint32_t i = 0; i < indexes.size(); ++i) {
    const bool is_shown =
        std::find(shown.begin(), shown.end(), i) != shown.end();
    AddSet(repo.catalog().sets()[i], is_shown, indexes[i], &rows);
    if (!indexes[i].has_value()) code = ExitCodeFor(indexes[i].error().code());
  }
  const int printed = PrintOut(RenderTable(head) + RenderTable(rows, {2, 3}));
  if (repo.catalog().sets_left_out() > 0) {
    PrintNote(fmt::format("warning: {} weight files are too many to list",
                          repo.catalog().sets_left_out()));
  }
  return printed == kExitOk ? code : printed;
}

int PrintInfo(Engine& engine, bool as_json) {
  if (!as_json) return PrintText(engine);
  Repo& repo = engine.repo();
  const auto indexes = LoadIndexes(repo, AllSets(repo.catalog()));
  const int printed = PrintOut(RenderIndexJson(repo, indexes));
  if (printed != kExitOk) return printed;
  for (const auto& indexed : indexes) {
    if (!indexed.has_value()) return ExitCodeFor(indexed.error().code());
  }
  return kExitOk;
}

}  // namespace

int RunInfo(const Options& options) {
  return RunQuery(options, [&options](Engine& engine) {
    return PrintInfo(engine, options.json);
  });
}

}  // namespace weightfs
