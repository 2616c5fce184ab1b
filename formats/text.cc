#include "formats/text.h"

#include <fmt/format.h>

#include <iterator>

namespace weightfs {
namespace {

constexpr size_t kMaxQuoted = 120;  // bytes

unsigned char ByteAt(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

}  // namespace

// Unicode 15, table 3-7 (well-formed UTF-8 byte sequences).
size_t Utf8SequenceLength(std::string_view text) {
  if (text.empty()) return 0;
  const unsigned char lead = ByteAt(text, 0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  if (text.size() < length) return 0;
  if (ByteAt(text, 1) < low || ByteAt(text, 1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (ByteAt(text, i) < 0x80 || ByteAt(text, i) > 0xbf) return 0;
  }
  return length;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8SequenceLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string QuoteName(std::string_view name) {
  std::string quoted = "\"";
  std::string_view rest = name;
  while (!rest.empty() && name.size() - rest.size() < kMaxQuoted) {
    const size_t length = Utf8SequenceLength(rest);
    const unsigned char lead = ByteAt(rest, 0);
    const bool prints = length > 1
                            ? lead != 0xc2  // U+0080–U+009f: controls
                            : length == 1 && lead >= 0x20 && lead != 0x7f &&
                                  lead != '"' && lead != '\\';
    if (prints) {
      quoted.append(rest.substr(0, length));
      rest.remove_prefix(length);
    } else {
      fmt::format_to(std::back_inserter(quoted), "\\x{:02x}", lead);
      rest.remove_prefix(1);
    }
  }
  quoted += '"';
  if (!rest.empty()) {
    fmt::format_to(std::back_inserter(quoted), "… ({} bytes)", name.size());
  }
  return quoted;
}

}  // namespace weightfs
