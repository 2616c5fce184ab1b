#include "formats/gather.h"

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "formats/base/checked.h"
#include "formats/text.h"

namespace weightfs {
namespace {

// A tensor whose runs are at least this long, and not more than this many,
// is a list of ranges and needs no copying.
constexpr uint64_t kLongRun = 64 * 1024;  // bytes
constexpr uint64_t kMaxLongRuns = 16 * 1024;

// One dimension in bytes.
struct Axis {
  uint64_t count = 0;
  uint64_t stride = 0;
};

// Where a tensor's bytes lie in its storage. The last axis is a run of bytes
// that lie side by side (stride 1): the item's own, and those of the inner
// dimensions that are dense.
struct Layout {
  uint64_t base = 0;  // the first byte
  std::vector<Axis> axes;

  uint64_t run() const { return axes.back().count; }
  uint64_t size() const {
    uint64_t size = 1;
    for (const Axis& axis : axes) size *= axis.count;
    return size;
  }
};

// Calls fn(address, length) for each run of the output [offset, offset +
// length), in order of the output.
template <class Fn>
void ForEachRun(const Layout& layout, uint64_t offset, uint64_t length,
                Fn&& fn) {
  if (length == 0) return;
  const size_t outer = layout.axes.size() - 1;
  const uint64_t run = layout.run();
  uint64_t row = offset / run;
  uint64_t skip = offset % run;
  std::vector<uint64_t> at(outer);
  uint64_t address = layout.base;
  for (size_t i = outer; i-- > 0;) {
    const Axis& axis = layout.axes[i];
    at[i] = row % axis.count;
    row /= axis.count;
    address += at[i] * axis.stride;
  }
  while (true) {
    const uint64_t take = std::min(run - skip, length);
    fn(address + skip, take);
    length -= take;
    skip = 0;
    if (length == 0) return;
    for (size_t i = outer; i-- > 0;) {
      const Axis& axis = layout.axes[i];
      address += axis.stride;
      if (++at[i] < axis.count) break;
      address -= axis.count * axis.stride;
      at[i] = 0;
    }
  }
}

// memcpy, with the lengths of items inlined.
void CopyShort(std::byte* to, const std::byte* from, uint64_t length) {
  switch (length) {
    case 1:
      *to = *from;
      break;
    case 2:
      std::memcpy(to, from, 2);
      break;
    case 4:
      std::memcpy(to, from, 4);
      break;
    case 8:
      std::memcpy(to, from, 8);
      break;
    default:
      std::memcpy(to, from, length);
  }
}

class Gather final : public Transform {
 public:
  Gather(Layout layout, std::vector<SourceRange> storage)
      : layout_(std::move(layout)),
        size_(layout_.size()),
        storage_(std::move(storage)) {
    uint64_t end = 0;
    for (const SourceRange& range : storage_) {
      starts_.push_back(end);
      end += range.length;
    }
    rows_.resize(layout_.axes.size() - 1);
    uint64_t rows = 1;
    for (size_t i = rows_.size(); i-- > 0;) {
      rows_[i] = rows;
      rows *= layout_.axes[i].count;
    }
  }

  uint64_t size() const override { return size_; }

  std::vector<SourceRange> Inputs(uint64_t offset,
                                  uint64_t length) const override {
    std::vector<SourceRange> inputs;
    for (const Run& run : Runs(offset, length)) {
      const auto next =
          std::upper_bound(starts_.begin(), starts_.end(), run.address);
      const size_t i = static_cast<size_t>(next - starts_.begin()) - 1;
      inputs.push_back({storage_[i].object,
                        storage_[i].offset + (run.address - starts_[i]),
                        run.length});
    }
    return inputs;
  }

  void Apply(uint64_t offset,
             std::span<const std::span<const std::byte>> inputs,
             std::span<std::byte> out) const override {
    const std::vector<Run> runs = Runs(offset, out.size());
    assert(runs.size() == inputs.size());
    std::byte* to = out.data();
    size_t at = 0;  // the run that was used last
    ForEachRun(
        layout_, offset, out.size(), [&](uint64_t address, uint64_t length) {
          while (length > 0) {
            at = FindRun(runs, address, at);
            const uint64_t from = address - runs[at].address;
            const uint64_t take = std::min(length, runs[at].length - from);
            CopyShort(to, inputs[at].data() + from, take);
            to += take;
            address += take;
            length -= take;
          }
        });
  }

 private:
  // Bytes of the storage.
  struct Run {
    uint64_t address = 0;
    uint64_t length = 0;
    uint64_t end() const { return address + length; }
    bool Holds(uint64_t byte) const {
      return byte >= address && byte - address < length;
    }
  };

  // The run that holds `address`: the last one, the next, or by search.
  static size_t FindRun(const std::vector<Run>& runs, uint64_t address,
                        size_t last) {
    if (runs[last].Holds(address)) return last;
    if (last + 1 < runs.size() && runs[last + 1].Holds(address)) {
      return last + 1;
    }
    const auto next = std::upper_bound(
        runs.begin(), runs.end(), address,
        [](uint64_t byte, const Run& run) { return byte < run.address; });
    return static_cast<size_t>(next - runs.begin()) - 1;
  }

  // The bytes that an output range needs, sorted, joined and disjoint; none
  // crosses from one range of the storage into the next.
  std::vector<Run> Runs(uint64_t offset, uint64_t length) const {
    std::vector<Run> runs;
    // A part of a row, whole rows, a part of a row.
    const uint64_t row = layout_.run();
    uint64_t begin = offset / row;
    const uint64_t end = (offset + length) / row;
    const auto add_part = [&](uint64_t from, uint64_t to) {
      ForEachRun(layout_, from, to - from, [&](uint64_t address, uint64_t n) {
        runs.push_back({address, n});
      });
    };
    if (begin == end) {
      add_part(offset, offset + length);
    } else {
      if (offset % row != 0) add_part(offset, ++begin * row);
      AddRows(0, layout_.base, begin, end, runs);
      add_part(end * row, offset + length);
    }
    const auto by_address = [](const Run& a, const Run& b) {
      return a.address < b.address;
    };
    if (!std::is_sorted(runs.begin(), runs.end(), by_address)) {
      std::sort(runs.begin(), runs.end(), by_address);
    }
    return SplitAtStorage(Join(runs));
  }

  // Adds the runs of rows [begin, end), counted from `base` over the axes from
  // `level` on: a part of the first step of that axis, whole steps, and a part
  // of the last.
  void AddRows(size_t level, uint64_t base, uint64_t begin, uint64_t end,
               std::vector<Run>& runs) const {
    if (begin >= end) return;
    const Axis& axis = layout_.axes[level];
    const uint64_t rows = rows_[level];  // in one step
    const uint64_t first = begin / rows;
    const uint64_t last = end / rows;
    if (first == last) {
      AddRows(level + 1, base + first * axis.stride, begin % rows, end % rows,
              runs);
      return;
    }
    uint64_t whole = first;
    if (begin % rows != 0) {
      AddRows(level + 1, base + first * axis.stride, begin % rows, rows, runs);
      ++whole;
    }
    AddBox(level, base + whole * axis.stride, last - whole, runs);
    AddRows(level + 1, base + last * axis.stride, 0, end % rows, runs);
  }

  // Adds the runs of `count` steps of the axis `level`, whole in the axes
  // inside it, and sorted where no axis steps into another's reach.
  void AddBox(size_t level, uint64_t base, uint64_t count,
              std::vector<Run>& runs) const {
    if (count == 0) return;
    std::vector<Axis> axes(
        layout_.axes.begin() + static_cast<std::ptrdiff_t>(level),
        layout_.axes.end() - 1);
    axes[0].count = count;
    std::sort(axes.begin(), axes.end(),
              [](const Axis& a, const Axis& b) { return a.stride > b.stride; });
    uint64_t length = layout_.run();
    while (!axes.empty() && axes.back().stride <= length + kMaxGatherGap) {
      length += (axes.back().count - 1) * axes.back().stride;
      axes.pop_back();
    }
    std::vector<uint64_t> at(axes.size());
    uint64_t address = base;
    bool more = true;
    while (more) {
      runs.push_back({address, length});
      more = false;
      for (size_t i = axes.size(); i-- > 0;) {
        address += axes[i].stride;
        more = ++at[i] < axes[i].count;
        if (more) break;
        address -= axes[i].count * axes[i].stride;
        at[i] = 0;
      }
    }
  }

  static std::vector<Run> Join(const std::vector<Run>& runs) {
    std::vector<Run> joined;
    for (const Run& run : runs) {
      if (joined.empty() || run.address > joined.back().end() + kMaxGatherGap) {
        joined.push_back(run);
      } else {
        Run& last = joined.back();
        last.length = std::max(last.end(), run.end()) - last.address;
      }
    }
    return joined;
  }

  std::vector<Run> SplitAtStorage(std::vector<Run> runs) const {
    if (starts_.size() == 1) return runs;
    std::vector<Run> split;
    for (Run run : runs) {
      auto border =
          std::upper_bound(starts_.begin(), starts_.end(), run.address);
      for (; border != starts_.end() && *border < run.end(); ++border) {
        const uint64_t length = *border - run.address;
        if (length > 0) split.push_back({run.address, length});
        run = {*border, run.length - length};
      }
      split.push_back(run);
    }
    return split;
  }

  const Layout layout_;
  const uint64_t size_;
  const std::vector<SourceRange> storage_;
  std::vector<uint64_t> starts_;  // where storage_[i] begins, in the storage
  std::vector<uint64_t> rows_;    // runs in one step of each outer axis
};

// Checks the tensor against its storage of `storage_size` bytes and lays it out
// in bytes. REQUIRES: no dimension is 0.
Result<Layout> MakeLayout(const TensorInfo& tensor, uint64_t storage_size) {
  const uint64_t item = DTypeBits(tensor.dtype) / 8;
  const auto past_end = [&] {
    return MakeError(Code::kCorrupt,
                     "tensor {} reaches past its storage of {} bytes",
                     QuoteName(tensor.name), storage_size);
  };
  const auto base = CheckedMul(tensor.storage_offset, item);
  if (!base) return past_end();
  std::optional<uint64_t> end = CheckedAdd(*base, item);
  Layout layout;
  layout.base = *base;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    const uint64_t count = tensor.shape[i];
    if (count == 1) continue;
    const auto stride = CheckedMul(tensor.strides[i], item);
    const auto reach = stride ? CheckedMul(*stride, count - 1) : stride;
    end = end && reach ? CheckedAdd(*end, *reach) : std::nullopt;
    if (!end) return past_end();
    layout.axes.push_back({count, *stride});
  }
  if (!end || *end > storage_size) return past_end();
  layout.axes.push_back({item, 1});

  // Joins each axis with the one inside it where the two step as one.
  std::vector<Axis> joined;
  for (const Axis& axis : layout.axes) {
    if (!joined.empty() && joined.back().stride == axis.stride * axis.count) {
      joined.back() = {joined.back().count * axis.count, axis.stride};
    } else {
      joined.push_back(axis);
    }
  }
  layout.axes = std::move(joined);
  return layout;
}

// True if the strides are those of a dense tensor; dimensions of 1 may have
// any.
bool IsContiguous(const TensorInfo& tensor) {
  uint64_t expected = 1;
  for (size_t i = tensor.shape.size(); i-- > 0;) {
    if (tensor.shape[i] == 1) continue;
    if (tensor.strides[i] != expected) return false;
    expected *= tensor.shape[i];
  }
  return true;
}

// Where a tensor of less than a byte an element, or of blocks, begins in its
// storage.
struct FirstByteResult {
  bool known = false;  // false: past 64 bits
  bool whole = false;  // false: inside of a byte or a block
  uint64_t byte = 0;
};

FirstByteResult FirstByte(const TensorInfo& tensor) {
  const uint64_t elements = IsBlockDType(tensor.dtype)
                                ? BlockElements(tensor.dtype)
                                : 8 / std::gcd(8U, DTypeBits(tensor.dtype));
  const uint64_t bytes = IsBlockDType(tensor.dtype)
                             ? BlockBytes(tensor.dtype)
                             : elements * DTypeBits(tensor.dtype) / 8;
  const auto byte = CheckedMul(tensor.storage_offset / elements, bytes);
  return {byte.has_value(), tensor.storage_offset % elements == 0,
          byte.value_or(0)};
}

std::vector<Segment> AsSegments(const std::vector<SourceRange>& ranges) {
  std::vector<Segment> segments;
  segments.reserve(ranges.size());
  for (const SourceRange& range : ranges) {
    segments.emplace_back(SourceSegment{range});
  }
  return segments;
}

}  // namespace

std::vector<SourceRange> SliceRanges(const std::vector<SourceRange>& ranges,
                                     uint64_t offset, uint64_t length) {
  std::vector<SourceRange> slice;
  for (const SourceRange& range : ranges) {
    if (length == 0) break;
    if (offset >= range.length) {
      offset -= range.length;
      continue;
    }
    const uint64_t take = std::min(length, range.length - offset);
    slice.push_back({range.object, range.offset + offset, take});
    length -= take;
    offset = 0;
  }
  return slice;
}

Result<std::vector<Segment>> GatherSegments(const TensorInfo& tensor) {
  if (tensor.strides.size() != tensor.shape.size()) {
    return MakeError(
        Code::kInvalid, "tensor {} has {} strides for {} dimensions",
        QuoteName(tensor.name), tensor.strides.size(), tensor.shape.size());
  }
  ASSIGN_OR_RETURN(const uint64_t size, DenseSize(tensor.dtype, tensor.shape));
  if (size == 0) return std::vector<Segment>();
  std::optional<uint64_t> storage = 0;
  std::vector<SourceRange> ranges;
  for (const SourceRange& range : tensor.data) {
    if (range.length == 0) continue;
    ranges.push_back(range);
    storage = storage ? CheckedAdd(*storage, range.length) : storage;
  }
  if (!storage) {
    return MakeError(Code::kInvalid, "tensor {}: its storage overflows 64 bits",
                     QuoteName(tensor.name));
  }

  const uint64_t bits = DTypeBits(tensor.dtype);
  if (IsBlockDType(tensor.dtype) || bits % 8 != 0) {
    const auto first = FirstByte(tensor);
    if (!IsContiguous(tensor) || (first.known && !first.whole)) {
      return MakeError(Code::kUnsupported, "tensor {} is a strided {}",
                       QuoteName(tensor.name), DTypeName(tensor.dtype));
    }
    if (!first.known || !RangeFits(first.byte, size, *storage)) {
      return MakeError(Code::kCorrupt,
                       "tensor {} reaches past its storage of {} bytes",
                       QuoteName(tensor.name), *storage);
    }
    return AsSegments(SliceRanges(ranges, first.byte, size));
  }

  ASSIGN_OR_RETURN(Layout layout, MakeLayout(tensor, *storage));
  if (layout.axes.size() == 1) {
    return AsSegments(SliceRanges(ranges, layout.base, size));
  }
  if (layout.run() >= kLongRun && size / layout.run() <= kMaxLongRuns) {
    std::vector<Segment> segments;
    ForEachRun(layout, 0, size, [&](uint64_t address, uint64_t length) {
      for (const SourceRange& range : SliceRanges(ranges, address, length)) {
        segments.emplace_back(SourceSegment{range});
      }
    });
    return segments;
  }
  return std::vector<Segment>{TransformSegment{
      std::make_shared<const Gather>(std::move(layout), std::move(ranges))}};
}

}  // namespace weightfs
