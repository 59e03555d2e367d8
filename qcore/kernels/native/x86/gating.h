// The gates of experts: act(g) * u of 8 values at a time.
#pragma once
#include <cstring>

#include "common/mixture.h"
#include "x86/functions_avx2.h"

namespace qcore {

// act(g) * u of 8 values.
inline __m256 gate(const Mixture& m, __m256 g, __m256 u) {
  if (!m.clamped) return _mm256_mul_ps(activate(m.activation, g), u);
  const __m256 limit = _mm256_set1_ps(m.limit);
  g = _mm256_min_ps(limit, g);  // with the arguments in this order, NaN stays NaN
  u = _mm256_min_ps(limit, _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), limit), u));
  const __m256 swish = sigmoid_times(_mm256_mul_ps(g, _mm256_set1_ps(m.alpha)), g);
  return _mm256_mul_ps(swish, _mm256_add_ps(u, _mm256_set1_ps(1.f)));
}

// Of 16 alternating values, the even ones and the odd ones.
inline void part(__m256 a, __m256 b, __m256& even, __m256& odd) {
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  even = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x88), order);
  odd = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xdd), order);
}

// act(gate) * up of a pair, whose `inner` gates and `inner` ups are one row g: alternating, or the gates
// first.
inline void gate_row(const Mixture& m, int64_t inner, bool alternate, const float* g, float* out) {
  int64_t n = 0;
  for (; n + 8 <= inner; n += 8) {
    __m256 a, b;
    if (alternate) {
      part(_mm256_loadu_ps(g + 2 * n), _mm256_loadu_ps(g + 2 * n + 8), a, b);
    } else {
      a = _mm256_loadu_ps(g + n);
      b = _mm256_loadu_ps(g + inner + n);
    }
    _mm256_storeu_ps(out + n, gate(m, a, b));
  }
  if (const int64_t count = inner - n; count > 0) {
    alignas(32) float a[8] = {}, b[8] = {};
    for (int64_t j = 0; j < count; ++j) {
      a[j] = alternate ? g[2 * (n + j)] : g[n + j];
      b[j] = alternate ? g[2 * (n + j) + 1] : g[inner + n + j];
    }
    _mm256_store_ps(a, gate(m, _mm256_load_ps(a), _mm256_load_ps(b)));
    std::memcpy(out + n, a, count * sizeof(float));
  }
}

}  // namespace qcore
