// PyTorch files (.pt, .pth, .bin, .ckpt), read, in whichever form they are.
// Spec: formats/torch.md.

#ifndef WEIGHTFS_FORMATS_TORCH_H_
#define WEIGHTFS_FORMATS_TORCH_H_

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/tensor_index.h"

namespace weightfs {

// By the file's first bytes, as torch.load does it: a zip archive or a legacy
// file. The head is one read, of kTorchProbe; it holds data.pkl, as a rule, so
// that a zip costs one more, of its end. kUnsupported for other files, the two
// older forms of torch's (a tar, "PYTORCH1") by name.
Result<TensorIndex> ReadTorch(ByteSource& source);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_H_
