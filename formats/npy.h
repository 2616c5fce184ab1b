// npy, written. Spec: formats/npy.md (NumPy's format 1.0).

#ifndef WEIGHTFS_FORMATS_NPY_H_
#define WEIGHTFS_FORMATS_NPY_H_

#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// NumPy's `descr` of a dtype ("<f4"); empty if npy cannot hold it.
std::string_view NpyDescr(DType dtype);

// Everything before the data, byte for byte what np.save writes. kUnsupported
// if npy cannot hold the dtype, or for more dimensions than NumPy has (64).
Result<std::string> NpyHeader(DType dtype, const std::vector<uint64_t>& shape);

Result<std::vector<Segment>> WriteNpy(const TensorInfo& tensor);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_NPY_H_
