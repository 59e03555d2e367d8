// Quantizes activations: the largest magnitude of a block of 32 (or of a token) becomes the largest integer.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/kernels.h"

namespace qcore {
namespace {

// Blocks below this magnitude become zero: the reciprocal of their scale would overflow.
constexpr float kTiny = 1e-30f;

// The bits of the largest magnitude of 32 floats. Bits compare like magnitudes, and NaN is larger than any
// number.
inline __m256i magnitude(const float* x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i)
    most = _mm256_max_epi32(most, _mm256_and_si256(mask, _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i))));
  return most;
}

inline float horizontal_max(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

inline int horizontal_sum(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

struct Scale {
  float scale, inverse;
};

inline Scale scale_of(float most, int limit) {
  if (!(most <= std::numeric_limits<float>::max()))
    return {std::numeric_limits<float>::quiet_NaN(), 0.f};  // NaN or infinity
  if (most < kTiny) return {0.f, 0.f};
  return {most / limit, limit / most};
}

// Round 32 floats to integers.
inline void round_block(const float* x, float inverse, __m256i out[4]) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const __m256i valid =
      _mm256_set1_epi32(inverse == 0.f ? 0 : -1);  // 0 * NaN would convert to the smallest integer
  for (int i = 0; i < 4; ++i)
    out[i] = _mm256_and_si256(valid, _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), factor)));
}

// Convert 32 int32 to int16, in order.
inline void narrow16(const __m256i in[4], __m256i out[2]) {
  for (int i = 0; i < 2; ++i)
    out[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(in[2 * i], in[2 * i + 1]), 0xd8);
}

}  // namespace

void fill_avx2(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride,
               int64_t columns) {
  const auto [row_major, mode, width, limit, blocks, shared, sums] = form;
  const int64_t full = columns / kBlock;
  alignas(32) float tail[kBlock];
  for (int m = 0; m < tokens; ++m, x += stride) {
    auto block = [&](int64_t b) -> const float* {
      if (b < full) return x + b * kBlock;
      std::memset(tail, 0, sizeof tail);
      if (b == full) std::copy(x + b * kBlock, x + columns, tail);
      return tail;
    };
    if (mode == kFloat) {
      float* q = static_cast<float*>(const_cast<void*>(to.q));
      for (int64_t b = 0; b < blocks; ++b) {
        const float* in = block(b);
        fill_sums(in, sums, const_cast<float*>(to.sum) + b * sums * tokens + m, tokens);
        if (row_major || tokens == 1) {
          std::memcpy(q + (row_major ? m * blocks + b : b) * kBlock, in, kBlock * 4);
        } else {
          for (int k = 0; k < kBlock; ++k) q[(b * kBlock + k) * tokens + m] = in[k];
        }
      }
      continue;
    }
    uint8_t* q = static_cast<uint8_t*>(const_cast<void*>(to.q));
    float* scale = const_cast<float*>(to.scale);
    float* sum = const_cast<float*>(to.sum);
    Scale s{};
    for (int64_t b = 0; b < blocks; ++b) {
      if (b % shared == 0) {
        __m256i most = _mm256_setzero_si256();
        for (int64_t i = b; i < std::min(b + shared, blocks); ++i)
          most = _mm256_max_epi32(most, magnitude(block(i)));
        s = scale_of(horizontal_max(most), limit);
      }
      const float* in = block(b);
      __m256i wide[4], half[2];
      round_block(in, s.inverse, wide);
      narrow16(wide, half);
      scale[b * tokens + m] = s.scale;
      const __m256i first = _mm256_add_epi32(wide[0], wide[1]), second = _mm256_add_epi32(wide[2], wide[3]);
      if (sums == 1) {
        sum[b * tokens + m] = s.scale * horizontal_sum(_mm256_add_epi32(first, second));
      } else {
        sum[2 * b * tokens + m] = s.scale * horizontal_sum(first);
        sum[(2 * b + 1) * tokens + m] = s.scale * horizontal_sum(second);
      }
      if (width == 1) {
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(half[0], half[1]), 0xd8);
        uint8_t* out = q + b * kBlock * tokens;
        if (tokens == 1) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
        } else {
          alignas(32) uint8_t values[32];
          _mm256_store_si256(reinterpret_cast<__m256i*>(values), bytes);
          for (int step = 0; step < 8; ++step)
            std::memcpy(out + (step * tokens + m) * 4, values + 4 * step, 4);
        }
        continue;
      }
      alignas(32) int16_t values[32];
      if (row_major) {  // even columns first, then odd ones
        const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4,
                                               5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        const __m256i low =
            _mm256_permute4x64_epi64(_mm256_shuffle_epi8(half[0], order), 0xd8);  // even 0-14, odd 1-15
        const __m256i high = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(half[1], order), 0xd8);
        uint8_t* out = q + (b * tokens + m) * 64;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm256_permute2x128_si256(low, high, 0x31));
        continue;
      }
      const __m256i pairs = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5,
                                             2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
      uint8_t* out = q + b * 64 * tokens;
      for (int i = 0; i < 2; ++i) {
        const __m256i ordered = _mm256_shuffle_epi8(half[i], pairs);
        if (tokens == 1)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * i), ordered);
        else
          _mm256_store_si256(reinterpret_cast<__m256i*>(values + 16 * i), ordered);
      }
      if (tokens > 1)
        for (int pair = 0; pair < 16; ++pair)
          std::memcpy(out + (pair * tokens + m) * 4, values + 2 * pair, 4);
    }
  }
}

}  // namespace qcore
