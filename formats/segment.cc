#include "formats/segment.h"

#include <type_traits>
#include <utility>

namespace weightfs {

uint64_t SegmentSize(const Segment& segment) {
  return std::visit(
      [](const auto& part) -> uint64_t {
        using Part = std::decay_t<decltype(part)>;
        if constexpr (std::is_same_v<Part, LiteralSegment>) {
          return part.bytes->size();
        } else if constexpr (std::is_same_v<Part, SourceSegment>) {
          return part.range.length;
        } else {
          return part.transform->size();
        }
      },
      segment);
}

Segment Literal(std::string bytes) {
  return LiteralSegment{std::make_shared<const std::string>(std::move(bytes))};
}

}  // namespace weightfs
