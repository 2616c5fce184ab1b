// torch's files from before 1.6 (.pth, .pt), read: five pickles and the
// storages' bytes behind them. Spec: formats/torch.md.

#ifndef WEIGHTFS_FORMATS_TORCH_LEGACY_H_
#define WEIGHTFS_FORMATS_TORCH_LEGACY_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "formats/base/result.h"
#include "formats/tensor_index.h"
#include "formats/window_reader.h"

namespace weightfs {

// The first read. Pickles that are longer cost further reads, each four times
// as far into the file.
inline constexpr uint64_t kTorchProbe = 256 * 1024;

// True if a file that begins with `head` is one of these.
bool IsTorchLegacy(std::span<const std::byte> head);

// One read, as a rule. Where storages lie follows from their sizes, which the
// pickles say and which the file repeats before each of them: if they fill the
// file to its last byte, only those repetitions are held against them that were
// read along; else each is read.
//
// kCorrupt or kUnsupported as ReadTorchZip.
Result<TensorIndex> ReadTorchLegacy(WindowReader& reader);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_LEGACY_H_
