#include "formats/base/byte_reader.h"

namespace weightfs {

Result<> ByteReader::Need(std::string_view field, uint64_t length) const {
  if (length <= remaining()) return {};
  return MakeError(Code::kCorrupt,
                   "{}: {} at offset {} needs {} bytes, {} are left", format_,
                   field, offset_, length, remaining());
}

Result<std::span<const std::byte>> ByteReader::Bytes(std::string_view field,
                                                     uint64_t length) {
  RETURN_IF_ERROR(Need(field, length));
  auto bytes = bytes_.subspan(offset_, length);
  offset_ += length;
  return bytes;
}

Result<std::string_view> ByteReader::String(std::string_view field,
                                            uint64_t length) {
  ASSIGN_OR_RETURN(auto bytes, Bytes(field, length));
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): char is bytes
  return std::string_view(reinterpret_cast<const char*>(bytes.data()),
                          bytes.size());
}

Result<> ByteReader::Skip(std::string_view field, uint64_t length) {
  RETURN_IF_ERROR(Need(field, length));
  offset_ += length;
  return {};
}

}  // namespace weightfs
