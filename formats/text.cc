#include "formats/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

namespace weightfs {
namespace {

constexpr size_t kMaxQuoted = 120;  // bytes

unsigned char ByteAt(std::string_view text, size_t i) {
  return static_cast<unsigned char>(text[i]);
}

// Of a whole sequence.
uint32_t CodePoint(std::string_view sequence) {
  const uint32_t lead = ByteAt(sequence, 0);
  if (sequence.size() == 1) return lead;
  uint32_t point = lead & (0x7fU >> sequence.size());
  for (size_t i = 1; i < sequence.size(); ++i) {
    point = point << 6 | (ByteAt(sequence, i) & 0x3fU);
  }
  return point;
}

struct PointRange {
  uint32_t first;
  uint32_t last;
};

constexpr std::array kNotPlain = {
    PointRange{0x0000, 0x001f},    // C0
    PointRange{0x007f, 0x009f},    // DEL, C1
    PointRange{0x00ad, 0x00ad},    // soft hyphen
    PointRange{0x061c, 0x061c},    // Arabic letter mark
    PointRange{0x180e, 0x180e},    // a separator without a width
    PointRange{0x200b, 0x200b},    // zero-width space
    PointRange{0x200e, 0x200f},    // marks of direction
    PointRange{0x2028, 0x202e},    // separators, embeddings, overrides
    PointRange{0x2060, 0x206f},    // invisible operators, isolates
    PointRange{0xfeff, 0xfeff},    // byte order mark
    PointRange{0xfff9, 0xfffb},    // annotations
    PointRange{0xe0000, 0xe0fff},  // tags, variation selectors
};

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

bool IsPlain(std::string_view sequence) {
  const uint32_t point = CodePoint(sequence);
  return std::none_of(kNotPlain.begin(), kNotPlain.end(),
                      [point](const PointRange& range) {
                        return range.first <= point && point <= range.last;
                      });
}

std::string PlainJson(std::string_view json) {
  std::string plain;
  plain.reserve(json.size());
  while (!json.empty()) {
    const size_t length = std::max<size_t>(Utf8SequenceLength(json), 1);
    const std::string_view sequence = json.substr(0, length);
    const uint32_t point = CodePoint(sequence);
    if (point < 0x20 || (length == 1 && point >= 0x80) || IsPlain(sequence)) {
      plain += sequence;
    } else if (point < 0x10000) {
      fmt::format_to(std::back_inserter(plain), "\\u{:04x}", point);
    } else {
      fmt::format_to(std::back_inserter(plain), "\\u{:04x}\\u{:04x}",
                     0xd7c0 + (point >> 10), 0xdc00 + (point & 0x3ff));
    }
    json.remove_prefix(length);
  }
  return plain;
}

void AppendJsonString(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          fmt::format_to(std::back_inserter(out), "\\u{:04x}",
                         static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

std::string QuoteName(std::string_view name) {
  std::string quoted = "\"";
  std::string_view rest = name;
  while (!rest.empty() && name.size() - rest.size() < kMaxQuoted) {
    const size_t length = Utf8SequenceLength(rest);
    const unsigned char lead = ByteAt(rest, 0);
    if (length > 0 && IsPlain(rest.substr(0, length)) && lead != '"' &&
        lead != '\\') {
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
