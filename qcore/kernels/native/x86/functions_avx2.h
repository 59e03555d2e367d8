// Activation functions and caps.
#pragma once
#include "common/decoder.h"
#include "x86/math_avx2.h"

namespace qcore {

// x / (1 + e^-z). NaN propagates, because x is a factor.
inline __m256 sigmoid_times(__m256 z, __m256 x) {
  const __m256 e = exp(_mm256_sub_ps(_mm256_setzero_ps(), z));
  return _mm256_div_ps(x, _mm256_add_ps(e, _mm256_set1_ps(1.f)));
}

// GELU by the error function: x / 2 * erfc(-x / sqrt 2). erfc(y) = t (a1 + t (a2 + …)) e^(-y^2) with
// t = 1 / (1 + p y) for y >= 0: Abramowitz and Stegun, 7.1.26, to 1.5e-7.
inline __m256 gelu(__m256 x) {
  const __m256 y = _mm256_mul_ps(x, _mm256_set1_ps(0.70710678f)), sign = _mm256_set1_ps(-0.f);
  const __m256 size = _mm256_andnot_ps(sign, y), one = _mm256_set1_ps(1.f);
  const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.3275911f), one));
  __m256 p = _mm256_set1_ps(1.061405429f);
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-1.453152027f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(1.421413741f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(-0.284496736f));
  p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(0.254829592f));
  const __m256 square = _mm256_mul_ps(size, size);
  const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(p, t), exp(_mm256_sub_ps(_mm256_setzero_ps(), square)));
  // erfc(-y) is 2 - tail for y >= 0, and tail for y < 0
  const __m256 factor = _mm256_blendv_ps(_mm256_sub_ps(_mm256_set1_ps(2.f), tail), tail, y);
  return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(0.5f)), factor);
}

// By its tanh approximation: because of (1 + tanh(y)) / 2 = 1 / (1 + e^-2y), with the exponent
// 2 sqrt(2 / pi) (x + 0.044715 x^3).
inline __m256 gelu_tanh(__m256 x) {
  const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044715f), _mm256_set1_ps(1.f));
  return sigmoid_times(_mm256_mul_ps(_mm256_mul_ps(x, cubic), _mm256_set1_ps(1.5957691216f)), x);
}

inline __m256 activate(int64_t function, __m256 x) {
  switch (function) {
    case kSilu: return sigmoid_times(x, x);
    case kGeluTanh: return gelu_tanh(x);
    case kGelu: return gelu(x);
    case kGeluQuick: return sigmoid_times(_mm256_mul_ps(x, _mm256_set1_ps(1.702f)), x);
    default: break;
  }
  const __m256 positive = _mm256_max_ps(_mm256_setzero_ps(), x);  // NaN in the second argument stays
  return function == kReluSquared ? _mm256_mul_ps(positive, positive) : positive;
}

// cap * tanh(x / cap) = cap * (1 - 2 / (1 + e^(2x / cap))), with an error of about 1e-7 * cap.
inline __m256 capped(__m256 x, float cap) {
  const __m256 one = _mm256_set1_ps(1.f), two = _mm256_set1_ps(2.f);
  const __m256 e = exp(_mm256_mul_ps(x, _mm256_set1_ps(2.f / cap)));
  const __m256 tanh = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(e, one)));
  return _mm256_mul_ps(tanh, _mm256_set1_ps(cap));
}

}  // namespace qcore
