// Finds out which commit a revision is and which files it has: from the Hub,
// else from what was saved.

#ifndef WEIGHTFS_CACHE_HUB_HUB_LISTING_H_
#define WEIGHTFS_CACHE_HUB_HUB_LISTING_H_

#include <memory>
#include <string>

#include "cache/hub/hub_context.h"
#include "cache/origin.h"
#include "cache/snapshot_store.h"
#include "formats/base/result.h"

namespace weightfs {

struct HubListing {
  std::shared_ptr<const Snapshot> snapshot;
  std::string id;  // the repository's present name, for URLs
};

// Blocks, within the timeouts of the options. `store` may be null.
Result<HubListing> ListHub(const HubContext& context, SnapshotStore* store);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_HUB_LISTING_H_
