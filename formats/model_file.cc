#include "formats/model_file.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "formats/torch.h"
#include "formats/torch_legacy.h"
#include "formats/zip_reader.h"

namespace weightfs {
namespace {

constexpr std::string_view kSafetensorsExtension = ".safetensors";
constexpr std::string_view kGgufExtension = ".gguf";
constexpr std::array<std::string_view, 6> kWeightExtensions = {
    kSafetensorsExtension, ".bin", ".pt", ".pth", ".ckpt", kGgufExtension};

bool BeginsWith(std::span<const std::byte> head, std::string_view magic) {
  return head.size() >= magic.size() &&
         std::equal(magic.begin(), magic.end(), head.begin(),
                    [](char c, std::byte b) {
                      return static_cast<std::byte>(c) == b;
                    });
}

// A header's length that the file may have, and JSON's first byte.
bool IsSafetensors(std::span<const std::byte> head, uint64_t size) {
  constexpr size_t kLengthBytes = 8;
  if (head.size() <= kLengthBytes) return false;
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<uint64_t>(head[i]);
  }
  return length <= std::min(kMaxSafetensorsHeader, size - kLengthBytes) &&
         head[kLengthBytes] == std::byte{'{'};
}

}  // namespace

std::span<const std::string_view> WeightExtensions() {
  return kWeightExtensions;
}

std::string_view WeightExtension(std::string_view file_name) {
  for (const std::string_view extension : kWeightExtensions) {
    if (file_name.size() > extension.size() && file_name.ends_with(extension)) {
      return extension;
    }
  }
  return {};
}

IndexProbe ProbeOf(std::string_view file_name, uint64_t size) {
  const std::string_view extension = WeightExtension(file_name);
  if (extension.empty()) return {};
  if (extension == kSafetensorsExtension) {
    return {.head = std::min(size, kSafetensorsProbe)};
  }
  if (extension == kGgufExtension) return {.head = std::min(size, kGgufProbe)};
  return {.head = std::min(size, kTorchProbe),
          .tail = std::min(size, kZipTail)};
}

Result<TensorIndex> ReadTensors(ByteSource& source) {
  constexpr size_t kMagicBytes = 16;
  std::array<std::byte, kMagicBytes> buffer{};
  const auto head =
      std::span(buffer).first(std::min<uint64_t>(buffer.size(), source.size()));
  RETURN_IF_ERROR(source.ReadAt(0, head));
  if (BeginsWith(head, "GGUF")) return ReadGguf(source);
  if (BeginsWith(head, "PK\3\4") || IsTorchLegacy(head)) {
    return ReadTorch(source);
  }
  if (source.name().ends_with(kSafetensorsExtension) ||
      IsSafetensors(head, source.size())) {
    return ReadSafetensors(source);
  }
  return TensorIndex::Create({source.name()}, {}, {},
                             {"in no format that weightfs reads"});
}

}  // namespace weightfs
