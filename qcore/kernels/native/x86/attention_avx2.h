// Attention of one token over a range of positions, for the query heads that share one key-value head:
// scores, exponentials, and the weighted sum of values.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>

#include "x86/codes_avx2.h"
#include "x86/functions_avx2.h"

namespace qcore {

inline __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load8(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store1(float* p, float v) { *p = v; }
inline void store1(uint16_t* p, float v) { *p = _cvtss_sh(v, 0); }

// scores[h][p] = q[h] · key[p] for N heads and the positions p from `first`, a multiple of 8. Prefetches the
// next keys and the values of the same positions: hardware prefetching stops at page boundaries.
template <int N, class T>
void score(const float* q, int64_t q_stride, const T* keys, const T* values, int64_t size, int64_t first,
           int64_t last, float* scores, int64_t stride) {
  for (int64_t p = first; p < last; p += 16) {
    const T *a = keys + p * size, *b = p + 8 < last ? a + 8 * size : a;
    __m256 acc[2 * N];
    each(Upto<2 * N>(), [&](auto i) { acc[i()] = _mm256_setzero_ps(); });
    const T *next = a + 16 * size, *later = values + p * size;
    for (int64_t d = 0; d < size; ++d) {
      _mm_prefetch(reinterpret_cast<const char*>(next + 16 * d), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(later + 16 * d), _MM_HINT_T0);
      const __m256 k0 = load8(a + 8 * d), k1 = load8(b + 8 * d);
      each(Upto<N>(), [&](auto h) {
        const __m256 x = _mm256_broadcast_ss(q + h() * q_stride + d);
        acc[2 * h()] = _mm256_fmadd_ps(x, k0, acc[2 * h()]);
        acc[2 * h() + 1] = _mm256_fmadd_ps(x, k1, acc[2 * h() + 1]);
      });
    }
    each(Upto<N>(), [&](auto h) {
      _mm256_storeu_ps(scores + h() * stride + p, acc[2 * h()]);
      if (p + 8 < last) _mm256_storeu_ps(scores + h() * stride + p + 8, acc[2 * h() + 1]);
    });
  }
}

// A partial softmax: the largest score, and the sum of e^(score − most).
struct Part {
  float most, sum;
};

// Replace scores[first … last) by e^(score − most). The other scores in their blocks of 8 become 0.
inline Part exponentials(float* scores, int64_t first, int64_t last) {
  const int64_t begin = first / 8 * 8, end = (last + 7) / 8 * 8;
  for (int64_t p = begin; p < first; ++p) scores[p] = -std::numeric_limits<float>::infinity();
  for (int64_t p = last; p < end; ++p) scores[p] = -std::numeric_limits<float>::infinity();
  __m256 most = _mm256_loadu_ps(scores + begin);
  for (int64_t p = begin + 8; p < end; p += 8) most = _mm256_max_ps(_mm256_loadu_ps(scores + p), most);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, most);
  const float top = *std::max_element(lanes, lanes + 8);
  const __m256 tops = _mm256_set1_ps(top);
  for (int64_t p = begin; p < end; p += 8)
    _mm256_storeu_ps(scores + p, exp(_mm256_sub_ps(_mm256_loadu_ps(scores + p), tops)));
  for (int64_t p = begin; p < first; ++p) scores[p] = 0;
  for (int64_t p = last; p < end; ++p) scores[p] = 0;
  __m256 sums = _mm256_setzero_ps();
  for (int64_t p = begin; p < end; p += 8) sums = _mm256_add_ps(sums, _mm256_loadu_ps(scores + p));
  return {top, horizontal_sum(sums)};
}

// out[h] = sum over positions p of scores[h][p] * value[p], for 8 * kVectors dimensions at a time.
template <int N, int kVectors, class T>
void gather(const float* scores, int64_t stride, const T* values, int64_t size, int64_t first, int64_t last,
            float* out) {
  for (int64_t d = 0; d < size; d += 8 * kVectors) {
    __m256 acc[kVectors * N];
    each(Upto<kVectors * N>(), [&](auto i) { acc[i()] = _mm256_setzero_ps(); });
    for (int64_t p = first; p < last; ++p) {
      __m256 v[kVectors];
      each(Upto<kVectors>(), [&](auto i) { v[i()] = load8(values + p * size + d + 8 * i()); });
      each(Upto<N>(), [&](auto h) {
        const __m256 s = _mm256_broadcast_ss(scores + h() * stride + p);
        each(Upto<kVectors>(), [&](auto i) {
          acc[kVectors * h() + i()] = _mm256_fmadd_ps(s, v[i()], acc[kVectors * h() + i()]);
        });
      });
    }
    each(Upto<kVectors * N>(), [&](auto i) {
      _mm256_storeu_ps(out + (i() / kVectors) * size + d + 8 * (i() % kVectors), acc[i()]);
    });
  }
}

template <int N, class T>
void attend_heads(const float* q, const T* keys, const T* values, int64_t size, int64_t value_size,
                  int64_t first, int64_t last, float cap, float* scores, int64_t stride, float* out,
                  Part* parts) {
  score<N>(q, size, keys, values, size, first / 8 * 8, last, scores, stride);
  for (int h = 0; cap != 0.f && h < N; ++h)
    for (int64_t p = first / 8 * 8; p < last; p += 8) {
      float* at = scores + h * stride + p;
      _mm256_storeu_ps(at, capped(_mm256_loadu_ps(at), cap));
    }
  for (int h = 0; h < N; ++h) parts[h] = exponentials(scores + h * stride, first, last);
  if (value_size % 32 == 0)
    gather<N, 4>(scores, stride, values, value_size, first, last, out);
  else if (value_size % 16 == 0)
    gather<N, 2>(scores, stride, values, value_size, first, last, out);
  else
    gather<N, 1>(scores, stride, values, value_size, first, last, out);
}

// Attention of `count` query heads over the positions first … last − 1. The heads share keys and values, and
// lie `size` floats apart in q, and `value_size` in out. Scores are capped unless `cap` is 0. out is the sum
// of values times e^(score − most), not normalized: divide it by `sum`, or merge it with the parts of other
// ranges first. `scores` has room for 3 * stride floats.
template <class T>
void attend(int64_t count, const float* q, const T* keys, const T* values, int64_t size, int64_t value_size,
            int64_t first, int64_t last, float cap, float* scores, int64_t stride, float* out, Part* parts) {
  for (; count >= 3; count -= 3, q += 3 * size, out += 3 * value_size, parts += 3)
    attend_heads<3>(q, keys, values, size, value_size, first, last, cap, scores, stride, out, parts);
  if (count == 2)
    attend_heads<2>(q, keys, values, size, value_size, first, last, cap, scores, stride, out, parts);
  if (count == 1)
    attend_heads<1>(q, keys, values, size, value_size, first, last, cap, scores, stride, out, parts);
}

// out = x * factor; with `add`, out += x * factor.
inline void scale(const float* x, float factor, int64_t n, bool add, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (add ? out[i] : 0.f) + x[i] * factor;
}

}  // namespace qcore
