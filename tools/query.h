// What the commands that need no mount (ls, info, cat) share: an open source
// and the indexes of its weight sets, from header bytes alone.

#ifndef WEIGHTFS_TOOLS_QUERY_H_
#define WEIGHTFS_TOOLS_QUERY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "formats/base/result.h"
#include "formats/tensor_index.h"
#include "fs/repo.h"
#include "tools/engine.h"
#include "tools/options.h"

namespace weightfs {

// Opens the source with the log on standard error (warnings, unless --log-level
// or --log-file says otherwise), and returns the exit code that `query` gave,
// or that of the error. A disk that hangs does not keep the command from its
// end.
int RunQuery(const Options& options, const std::function<int(Engine&)>& query);

// Opens the source and the log as RunQuery does. REQUIRES: no other thread
// runs.
Result<std::unique_ptr<Engine>> OpenForQuery(const Options& options);

// The indexes of these sets, loaded side by side; indexes[i] belongs to
// sets[i].
std::vector<Repo::Indexed> LoadIndexes(Repo& repo,
                                       const std::vector<uint32_t>& sets);
// Ordinals of the sets that tensors/ shows, by folder; of all.
std::vector<uint32_t> ShownSets(const Catalog& catalog);
std::vector<uint32_t> AllSets(const Catalog& catalog);

// Bytes of the tensor's elements.
uint64_t TensorBytes(const TensorInfo& tensor);
// "[768,3072]", "[]".
std::string ShapeText(const TensorInfo& tensor);
// The files that hold the tensor's bytes, "a, b". A tensor of no bytes is in
// the only file or, where there are several, "-".
std::string FilesText(const Repo& repo, const IndexedSet& set,
                      const TensorInfo& tensor);

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_QUERY_H_
