#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formats/view/virtual_file.h"
#include "formats/writer.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/query.h"
#include "tools/tensor_stream.h"
#include "tools/text.h"

namespace weightfs {
namespace {

struct FoundTensor {
  uint32_t set = 0;
  std::shared_ptr<const IndexedSet> indexed;
  const TensorInfo* tensor = nullptr;  // in `indexed`
};

// A set to look in, and what tensor names of it begin with.
struct Candidate {
  uint32_t set = 0;
  std::string prefix;  // "" or "unet/"
};

Result<std::vector<Candidate>> CandidatesFor(const Catalog& catalog,
                                             const std::string& set_path) {
  std::vector<Candidate> candidates;
  if (set_path.empty()) {
    for (const auto& [folder, set] : catalog.shown()) {
      candidates.push_back({set, folder.empty() ? "" : folder + "/"});
    }
    return candidates;
  }
  std::vector<std::string> paths;
  for (uint32_t i = 0; i < catalog.sets().size(); ++i) {
    paths.push_back(catalog.sets()[i].path);
    if (paths.back() == set_path) candidates.push_back({i, ""});
  }
  if (!candidates.empty()) return candidates;
  const auto nearest = NearestNames(set_path, paths, 1);
  return MakeError(
      Code::kNotFound, "no weight set {}{}; `weightfs info` lists them",
      set_path, nearest.empty() ? "" : fmt::format(" (is it {}?)", nearest[0]));
}

Error UnknownTensor(const std::string& name,
                    const std::vector<std::string>& names) {
  std::string hint;
  for (const std::string& near : NearestNames(name, names, 3)) {
    hint += fmt::format("{}{}", hint.empty() ? "did you mean " : ", ", near);
  }
  if (hint.empty()) hint = "`weightfs ls` lists them";
  return MakeError(Code::kNotFound, "no tensor {}; {}", name, hint);
}

Result<FoundTensor> FindTensor(Repo& repo, const Options& options) {
  const Catalog& catalog = repo.catalog();
  ASSIGN_OR_RETURN(const auto candidates, CandidatesFor(catalog, options.set));
  if (candidates.empty()) {
    return MakeError(Code::kNotFound,
                     "{} holds no files with tensors that weightfs reads",
                     repo.snapshot().repo);
  }
  std::vector<uint32_t> sets;
  sets.reserve(candidates.size());
  for (const Candidate& candidate : candidates) sets.push_back(candidate.set);
  const auto indexes = LoadIndexes(repo, sets);
  std::vector<FoundTensor> found;
  std::optional<Error> failed;
  std::vector<std::string> names;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!indexes[i].has_value()) {
      failed = indexes[i].error();
      continue;
    }
    const IndexedSet& indexed = **indexes[i];
    const std::string& prefix = candidates[i].prefix;
    const TensorInfo* tensor = indexed.index.Find(options.tensor);
    if (tensor == nullptr && options.tensor.starts_with(prefix)) {
      tensor = indexed.index.Find(
          std::string_view(options.tensor).substr(prefix.size()));
    }
    if (tensor != nullptr) found.push_back({sets[i], *indexes[i], tensor});
    for (const TensorInfo& other : indexed.index.tensors()) {
      names.push_back(prefix + other.name);
    }
  }
  if (found.size() == 1) return std::move(found.front());
  if (found.empty() && failed.has_value()) return *failed;
  if (found.empty()) return UnknownTensor(options.tensor, names);
  std::string paths;
  for (const FoundTensor& one : found) {
    paths += (paths.empty() ? "" : ", ") + catalog.sets()[one.set].path;
  }
  return MakeError(Code::kInvalid,
                   "tensor {} is in several weight sets; choose one with "
                   "--set: {}",
                   options.tensor, paths);
}

Result<> CopyTensor(Repo& repo, const Options& options, int fd) {
  ASSIGN_OR_RETURN(const FoundTensor found, FindTensor(repo, options));
  ASSIGN_OR_RETURN(auto segments, WriteTensor(options.format, *found.tensor));
  ASSIGN_OR_RETURN(const VirtualFile file,
                   VirtualFile::Create(std::move(segments)));
  // Those that the tensor lies in; a set can have hundreds of files.
  std::vector<std::shared_ptr<Object>> objects(found.indexed->files.size());
  for (const SourceRange& range : found.tensor->data) {
    auto& object = objects[range.object];
    if (object == nullptr) {
      object = repo.OpenFile(found.indexed->files[range.object]);
    }
  }
  StreamOptions stream;
  stream.read_timeout = options.read_timeout;
  return StreamVirtual(
      file, objects, stream,
      [fd](std::span<const std::byte> bytes) { return WriteAll(fd, bytes); });
}

Result<> Cat(Repo& repo, const Options& options) {
  if (options.output.empty()) return CopyTensor(repo, options, STDOUT_FILENO);
  ASSIGN_OR_RETURN(OutputFile output, OutputFile::Create(options.output));
  RETURN_IF_ERROR(CopyTensor(repo, options, output.fd()));
  return output.Commit();
}

}  // namespace

int RunCat(const Options& options) {
  if (options.output.empty() && ::isatty(STDOUT_FILENO) == 1) {
    return ReportError(
        Error(Code::kInvalid,
              "a tensor is no text for a terminal; redirect the output or give "
              "--output FILE"));
  }
  return RunQuery(options, [&options](Engine& engine) {
    const auto done = Cat(engine.repo(), options);
    return done.has_value() ? static_cast<int>(kExitOk)
                            : ReportError(done.error());
  });
}

}  // namespace weightfs
