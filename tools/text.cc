#include "tools/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>

#include "formats/text.h"

namespace weightfs {
namespace {

// Characters, near enough to columns to align a table.
size_t Width(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(),
      [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// Edits between two strings, or nothing if there are more than `most`.
std::optional<size_t> EditDistance(std::string_view a, std::string_view b,
                                   size_t most) {
  if (a.size() > b.size()) std::swap(a, b);
  if (b.size() - a.size() > most) return std::nullopt;
  std::vector<size_t> row(a.size() + 1);
  for (size_t i = 0; i < row.size(); ++i) row[i] = i;
  for (size_t j = 1; j <= b.size(); ++j) {
    size_t diagonal = row[0];
    row[0] = j;
    size_t least = j;
    for (size_t i = 1; i <= a.size(); ++i) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[i];
      row[i] = std::min({row[i] + 1, row[i - 1] + 1, replaced});
      least = std::min(least, row[i]);
    }
    if (least > most) return std::nullopt;
  }
  return row.back() <= most ? std::optional(row.back()) : std::nullopt;
}

}  // namespace

std::string HumanSize(uint64_t bytes) {
  static constexpr std::array kUnits = {"B",   "KiB", "MiB", "GiB",
                                        "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  // 999.5 would print as 1000 with three figures.
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  if (value < 9.995) return fmt::format("{:.2f} {}", value, kUnits[unit]);
  if (value < 99.95) return fmt::format("{:.1f} {}", value, kUnits[unit]);
  return fmt::format("{:.0f} {}", value, kUnits[unit]);
}

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t length = Utf8SequenceLength(text);
    const std::string_view sequence =
        text.substr(0, std::max<size_t>(length, 1));
    if (length == 0 || !IsPlain(sequence)) {
      for (const char c : sequence) {
        out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      }
    } else {
      out += sequence;
    }
    text.remove_prefix(sequence.size());
  }
  return out;
}

std::string JsonQuote(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = Utf8SequenceLength(text);
    const char c = text[0];
    if (length == 0) {
      out += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  out += '"';
  return PlainJson(out);
}

std::vector<std::string> NearestNames(std::string_view wrong,
                                      std::span<const std::string> names,
                                      size_t limit) {
  const size_t most = std::clamp<size_t>(wrong.size() / 4, 2, 8);
  std::vector<std::pair<size_t, const std::string*>> found;
  for (const std::string& name : names) {
    if (const auto distance = EditDistance(wrong, name, most)) {
      found.emplace_back(*distance, &name);
    } else if (!wrong.empty() && name.find(wrong) != std::string::npos) {
      // A part of the name was given: worse than a slip of the finger.
      found.emplace_back(most + name.size() - wrong.size(), &name);
    }
  }
  std::stable_sort(
      found.begin(), found.end(),
      [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> nearest;
  for (size_t i = 0; i < found.size() && i < limit; ++i) {
    nearest.push_back(*found[i].second);
  }
  return nearest;
}

std::string RenderTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<size_t>& right) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], Width(row[i]));
    }
  }
  std::string out;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      const bool to_the_right =
          std::find(right.begin(), right.end(), i) != right.end();
      if (i > 0) out += "  ";
      if (to_the_right) out += padding;
      out += row[i];
      if (!to_the_right && i + 1 < row.size()) out += padding;
    }
    out += '\n';
  }
  return out;
}

}  // namespace weightfs
