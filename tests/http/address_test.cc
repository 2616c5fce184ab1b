#include "cache/http/address.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>

#include <string>

namespace weightfs {
namespace {

bool IsPublicSocket(const std::string& text) {
  sockaddr_storage storage{};
  auto& ipv4 = reinterpret_cast<sockaddr_in&>(storage);
  auto& ipv6 = reinterpret_cast<sockaddr_in6&>(storage);
  if (::inet_pton(AF_INET, text.c_str(), &ipv4.sin_addr) == 1) {
    storage.ss_family = AF_INET;
  } else if (::inet_pton(AF_INET6, text.c_str(), &ipv6.sin6_addr) == 1) {
    storage.ss_family = AF_INET6;
  }
  return IsPublicAddress(reinterpret_cast<const sockaddr&>(storage));
}

TEST(AddressTest, PrivateAddressesAreToldFromPublicOnes) {
  for (const std::string text : {"0.0.0.0",
                                 "0.1.2.3",
                                 "10.0.0.1",
                                 "10.255.255.255",
                                 "100.64.0.1",
                                 "100.127.255.255",
                                 "100.100.100.200",
                                 "127.0.0.1",
                                 "127.255.0.1",
                                 "169.254.169.254",
                                 "172.16.0.1",
                                 "172.31.255.255",
                                 "192.0.0.192",
                                 "192.168.0.1",
                                 "224.0.0.1",
                                 "255.255.255.255",
                                 "::",
                                 "::1",
                                 "::127.0.0.1",
                                 "::ffff:10.0.0.1",
                                 "::ffff:127.0.0.1",
                                 "::ffff:0:192.168.1.1",
                                 "64:ff9b::a00:1",
                                 "64:ff9b:1::8.8.8.8",
                                 "2002:a00:1::",
                                 "2001:0:1:2:3:4:f5ff:fffe",
                                 "fc00::1",
                                 "fd12::1",
                                 "fe80::1",
                                 "fec0::1",
                                 "ff02::1"}) {
    EXPECT_FALSE(IsPublicSocket(text)) << text;
    EXPECT_EQ(KindOfHost(text), HostKind::kPrivate) << text;
    EXPECT_EQ(KindOfHost("[" + text + "]"), HostKind::kPrivate) << text;
  }
  for (const std::string text :
       {"1.1.1.1",          "9.255.255.255",   "11.0.0.0",
        "100.63.255.255",   "100.128.0.0",     "126.255.255.255",
        "128.0.0.1",        "169.253.255.255", "172.15.255.255",
        "172.32.0.0",       "192.0.1.0",       "192.167.255.255",
        "203.0.113.7",      "223.255.255.255", "::ffff:8.8.8.8",
        "64:ff9b::808:808", "2002:808:808::",  "2001:0:1:2:3:4:f7f7:f7f7",
        "2606:4700::1111",  "3fff::1"}) {
    EXPECT_TRUE(IsPublicSocket(text)) << text;
    EXPECT_EQ(KindOfHost(text), HostKind::kPublic) << text;
  }
  EXPECT_FALSE(IsPublicSocket("/run/socket"));
}

TEST(AddressTest, NamesAreLeftToTheLookUp) {
  EXPECT_EQ(KindOfHost("huggingface.co"), HostKind::kName);
  EXPECT_EQ(KindOfHost("10.example.com"), HostKind::kName);
  EXPECT_EQ(KindOfHost("localhost.example.com"), HostKind::kName);
  for (const char* own :
       {"localhost", "localhost.", "a.localhost", "[fe80::1%eth0]", "127.1",
        "2130706433", "0x7f.1", "017700000001", "0"}) {
    EXPECT_EQ(KindOfHost(own), HostKind::kPrivate) << own;
  }
}

}  // namespace
}  // namespace weightfs
