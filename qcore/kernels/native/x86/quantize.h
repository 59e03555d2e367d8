// Choosing codes for a matrix of weights: what a call needs to know. The arithmetic is that of methods/rtn.py, operation by operation,
// so that the results are the same bits.
#pragma once
#include "common/buffer.h"

namespace qcore {

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

struct QuantizeJob {
  int32_t dtype;      // of the weights
  int32_t bits;       // 2 … 8
  int32_t symmetric;  // uniform formats
  int64_t rows, columns;
  int64_t stride;     // elements from a row of weights to the next; columns lie next to one another
  int64_t group;      // columns of a group, a multiple of 8; all of them for one group a row
  int64_t row_bytes;  // of packed codes
  Buffer<const void> weight;
  Buffer<const float> midpoints;  // 15 ascending thresholds of a table of values; absent for uniform formats
  Buffer<const uint8_t> order;    // 16: code of each of the 16 intervals
  Buffer<const float> kept;       // (rows, groups) scales to choose codes for; absent: those found here (rounded to half for uniform formats)
  Buffer<float> scale;            // (rows, groups) as found, if wanted (not with `kept`)
  Buffer<uint16_t> half;          // (rows, groups) the same in half precision, if wanted
  Buffer<uint8_t> zero;           // (rows, groups) zero points of asymmetric formats: written, or read with `kept`
  Buffer<uint8_t> codes;          // (rows, row_bytes), if wanted
};

// One row of the job. `buffer` holds `columns` floats, for weights that have to be widened. Returns false if a scale is no finite half.
bool quantize_row_avx2(const QuantizeJob& job, int64_t row, float* buffer);

}  // namespace qcore
