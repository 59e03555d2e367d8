// Norms of rows and of heads, by their kind.
#pragma once
#include "common/decoder.h"
#include "x86/math_avx2.h"

namespace qcore {

// The sum of f(x) over n floats.
template <class F>
float sum_of(const float* x, int64_t n, F&& f) {
  __m256 a = _mm256_setzero_ps(), b = a;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    a = f(_mm256_loadu_ps(x + i), a);
    b = f(_mm256_loadu_ps(x + i + 8), b);
  }
  float sum = horizontal_sum(_mm256_add_ps(a, b));
  for (; i < n; ++i) sum += _mm256_cvtss_f32(f(_mm256_set1_ps(x[i]), _mm256_setzero_ps()));
  return sum;
}

inline float sum_of_squares(const float* x, int64_t n) {
  return sum_of(x, n, [](__m256 v, __m256 sum) { return _mm256_fmadd_ps(v, v, sum); });
}

// What a norm has to know of all its values: out = (x - mean) * factor * weight.
struct Moments {
  float mean, factor;
};

inline Moments moments(const Norm& norm, const float* x) {
  const int64_t n = norm.width;
  if (norm.kind == kRootMeanSquare) return {0.f, 1.f / std::sqrt(sum_of_squares(x, n) / n + norm.epsilon)};
  const float mean = sum_of(x, n, [](__m256 v, __m256 sum) { return _mm256_add_ps(v, sum); }) / n;
  const __m256 means = _mm256_set1_ps(mean);
  const float squares = sum_of(x, n, [&](__m256 v, __m256 sum) {
    const __m256 d = _mm256_sub_ps(v, means);
    return _mm256_fmadd_ps(d, d, sum);
  });
  return {mean, 1.f / std::sqrt(squares / n + norm.epsilon)};
}

// Normalize the n values x, whose weights begin `from` values into those of the norm. out may be x.
inline void normalize(const Norm& norm, Moments of, const float* x, int64_t from, int64_t n, float* out) {
  const float* weight = norm.weight.data + from;
  int64_t i = 0;
  const __m256 f = _mm256_set1_ps(of.factor);
  if (norm.kind == kRootMeanSquare) {
    const __m256 offset = _mm256_set1_ps(norm.offset);
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_add_ps(_mm256_loadu_ps(weight + i), offset),
                                              _mm256_mul_ps(_mm256_loadu_ps(x + i), f)));
    for (; i < n; ++i) out[i] = (weight[i] + norm.offset) * (x[i] * of.factor);
    return;
  }
  const float* bias = norm.bias.data ? norm.bias.data + from : nullptr;
  const __m256 mean = _mm256_set1_ps(of.mean);
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), f);
    _mm256_storeu_ps(out + i, _mm256_fmadd_ps(v, _mm256_loadu_ps(weight + i),
                                              bias ? _mm256_loadu_ps(bias + i) : _mm256_setzero_ps()));
  }
  for (; i < n; ++i) out[i] = (x[i] - of.mean) * of.factor * weight[i] + (bias ? bias[i] : 0.f);
}

// Normalize a row of `norm.width` values. out may be x.
inline void normalize(const Norm& norm, const float* x, float* out) {
  normalize(norm, moments(norm, x), x, 0, norm.width, out);
}

}  // namespace qcore
