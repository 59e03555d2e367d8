// Blocks of 8-bit and 4-bit codes, which most weights have, packed with AVX2. pack.cpp handles the other
// widths.
#pragma once
#include "common/layout.h"

namespace qcore {

// Convert one block of 8 rows x 32 columns. The panel has `bits` (8 or 4) per code; `codes` has one byte per
// code and `stride` bytes per row.
void write_block_avx2(int bits, const uint8_t* codes, int64_t stride, uint8_t* out);
void read_block_avx2(int bits, const uint8_t* in, uint8_t* codes, int64_t stride);

}  // namespace qcore
