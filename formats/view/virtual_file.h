// VirtualFile: a file made of segments. Reading is walking them: Plan() fills
// what is literal and says which source bytes must be read where; Finish()
// applies the transforms once they are there.
//
// VirtualFile is immutable and safe for concurrent use; a ReadPlan belongs to
// one reader.

#ifndef WEIGHTFS_FORMATS_VIEW_VIRTUAL_FILE_H_
#define WEIGHTFS_FORMATS_VIEW_VIRTUAL_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "formats/base/byte_source.h"
#include "formats/base/result.h"
#include "formats/segment.h"

namespace weightfs {

// One range to read: dest.size() bytes of `object` from `offset`.
struct SourceRead {
  uint32_t object = 0;
  uint64_t offset = 0;
  std::span<std::byte> dest;
};

class ReadPlan {
 public:
  ReadPlan() = default;
  ReadPlan(ReadPlan&&) = default;
  ReadPlan& operator=(ReadPlan&&) = default;

  // All must be filled before Finish(). Neighbouring reads of one object that
  // go to neighbouring memory are one.
  const std::vector<SourceRead>& reads() const { return reads_; }
  // Runs the transforms into the reader's buffer. Call once.
  void Finish();

 private:
  friend class VirtualFile;
  struct Pending {
    std::shared_ptr<const Transform> transform;
    uint64_t offset = 0;
    std::vector<std::span<const std::byte>> inputs;
    std::span<std::byte> out;
  };
  void AddTransform(std::shared_ptr<const Transform> transform, uint64_t offset,
                    std::span<std::byte> out);

  std::vector<SourceRead> reads_;
  std::vector<Pending> pending_;
  std::vector<std::unique_ptr<std::byte[]>> scratch_;
};

class VirtualFile {
 public:
  VirtualFile() = default;
  // kUnsupported if the sizes add up to more than 2^63 - 1.
  static Result<VirtualFile> Create(std::vector<Segment> segments);

  uint64_t size() const { return starts_.empty() ? 0 : starts_.back(); }
  const std::vector<Segment>& segments() const { return segments_; }

  // Plans a read of `out.size()` bytes at `offset`. `out` must outlive the
  // plan. kInvalid if the range is not in the file.
  Result<ReadPlan> Plan(uint64_t offset, std::span<std::byte> out) const;

 private:
  std::vector<Segment> segments_;
  std::vector<uint64_t> starts_;  // starts_[i + 1] is where segment i ends
};

// Reads through `objects` (by SourceRead::object), one range after the other.
Result<> ReadVirtual(const VirtualFile& file,
                     std::span<ByteSource* const> objects, uint64_t offset,
                     std::span<std::byte> out);

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_VIEW_VIRTUAL_FILE_H_
