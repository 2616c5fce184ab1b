#include "formats/torch.h"

#include <algorithm>
#include <new>
#include <string_view>
#include <utility>

#include "formats/torch_legacy.h"
#include "formats/torch_zip.h"
#include "formats/window_reader.h"

namespace weightfs {
namespace {

constexpr size_t kTarMagicOffset = 257;

}  // namespace

Result<TensorIndex> ReadTorch(ByteSource& source) {
  WindowReader reader(source);
  const auto head = reader.Read(0, std::min(source.size(), kTorchProbe));
  if (!head.has_value()) {
    return Error(head.error()).AddContext(source.name());
  }
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): char is bytes
  const std::string_view text(reinterpret_cast<const char*>(head->data()),
                              head->size());
  const bool zip = text.starts_with("PK\3\4");
  if (zip || IsTorchLegacy(*head)) {
    try {
      auto index = zip ? ReadTorchZip(reader) : ReadTorchLegacy(reader);
      if (index.has_value()) return index;
      return std::move(index.error()).AddContext(source.name());
    } catch (const std::bad_alloc&) {
      return MakeError(Code::kNoSpace, "{}: no memory for the index",
                       source.name());
    }
  }
  std::string_view what = "it is no file of torch's";
  if (text.starts_with("PYTORCH1")) {
    what = "TorchScript of a preview of torch 1.0 is not read";
  } else if (text.size() > kTarMagicOffset &&
             text.substr(kTarMagicOffset).starts_with("ustar")) {
    what = "a tar, as torch wrote before 0.1.10, is not read";
  }
  return MakeError(Code::kUnsupported, "{}: torch: {}", source.name(), what);
}

}  // namespace weightfs
