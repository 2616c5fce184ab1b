// PyTorch files (.pt), written: a zip that torch.load reads, with weights_only
// and with mmap. Spec: formats/pt.md.

#ifndef WEIGHTFS_FORMATS_PT_H_
#define WEIGHTFS_FORMATS_PT_H_

#include <string>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// True if torch has a dtype for it.
bool PtHolds(DType dtype);

// The pickle of the file: torch.load of it gives the tensor itself.
// kUnsupported if torch cannot hold it (dtype, a dimension over 2^63 - 1, an F4
// tensor whose last dimension is odd).
Result<std::string> PtPickle(const TensorInfo& tensor);

Result<std::vector<Segment>> WritePt(const TensorInfo& tensor);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_PT_H_
