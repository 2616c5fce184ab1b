// ZipReader: the directory of a zip archive, and where its members' bytes lie.
// Spec: APPNOTE.TXT 4.3; what torch's own archives look like: formats/torch.md.
//
// Requests. Open reads the archive's last 256 KiB, which hold the directory of
// about 3,000 members, and what a larger directory has before that by a second
// read. ReadMembers fetches small members with their local headers, those that
// lie close together by one read.
//
// Where a stored member's bytes begin is said by its local header only, which
// lies before them: to read it costs a request for each member of a large
// archive. Locate reads as few of them as can be:
//   - a header that lies in what was read already is looked at;
//   - a member is believed to begin where torch's writer pads it to (a multiple
//     of the alignment) if bytes, descriptor and padding then end to the byte
//     where the next member, or the directory, begins;
//   - a member whose name and bytes fill all the room up to the next one
//     (Python's zipfile) can begin nowhere else;
//   - if one header that is looked at is not where it was believed to be, or
//     none of the above holds, headers are read; those close together at once.
// The directory is trusted for names, sizes and the places of headers, within
// what can be checked: members do not overlap each other or the directory, no
// name comes twice, and the two forms of the end record agree.
//
// CRCs are not checked: torch writes archives without them and does not look.
//
// Immutable once made; safe for concurrent use with one WindowReader each.

#ifndef WEIGHTFS_FORMATS_ZIP_READER_H_
#define WEIGHTFS_FORMATS_ZIP_READER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"
#include "formats/window_reader.h"

namespace weightfs {

// The first read, from the archive's end.
inline constexpr uint64_t kZipTail = 256 * 1024;
inline constexpr uint64_t kMaxZipMembers = 1 << 20;
// Bytes of a directory.
inline constexpr uint64_t kMaxZipDirectory = 128 << 20;
// Reads that Locate does, at most.
inline constexpr size_t kMaxZipHeaderReads = 8192;

struct ZipMember {
  std::string name;            // any bytes
  uint64_t header_offset = 0;  // of the local header
  uint64_t stored_size = 0;    // bytes in the archive
  uint64_t size = 0;           // bytes when inflated
  uint16_t flags = 0;
  uint16_t method = 0;  // 0: stored, 8: deflated
  // Where the next member or the directory begins: this one ends before.
  uint64_t limit = 0;

  // Its bytes lie in the archive as they are.
  bool IsStored() const { return method == 0 && !IsEncrypted(); }
  bool IsEncrypted() const { return (flags & 1) != 0; }
};

class ZipReader {
 public:
  // kCorrupt where it is no zip archive, or one that contradicts itself.
  static Result<ZipReader> Open(WindowReader& reader);

  // In the directory's order.
  const std::vector<ZipMember>& members() const { return members_; }
  // Null if there is none. Valid as long as the reader.
  const ZipMember* Find(std::string_view name) const;

  // What is in `members`, inflated. kUnsupported if one has more than
  // `max_size` bytes, is encrypted, or compressed in another way.
  static Result<std::vector<std::string>> ReadMembers(
      WindowReader& reader, std::span<const ZipMember* const> members,
      uint64_t max_size);

  // Where the bytes of each of `members`, which are stored, begin. The inner
  // error is one member's: it has no good local header. `alignment` is what
  // torch's writer pads to.
  static Result<std::vector<Result<uint64_t>>> Locate(
      WindowReader& reader, std::span<const ZipMember* const> members,
      uint64_t alignment);

 private:
  Result<> Index(uint64_t directory_offset);

  std::vector<ZipMember> members_;
  std::vector<uint32_t> by_name_;  // ordinals into members_
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_ZIP_READER_H_
