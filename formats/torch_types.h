// What torch calls the dtypes, in the files that it reads and writes. Pure
// functions.

#ifndef WEIGHTFS_FORMATS_TORCH_TYPES_H_
#define WEIGHTFS_FORMATS_TORCH_TYPES_H_

#include <optional>
#include <string_view>

#include "formats/dtype.h"

namespace weightfs {

// The dtypes that torch has had for long have a storage class of their own.
// Newer ones are an UntypedStorage with the dtype beside it.
struct TorchType {
  std::string_view storage;  // "FloatStorage"; empty: UntypedStorage
  std::string_view dtype;    // "float32"; empty: torch has no such dtype
};

TorchType TorchTypeOf(DType dtype);

// By the name of a storage class: "FloatStorage". Those of quantised tensors
// are their integers: "QInt8Storage" is I8.
std::optional<DType> DTypeOfTorchStorage(std::string_view storage);
// By torch's own name: "float8_e4m3fn".
std::optional<DType> DTypeOfTorchName(std::string_view name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_TYPES_H_
