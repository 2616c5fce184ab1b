#include "formats/inflate.h"

#include <zlib.h>

#include <algorithm>
#include <limits>

namespace weightfs {
namespace {

constexpr uint64_t kInflateStep = 1 << 20;  // bytes of output asked for at once

// inflateEnd at the end.
struct InflateGuard {
  z_stream stream{};
  bool ready = false;

  InflateGuard() = default;
  InflateGuard(const InflateGuard&) = delete;
  InflateGuard& operator=(const InflateGuard&) = delete;
  ~InflateGuard() {
    if (ready) inflateEnd(&stream);
  }
};

}  // namespace

Result<std::string> Inflate(std::span<const std::byte> deflated,
                            uint64_t size) {
  if (deflated.size() > std::numeric_limits<uInt>::max()) {
    return MakeError(Code::kUnsupported, "{} deflated bytes are too many",
                     deflated.size());
  }
  InflateGuard guard;
  z_stream& stream = guard.stream;
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) {
    return MakeError(Code::kNoSpace, "no memory to inflate with");
  }
  guard.ready = true;
  // zlib takes its input without const and does not write to it.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-const-cast)
  auto* const input = const_cast<std::byte*>(deflated.data());
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): Bytef is bytes
  stream.next_in = reinterpret_cast<Bytef*>(input);
  stream.avail_in = static_cast<uInt>(deflated.size());

  std::string out;
  int status = Z_OK;
  while (status == Z_OK) {
    const size_t have = out.size();
    // One byte more than wanted tells that there are more.
    const uint64_t want = std::min(size + 1 - have, kInflateStep);
    if (want == 0) break;
    out.resize(have + want);
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): as above
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + have);
    stream.avail_out = static_cast<uInt>(want);
    status = inflate(&stream, Z_NO_FLUSH);
    out.resize(have + want - stream.avail_out);
    // Nothing came of it: the stream is cut short.
    if (status == Z_OK && stream.avail_out == want) break;
  }
  if (status == Z_MEM_ERROR) {
    return MakeError(Code::kNoSpace, "no memory to inflate with");
  }
  if (status != Z_STREAM_END || out.size() != size || stream.avail_in != 0) {
    return MakeError(Code::kCorrupt,
                     "the deflated bytes do not make {} bytes and end", size);
  }
  return out;
}

}  // namespace weightfs
