// The blocks of 8-bit and 4-bit codes, which most weights have, laid out by instructions made for it; pack.cpp does the others.
#pragma once
#include "common/layout.h"

namespace qcore {

// One block of 8 rows x 32 columns with `bits` (8 or 4) a code in the panel and a byte a code, `stride` bytes a row, in `codes`.
void write_block_avx2(int bits, const uint8_t* codes, int64_t stride, uint8_t* out);
void read_block_avx2(int bits, const uint8_t* in, uint8_t* codes, int64_t stride);

}  // namespace qcore
