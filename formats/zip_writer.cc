#include "formats/zip_writer.h"

#include <array>
#include <cstddef>
#include <utility>

namespace weightfs {
namespace {

// APPNOTE.TXT 4.3.
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocator64Signature = 0x07064b50;
constexpr uint64_t kLocalSize = 30;  // bytes, without name and extra fields
constexpr uint16_t kFlagUtf8 = 0x0800;
constexpr uint16_t kVersionStored = 10;
constexpr uint16_t kVersionZip64 = 45;
constexpr uint16_t kZip64Id = 0x0001;
constexpr uint16_t kPaddingId = 0x4246;  // "FB", torch's own
constexpr uint64_t kMax16 = 0xffff;
constexpr uint64_t kMax32 = 0xffffffff;

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320U : 0U);
    }
    table[i] = value;
  }
  return table;
}
constexpr auto kCrcTable = MakeCrcTable();

void Append(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    out += static_cast<char>((value >> (8 * i)) & 0xff);
  }
}
void Append16(std::string& out, uint64_t value) { Append(out, value, 2); }
void Append32(std::string& out, uint64_t value) { Append(out, value, 4); }
void Append64(std::string& out, uint64_t value) { Append(out, value, 8); }

// A field of the old 32-bit form: 0xffffffff says "see the zip64 field".
uint64_t Clip32(uint64_t value) { return value >= kMax32 ? kMax32 : value; }

}  // namespace

uint32_t Crc32(std::string_view bytes) {
  uint32_t crc = 0xffffffffU;
  for (const char c : bytes) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  }
  return ~crc;
}

void ZipWriter::AddLiteral(std::string_view name, std::string_view bytes) {
  BeginRecord(name, Crc32(bytes), bytes.size());
  literal_ += bytes;
}

void ZipWriter::AddSegments(std::string_view name,
                            const std::vector<Segment>& data) {
  uint64_t size = 0;
  for (const Segment& segment : data) size += SegmentSize(segment);
  BeginRecord(name, 0, size);
  Flush();
  segments_.insert(segments_.end(), data.begin(), data.end());
  flushed_ += size;
}

void ZipWriter::BeginRecord(std::string_view name, uint32_t crc,
                            uint64_t size) {
  entries_.push_back({std::string(name), crc, size, Position()});
  const bool zip64 = size >= kMax32;
  const uint64_t zip64_extra = zip64 ? 20 : 0;
  const uint64_t unpadded =
      Position() + kLocalSize + name.size() + zip64_extra + 4;
  const uint64_t padding =
      (kZipAlignment - unpadded % kZipAlignment) % kZipAlignment;

  Append32(literal_, kLocalSignature);
  Append16(literal_, zip64 ? kVersionZip64 : kVersionStored);
  Append16(literal_, kFlagUtf8);
  Append16(literal_, 0);  // stored
  Append32(literal_, 0);  // time and date
  Append32(literal_, crc);
  Append32(literal_, Clip32(size));
  Append32(literal_, Clip32(size));
  Append16(literal_, name.size());
  Append16(literal_, zip64_extra + 4 + padding);
  literal_ += name;
  if (zip64) {
    Append16(literal_, kZip64Id);
    Append16(literal_, 16);
    Append64(literal_, size);
    Append64(literal_, size);
  }
  Append16(literal_, kPaddingId);
  Append16(literal_, padding);
  literal_.append(padding, 'Z');
}

void ZipWriter::AppendDirectoryEntry(const Entry& entry) {
  std::string zip64;
  if (entry.size >= kMax32) {
    Append64(zip64, entry.size);
    Append64(zip64, entry.size);
  }
  if (entry.offset >= kMax32) Append64(zip64, entry.offset);
  const uint16_t version = zip64.empty() ? kVersionStored : kVersionZip64;

  Append32(literal_, kCentralSignature);
  Append16(literal_, version);  // made by
  Append16(literal_, version);  // needed
  Append16(literal_, kFlagUtf8);
  Append16(literal_, 0);  // stored
  Append32(literal_, 0);  // time and date
  Append32(literal_, entry.crc);
  Append32(literal_, Clip32(entry.size));
  Append32(literal_, Clip32(entry.size));
  Append16(literal_, entry.name.size());
  Append16(literal_, zip64.empty() ? 0 : 4 + zip64.size());
  Append16(literal_, 0);  // comment
  Append16(literal_, 0);  // disk
  Append16(literal_, 0);  // internal attributes
  Append32(literal_, 0);  // external attributes
  Append32(literal_, Clip32(entry.offset));
  literal_ += entry.name;
  if (!zip64.empty()) {
    Append16(literal_, kZip64Id);
    Append16(literal_, zip64.size());
    literal_ += zip64;
  }
}

void ZipWriter::AppendEnd(uint64_t directory_offset) {
  const uint64_t end = Position();
  const uint64_t directory_size = end - directory_offset;
  const uint64_t count = entries_.size();
  if (count >= kMax16 || directory_size >= kMax32 ||
      directory_offset >= kMax32) {
    Append32(literal_, kEnd64Signature);
    Append64(literal_, 44);  // bytes of the record after this field
    Append16(literal_, kVersionZip64);
    Append16(literal_, kVersionZip64);
    Append32(literal_, 0);  // this disk
    Append32(literal_, 0);  // the directory's disk
    Append64(literal_, count);
    Append64(literal_, count);
    Append64(literal_, directory_size);
    Append64(literal_, directory_offset);
    Append32(literal_, kLocator64Signature);
    Append32(literal_, 0);  // disk of the record above
    Append64(literal_, end);
    Append32(literal_, 1);  // disks
  }
  const uint64_t count16 = count >= kMax16 ? kMax16 : count;
  Append32(literal_, kEndSignature);
  Append16(literal_, 0);  // this disk
  Append16(literal_, 0);  // the directory's disk
  Append16(literal_, count16);
  Append16(literal_, count16);
  Append32(literal_, Clip32(directory_size));
  Append32(literal_, Clip32(directory_offset));
  Append16(literal_, 0);  // comment
}

std::vector<Segment> ZipWriter::Finish() {
  const uint64_t directory_offset = Position();
  for (const Entry& entry : entries_) AppendDirectoryEntry(entry);
  AppendEnd(directory_offset);
  Flush();
  return std::move(segments_);
}

void ZipWriter::Flush() {
  if (literal_.empty()) return;
  flushed_ += literal_.size();
  segments_.push_back(Literal(std::exchange(literal_, {})));
}

}  // namespace weightfs
