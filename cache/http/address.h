// Which addresses anybody on the Internet can reach, and which only this
// machine or its network can: loopback, RFC 1918, link-local (the metadata
// services of clouds among them), shared and unique local addresses, and what
// embeds one of them in IPv6. Pure functions.

#ifndef WEIGHTFS_CACHE_HTTP_ADDRESS_H_
#define WEIGHTFS_CACHE_HTTP_ADDRESS_H_

#include <sys/socket.h>

#include <string_view>

namespace weightfs {

// False for what is neither IPv4 nor IPv6.
bool IsPublicAddress(const sockaddr& address);

enum class HostKind {
  kName,     // who it is only a look-up tells
  kPublic,   // an address
  kPrivate,  // an address, or a name of this machine's own (localhost)
};
// Of a URL's host, in lower case; an IPv6 address may be in brackets.
HostKind KindOfHost(std::string_view host);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_ADDRESS_H_
