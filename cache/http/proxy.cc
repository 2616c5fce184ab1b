#include "cache/http/proxy.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <optional>

namespace weightfs {
namespace {

struct Address {
  int family = AF_UNSPEC;  // none
  std::array<uint8_t, 16> bytes{};
  int bits() const { return family == AF_INET ? 32 : 128; }
};

std::string_view Unbracketed(std::string_view host) {
  if (host.starts_with('[') && host.ends_with(']')) {
    return host.substr(1, host.size() - 2);
  }
  return host;
}

Address ParseAddress(std::string_view text) {
  Address address;
  const std::string zero_ended(Unbracketed(text));
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, zero_ended.c_str(), address.bytes.data()) == 1) {
      address.family = family;
    }
  }
  return address;
}

bool SameBits(const Address& a, const Address& b, int bits) {
  for (int i = 0; i < bits; ++i) {
    const auto byte = static_cast<size_t>(i / 8);
    if (((a.bytes[byte] ^ b.bytes[byte]) >> (7 - i % 8) & 1) != 0) return false;
  }
  return true;
}

// "10.0.0.0/8" or an address alone.
bool IsInBlock(const Address& address, std::string_view block) {
  const size_t slash = std::min(block.find('/'), block.size());
  const Address first = ParseAddress(block.substr(0, slash));
  int bits = first.bits();
  if (slash < block.size()) {
    const std::string_view digits = block.substr(slash + 1);
    const char* last = digits.data() + digits.size();
    const auto [end, failed] = std::from_chars(digits.data(), last, bits);
    if (failed != std::errc() || end != last || bits < 0) return false;
  }
  return first.family == address.family && bits <= first.bits() &&
         SameBits(address, first, bits);
}

std::string_view WithoutDots(std::string_view name) {
  if (name.ends_with('.')) name.remove_suffix(1);
  if (name.starts_with('.')) name.remove_prefix(1);
  return name;
}

bool IsInDomain(std::string_view host, std::string_view domain) {
  host = WithoutDots(host);
  domain = WithoutDots(domain);
  return !domain.empty() && host.ends_with(domain) &&
         (host.size() == domain.size() ||
          host[host.size() - domain.size() - 1] == '.');
}

// The first of the variables that is set.
std::string First(const GetVariable& variable,
                  std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (std::string value = variable(name); !value.empty()) return value;
  }
  return "";
}

}  // namespace

bool IsInNoProxy(std::string_view host, std::string_view list) {
  if (list == "*") return true;
  const Address address = ParseAddress(host);
  std::string lower(list);
  for (char& c : lower) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  std::string_view rest = lower;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find_first_of(", \t"), rest.size());
    const std::string_view entry = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (entry.empty()) continue;
    const bool named = address.family == AF_UNSPEC ? IsInDomain(host, entry)
                                                   : IsInBlock(address, entry);
    if (named) return true;
  }
  return false;
}

std::string ProxyFor(const Url& url, const GetVariable& variable) {
  if (IsInNoProxy(url.host(), First(variable, {"no_proxy", "NO_PROXY"}))) {
    return "";
  }
  // Not HTTP_PROXY: a CGI program's is what a request's header says.
  std::string proxy = url.scheme() == "http"
                          ? First(variable, {"http_proxy"})
                          : First(variable, {"https_proxy", "HTTPS_PROXY"});
  if (proxy.empty()) proxy = First(variable, {"all_proxy", "ALL_PROXY"});
  return proxy;
}

}  // namespace weightfs
