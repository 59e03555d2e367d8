// Round-to-nearest quantization of a matrix: the arguments of a call. The arithmetic follows
// quantization/methods/rtn.py operation by operation, so the results are bitwise equal.
#pragma once
#include "common/buffer.h"

namespace qcore {

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

struct QuantizeJob {
  int32_t dtype;      // of the weights
  int32_t bits;       // 2 … 8
  int32_t symmetric;  // uniform formats
  int64_t rows, columns;
  int64_t stride;     // elements between rows of weights; the weights of a row are contiguous
  int64_t group;      // columns per group: a multiple of 8, or all columns
  int64_t row_bytes;  // of packed codes
  Buffer<const void> weight;
  Buffer<const float> midpoints;  // (15) ascending thresholds between table values; else absent
  Buffer<const uint8_t> order;    // (16) the codes of the intervals between them
  Buffer<const float> kept;       // (rows, groups) input: the scales to use; absent to compute them here
  Buffer<float> scale;            // (rows, groups) output: the computed scales, or absent
  Buffer<uint16_t> half;          // (rows, groups) output: the same in half precision, or absent
  Buffer<uint8_t> zero;           // (rows, groups) output, or input with `kept`; absent for symmetric formats
  Buffer<uint8_t> codes;          // (rows, row_bytes) output, or absent
};

// Quantize one row. `buffer` has room for `columns` floats, for weights that must be widened. Return false if
// a scale is not finite in half precision.
bool quantize_row_avx2(const QuantizeJob& job, int64_t row, float* buffer);

}  // namespace qcore
