#include "cache/content_hash.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cassert>
#include <new>
#include <string_view>

namespace weightfs {

void ContentHash::Free::operator()(evp_md_ctx_st* context) const {
  ::EVP_MD_CTX_free(context);
}

ContentHash::ContentHash(ContentId::Kind kind, uint64_t size)
    : context_(::EVP_MD_CTX_new()) {
  assert(kind != ContentId::Kind::kStat);
  const bool git = kind == ContentId::Kind::kGit;
  if (context_ == nullptr ||
      ::EVP_DigestInit_ex(context_.get(), git ? ::EVP_sha1() : ::EVP_sha256(),
                          nullptr) != 1) {
    throw std::bad_alloc();  // the algorithms are always there
  }
  if (!git) return;
  const std::string header = fmt::format("blob {}", size);
  // With its NUL.
  ::EVP_DigestUpdate(context_.get(), header.c_str(), header.size() + 1);
}

ContentHash::~ContentHash() = default;
ContentHash::ContentHash(ContentHash&&) noexcept = default;
ContentHash& ContentHash::operator=(ContentHash&&) noexcept = default;

void ContentHash::Add(std::span<const std::byte> bytes) {
  ::EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size());
  added_ += bytes.size();
}

std::string ContentHash::Finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned length = 0;
  ::EVP_DigestFinal_ex(context_.get(), digest.data(), &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

}  // namespace weightfs
