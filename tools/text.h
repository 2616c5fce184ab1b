// What the commands print: sizes for people, names that cannot harm a terminal,
// JSON strings, aligned tables. Pure functions.

#ifndef WEIGHTFS_TOOLS_TEXT_H_
#define WEIGHTFS_TOOLS_TEXT_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weightfs {

// "17 B", "4.5 MiB": three figures at most, powers of 1024.
std::string HumanSize(uint64_t bytes);

// `text` on one line: what is not plain (formats/text.h) or not UTF-8 becomes
// \xNN. Twice does no more than once.
std::string Printable(std::string_view text);

// As a JSON string, in quotes. Bytes that are not UTF-8 become U+FFFD.
std::string JsonQuote(std::string_view text);

// The names that someone who typed `wrong` may have meant, best first, at most
// `limit`.
std::vector<std::string> NearestNames(std::string_view wrong,
                                      std::span<const std::string> names,
                                      size_t limit);

// Rows with their columns aligned, two spaces between them. Columns whose
// ordinal is in `right` are right-aligned.
std::string RenderTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<size_t>& right = {});

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_TEXT_H_
