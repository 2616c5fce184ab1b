// JSON as a stream of events, strictly read: the parsers of hostile headers
// build on it. Unlike a document it lets a reader see repeated keys, and it
// costs no memory.
//
// Refused: anything that RFC 8259 refuses, a byte order mark, NUL bytes,
// invalid UTF-8 and lone surrogates, numbers out of a double's range, more than
// kMaxJsonDepth levels, and text after the value. White space around the value
// is accepted.

#ifndef WEIGHTFS_FORMATS_JSON_EVENTS_H_
#define WEIGHTFS_FORMATS_JSON_EVENTS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "formats/base/result.h"

namespace weightfs {

// Arrays and objects in each other, at most.
inline constexpr int kMaxJsonDepth = 127;

struct JsonEvent {
  enum class Kind {
    kBeginObject,
    kEndObject,
    kBeginArray,
    kEndArray,
    kKey,       // text
    kString,    // text
    kUnsigned,  // number: an integer in [0, 2^64) without sign or exponent
    kNegative,  // an integer with a minus sign
    kFloat,     // any other number
    kBool,
    kNull,
  };
  Kind kind = Kind::kNull;
  // May be moved from.
  std::string* text = nullptr;
  uint64_t number = 0;
};

class JsonHandler {
 public:
  virtual ~JsonHandler() = default;
  // An error ends the parse, and is what ParseJson returns.
  virtual Result<> Handle(const JsonEvent& event) = 0;
};

// Feeds `text` to `handler`. kCorrupt where it is no JSON. All errors, the
// handler's too, say at which byte: `first_byte` is the offset of `text` in its
// file.
Result<> ParseJson(std::string_view text, uint64_t first_byte,
                   JsonHandler& handler);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_JSON_EVENTS_H_
