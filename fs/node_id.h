// NodeId: a node of the mount as 64 bits that are computed, not allotted: the
// same node has the same id after a restart, and no node objects exist.
//
//   bits 63–50  repo slot   (which mounted repository; 0 in a one-repo mount)
//   bits 49–36  set         (ordinal in the repo's catalog)
//   bits 35–32  kind
//   bits 31–28  format      (of tensors/FORMAT and views/FORMAT)
//   bits 27–0   ordinal     (what it counts depends on the kind)
//
// The mount's root is 1, as FUSE wants: kind 0, ordinal 1.

#ifndef WEIGHTFS_FS_NODE_ID_H_
#define WEIGHTFS_FS_NODE_ID_H_

#include <cstdint>

namespace weightfs {

// The numbers are stable: file handles of a restarted daemon hold them. 7–15
// are free for views, sets, slices and the cache face.
enum class NodeKind : uint8_t {
  kRoot = 0,
  kRepoFolder = 1,     // repo/…; ordinal: RepoTree folder
  kRepoFile = 2,       // repo/…; ordinal: Snapshot file
  kTensorsFolder = 3,  // tensors/
  kSetFolder = 4,      // tensors/FORMAT[/folder]; ordinal: RepoTree folder
  kNameFolder = 5,   // a folder made of tensor names; ordinal: NameTree folder
  kTensorFile = 6,   // ordinal: TensorIndex tensor
  kMetaFolder = 14,  // .weightfs/
  kMetaFile = 15,    // ordinal: MetaFile
};

struct NodeId {
  uint32_t slot = 0;  // 14 bits
  uint32_t set = 0;   // 14 bits
  NodeKind kind = NodeKind::kRoot;
  uint8_t format = 0;    // 4 bits
  uint32_t ordinal = 0;  // 28 bits

  bool operator==(const NodeId&) const = default;
};

inline constexpr uint32_t kMaxSlots = 1 << 14;
inline constexpr uint32_t kMaxSets = 1 << 14;
inline constexpr uint32_t kMaxOrdinals = 1 << 28;
inline constexpr uint64_t kRootNode = 1;

constexpr uint64_t PackNode(const NodeId& id) {
  return (uint64_t{id.slot} << 50) | (uint64_t{id.set} << 36) |
         (uint64_t{static_cast<uint8_t>(id.kind)} << 32) |
         (uint64_t{id.format} << 28) | uint64_t{id.ordinal};
}

constexpr NodeId UnpackNode(uint64_t bits) {
  NodeId id;
  id.slot = static_cast<uint32_t>(bits >> 50);
  id.set = static_cast<uint32_t>((bits >> 36) & 0x3fff);
  id.kind = static_cast<NodeKind>((bits >> 32) & 0xf);
  id.format = static_cast<uint8_t>((bits >> 28) & 0xf);
  id.ordinal = static_cast<uint32_t>(bits & 0xfffffff);
  return id;
}

}  // namespace weightfs

#endif  // WEIGHTFS_FS_NODE_ID_H_
