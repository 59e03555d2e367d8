// Checks of projections, norms and sizes.
#pragma once
#include "common/decoder.h"

namespace qcore {

inline Status check(const Projection& p, int64_t rows, int64_t columns) {
  if (p.rows != rows || p.columns != columns || p.mode < kFloat || p.mode > kInt8Token) return kBadLayout;
  if (p.bias.data && !p.bias.holds(rows)) return kShortBias;
  if (!p.packed) return p.dense.holds(rows, columns) ? kOk : kShortWeights;
  return p.packed->rows == rows && p.packed->columns == columns ? check(*p.packed) : kBadLayout;
}

// Dense projections: embedding and head only.
inline Status check_packed(const Projection& p, int64_t rows, int64_t columns) {
  return p.packed ? check(p, rows, columns) : kBadLayout;
}

inline Status check(const Norm& norm, int64_t width, int64_t sets = 1) {
  if (norm.kind == kNoNorm) return kOk;
  if (norm.kind != kRootMeanSquare && norm.kind != kLayerNorm) return kBadLayout;
  if (norm.width != width || norm.sets != sets) return kBadLayout;
  if (norm.bias.data && !norm.bias.holds(sets, width)) return kShortBias;
  return norm.weight.holds(sets, width) ? kOk : kShortWeights;
}

inline bool fits(int64_t size) { return size >= 1 && size <= INT32_MAX; }

}  // namespace qcore
