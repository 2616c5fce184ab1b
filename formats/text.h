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

// False for a sequence of UTF-8 that a terminal obeys, or that hides or
// reorders what is around it: controls of ASCII and Unicode, line and paragraph
// separators, marks of direction, and characters without a shape (zero-width
// joiners, which scripts and emoji need, are let through).
bool IsPlain(std::string_view sequence);

// A JSON text, with \uXXXX in place of what is not plain; what it says stays
// the same. Control bytes of ASCII outside strings are layout and stay.
std::string PlainJson(std::string_view json);

// Adds `text` as a JSON string, in quotes: only what must be escaped is.
// REQUIRES: it is UTF-8.
void AppendJsonString(std::string_view text, std::string& out);

// `name`, which may hold any bytes, for a message: in quotes, at most 120 bytes
// of it, what does not print as \xNN.
std::string QuoteName(std::string_view name);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_TEXT_H_
