#include "formats/json_events.h"

#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace weightfs {
namespace {

using Json = nlohmann::json;
using Kind = JsonEvent::Kind;

// Walks the text and tells where the lexer is.
class CountingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountingIterator(const char* at, const char** position)
      : at_(at), position_(position) {}
  reference operator*() const { return *at_; }
  CountingIterator& operator++() {
    *position_ = ++at_;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator old = *this;
    ++*this;
    return old;
  }
  bool operator==(const CountingIterator& other) const {
    return at_ == other.at_;
  }
  bool operator!=(const CountingIterator& other) const {
    return at_ != other.at_;
  }

 private:
  const char* at_;
  const char** position_;
};

class SaxAdapter {
 public:
  explicit SaxAdapter(JsonHandler& handler) : handler_(handler) {}

  // nlohmann's SAX interface, whose names these are.
  // NOLINTBEGIN(readability-identifier-naming)
  bool null() { return Pass({Kind::kNull}); }
  bool boolean(bool) { return Pass({Kind::kBool}); }
  bool number_integer(Json::number_integer_t) {
    return Pass({Kind::kNegative});
  }
  bool number_unsigned(Json::number_unsigned_t value) {
    return Pass({Kind::kUnsigned, nullptr, value});
  }
  bool number_float(Json::number_float_t, const Json::string_t&) {
    return Pass({Kind::kFloat});
  }
  bool string(Json::string_t& value) { return Pass({Kind::kString, &value}); }
  bool binary(Json::binary_t&) { return false; }  // JSON text has none
  bool key(Json::string_t& value) { return Pass({Kind::kKey, &value}); }
  bool start_object(size_t) { return Open(Kind::kBeginObject); }
  bool end_object() { return Close(Kind::kEndObject); }
  bool start_array(size_t) { return Open(Kind::kBeginArray); }
  bool end_array() { return Close(Kind::kEndArray); }
  bool parse_error(size_t, const std::string& token,
                   const Json::exception& error) {
    if (!error_) {
      // Its message repeats the position; the token is enough, and short.
      error_ = MakeError(Code::kCorrupt, "no valid JSON near {:.40} ({})",
                         Printable(token), error.id);
    }
    return false;
  }
  // NOLINTEND(readability-identifier-naming)

  std::optional<Error>& error() { return error_; }

 private:
  static std::string Printable(const std::string& token) {
    std::string text = token.substr(0, 40);
    for (char& c : text) {
      if (c < 0x20 || c > 0x7e) c = '?';
    }
    return "'" + text + "'";
  }
  bool Open(Kind kind) {
    if (++depth_ > kMaxJsonDepth) {
      error_ = MakeError(Code::kCorrupt, "more than {} levels of nesting",
                         kMaxJsonDepth);
      return false;
    }
    return Pass({kind});
  }
  bool Close(Kind kind) {
    --depth_;
    return Pass({kind});
  }
  bool Pass(const JsonEvent& event) {
    auto result = handler_.Handle(event);
    if (result.has_value()) return true;
    error_ = std::move(result).error();
    return false;
  }

  JsonHandler& handler_;
  int depth_ = 0;
  std::optional<Error> error_;
};

}  // namespace

Result<> ParseJson(std::string_view text, uint64_t first_byte,
                   JsonHandler& handler) {
  const char* position = text.data();
  const auto where = [&] {
    const auto byte = static_cast<uint64_t>(position - text.data());
    return fmt::format("byte {}", first_byte + byte);
  };
  // The library skips a byte order mark and takes a NUL for the end.
  if (text.starts_with("\xef\xbb\xbf")) {
    return MakeError(Code::kCorrupt, "{}: a byte order mark", where());
  }
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    position += nul;
    return MakeError(Code::kCorrupt, "{}: a NUL byte", where());
  }
  SaxAdapter adapter(handler);
  const bool parsed = Json::sax_parse(
      CountingIterator(text.data(), &position),
      CountingIterator(text.data() + text.size(), &position), &adapter);
  if (adapter.error()) {
    return std::move(*adapter.error()).AddContext(where());
  }
  if (!parsed) return MakeError(Code::kCorrupt, "{}: no valid JSON", where());
  return {};
}

}  // namespace weightfs
