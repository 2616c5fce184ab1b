// ZipWriter: a zip archive of stored records as a list of segments, laid out as
// torch.save lays out its files. Spec: formats/pt.md.
//
// Not thread-safe. The segments it makes are immutable.

#ifndef WEIGHTFS_FORMATS_ZIP_WRITER_H_
#define WEIGHTFS_FORMATS_ZIP_WRITER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/segment.h"

namespace weightfs {

// Each record's bytes begin at a multiple of this.
inline constexpr uint64_t kZipAlignment = 64;

// CRC-32 as zip has it (reflected, polynomial 0xEDB88320).
uint32_t Crc32(std::string_view bytes);

class ZipWriter {
 public:
  // A record of known bytes, with its true CRC.
  void AddLiteral(std::string_view name, std::string_view bytes);
  // A record whose bytes are not read yet: its CRC is 0 (right if it is empty).
  void AddSegments(std::string_view name, const std::vector<Segment>& data);
  // The archive, its directory included. Call once, last.
  std::vector<Segment> Finish();

 private:
  struct Entry {
    std::string name;
    uint32_t crc = 0;
    uint64_t size = 0;    // bytes
    uint64_t offset = 0;  // of the local header, from the archive's start
  };

  void BeginRecord(std::string_view name, uint32_t crc, uint64_t size);
  void AppendDirectoryEntry(const Entry& entry);
  void AppendEnd(uint64_t directory_offset);
  uint64_t Position() const { return flushed_ + literal_.size(); }
  void Flush();

  std::vector<Entry> entries_;
  std::vector<Segment> segments_;
  uint64_t flushed_ = 0;  // bytes in segments_
  std::string literal_;   // bytes that come after them
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_ZIP_WRITER_H_
