// The values of GGUF's block-quantised tensors as floats.

#ifndef WEIGHTFS_FORMATS_GGUF_DEQUANTISE_H_
#define WEIGHTFS_FORMATS_GGUF_DEQUANTISE_H_

#include <vector>

#include "formats/base/result.h"
#include "formats/dtype.h"
#include "formats/segment.h"
#include "formats/tensor_index.h"

namespace weightfs {

// Whether the values of a block type can be told. Q8_1, Q8_K, Q1_0 and Q2_0
// cannot: the first two hold activations, and of the others there is no
// reference to hold the values against.
bool CanDequantise(DType dtype);

// The tensor's values as dense `to` (F32, F16 or BF16), as one Transform that
// reads no more blocks than each read needs. The F32 are bit for bit those of
// the reference implementation (gguf.quants.dequantize), but for the payload of
// NaNs; F16 and BF16 are rounded from them to nearest, ties to even.
// kUnsupported for another dtype on either side, or a tensor that is strided.
Result<std::vector<Segment>> DequantiseSegments(const TensorInfo& tensor,
                                                DType to);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_GGUF_DEQUANTISE_H_
