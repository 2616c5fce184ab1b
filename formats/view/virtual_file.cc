#include "formats/view/virtual_file.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <utility>
#include <variant>

#include "formats/base/checked.h"

namespace weightfs {
namespace {

// Adds a read, or lets the last one grow if this one goes on from it in both
// the object and memory.
void AddRead(std::vector<SourceRead>& reads, const SourceRange& range,
             std::span<std::byte> dest) {
  if (dest.empty()) return;
  if (!reads.empty()) {
    SourceRead& last = reads.back();
    if (last.object == range.object &&
        last.offset + last.dest.size() == range.offset &&
        last.dest.data() + last.dest.size() == dest.data()) {
      last.dest = {last.dest.data(), last.dest.size() + dest.size()};
      return;
    }
  }
  reads.push_back({range.object, range.offset, dest});
}

}  // namespace

void ReadPlan::Finish() {
  for (const Pending& pending : pending_) {
    pending.transform->Apply(pending.offset, pending.inputs, pending.out);
  }
  pending_.clear();
  scratch_.clear();
}

Result<VirtualFile> VirtualFile::Create(std::vector<Segment> segments) {
  VirtualFile file;
  file.starts_.reserve(segments.size() + 1);
  file.starts_.push_back(0);
  for (const Segment& segment : segments) {
    const auto end = CheckedAdd(file.starts_.back(), SegmentSize(segment));
    if (!end || *end > std::numeric_limits<int64_t>::max()) {
      return MakeError(Code::kUnsupported,
                       "a file of more than 2^63 - 1 bytes");
    }
    file.starts_.push_back(*end);
  }
  file.segments_ = std::move(segments);
  return file;
}

Result<ReadPlan> VirtualFile::Plan(uint64_t offset,
                                   std::span<std::byte> out) const {
  if (!RangeFits(offset, out.size(), size())) {
    return MakeError(Code::kInvalid, "read of {} bytes at {} is past {}",
                     out.size(), offset, size());
  }
  ReadPlan plan;
  if (out.empty()) return plan;
  const auto next = std::upper_bound(starts_.begin(), starts_.end(), offset);
  auto i = static_cast<size_t>(next - starts_.begin()) - 1;
  for (; !out.empty(); ++i) {
    const uint64_t from = offset - starts_[i];
    const auto take = static_cast<size_t>(
        std::min<uint64_t>(out.size(), starts_[i + 1] - offset));
    if (take == 0) continue;
    const std::span<std::byte> part = out.first(take);
    if (const auto* literal = std::get_if<LiteralSegment>(&segments_[i])) {
      std::memcpy(part.data(), literal->bytes->data() + from, take);
    } else if (const auto* source = std::get_if<SourceSegment>(&segments_[i])) {
      const SourceRange& range = source->range;
      AddRead(plan.reads_, {range.object, range.offset + from, take}, part);
    } else {
      plan.AddTransform(std::get<TransformSegment>(segments_[i]).transform,
                        from, part);
    }
    out = out.subspan(take);
    offset += take;
  }
  return plan;
}

void ReadPlan::AddTransform(std::shared_ptr<const Transform> transform,
                            uint64_t offset, std::span<std::byte> out) {
  const std::vector<SourceRange> inputs = transform->Inputs(offset, out.size());
  size_t total = 0;
  for (const SourceRange& input : inputs) total += input.length;
  // Not value-initialised: every byte is read before it is used.
  scratch_.emplace_back(new std::byte[total]);
  std::byte* at = scratch_.back().get();

  Pending pending;
  pending.inputs.reserve(inputs.size());
  for (const SourceRange& input : inputs) {
    const std::span<std::byte> dest(at, input.length);
    AddRead(reads_, input, dest);
    pending.inputs.emplace_back(dest);
    at += input.length;
  }
  pending.transform = std::move(transform);
  pending.offset = offset;
  pending.out = out;
  pending_.push_back(std::move(pending));
}

Result<> ReadVirtual(const VirtualFile& file,
                     std::span<ByteSource* const> objects, uint64_t offset,
                     std::span<std::byte> out) {
  ASSIGN_OR_RETURN(ReadPlan plan, file.Plan(offset, out));
  for (const SourceRead& read : plan.reads()) {
    if (read.object >= objects.size()) {
      return MakeError(Code::kInvalid, "the file needs object {} of {}",
                       read.object, objects.size());
    }
    RETURN_IF_ERROR(objects[read.object]->ReadAt(read.offset, read.dest));
  }
  plan.Finish();
  return {};
}

}  // namespace weightfs
