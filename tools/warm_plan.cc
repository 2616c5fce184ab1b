#include "tools/warm_plan.h"

#include <fnmatch.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>

#include "cache/meta_file.h"
#include "cache/object_cache.h"
#include "formats/base/checked.h"
#include "formats/model_file.h"
#include "tools/query.h"

namespace weightfs {
namespace {

// 128 TiB; a listing may claim anything.
constexpr uint64_t kMaxGranules = uint64_t{1} << 30;

uint64_t GranulesOf(uint64_t size) {
  return size / kGranuleSize + (size % kGranuleSize == 0 ? 0 : 1);
}

bool Matches(const std::vector<std::string>& globs, const std::string& name) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) {
    return ::fnmatch(glob.c_str(), name.c_str(), 0) == 0;
  });
}

std::set<uint32_t> WeightFiles(const Catalog& catalog) {
  std::set<uint32_t> files;
  for (const WeightSet& set : catalog.sets()) {
    files.insert(set.files.begin(), set.files.end());
  }
  return files;
}

// All of a file that is no tensor's: before the first, and behind the last.
Result<> WantHeaders(const FileInfo& info, uint32_t file,
                     const std::vector<IndexedSet::Extent>& extents,
                     WarmPlanner& planner) {
  const IndexProbe probe = ProbeOf(info.path, info.size);
  const uint64_t header = extents.empty() ? info.size : extents.front().begin;
  RETURN_IF_ERROR(planner.Want(file, 0, std::max(header, probe.head)));
  const uint64_t end = extents.empty() ? info.size : extents.back().end;
  const uint64_t tail = std::max(info.size - end, probe.tail);
  return planner.Want(file, info.size - tail, tail);
}

// Headers of the shown sets, and what matches in them.
Result<> WantTensors(Repo& repo, const std::vector<std::string>& globs,
                     WarmPlanner& planner) {
  std::vector<std::string> folders;
  for (const auto& [folder, set] : repo.catalog().shown()) {
    folders.push_back(folder.empty() ? "" : folder + "/");
  }
  const auto indexes = LoadIndexes(repo, ShownSets(repo.catalog()));
  bool found = false;
  for (size_t i = 0; i < indexes.size(); ++i) {
    if (!indexes[i].has_value()) return indexes[i].error();
    const IndexedSet& set = **indexes[i];
    for (size_t f = 0; f < set.files.size(); ++f) {
      RETURN_IF_ERROR(WantHeaders(repo.snapshot().files[set.files[f]],
                                  set.files[f], set.extents[f], planner));
    }
    for (const TensorInfo& tensor : set.index.tensors()) {
      if (!Matches(globs, tensor.name) &&
          !Matches(globs, folders[i] + tensor.name)) {
        continue;
      }
      found = true;
      for (const SourceRange& range : tensor.data) {
        RETURN_IF_ERROR(
            planner.Want(set.files[range.object], range.offset, range.length));
      }
    }
  }
  if (found) return {};
  std::string all;
  for (const std::string& glob : globs) {
    all += (all.empty() ? "" : ", ") + glob;
  }
  return MakeError(Code::kNotFound,
                   "no tensor of {} matches {}; `weightfs ls` lists them",
                   repo.snapshot().repo, all);
}

}  // namespace

WarmPlanner::WarmPlanner(const Snapshot& snapshot)
    : snapshot_(snapshot), wanted_(snapshot.files.size()) {
  std::unordered_map<std::string, uint32_t> first;
  for (uint32_t i = 0; i < snapshot.files.size(); ++i) {
    const FileInfo& file = snapshot.files[i];
    same_as_.push_back(
        first
            .try_emplace(fmt::format("{} {}", file.size, file.id.ToString()), i)
            .first->second);
  }
}

Result<> WarmPlanner::Want(uint32_t file, uint64_t offset, uint64_t length) {
  const FileInfo& info = snapshot_.files[file];
  if (length == 0 || !RangeFits(offset, length, info.size)) return {};
  auto& wanted = wanted_[same_as_[file]];
  if (wanted.empty()) {
    const uint64_t granules = GranulesOf(info.size);
    if (info.size > kMaxObjectSize || granules > kMaxGranules - granules_) {
      return MakeError(Code::kUnsupported,
                       "{}: {} bytes are more than the cache keeps", info.path,
                       info.size);
    }
    granules_ += granules;
    wanted.resize(granules);
    ++plan_.files;
  }
  for (uint64_t g = offset / kGranuleSize; g < GranulesOf(offset + length);
       ++g) {
    wanted[g] = true;
  }
  return {};
}

Result<> WarmPlanner::WantAll(uint32_t file) {
  return Want(file, 0, snapshot_.files[file].size);
}

void WarmPlanner::Put(uint32_t file, uint64_t offset, uint64_t length) {
  const uint64_t size = snapshot_.files[file].size;
  auto& wanted = wanted_[same_as_[file]];
  if (length == 0 || !RangeFits(offset, length, size)) return;
  const uint64_t end =
      std::min<uint64_t>(GranulesOf(offset + length), wanted.size());
  for (uint64_t g = offset / kGranuleSize; g < end; ++g) {
    if (!wanted[g]) continue;
    const uint64_t first = g;
    for (; g < end && wanted[g]; ++g) wanted[g] = false;
    const uint64_t begin = first * kGranuleSize;
    const FileRun run{same_as_[file], begin,
                      std::min(g * kGranuleSize, size) - begin};
    plan_.bytes += run.length;
    plan_.runs.push_back(run);
  }
}

void WarmPlanner::PutAll(uint32_t file) {
  Put(file, 0, snapshot_.files[file].size);
}

WarmPlan WarmPlanner::Finish() {
  for (uint32_t i = 0; i < snapshot_.files.size(); ++i) PutAll(i);
  return std::move(plan_);
}

Result<WarmPlan> PlanWarm(Repo& repo, const std::vector<std::string>& globs,
                          const std::vector<FileRun>& learned) {
  const std::vector<FileInfo>& files = repo.snapshot().files;
  const std::set<uint32_t> weights = WeightFiles(repo.catalog());
  WarmPlanner planner(repo.snapshot());
  std::vector<uint32_t> small;
  for (uint32_t i = 0; i < files.size(); ++i) {
    const bool is_small =
        !weights.contains(i) && files[i].size <= kWarmSmallFile;
    if (is_small) small.push_back(i);
    if (is_small || globs.empty()) RETURN_IF_ERROR(planner.WantAll(i));
  }
  if (!globs.empty()) RETURN_IF_ERROR(WantTensors(repo, globs, planner));
  for (const uint32_t file : small) planner.PutAll(file);
  for (const uint32_t file : weights) {
    const IndexProbe probe = ProbeOf(files[file].path, files[file].size);
    planner.Put(file, 0, probe.head);
    planner.Put(file, files[file].size - probe.tail, probe.tail);
  }
  for (const FileRun& run : learned) {
    planner.Put(run.file, run.offset, run.length);
  }
  return planner.Finish();
}

}  // namespace weightfs
