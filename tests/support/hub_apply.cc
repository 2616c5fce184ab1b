// What each fault does to an answer (hub_fault.h).

#include <strings.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "tests/support/hub_state.h"

namespace weightfs {
namespace {

using FaultKind = TestHubFault::Kind;

bool SameName(std::string_view a, std::string_view b) {
  return a.size() == b.size() &&
         ::strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string* FindHeader(HubReply& reply, std::string_view name) {
  for (auto& [key, value] : reply.headers) {
    if (SameName(key, name)) return &value;
  }
  return nullptr;
}

void DropHeader(HubReply& reply, std::string_view name) {
  std::erase_if(reply.headers, [&](const auto& header) {
    return SameName(header.first, name);
  });
}

// Moves "bytes A-B/N" by `shift`, or sets N.
void ChangeRange(HubReply& reply, uint64_t shift, const uint64_t* total) {
  std::string* const header = FindHeader(reply, "Content-Range");
  if (header == nullptr) return;
  uint64_t first = 0;
  uint64_t last = 0;
  const char* const end = header->data() + header->size();
  const auto start = std::from_chars(header->data() + 6, end, first);
  if (start.ec != std::errc()) return;
  const auto stop = std::from_chars(start.ptr + 1, end, last);
  const std::string size = total == nullptr ? std::string(stop.ptr, end)
                                            : "/" + std::to_string(*total);
  *header = "bytes " + std::to_string(first + shift) + "-" +
            std::to_string(last + shift) + size;
}

uint32_t Crc32(std::string_view bytes) {
  uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320 : 0);
    }
  }
  return ~crc;
}

void AppendLe(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    out += static_cast<char>(value >> (8 * i) & 0xff);
  }
}

// RFC 1952 with RFC 1951's stored blocks: a true gzip of any bytes.
std::string GzipStored(std::string_view bytes) {
  constexpr size_t kMaxStored = 65535;
  std::string out("\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
  size_t at = 0;
  do {
    const size_t size = std::min(bytes.size() - at, kMaxStored);
    out += at + size == bytes.size() ? '\1' : '\0';
    AppendLe(out, size, 2);
    AppendLe(out, ~size, 2);
    out += bytes.substr(at, size);
    at += size;
  } while (at < bytes.size());
  AppendLe(out, Crc32(bytes), 4);
  AppendLe(out, bytes.size(), 4);
  return out;
}

void Gzip(HubReply& reply) {
  constexpr uint64_t kMaxBody = uint64_t{64} << 20;
  if (reply.body == nullptr || reply.length > kMaxBody) return;
  reply.body = MemoryContent(
      GzipStored(reply.body->ReadRange(reply.offset, reply.length)));
  reply.offset = 0;
  reply.length = reply.body->size();
  reply.headers.emplace_back("Content-Encoding", "gzip");
}

void SetHeaders(const TestHubFault& fault, HubReply& reply) {
  if (!fault.text.empty()) {
    DropHeader(reply, fault.text);
    reply.headers.emplace_back(fault.text, fault.value);
  }
  for (const auto& [name, value] : fault.headers) {
    if (std::string* const found = FindHeader(reply, name)) *found = value;
  }
}

void ReplaceAll(std::string& text, std::string_view name,
                std::string_view value) {
  for (size_t at = text.find(name); at != std::string::npos;
       at = text.find(name, at + value.size())) {
    text.replace(at, name.size(), value);
  }
}

// {body} last, whose bytes may look like anything.
void SendRawInstead(const TestHubFault& fault, HubReply& reply) {
  std::string raw = fault.text;
  const uint64_t size = reply.body == nullptr ? 0 : reply.body->size();
  const uint64_t last = reply.offset + std::max<uint64_t>(reply.length, 1) - 1;
  ReplaceAll(raw, "{first}", std::to_string(reply.offset));
  ReplaceAll(raw, "{last}", std::to_string(last));
  ReplaceAll(raw, "{size}", std::to_string(size));
  ReplaceAll(raw, "{length}", std::to_string(reply.length));
  if (const size_t at = raw.find("{body}");
      at != std::string::npos && reply.body != nullptr) {
    raw.replace(at, 6, reply.body->ReadRange(reply.offset, reply.length));
  }
  reply.raw = std::move(raw);
  reply.raw_every = fault.delay;
}

void BecomeOtherFile(HubReply& reply) {
  reply.inverted = true;
  if (std::string* const etag = FindHeader(reply, "ETag")) {
    *etag = "\"the-other-file\"";
  }
}

void Answer(const TestHubFault& fault, HubReply& reply) {
  HubReply other;
  other.status = static_cast<int>(fault.number);
  other.headers = fault.headers;
  other.body = MemoryContent(
      fault.text.empty() ? R"({"error":"injected by the test"})" : fault.text);
  other.length = other.body->size();
  if (FindHeader(other, "Content-Type") == nullptr) {
    other.headers.emplace_back("Content-Type", "application/json");
  }
  other.delay = reply.delay;
  other.bytes_per_second = reply.bytes_per_second;
  reply = std::move(other);
}

void RedirectTo(const TestHubFault& fault, const TestHubRequest& request,
                HubReply& reply) {
  std::string target = fault.text;
  if (target.empty()) {
    target = request.path;
    if (!request.query.empty()) target += "?" + request.query;
  }
  ReplaceAll(target, "{id}", std::to_string(request.id));
  DropHeader(reply, "Location");
  DropHeader(reply, "Content-Range");
  reply.headers.emplace_back("Location", std::move(target));
  reply.status = static_cast<int>(fault.number);
  reply.length = 0;
}

}  // namespace

void ApplyHubFault(const TestHubFault& fault, const TestHubRequest& request,
                   HubReply& reply) {
  switch (fault.kind) {
    case FaultKind::kStatus:
      return Answer(fault, reply);
    case FaultKind::kReset:
      reply.reset_at = fault.number;
      return;
    case FaultKind::kClose:
      reply.close_at = fault.number;
      return;
    case FaultKind::kHang:
      reply.hang_at = fault.number;
      return;
    case FaultKind::kNoAnswer:
      reply.no_answer = true;
      return;
    case FaultKind::kLongBody:
      reply.extra = fault.number;
      return;
    case FaultKind::kOverrun:
      reply.overrun = fault.number;
      return;
    case FaultKind::kRangeStart:
      return ChangeRange(reply, fault.number, nullptr);
    case FaultKind::kRangeTotal:
      return ChangeRange(reply, 0, &fault.number);
    case FaultKind::kSetHeader:
      return SetHeaders(fault, reply);
    case FaultKind::kAddHeader:
      reply.headers.emplace_back(fault.text, fault.value);
      return;
    case FaultKind::kDropHeader:
      return DropHeader(reply, fault.text);
    case FaultKind::kTrickle:
      reply.trickle_bytes = std::max<uint64_t>(1, fault.number);
      reply.trickle_every = fault.delay;
      return;
    case FaultKind::kDelay:
      reply.delay += fault.delay;
      return;
    case FaultKind::kRedirect:
      return RedirectTo(fault, request, reply);
    case FaultKind::kGzip:
      return Gzip(reply);
    case FaultKind::kBody:
      reply.body = MemoryContent(fault.text);
      reply.offset = 0;
      reply.length = reply.body->size();
      return;
    case FaultKind::kFlipBit:
      reply.flips.push_back(fault.number);
      return;
    case FaultKind::kOtherFile:
      return BecomeOtherFile(reply);
    case FaultKind::kRaw:
      return SendRawInstead(fault, reply);
    case FaultKind::kIgnoreRange:  // done before the answer was made
    case FaultKind::kRunCallback:
      return;
  }
}

}  // namespace weightfs
