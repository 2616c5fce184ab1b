// SlabEvictor: takes cached bytes of one object away, slab by slab, and the
// object itself once nothing is left of it. Steps and why they come in this
// order: cache/LAYOUT.md, "Evicting".
//
// It works on descriptions and a mapping of its own: an exclusive lock on a
// reader's would silently upgrade that one's shared lock.
//
// Thread-safety: one thread at a time; other processes, and readers and writers
// of this one, may use the object meanwhile.

#ifndef WEIGHTFS_CACHE_SLAB_EVICTOR_H_
#define WEIGHTFS_CACHE_SLAB_EVICTOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cache/cache_disk.h"
#include "cache/cache_folder.h"
#include "cache/meta_file.h"
#include "formats/base/result.h"
#include "formats/base/unique_fd.h"

namespace weightfs {

class SlabEvictor {
 public:
  // `path` is the object's folder, relative; its last two components tell the
  // id. kCorrupt: not an object; kNotFound: it is gone.
  static Result<std::unique_ptr<SlabEvictor>> Open(CacheFolder& folder,
                                                   CacheDisk& disk,
                                                   const std::string& path);

  uint64_t slabs() const { return meta_->layout().slabs; }

  // Frees the slab's bytes from its start on, until `wanted` bytes of the disk
  // are free or the slab is empty. The bytes that it freed; kStale: somebody
  // holds a pin; any other error: the disk failed, and the entries may be gone
  // while the bytes are not. REQUIRES: slab < slabs().
  Result<uint64_t> Evict(uint64_t slab, uint64_t wanted = UINT64_MAX);
  // To be called after Evict: an object that is not complete any more leaves
  // the folder of the verified ones.
  void Demote();

 private:
  SlabEvictor(CacheFolder& folder, CacheDisk& disk, std::string path,
              UniqueFd data, std::unique_ptr<MetaFile> meta)
      : folder_(folder),
        disk_(disk),
        path_(std::move(path)),
        data_(std::move(data)),
        meta_(std::move(meta)) {}

  CacheFolder& folder_;
  CacheDisk& disk_;
  const std::string path_;
  const UniqueFd data_;
  const std::unique_ptr<MetaFile> meta_;
};

// Moves an object from its VerifiedPath `path` to where `owner` claims it.
// False if it could not be moved.
bool DemoteObject(CacheFolder& folder, const std::string& path, uint64_t owner);

// Removes an object of the folder `path` that nobody has open; false if
// somebody has, or it is gone. Bytes that it holds are lost.
bool RemoveUnusedObject(CacheFolder& folder, const std::string& path);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_SLAB_EVICTOR_H_
