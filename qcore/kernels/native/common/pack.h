// Reads and writes the codes of blocks. Row tables have other blocks.
#pragma once
#include "common/layout.h"

namespace qcore {

// Return the code at byte `at` of a step of a block.
inline uint8_t code_at(Planes planes, const uint8_t* block, int step, int at) {
  const auto bits = [&](int width, const uint8_t* plane) {
    return (plane[32 * (step * width / 8) + at] >> (step * width % 8)) & ((1 << width) - 1);
  };
  const int low = bits(planes.first, block);
  return uint8_t(planes.second ? low | bits(planes.second, block + 32 * planes.first) << planes.first : low);
}

// Convert one block of 8 rows x 32 columns; `codes` has one byte per code and `stride` bytes per row.
void write_block_avx2(Planes planes, const uint8_t* codes, int64_t stride, uint8_t* out);
void read_block_avx2(Planes planes, const uint8_t* in, uint8_t* codes, int64_t stride);

}  // namespace qcore
