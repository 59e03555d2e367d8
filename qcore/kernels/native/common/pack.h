// Reads and writes the codes of blocks, one by one; and with AVX2 whole blocks of 8 or 4 bits, which most
// weights have.
#pragma once
#include "common/layout.h"

namespace qcore {

// Return the code at byte `at` of a step of a block. Row tables have other blocks.
inline uint8_t code_at(int kind, const uint8_t* block, int step, int at) {
  const int codes = codes_of(kind);
  if (codes == kBits8) return block[32 * step + at];
  const bool narrow = codes == kBits3 || codes == kBits2;
  // The bits of two planes: 4 or 2 bits, then what is left.
  const uint8_t low = narrow ? (block[32 * (step / 4) + at] >> (2 * (step % 4))) & 3
                             : (block[32 * (step / 2) + at] >> (4 * (step % 2))) & 15;
  switch (codes) {
    case kBits6: return low | ((block[128 + 32 * (step / 4) + at] >> (2 * (step % 4))) & 3) << 4;
    case kBits5: return low | ((block[128 + at] >> step) & 1) << 4;
    case kBits3: return low | ((block[64 + at] >> step) & 1) << 2;
    default: return low;
  }
}

// Store a code in a block that is zero there.
inline void put_code(int kind, uint8_t* block, int step, int at, uint8_t code) {
  const int codes = codes_of(kind);
  if (codes == kBits8) {
    block[32 * step + at] = code;
  } else if (codes == kBits3 || codes == kBits2) {
    block[32 * (step / 4) + at] |= (code & 3) << (2 * (step % 4));
    if (codes == kBits3) block[64 + at] |= (code >> 2) << step;
  } else {
    block[32 * (step / 2) + at] |= (code & 15) << (4 * (step % 2));
    if (codes == kBits5) block[128 + at] |= (code >> 4) << step;
    if (codes == kBits6) block[128 + 32 * (step / 4) + at] |= (code >> 4) << (2 * (step % 4));
  }
}

// Convert one block of 8 rows x 32 columns. The panel has `bits` (8 or 4) per code; `codes` has one byte per
// code and `stride` bytes per row.
void write_block_avx2(int bits, const uint8_t* codes, int64_t stride, uint8_t* out);
void read_block_avx2(int bits, const uint8_t* in, uint8_t* codes, int64_t stride);

}  // namespace qcore
