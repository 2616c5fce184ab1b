#include "fs/describe.h"

#include <nlohmann/json.hpp>

#include "formats/text.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

using Json = nlohmann::ordered_json;

// Replaces what is not valid UTF-8 (local file names may hold it); names cannot
// harm the terminal that it is shown on.
std::string Dump(const Json& json, int indent) {
  return PlainJson(
      json.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n");
}

Json TensorJson(const IndexedSet& set, uint32_t ordinal) {
  const TensorInfo& tensor = set.index.tensors()[ordinal];
  Json json = {{"name", tensor.name},
               {"dtype", DTypeName(tensor.dtype)},
               {"shape", tensor.shape}};
  const auto size = DenseSize(tensor.dtype, tensor.shape);
  json["size"] = size.has_value() ? *size : 0;
  for (size_t i = 0; i < tensor.data.size(); ++i) {
    const SourceRange& range = tensor.data[i];
    const Json place = {{"file", set.index.objects()[range.object]},
                        {"offset", range.offset},
                        {"length", range.length}};
    if (i == 0) {
      json.update(place);
    } else {
      json["more"].push_back(place);
    }
  }
  if (!tensor.dense()) {
    json["strides"] = tensor.strides;
    json["storage_offset"] = tensor.storage_offset;
  }
  const std::string raw = set.names->FilePath(ordinal, Format::kRaw);
  if (raw != tensor.name + std::string(FormatExtension(Format::kRaw))) {
    json["path"] =
        raw.substr(0, raw.size() - FormatExtension(Format::kRaw).size());
  }
  for (Format format : AllFormats()) {
    const auto holds = CheckFormatHolds(format, tensor.dtype);
    if (!holds.has_value()) {
      json["not_in"][std::string(FormatName(format))] = holds.error().message();
    }
  }
  return json;
}

Json SetJson(const Repo& repo, uint32_t ordinal, const Repo::Indexed& indexed) {
  const WeightSet& set = repo.catalog().sets()[ordinal];
  const auto shown = repo.catalog().shown().find(set.folder);
  Json json = {{"path", set.path}};
  json["shown"] =
      shown != repo.catalog().shown().end() && shown->second == ordinal;
  const bool ready = indexed.has_value() && *indexed != nullptr;
  json["files"] = Json::array();
  for (uint32_t file : ready ? (*indexed)->files : set.files) {
    json["files"].push_back(repo.snapshot().files[file].path);
  }
  json["problems"] = ready ? (*indexed)->problems : set.problems;
  if (!indexed.has_value()) json["error"] = indexed.error().message();
  if (ready) {
    if (!(*indexed)->index.metadata().empty()) {
      json["metadata"] = (*indexed)->index.metadata();
    }
    json["tensors"] = Json::array();
    for (uint32_t i = 0; i < (*indexed)->index.tensors().size(); ++i) {
      json["tensors"].push_back(TensorJson(**indexed, i));
    }
  }
  return json;
}

Json FetcherJson(const FetcherStats& stats) {
  return {{"fetches", stats.fetches},
          {"retries", stats.retries},
          {"bytes_fetched", stats.bytes_fetched},
          {"overtaken", stats.overtaken},
          {"bytes_not_kept", stats.bytes_not_kept},
          {"waits_for_others", stats.waits_for_others},
          {"granules_from_others", stats.granules_from_others}};
}

}  // namespace

std::string RenderIndexJson(const Repo& repo,
                            const std::vector<Repo::Indexed>& indexes) {
  const Snapshot& snapshot = repo.snapshot();
  Json json = {{"repo", snapshot.repo},
               {"revision", snapshot.revision},
               {"commit", snapshot.commit},
               {"origin", repo.origin().name()}};
  json["files"] = Json::array();
  for (const FileInfo& file : snapshot.files) {
    json["files"].push_back(
        {{"path", file.path}, {"size", file.size}, {"id", file.id.ToString()}});
  }
  json["sets"] = Json::array();
  for (uint32_t i = 0; i < indexes.size(); ++i) {
    json["sets"].push_back(SetJson(repo, i, indexes[i]));
  }
  json["problems"] = Json::array();
  if (repo.catalog().sets_left_out() != 0) {
    json["problems"].push_back(
        std::to_string(repo.catalog().sets_left_out()) +
        " weight sets are over the limit and are shown in repo/ only");
  }
  return Dump(json, 1);
}

std::string RenderStatusJson(const Repo& repo, const StatusReport& report) {
  const Snapshot& snapshot = repo.snapshot();
  uint64_t bytes = 0;
  for (const FileInfo& file : snapshot.files) bytes += file.size;
  const Json json = {{"version", report.version},
                     {"source", report.source},
                     {"repo", snapshot.repo},
                     {"revision", snapshot.revision},
                     {"commit", snapshot.commit},
                     {"origin", repo.origin().name()},
                     {"mountpoint", report.mountpoint},
                     {"pid", report.pid},
                     {"started", report.started},
                     {"log_file", report.log_file},
                     {"cache_folder", report.cache_folder},
                     {"token_source", report.token_source},
                     {"offline", report.offline},
                     {"allow_other", report.allow_other},
                     {"verify", report.strict ? "strict" : "background"},
                     {"files", snapshot.files.size()},
                     {"bytes", bytes},
                     {"fuse",
                      {{"max_read", report.fuse.max_read},
                       {"max_background", report.fuse.max_background},
                       {"read_ahead_kb", report.fuse.read_ahead_kb}}},
                     {"passthrough",
                      {{"on", report.passthrough.on},
                       {"why", report.passthrough.why},
                       {"opens", report.passthrough.opens},
                       {"files", report.passthrough.registered}}},
                     {"fetcher", FetcherJson(report.fetcher)},
                     {"cache",
                      {{"write_failures", report.cache.write_failures},
                       {"bad_granules", report.cache.bad_granules},
                       {"evicted_bytes", report.cache.evicted_bytes},
                       {"verified_files", report.verifier.verified},
                       {"wrong_files", report.verifier.wrong},
                       {"sealed_files", report.verifier.sealed}}},
                     {"requests",
                      {{"waiting", report.requests.waiting},
                       {"oldest_seconds", report.requests.oldest_seconds},
                       {"late", report.requests.late},
                       {"reads", report.requests.reads}}},
                     {"open_files", report.open_files}};
  return Dump(json, 2);
}

}  // namespace weightfs
