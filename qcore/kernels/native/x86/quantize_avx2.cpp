// Converts one row of weights to scales, zero points and packed codes, eight weights at a time.
//
// A group is read twice: from memory for its extremes, then from the cache for its codes. Weights are divided
// by the scale: the memory latency hides the divisions, and multiplying by the reciprocal would round some
// weights differently.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "x86/quantize.h"

namespace qcore {
namespace {

// The smallest normal float: the divisor of a group of zeros, whose scale is 0.
constexpr float kTiny = 1.17549435e-38f;

inline __m256 tail_of(const float* w, int n) {
  alignas(32) float filled[8] = {};
  std::memcpy(filled, w, n * sizeof(float));
  return _mm256_load_ps(filled);
}

inline float reduce_min(__m256 v) {
  __m128 x = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_min_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_min_ss(x, _mm_shuffle_ps(x, x, 1)));
}

inline float reduce_max(__m256 v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

struct Extremes {
  float low, high;  // 0 lies between them
  bool nan;
};

Extremes extremes(const float* w, int64_t n) {
  __m256 low[2] = {}, high[2] = {}, odd = _mm256_setzero_ps();
  const auto take = [&](__m256 v, int i) {
    low[i] = _mm256_min_ps(v, low[i]);
    high[i] = _mm256_max_ps(v, high[i]);
    odd = _mm256_or_ps(odd, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  };
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) {
    take(_mm256_loadu_ps(w + k), 0);
    take(_mm256_loadu_ps(w + k + 8), 1);
  }
  if (k + 8 <= n) {
    take(_mm256_loadu_ps(w + k), 0);
    k += 8;
  }
  if (k < n) take(tail_of(w + k, int(n - k)), 1);
  return {reduce_min(_mm256_min_ps(low[0], low[1])), reduce_max(_mm256_max_ps(high[0], high[1])),
          _mm256_movemask_ps(odd) != 0};
}

// -- codes of eight weights, as eight 32-bit integers

struct Uniform {
  __m256 scale, zero, lowest, highest;
  Uniform(float scale_, float zero_, float lowest_, float highest_)
      : scale(_mm256_set1_ps(scale_)), zero(_mm256_set1_ps(zero_)), lowest(_mm256_set1_ps(lowest_)),
        highest(_mm256_set1_ps(highest_)) {}
  __m256i operator()(__m256 w) const {
    const __m256 steps =
        _mm256_round_ps(_mm256_div_ps(w, scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_add_ps(steps, zero), lowest), highest));
  }
  __m256i finish(__m256i bytes) const { return bytes; }
};

// The number of thresholds that a value exceeds, by binary search in registers.
struct Table {
  __m256 factor, middle, second, fourth, eighth;
  __m256i order;
  explicit Table(const QuantizeJob& job) {
    static constexpr float none[15] = {};
    const float* m = job.midpoints.data ? job.midpoints.data : none;
    middle = _mm256_set1_ps(m[7]);
    second = _mm256_setr_ps(m[3], m[11], 0, 0, 0, 0, 0, 0);
    fourth = _mm256_setr_ps(m[1], m[5], m[9], m[13], 0, 0, 0, 0);
    eighth = _mm256_setr_ps(m[0], m[2], m[4], m[6], m[8], m[10], m[12], m[14]);
    order =
        job.midpoints.data
            ? _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.order.data)))
            : _mm256_setzero_si256();
    factor = _mm256_setzero_ps();
  }
  __m256i operator()(__m256 w) const {
    const __m256 value = _mm256_mul_ps(w, factor);
    const auto above = [&](__m256 threshold) {
      return _mm256_castps_si256(_mm256_cmp_ps(value, threshold, _CMP_GT_OQ));
    };
    const auto next = [&](__m256i place, __m256 table) {  // 2 · place + (value > table[place]); true is −1
      return _mm256_sub_epi32(_mm256_add_epi32(place, place), above(_mm256_permutevar8x32_ps(table, place)));
    };
    const __m256i first = _mm256_sub_epi32(_mm256_setzero_si256(), above(middle));
    return next(next(next(first, second), fourth), eighth);
  }
  __m256i finish(__m256i bytes) const { return _mm256_shuffle_epi8(order, bytes); }
};

// -- packing: eight codes of b bits take b bytes, little-endian (formats/packing.py)

// Compress eight bytes with one code each to a word of 8 · Bits bits: first neighbours, then pairs, then
// fours.
template <int Bits>
inline uint64_t squeeze(uint64_t x) {
  constexpr uint64_t bytes = 0x00ff00ff00ff00ff, halves = 0x0000ffff0000ffff, words = 0x00000000ffffffff;
  x = (x & bytes) | (x & ~bytes) >> (8 - Bits);
  x = (x & halves) | (x & ~halves) >> (16 - 2 * Bits);
  return (x & words) | (x & ~words) >> (32 - 4 * Bits);
}

template <int Bits>
inline void store_32(__m256i codes, uint8_t* out) {
  if constexpr (Bits == 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes);
  } else if constexpr (Bits == 4) {
    const __m256i bytes =
        _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x1001));  // low code + 16 · high code
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(bytes, bytes), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
  } else {
    alignas(32) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), codes);
    for (int i = 0; i < 4; ++i) {
      const uint64_t word = squeeze<Bits>(words[i]);
      std::memcpy(out + i * Bits, &word, Bits);
    }
  }
}

template <int Bits, class Choose>
inline void store_8(const Choose& choose, __m256 w, int used, uint8_t* out) {
  const __m256i codes = choose(w);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  const __m128i bytes = _mm_packus_epi16(words, words);
  uint64_t x =
      uint64_t(_mm_cvtsi128_si64(_mm256_castsi256_si128(choose.finish(_mm256_castsi128_si256(bytes)))));
  if (used < 8) x &= (uint64_t(1) << 8 * used) - 1;  // pad the last eight codes with 0
  x = squeeze<Bits>(x);
  std::memcpy(out, &x, Bits);
}

template <int Bits, class Choose>
void store_group(const Choose& choose, const float* w, int64_t n, uint8_t* out) {
  const __m256i in_order =
      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing interleaves the two halves of a register
  int64_t k = 0;
  for (; k + 32 <= n; k += 32, out += 4 * Bits) {
    const __m256i a = _mm256_packs_epi32(choose(_mm256_loadu_ps(w + k)), choose(_mm256_loadu_ps(w + k + 8)));
    const __m256i b =
        _mm256_packs_epi32(choose(_mm256_loadu_ps(w + k + 16)), choose(_mm256_loadu_ps(w + k + 24)));
    store_32<Bits>(choose.finish(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), in_order)), out);
  }
  for (; k + 8 <= n; k += 8, out += Bits) store_8<Bits>(choose, _mm256_loadu_ps(w + k), 8, out);
  if (k < n) store_8<Bits>(choose, tail_of(w + k, int(n - k)), int(n - k), out);
}

template <class Choose>
void store_codes(int bits, const Choose& choose, const float* w, int64_t n, uint8_t* out) {
  switch (bits) {
    case 2: return store_group<2>(choose, w, n, out);
    case 3: return store_group<3>(choose, w, n, out);
    case 4: return store_group<4>(choose, w, n, out);
    case 5: return store_group<5>(choose, w, n, out);
    case 6: return store_group<6>(choose, w, n, out);
    case 7: return store_group<7>(choose, w, n, out);
    default: return store_group<8>(choose, w, n, out);
  }
}

// -- rows

const float* widened(const QuantizeJob& job, int64_t row, float* buffer) {
  const int64_t n = job.columns;
  if (job.dtype == kFloat32) return static_cast<const float*>(job.weight.data) + row * job.stride;
  const uint16_t* w = static_cast<const uint16_t*>(job.weight.data) + row * job.stride;
  const auto widen = [&](const uint16_t* from) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return job.dtype == kFloat16 ? _mm256_cvtph_ps(v)
                                 : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  };
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) _mm256_storeu_ps(buffer + k, widen(w + k));
  if (k < n) {
    alignas(32) uint16_t last[8] = {};
    alignas(32) float wide[8];
    std::memcpy(last, w + k, (n - k) * sizeof *last);
    _mm256_store_ps(wide, widen(last));
    std::memcpy(buffer + k, wide, (n - k) * sizeof *wide);
  }
  return buffer;
}

struct Grid {
  float scale;
  int zero;
  bool finite;
};

Grid grid(const QuantizeJob& job, const float* w, int64_t n) {
  const Extremes found = extremes(w, n);
  const int levels = 1 << job.bits;
  Grid grid{std::max(-found.low, found.high) + 0.f, levels / 2, true};  // + 0 turns −0 into 0
  if (!job.midpoints.data && job.symmetric) grid.scale /= float(levels / 2 - 1);
  if (!job.midpoints.data && !job.symmetric) {
    grid.scale = (found.high - found.low) / float(levels - 1) + 0.f;
    const __m128 steps = _mm_set_ss(-found.low / std::max(grid.scale, kTiny));
    const float zero =
        _mm_cvtss_f32(_mm_round_ss(steps, steps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    // With the arguments in this order, NaN becomes 0.
    grid.zero = int(std::min(std::max(0.f, zero), float(levels - 1)));
  }
  if (found.nan) grid.scale = __builtin_nanf("");
  grid.finite = grid.scale < 65520.f;  // half precision rounds larger numbers to infinity
  return grid;
}

}  // namespace

bool quantize_row_avx2(const QuantizeJob& job, int64_t row, float* buffer) {
  const float* w = widened(job, row, buffer);
  const int64_t groups = (job.columns + job.group - 1) / job.group;
  const float levels = float(1 << job.bits);
  Table table(job);
  bool finite = true;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * job.group, n = std::min(job.group, job.columns - first), at = row * groups + g;
    float scale;
    int zero = 1 << (job.bits - 1);
    if (job.kept.data) {
      scale = job.kept.data[at];
      if (job.zero.data) zero = job.zero.data[at];
    } else {
      const Grid found = grid(job, w + first, n);
      finite &= found.finite;
      zero = found.zero;
      scale = found.scale;
      const uint16_t half = uint16_t(_cvtss_sh(scale, _MM_FROUND_TO_NEAREST_INT));
      if (job.scale.data) job.scale.data[at] = scale;
      if (job.half.data) job.half.data[at] = half;
      if (job.zero.data) job.zero.data[at] = uint8_t(zero);
      if (!job.midpoints.data) scale = _cvtsh_ss(half);
    }
    if (!job.codes.data) continue;
    uint8_t* out = job.codes.data + row * job.row_bytes + first / 8 * job.bits;
    if (job.midpoints.data) {
      table.factor = _mm256_set1_ps(1.f / std::max(scale, kTiny));
      store_codes(4, table, w + first, n, out);
    } else {
      store_codes(job.bits,
                  Uniform(std::max(scale, kTiny), float(zero), job.symmetric ? 1.f : 0.f, levels - 1),
                  w + first, n, out);
    }
  }
  return finite;
}

}  // namespace qcore
