// Which proxy the environment names for a URL, by curl's rules. Decided here
// and told to curl, since who is connected to is to be judged by it: behind a
// proxy the address that is seen is the proxy's. Pure functions.

#ifndef WEIGHTFS_CACHE_HTTP_PROXY_H_
#define WEIGHTFS_CACHE_HTTP_PROXY_H_

#include <functional>
#include <string>
#include <string_view>

#include "cache/http/url.h"

namespace weightfs {

// The value of an environment variable; empty if it is not set.
using GetVariable = std::function<std::string(const char* name)>;

// http_proxy (lower case only), https_proxy or HTTPS_PROXY, else all_proxy or
// ALL_PROXY, unless no_proxy or NO_PROXY names the host; empty: none.
std::string ProxyFor(const Url& url, const GetVariable& variable);

// Whether a no_proxy list names the host (lower case, IPv6 in brackets): "*",
// or by a name, of which subdomains count, an address or a block of them.
bool IsInNoProxy(std::string_view host, std::string_view list);

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HTTP_PROXY_H_
