// The operations between matrix products.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace qcore {

inline float horizontal_sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// e^x to about 2 units in the last place: 2^n times e^r, the Taylor polynomial of degree 6, |r| <= ln 2 / 2.
inline __m256 exp(__m256 x) {
  // With the arguments in this order, NaN stays NaN.
  x = _mm256_min_ps(_mm256_set1_ps(88.3f), _mm256_max_ps(_mm256_set1_ps(-87.3f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.f / 720);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.f));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

// The dot products of x and four rows of w, which lie `stride` floats apart.
inline void dot4(const float* x, const float* w, int64_t stride, int64_t n, float out[4]) {
  __m256 acc[8] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
    for (int r = 0; r < 4; ++r) {
      _mm_prefetch(reinterpret_cast<const char*>(w + r * stride + i + 256), _MM_HINT_T0);
      acc[2 * r] = _mm256_fmadd_ps(x0, _mm256_loadu_ps(w + r * stride + i), acc[2 * r]);
      acc[2 * r + 1] = _mm256_fmadd_ps(x1, _mm256_loadu_ps(w + r * stride + i + 8), acc[2 * r + 1]);
    }
  }
  for (int r = 0; r < 4; ++r) {
    out[r] = horizontal_sum(_mm256_add_ps(acc[2 * r], acc[2 * r + 1]));
    for (int64_t k = i; k < n; ++k) out[r] += x[k] * w[r * stride + k];
  }
}

}  // namespace qcore
