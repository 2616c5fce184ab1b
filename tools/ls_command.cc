#include <memory>
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

void AddRows(const Repo& repo, const IndexedSet& set, Rows* rows) {
  for (const TensorInfo& tensor : set.index.tensors()) {
    rows->push_back({Printable(tensor.name),
                     std::string(DTypeName(tensor.dtype)), ShapeText(tensor),
                     HumanSize(TensorBytes(tensor)),
                     Printable(FilesText(repo, set, tensor))});
  }
}

// Says on standard error what is wrong with the sets; the exit code for it.
int ReportProblems(const Repo& repo, const std::vector<uint32_t>& sets,
                   const std::vector<Repo::Indexed>& indexes) {
  int code = kExitOk;
  for (size_t i = 0; i < sets.size(); ++i) {
    const std::string& path = repo.catalog().sets()[sets[i]].path;
    if (!indexes[i].has_value()) {
      code = ReportError(Error(indexes[i].error()).AddContext(path));
      continue;
    }
    for (const std::string& problem : (*indexes[i])->problems) {
      PrintNote(fmt::format("warning: {}: {}", path, problem));
    }
  }
  return code;
}

int PrintJson(const Repo& repo, const std::vector<uint32_t>& sets,
              const std::vector<Repo::Indexed>& indexes) {
  // Null stands for a set that was not looked into.
  std::vector<Repo::Indexed> all(repo.catalog().sets().size(),
                                 std::shared_ptr<const IndexedSet>());
  for (size_t i = 0; i < sets.size(); ++i) all[sets[i]] = indexes[i];
  return PrintOut(RenderIndexJson(repo, all));
}

int PrintTable(const Repo& repo, const std::vector<Repo::Indexed>& indexes) {
  Rows rows;
  for (const auto& indexed : indexes) {
    if (indexed.has_value()) AddRows(repo, **indexed, &rows);
  }
  return PrintOut(RenderTable(rows, {3}));
}

int List(Engine& engine, const Options& options) {
  Repo& repo = engine.repo();
  const auto sets =
      options.all ? AllSets(repo.catalog()) : ShownSets(repo.catalog());
  const auto indexes = LoadIndexes(repo, sets);
  const int printed =
      options.json ? PrintJson(repo, sets, indexes) : PrintTable(repo, indexes);
  if (printed != kExitOk) return printed;
  if (sets.empty() && !options.json) {
    PrintNote(fmt::format("{} holds no files with tensors that weightfs reads",
                          repo.snapshot().repo));
  }
  return ReportProblems(repo, sets, indexes);
}

}  // namespace

int RunLs(const Options& options) {
  return RunQuery(options,
                  [&options](Engine& engine) { return List(engine, options); });
}

}  // namespace weightfs
