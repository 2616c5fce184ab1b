// JSON that people and programs read: .weightfs/index.json and the --json of
// `ls` and `info` (one schema), and .weightfs/status.json and `status --json`.
//
// Pure functions.

#ifndef WEIGHTFS_FS_DESCRIBE_H_
#define WEIGHTFS_FS_DESCRIBE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cache/fetcher.h"
#include "cache/object_cache.h"
#include "cache/verifier.h"
#include "fs/fuse_settings.h"
#include "fs/repo.h"

namespace weightfs {

// {"repo", "revision", "commit", "origin", "files": [{path, size, id}],
//  "sets": [{"path", "files", "shown", "problems", "error", "metadata",
//            "tensors": [{"name", "dtype", "shape", "size", "file", "offset",
//                         "length", "strides", "storage_offset", "path",
//                         "not_in": {format: reason}}]}],
//  "problems": […]}. `indexes[i]` belongs to catalog().sets()[i]. `path` is
// there only where the tensor's path is not its name, `strides` and
// `storage_offset` (elements) only where its range is that of a whole storage;
// ranges beyond the first are in "more".
std::string RenderIndexJson(const Repo& repo,
                            const std::vector<Repo::Indexed>& indexes);

struct StatusReport {
  std::string version;
  std::string source;      // as given
  std::string mountpoint;  // absolute
  int64_t pid = 0;
  int64_t started = 0;  // Unix seconds
  std::string log_file;
  std::string cache_folder;  // "" if none is used
  std::string token_source;  // TokenProvider::Source(); never the token
  bool offline = false;
  bool allow_other = false;
  bool strict = false;  // bytes are held back until they are verified
  FuseSettings fuse;
  FetcherStats fetcher;
  ObjectCache::Stats cache;
  Verifier::Stats verifier;
  RequestTotals requests;  // the one that asks is one of them
  PassthroughTotals passthrough;
  size_t open_files = 0;  // descriptors of the daemon
};
// The report, and from `repo`: repo, revision, commit, origin, files, bytes.
std::string RenderStatusJson(const Repo& repo, const StatusReport& report);

}  // namespace weightfs

#endif  // WEIGHTFS_FS_DESCRIBE_H_
