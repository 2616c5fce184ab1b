// The codebooks of GGUF's IQ types: lists of points of 4 or 8 coordinates. A
// block names a point by its position. Made at first use; safe for concurrent
// use.

#ifndef WEIGHTFS_FORMATS_GGUF_GRIDS_H_
#define WEIGHTFS_FORMATS_GGUF_GRIDS_H_

#include <array>
#include <cstdint>
#include <vector>

namespace weightfs {

using GridOf8 = std::vector<std::array<int8_t, 8>>;
using GridOf4 = std::vector<std::array<int8_t, 4>>;

const GridOf8& Iq2XxsGrid();  // 256 points
const GridOf8& Iq2XsGrid();   // 512
const GridOf8& Iq2SGrid();    // 1,024
const GridOf8& Iq1SGrid();    // 2,048; IQ1_M's, too
const GridOf4& Iq3XxsGrid();  // 256
const GridOf4& Iq3SGrid();    // 512

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_GGUF_GRIDS_H_
