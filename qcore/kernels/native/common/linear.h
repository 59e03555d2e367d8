// The loops over panels and tiles, for `qcore_linear` and for the decoder, which has threads of its own.
#pragma once
#include "common/kernels.h"

namespace qcore {

constexpr int kTokensAtOnce = 256;  // tokens whose sums a thread keeps while a weight's columns pass by

// Panels first … last − 1 for up to 4 tokens.
void few_panels(const Weight& w, int mode, const Activations& x, int tokens, int64_t first, int64_t last, const float* bias, float* y, int64_t y_stride);
// Panels 2 * pair and 2 * pair + 1 for the tiles first_tile … last_tile − 1, at most kTokensAtOnce tokens.
void many_pair(const Weight& w, int mode, const Activations& x, int64_t first_tile, int64_t last_tile, int64_t pair, const float* bias, float* y,
               int64_t y_stride, Stretch& stretch);
// One row of the weight as floats: out (columns).
void read_row(const Weight& w, int64_t row, float* out);

}  // namespace qcore
