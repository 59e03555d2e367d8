// Loops over panels and tiles, for `qcore_linear` and for the decoder, which starts its own threads.
#pragma once
#include "common/kernels.h"

namespace qcore {

constexpr int kTokensAtOnce = 256;  // tokens whose sums a thread keeps while it runs over a weight's columns

// Multiply the panels first … last − 1 by up to 4 tokens.
void few_panels(const Weight& w, int mode, const Activations& x, int tokens, int64_t first, int64_t last,
                const float* bias, float* y, int64_t y_stride);
// Multiply the panels 2 * pair and 2 * pair + 1 by the tiles first_tile … last_tile − 1, at most
// kTokensAtOnce tokens.
void many_pair(const Weight& w, int mode, const Activations& x, int64_t first_tile, int64_t last_tile,
               int64_t pair, const float* bias, float* y, int64_t y_stride, Stretch& stretch);
// Dequantize the columns first … last − 1 of one row of the weight into out.
void read_row(const Weight& w, int64_t row, int64_t first, int64_t last, float* out);

}  // namespace qcore
