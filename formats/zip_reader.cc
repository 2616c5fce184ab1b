#include "formats/zip_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "formats/base/byte_reader.h"
#include "formats/base/checked.h"
#include "formats/inflate.h"
#include "formats/text.h"

namespace weightfs {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kCentralHeader = 0x02014b50;
constexpr uint32_t kEndRecord = 0x06054b50;
constexpr uint32_t kWideEndRecord = 0x06064b50;
constexpr uint32_t kWideEndLocator = 0x07064b50;
constexpr uint64_t kLocalHeaderSize = 30;  // bytes, without name and extra
constexpr uint64_t kCentralHeaderSize = 46;
constexpr uint64_t kEndRecordSize = 22;
constexpr uint64_t kWideEndRecordSize = 56;
constexpr uint64_t kWideEndLocatorSize = 20;
constexpr uint64_t kMaxU16 = 0xffff;
constexpr uint64_t kMaxU32 = 0xffffffff;
constexpr uint16_t kWideExtraId = 1;
constexpr uint16_t kDescriptorFlag = 8;
// After each small member as much is read along, for the next one's header.
constexpr uint64_t kHeaderRoom = 512;
// Bytes between two small members, or two local headers, that are read along
// rather than skipped by another request.
constexpr uint64_t kMaxMemberGap = 64 * 1024;
constexpr uint64_t kMaxHeaderGap = 512 * 1024;
constexpr uint64_t kMaxHeaderRead = 4 << 20;

struct EndOfZip {
  uint64_t count = 0;             // of members
  uint64_t directory_size = 0;    // bytes
  uint64_t directory_offset = 0;  // bytes
};

// The offset in `tail`, the archive's last bytes, of the end record: the last
// one whose comment ends where the file does.
std::optional<size_t> FindEndRecord(std::string_view tail) {
  if (tail.size() < kEndRecordSize) return std::nullopt;
  const size_t last = tail.size() - kEndRecordSize;
  const size_t first = last > kMaxU16 ? last - kMaxU16 : 0;
  for (size_t at = last + 1; at-- > first;) {
    if (tail[at] != 'P' || tail.substr(at, 4) != "PK\5\6") continue;
    const auto low = static_cast<unsigned char>(tail[at + 20]);
    const auto high = static_cast<unsigned char>(tail[at + 21]);
    if (at + kEndRecordSize + low + 256U * high == tail.size()) return at;
  }
  return std::nullopt;
}

std::string_view AsText(std::span<const std::byte> bytes) {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-reinterpret-cast): char is bytes
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A value of the old end record, which may only say "see the wide one".
Result<> CheckAgrees(std::string_view field, uint64_t narrow, uint64_t full,
                     uint64_t wide) {
  if (narrow == full || narrow == wide) return {};
  return MakeError(Code::kCorrupt,
                   "zip: {}: the end record says {}, the zip64 one {}", field,
                   narrow, wide);
}

// Reads the zip64 end record that the locator before the old one points to,
// and puts what it says into `end`. Returns where it begins.
Result<uint64_t> ReadWideEnd(WindowReader& reader, uint64_t end_offset,
                             EndOfZip& end) {
  if (end_offset < kWideEndLocatorSize) return end_offset;
  ASSIGN_OR_RETURN(
      const auto locator_bytes,
      reader.Read(end_offset - kWideEndLocatorSize, kWideEndLocatorSize));
  ByteReader locator("zip", locator_bytes);
  ASSIGN_OR_RETURN(const auto signature, locator.Read<uint32_t>("locator"));
  if (signature != kWideEndLocator) return end_offset;
  RETURN_IF_ERROR(locator.Skip("locator", 4));
  ASSIGN_OR_RETURN(const auto offset, locator.Read<uint64_t>("locator"));
  if (!RangeFits(offset, kWideEndRecordSize,
                 end_offset - kWideEndLocatorSize)) {
    return MakeError(Code::kCorrupt, "zip: no zip64 end record fits at {}",
                     offset);
  }
  ASSIGN_OR_RETURN(const auto bytes, reader.Read(offset, kWideEndRecordSize));
  ByteReader record("zip", bytes);
  ASSIGN_OR_RETURN(const auto found, record.Read<uint32_t>("zip64 end"));
  if (found != kWideEndRecord) {
    return MakeError(Code::kCorrupt, "zip: no zip64 end record is at {}",
                     offset);
  }
  RETURN_IF_ERROR(record.Skip("zip64 end", 28));
  EndOfZip wide;
  ASSIGN_OR_RETURN(wide.count, record.Read<uint64_t>("zip64 count"));
  ASSIGN_OR_RETURN(wide.directory_size, record.Read<uint64_t>("zip64 size"));
  ASSIGN_OR_RETURN(wide.directory_offset,
                   record.Read<uint64_t>("zip64 offset"));
  RETURN_IF_ERROR(CheckAgrees("count", end.count, kMaxU16, wide.count));
  RETURN_IF_ERROR(CheckAgrees("directory size", end.directory_size, kMaxU32,
                              wide.directory_size));
  RETURN_IF_ERROR(CheckAgrees("directory offset", end.directory_offset, kMaxU32,
                              wide.directory_offset));
  end = wide;
  return offset;
}

Result<EndOfZip> ReadEnd(WindowReader& reader) {
  const uint64_t tail_size = std::min(reader.size(), kZipTail);
  const uint64_t tail_offset = reader.size() - tail_size;
  ASSIGN_OR_RETURN(const auto tail, reader.Read(tail_offset, tail_size));
  const auto at = FindEndRecord(AsText(tail));
  if (!at) {
    return MakeError(Code::kCorrupt,
                     "zip: the last {} bytes hold no end record",
                     std::min(tail_size, kEndRecordSize + kMaxU16));
  }
  ByteReader record("zip", tail.subspan(*at, kEndRecordSize));
  RETURN_IF_ERROR(record.Skip("end record", 4));
  ASSIGN_OR_RETURN(const auto disk, record.Read<uint16_t>("disk"));
  ASSIGN_OR_RETURN(const auto first_disk, record.Read<uint16_t>("disk"));
  ASSIGN_OR_RETURN(const auto here, record.Read<uint16_t>("count"));
  EndOfZip end;
  ASSIGN_OR_RETURN(end.count, record.Read<uint16_t>("count"));
  ASSIGN_OR_RETURN(end.directory_size, record.Read<uint32_t>("size"));
  ASSIGN_OR_RETURN(end.directory_offset, record.Read<uint32_t>("offset"));
  if (disk != first_disk || here != end.count) {
    return MakeError(Code::kUnsupported, "zip: it is one part of several");
  }
  ASSIGN_OR_RETURN(const uint64_t limit,
                   ReadWideEnd(reader, tail_offset + *at, end));
  if (!RangeFits(end.directory_offset, end.directory_size, limit)) {
    return MakeError(Code::kCorrupt,
                     "zip: a directory of {} bytes at {} does not fit before "
                     "the end record at {}",
                     end.directory_size, end.directory_offset, limit);
  }
  if (end.directory_size > kMaxZipDirectory || end.count > kMaxZipMembers) {
    return MakeError(Code::kUnsupported,
                     "zip: a directory of {} members in {} bytes; {} in {} are "
                     "read at most",
                     end.count, end.directory_size, kMaxZipMembers,
                     kMaxZipDirectory);
  }
  if (end.count * kCentralHeaderSize > end.directory_size) {
    return MakeError(Code::kCorrupt,
                     "zip: {} members do not fit a directory of {} bytes",
                     end.count, end.directory_size);
  }
  return end;
}

// The directory, of which the windows hold the end, as a rule.
Result<std::string> ReadDirectory(const WindowReader& reader,
                                  const EndOfZip& end) {
  std::string directory(end.directory_size, '\0');
  const auto out = std::as_writable_bytes(std::span(directory));
  const uint64_t tail = reader.size() - std::min(reader.size(), kZipTail);
  uint64_t missing = end.directory_size;
  if (end.directory_offset >= tail) {
    missing = 0;
  } else if (end.directory_offset + end.directory_size > tail) {
    missing = tail - end.directory_offset;
  }
  if (missing > 0) {
    RETURN_IF_ERROR(
        reader.source().ReadAt(end.directory_offset, out.first(missing)));
  }
  const auto known = reader.Known(end.directory_offset + missing,
                                  end.directory_size - missing);
  if (known && !known->empty()) {
    std::memcpy(out.data() + missing, known->data(), known->size());
  }
  return directory;
}

// Puts the values of the zip64 extra field in the places of those that only
// say that they are there.
Result<> WidenMember(std::span<const std::byte> extra, ZipMember& member) {
  std::vector<uint64_t*> wanted;
  for (uint64_t* value :
       {&member.size, &member.stored_size, &member.header_offset}) {
    if (*value == kMaxU32) wanted.push_back(value);
  }
  if (wanted.empty()) return {};
  ByteReader fields("zip", extra);
  while (fields.remaining() >= 4) {
    ASSIGN_OR_RETURN(const auto id, fields.Read<uint16_t>("extra field"));
    ASSIGN_OR_RETURN(const auto length, fields.Read<uint16_t>("extra field"));
    ASSIGN_OR_RETURN(const auto bytes, fields.Bytes("extra field", length));
    if (id != kWideExtraId) continue;
    ByteReader wide("zip", bytes);
    for (uint64_t* value : wanted) {
      ASSIGN_OR_RETURN(*value, wide.Read<uint64_t>("zip64 extra field"));
    }
    return {};
  }
  return {};  // it is of 4 GiB - 1 bytes
}

Result<ZipMember> ReadCentralHeader(ByteReader& directory) {
  ASSIGN_OR_RETURN(const auto signature, directory.Read<uint32_t>("entry"));
  if (signature != kCentralHeader) {
    return MakeError(Code::kCorrupt, "zip: no entry is at {} of the directory",
                     directory.offset() - 4);
  }
  ZipMember member;
  RETURN_IF_ERROR(directory.Skip("entry", 4));
  ASSIGN_OR_RETURN(member.flags, directory.Read<uint16_t>("flags"));
  ASSIGN_OR_RETURN(member.method, directory.Read<uint16_t>("method"));
  RETURN_IF_ERROR(directory.Skip("entry", 8));  // time, date, CRC
  ASSIGN_OR_RETURN(member.stored_size, directory.Read<uint32_t>("size"));
  ASSIGN_OR_RETURN(member.size, directory.Read<uint32_t>("size"));
  ASSIGN_OR_RETURN(const auto name, directory.Read<uint16_t>("name length"));
  ASSIGN_OR_RETURN(const auto extra, directory.Read<uint16_t>("extra length"));
  ASSIGN_OR_RETURN(const auto comment, directory.Read<uint16_t>("comment"));
  RETURN_IF_ERROR(directory.Skip("entry", 8));  // disk, attributes
  ASSIGN_OR_RETURN(member.header_offset, directory.Read<uint32_t>("offset"));
  ASSIGN_OR_RETURN(member.name, directory.String("name", name));
  ASSIGN_OR_RETURN(const auto fields, directory.Bytes("extra fields", extra));
  RETURN_IF_ERROR(directory.Skip("comment", comment));
  RETURN_IF_ERROR(WidenMember(fields, member));
  if (member.IsStored() && member.stored_size != member.size) {
    return MakeError(Code::kCorrupt,
                     "zip: member {} of {} bytes is stored as {}",
                     QuoteName(member.name), member.size, member.stored_size);
  }
  return member;
}

Error InMember(Error error, const ZipMember& member) {
  return std::move(error).AddContext(
      fmt::format("zip: member {}", QuoteName(member.name)));
}

// Where the bytes begin, by the local header.
Result<uint64_t> StartFromHeader(std::span<const std::byte> header,
                                 const ZipMember& member) {
  ByteReader reader("local header", header);
  ASSIGN_OR_RETURN(const auto signature, reader.Read<uint32_t>("signature"));
  RETURN_IF_ERROR(reader.Skip("fields", 22));
  ASSIGN_OR_RETURN(const auto name, reader.Read<uint16_t>("name length"));
  ASSIGN_OR_RETURN(const auto extra, reader.Read<uint16_t>("extra length"));
  const uint64_t start = member.header_offset + kLocalHeaderSize + name + extra;
  if (signature != kLocalHeader || name != member.name.size() ||
      !RangeFits(start, member.stored_size, member.limit)) {
    return InMember(
        MakeError(Code::kCorrupt, "there is no local header of it at {}",
                  member.header_offset),
        member);
  }
  return start;
}

// Where the bytes begin if the archive was written by torch, or leaves no room
// for anything else; nothing if neither holds.
std::optional<uint64_t> PredictStart(const ZipMember& member,
                                     uint64_t alignment) {
  const uint64_t named =
      member.header_offset + kLocalHeaderSize + member.name.size();
  const bool described = (member.flags & kDescriptorFlag) != 0;
  if (!described && named + member.stored_size == member.limit) return named;
  const bool wide_size = member.stored_size >= kMaxU32;
  const bool wide_offset = member.header_offset >= kMaxU32;
  uint64_t extra = 4;
  if (wide_size || wide_offset) extra += 4;
  if (wide_size) extra += 16;
  if (wide_offset) extra += 8;
  const uint64_t start = AlignUp(named + extra, alignment);
  uint64_t descriptor = 0;
  if (described) descriptor = wide_size || wide_offset ? 24 : 16;
  if (start > member.limit ||
      member.limit - start != member.stored_size + descriptor) {
    return std::nullopt;
  }
  return start;
}

// One read of several headers: those of order[first, last).
struct HeaderRun {
  size_t first = 0;
  size_t last = 0;
  uint64_t begin = 0;  // bytes
  uint64_t end = 0;
};

// `order` are ordinals into `members`, by the place of the header.
std::vector<HeaderRun> PlanHeaderReads(
    std::span<const ZipMember* const> members, std::span<const size_t> order) {
  std::vector<HeaderRun> runs;
  for (size_t i = 0; i < order.size(); ++i) {
    const uint64_t begin = members[order[i]]->header_offset;
    const uint64_t end = begin + kLocalHeaderSize;
    if (!runs.empty() && begin <= runs.back().end + kMaxHeaderGap &&
        end - runs.back().begin <= kMaxHeaderRead) {
      runs.back().last = i + 1;
      runs.back().end = end;
    } else {
      runs.push_back({i, i + 1, begin, end});
    }
  }
  return runs;
}

// Fills `starts` for the members in `order`.
Result<> ReadHeaders(const WindowReader& reader,
                     std::span<const ZipMember* const> members,
                     std::vector<size_t> order,
                     std::vector<Result<uint64_t>>& starts) {
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return members[a]->header_offset < members[b]->header_offset;
  });
  const auto runs = PlanHeaderReads(members, order);
  if (runs.size() > kMaxZipHeaderReads) {
    return MakeError(Code::kUnsupported,
                     "zip: {} reads would be needed to find where its members "
                     "begin",
                     runs.size());
  }
  std::vector<std::byte> bytes;
  for (const HeaderRun& run : runs) {
    bytes.resize(run.end - run.begin);
    RETURN_IF_ERROR(reader.source().ReadAt(run.begin, bytes));
    for (size_t i = run.first; i < run.last; ++i) {
      const ZipMember& member = *members[order[i]];
      starts[order[i]] = StartFromHeader(
          std::span(bytes).subspan(member.header_offset - run.begin,
                                   kLocalHeaderSize),
          member);
    }
  }
  return {};
}

// The end of what is read of a small member.
uint64_t MemberEnd(const ZipMember& member) {
  return std::min(member.limit, member.header_offset + kLocalHeaderSize +
                                    member.name.size() + kMaxU16 +
                                    member.stored_size);
}

Result<> CheckReadable(const ZipMember& member, uint64_t max_size) {
  if (member.IsEncrypted()) {
    return InMember(MakeError(Code::kUnsupported, "is encrypted"), member);
  }
  if (member.method != 0 && member.method != 8) {
    return InMember(
        MakeError(Code::kUnsupported, "compression method {}", member.method),
        member);
  }
  if (member.stored_size > max_size || member.size > max_size) {
    return InMember(
        MakeError(Code::kUnsupported, "{} bytes, at most {} are read",
                  std::max(member.size, member.stored_size), max_size),
        member);
  }
  if (member.method == 0 && member.stored_size != member.size) {
    return InMember(MakeError(Code::kCorrupt, "is stored, with sizes {} and {}",
                              member.stored_size, member.size),
                    member);
  }
  return {};
}

// What is in the member; its bytes are in a window.
Result<std::string> Extract(WindowReader& reader, const ZipMember& member) {
  ASSIGN_OR_RETURN(const auto header,
                   reader.Read(member.header_offset, kLocalHeaderSize));
  ASSIGN_OR_RETURN(const uint64_t start, StartFromHeader(header, member));
  ASSIGN_OR_RETURN(const auto bytes, reader.Read(start, member.stored_size));
  if (member.method == 0) return std::string(AsText(bytes));
  auto inflated = Inflate(bytes, member.size);
  if (inflated.has_value()) return inflated;
  return InMember(std::move(inflated).error(), member);
}

}  // namespace

Result<ZipReader> ZipReader::Open(WindowReader& reader) {
  ASSIGN_OR_RETURN(const EndOfZip end, ReadEnd(reader));
  ASSIGN_OR_RETURN(const std::string bytes, ReadDirectory(reader, end));
  ByteReader directory("zip", std::as_bytes(std::span(bytes)));
  ZipReader zip;
  zip.members_.reserve(end.count);
  for (uint64_t i = 0; i < end.count; ++i) {
    ASSIGN_OR_RETURN(zip.members_.emplace_back(), ReadCentralHeader(directory));
  }
  if (directory.remaining() > 0) {
    return MakeError(Code::kCorrupt,
                     "zip: {} bytes follow the last of {} entries",
                     directory.remaining(), end.count);
  }
  RETURN_IF_ERROR(zip.Index(end.directory_offset));
  return zip;
}

// Holds the members against each other and makes them findable.
Result<> ZipReader::Index(uint64_t directory_offset) {
  by_name_.resize(members_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0U);
  std::sort(by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) {
    return members_[a].header_offset > members_[b].header_offset;
  });
  uint64_t limit = directory_offset;
  for (const uint32_t i : by_name_) {
    ZipMember& member = members_[i];
    member.limit = limit;
    const auto length =
        CheckedAdd(kLocalHeaderSize + member.name.size(), member.stored_size);
    if (!length || !RangeFits(member.header_offset, *length, limit)) {
      return MakeError(
          Code::kCorrupt,
          "zip: member {} of {} bytes at {} reaches past {}, where "
          "the next or the directory begins",
          QuoteName(member.name), member.stored_size, member.header_offset,
          limit);
    }
    limit = member.header_offset;
  }
  std::sort(by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) {
    return members_[a].name < members_[b].name;
  });
  const auto twice = std::adjacent_find(
      by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) {
        return members_[a].name == members_[b].name;
      });
  if (twice != by_name_.end()) {
    return MakeError(Code::kCorrupt, "zip: member {} comes twice",
                     QuoteName(members_[*twice].name));
  }
  return {};
}

const ZipMember* ZipReader::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name_.begin(), by_name_.end(), name,
      [&](uint32_t a, std::string_view b) { return members_[a].name < b; });
  if (found == by_name_.end() || members_[*found].name != name) return nullptr;
  return &members_[*found];
}

Result<std::vector<std::string>> ZipReader::ReadMembers(
    WindowReader& reader, std::span<const ZipMember* const> members,
    uint64_t max_size) {
  std::vector<const ZipMember*> order(members.begin(), members.end());
  std::sort(order.begin(), order.end(),
            [](const ZipMember* a, const ZipMember* b) {
              return a->header_offset < b->header_offset;
            });
  for (const ZipMember* member : order) {
    RETURN_IF_ERROR(CheckReadable(*member, max_size));
  }
  for (size_t i = 0; i < order.size();) {
    const uint64_t begin = order[i]->header_offset;
    uint64_t end = MemberEnd(*order[i]);
    for (++i; i < order.size(); ++i) {
      if (order[i]->header_offset > end + kMaxMemberGap) break;
      end = MemberEnd(*order[i]);
    }
    if (reader.Known(begin, end - begin)) continue;
    const uint64_t room = std::min(kHeaderRoom, reader.size() - end);
    RETURN_IF_ERROR(reader.Read(begin, end - begin + room));
  }
  std::vector<std::string> contents;
  contents.reserve(members.size());
  for (const ZipMember* member : members) {
    ASSIGN_OR_RETURN(contents.emplace_back(), Extract(reader, *member));
  }
  return contents;
}

Result<std::vector<Result<uint64_t>>> ZipReader::Locate(
    WindowReader& reader, std::span<const ZipMember* const> members,
    uint64_t alignment) {
  std::vector<Result<uint64_t>> starts(members.size(), Result<uint64_t>(0));
  std::vector<size_t> predicted;
  std::vector<size_t> unknown;
  bool trusted = true;
  for (size_t i = 0; i < members.size(); ++i) {
    const ZipMember& member = *members[i];
    const auto prediction = PredictStart(member, alignment);
    const auto header = reader.Known(member.header_offset, kLocalHeaderSize);
    if (header) {
      starts[i] = StartFromHeader(*header, member);
      if (prediction && (!starts[i].has_value() || *starts[i] != *prediction)) {
        trusted = false;
      }
    } else if (prediction) {
      starts[i] = *prediction;
      predicted.push_back(i);
    } else {
      unknown.push_back(i);
    }
  }
  if (!trusted) {
    unknown.insert(unknown.end(), predicted.begin(), predicted.end());
  }
  RETURN_IF_ERROR(ReadHeaders(reader, members, std::move(unknown), starts));
  return starts;
}

}  // namespace weightfs
