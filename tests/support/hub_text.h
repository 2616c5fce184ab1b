// Bits of text that the test hub's sources share.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_TEXT_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_TEXT_H_

#include <charconv>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "tests/support/hub_http.h"

namespace weightfs {

inline std::string HubHex(std::span<const unsigned char> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(bytes.size() * 2);
  for (const unsigned char byte : bytes) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

inline std::string HubQuoted(const std::string& text) {
  return "\"" + text + "\"";
}

// A decimal number and nothing else.
inline std::optional<uint64_t> HubNumber(std::string_view text) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

inline void PutHubHeader(HubReply& reply, std::string name, std::string value) {
  reply.headers.emplace_back(std::move(name), std::move(value));
}

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_TEXT_H_
