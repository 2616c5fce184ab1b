// Tensor names as paths, and back. `/` makes folders; `%`, control bytes
// (0x00–0x1f, 0x7f) and bytes that are not valid UTF-8 become %XX (upper-case
// hex); a component that is empty becomes `%_`; `.` and `..` become `%2E` and
// `%2E%2E`. The map is one-to-one, so Unescape(Escape(x)) == x.
//
// A component that would exceed 255 bytes with its extension, or that clashes
// with another, is shown as HashComponent() instead; its full name is then
// known only from the xattr and from index.json.

#ifndef WEIGHTFS_FORMATS_VIEW_PATH_NAME_H_
#define WEIGHTFS_FORMATS_VIEW_PATH_NAME_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weightfs {

inline constexpr size_t kMaxComponent = 255;  // bytes, as in Linux

// The name's components, escaped, outermost first; at least one.
std::vector<std::string> EscapeName(std::string_view name);
// The name that EscapeName made these components from; nothing if it cannot
// have (unknown escape, lower-case hex, an escape that was not needed).
std::optional<std::string> UnescapeName(
    const std::vector<std::string>& components);
// "%~" and 16 hex digits (XXH3-64 of `full_name`).
std::string HashComponent(std::string_view full_name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_VIEW_PATH_NAME_H_
