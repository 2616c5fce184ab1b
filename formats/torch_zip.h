// torch's zip archives, read: what torch.save writes since 1.6 (.pt, .bin,
// .ckpt), and TorchScript archives. Spec: formats/torch.md.

#ifndef WEIGHTFS_FORMATS_TORCH_ZIP_H_
#define WEIGHTFS_FORMATS_TORCH_ZIP_H_

#include "formats/base/result.h"
#include "formats/tensor_index.h"
#include "formats/window_reader.h"

namespace weightfs {

// Two reads, as a rule: the archive's end, and data.pkl with the small members
// beside it; one read if the archive is smaller than kZipTail; more if the
// directory is larger than that, or if the archive is not as torch writes it
// (formats/zip_reader.h). Reads no tensor data.
//
// kCorrupt or kUnsupported where the archive or its pickle is; a tensor that is
// wrong by itself, or in a way that is not read, is in problems().
// Errors do not name the file.
Result<TensorIndex> ReadTorchZip(WindowReader& reader);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TORCH_ZIP_H_
