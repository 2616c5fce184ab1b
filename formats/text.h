// UTF-8 and names in messages. Pure functions.

#ifndef WEIGHTFS_FORMATS_TEXT_H_
#define WEIGHTFS_FORMATS_TEXT_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace weightfs {

// Bytes of the UTF-8 sequence that `text` starts with; 0 if it starts with none
// (empty, stray continuation, overlong, surrogate, past U+10FFFF, cut short).
size_t Utf8SequenceLength(std::string_view text);
bool IsUtf8(std::string_view text);

// `name`, which may hold any bytes, for a message: in quotes, at most 120 bytes
// of it, what does not print as \xNN.
std::string QuoteName(std::string_view name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TEXT_H_
