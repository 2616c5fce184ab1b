#include "formats/view/path_name.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <iterator>

#include "formats/text.h"

namespace weightfs {
namespace {

constexpr std::string_view kEmptyComponent = "%_";

void AppendEscaped(char c, std::string& out) {
  fmt::format_to(std::back_inserter(out), "%{:02X}",
                 static_cast<unsigned char>(c));
}

std::string EscapeComponent(std::string_view part) {
  if (part.empty()) return std::string(kEmptyComponent);
  if (part == ".") return "%2E";
  if (part == "..") return "%2E%2E";
  std::string out;
  out.reserve(part.size());
  while (!part.empty()) {
    const size_t length = Utf8SequenceLength(part);
    const char first = part.front();
    const auto byte = static_cast<unsigned char>(first);
    if (length > 1) {
      out += part.substr(0, length);
    } else if (length == 0 || byte < 0x20 || byte == 0x7f || first == '%') {
      AppendEscaped(first, out);
    } else {
      out += first;
    }
    part.remove_prefix(length > 1 ? length : 1);
  }
  return out;
}

// The value of an upper-case hex digit, or -1.
int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Appends what `component` stands for; false if it holds an unknown escape.
bool DecodeComponent(std::string_view component, std::string& name) {
  if (component == kEmptyComponent) return true;
  for (size_t i = 0; i < component.size(); ++i) {
    if (component[i] != '%') {
      name += component[i];
      continue;
    }
    if (component.size() - i < 3) return false;
    const int high = HexValue(component[i + 1]);
    const int low = HexValue(component[i + 2]);
    if (high < 0 || low < 0) return false;
    name += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return true;
}

}  // namespace

std::vector<std::string> EscapeName(std::string_view name) {
  std::vector<std::string> components;
  while (true) {
    const size_t slash = name.find('/');
    components.push_back(EscapeComponent(name.substr(0, slash)));
    if (slash == std::string_view::npos) return components;
    name.remove_prefix(slash + 1);
  }
}

std::optional<std::string> UnescapeName(
    const std::vector<std::string>& components) {
  if (components.empty()) return std::nullopt;
  std::string name;
  for (size_t i = 0; i < components.size(); ++i) {
    if (i > 0) name += '/';
    if (!DecodeComponent(components[i], name)) return std::nullopt;
  }
  // Each name has one path: an escape that was not needed, or one that hides a
  // slash, is somebody else's.
  if (EscapeName(name) != components) return std::nullopt;
  return name;
}

std::string HashComponent(std::string_view full_name) {
  return fmt::format("%~{:016x}",
                     XXH3_64bits(full_name.data(), full_name.size()));
}

}  // namespace weightfs
