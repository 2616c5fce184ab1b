#include "cache/http/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>

namespace weightfs {
namespace {

struct Ipv4Block {
  uint32_t first;
  int bits;
};

// IANA's special-purpose registry, but for blocks that nobody is reached at
// (documentation, benchmarks): refusing them protects nothing.
constexpr std::array kPrivateIpv4 = {
    Ipv4Block{0x00000000, 8},   // 0/8: this host
    Ipv4Block{0x0a000000, 8},   // 10/8
    Ipv4Block{0x64400000, 10},  // 100.64/10: carriers and overlay networks
    Ipv4Block{0x7f000000, 8},   // 127/8
    Ipv4Block{0xa9fe0000, 16},  // 169.254/16: link-local, metadata services
    Ipv4Block{0xac100000, 12},  // 172.16/12
    Ipv4Block{0xc0000000, 24},  // 192.0.0/24: protocol assignments
    Ipv4Block{0xc0a80000, 16},  // 192.168/16
    Ipv4Block{0xe0000000, 4},   // multicast
    Ipv4Block{0xf0000000, 4},   // reserved, broadcast
};

bool IsPublicIpv4(uint32_t address) {
  return std::none_of(kPrivateIpv4.begin(), kPrivateIpv4.end(),
                      [address](const Ipv4Block& block) {
                        return (address ^ block.first) >> (32 - block.bits) ==
                               0;
                      });
}

using Ipv6 = std::span<const uint8_t, 16>;

uint32_t Ipv4At(Ipv6 address, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | address[offset + i];
  return value;
}

bool StartsWith(Ipv6 address, std::initializer_list<uint8_t> bytes) {
  return std::equal(bytes.begin(), bytes.end(), address.begin());
}

bool IsPublicIpv6(Ipv6 address) {
  // ::, ::1, IPv4-compatible, IPv4-mapped, translated (RFC 2765).
  if (StartsWith(address, {0, 0, 0, 0, 0, 0, 0, 0})) {
    const uint32_t middle = Ipv4At(address, 8);
    const bool embeds = middle == 0 || middle == 0xffff || middle == 0xffff0000;
    const uint32_t last = Ipv4At(address, 12);
    return embeds && last > 0xff && IsPublicIpv4(last);
  }
  // NAT64: the well-known prefix; the local one is a network's own.
  if (StartsWith(address, {0x00, 0x64, 0xff, 0x9b})) {
    return StartsWith(address,
                      {0x00, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0}) &&
           IsPublicIpv4(Ipv4At(address, 12));
  }
  if (StartsWith(address, {0x20, 0x02})) {  // 6to4
    return IsPublicIpv4(Ipv4At(address, 2));
  }
  if (StartsWith(address, {0x20, 0x01, 0, 0})) {  // Teredo: inverted
    return IsPublicIpv4(~Ipv4At(address, 12));
  }
  // Global unicast is 2000::/3: neither unique local (fc00::/7), link-local
  // (fe80::/10), site-local (fec0::/10) nor multicast (ff00::/8).
  return address[0] >> 5 == 1;
}

}  // namespace

bool IsPublicAddress(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in ipv4{};
    std::memcpy(&ipv4, &address, sizeof ipv4);
    return IsPublicIpv4(ntohl(ipv4.sin_addr.s_addr));
  }
  if (address.sa_family == AF_INET6) {
    sockaddr_in6 ipv6{};
    std::memcpy(&ipv6, &address, sizeof ipv6);
    return IsPublicIpv6(Ipv6(ipv6.sin6_addr.s6_addr));
  }
  return false;
}

HostKind KindOfHost(std::string_view host) {
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  }
  const auto kind = [](bool is_public) {
    return is_public ? HostKind::kPublic : HostKind::kPrivate;
  };
  const std::string text(host.substr(0, host.find('%')));  // without its zone
  in_addr ipv4{};
  if (::inet_pton(AF_INET, text.c_str(), &ipv4) == 1) {
    return kind(IsPublicIpv4(ntohl(ipv4.s_addr)));
  }
  in6_addr ipv6{};
  if (::inet_pton(AF_INET6, text.c_str(), &ipv6) == 1) {
    return kind(IsPublicIpv6(Ipv6(ipv6.s6_addr)));
  }
  if (host.ends_with('.')) host.remove_suffix(1);
  if (host == "localhost" || host.ends_with(".localhost")) {
    return HostKind::kPrivate;
  }
  // What only a resolver's liberal reading of numbers makes an address of.
  in_addr liberal{};
  const std::string bare(host);
  if (::inet_aton(bare.c_str(), &liberal) == 1) {
    return kind(IsPublicIpv4(ntohl(liberal.s_addr)));
  }
  return HostKind::kName;
}

}  // namespace weightfs
