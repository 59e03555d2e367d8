// Reads panels with AVX2: group headers, and codes as bytes, as pairs of int16, or as floats.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "common/layout.h"
#include "common/unroll.h"

namespace qcore {
namespace {  // private to each file, because files are compiled for different instruction sets

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// The 4 bytes at p in all lanes.
inline __m256i broadcast4(const void* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return _mm256_set1_epi32(value);
}

// Return acc plus the sums of neighbouring products: of unsigned and signed bytes as int16, of int16 as
// int32. Each function is one block of assembly: GCC would start so many products early that it spills
// accumulators.
inline __m256i multiply_add8(__m256i acc, __m256i codes, __m256i x) {
  __m256i product;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(codes), "x"(x));
  return acc;
}
inline __m256i multiply_add16(__m256i acc, __m256i codes, __m256i x) {
  __m256i product;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(codes), "x"(x));
  return acc;
}

template <int kKind>
constexpr int kCodeBytes = code_bytes(kKind);
template <int kKind>
constexpr int kBlockBytes = block_bytes(kKind);

// Step S of a block of 4-bit codes in the low nibbles; the high nibbles are undefined.
template <int S>
inline __m256i nibbles(const uint8_t* p) {
  const __m256i v = load(p + 32 * (S / 2));
  return S % 2 ? _mm256_srli_epi16(v, 4) : v;
}

// Step S of a plane of kBits bits, moved to bit kTo of every byte.
template <int kBits, int S, int kTo>
inline __m256i plane_step(const uint8_t* p) {
  constexpr int from = S * kBits % 8;
  __m256i v = load(p + 32 * (S * kBits / 8));
  if constexpr (from < kTo) v = _mm256_slli_epi16(v, kTo - from);
  if constexpr (from > kTo) v = _mm256_srli_epi16(v, from - kTo);
  if constexpr (kBits == 8) return v;
  return _mm256_and_si256(v, _mm256_set1_epi8(((1 << kBits) - 1) << kTo));
}

// Step S of a block: 32 bytes, in which lane r holds 4 columns of row r.
template <int kKind, int S>
inline __m256i step(const uint8_t* p) {
  constexpr Planes planes = planes_of(kKind);
  const __m256i low = plane_step<planes.first, S, 0>(p);
  if constexpr (planes.second == 0) return low;
  return _mm256_or_si256(low, plane_step<planes.second, S, planes.first>(p + 32 * planes.first));
}

// A table of 16 values as integers of 13 bits (in order, and split into low and high bytes for pshufb), and
// as floats (two halves for permutevar8x32).
struct Table {
  __m256i words, low, high;
  __m256 first, second;
  float scale;  // value = scale * integer
};

inline Table read_table(const float* values) {
  Table t;
  t.first = _mm256_loadu_ps(values);
  t.second = _mm256_loadu_ps(values + 8);
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 most = _mm256_max_ps(_mm256_and_ps(t.first, mask), _mm256_and_ps(t.second, mask));
  most = _mm256_max_ps(most, _mm256_permute2f128_ps(most, most, 1));
  most = _mm256_max_ps(most, _mm256_shuffle_ps(most, most, 0x4e));
  most = _mm256_max_ps(most, _mm256_shuffle_ps(most, most, 0xb1));
  const float largest = _mm256_cvtss_f32(most);
  t.scale = largest / kTableMax;
  const __m256 inverse = _mm256_set1_ps(largest > 1e-30f ? kTableMax / largest : 0.f);
  t.words = _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(t.first, inverse)),
                                                        _mm256_cvtps_epi32(_mm256_mul_ps(t.second, inverse))),
                                     0xd8);
  const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8,
                                         10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m256i bytes =
      _mm256_permute4x64_epi64(_mm256_shuffle_epi8(t.words, split), 0xd8);  // 16 low bytes, 16 high bytes
  t.low = _mm256_permute2x128_si256(bytes, bytes, 0x00);
  t.high = _mm256_permute2x128_si256(bytes, bytes, 0x11);
  return t;
}

inline Table read_half_table(const uint8_t* halves) {
  alignas(32) float values[16];
  _mm256_store_ps(values, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves))));
  _mm256_store_ps(values + 8,
                  _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + 16))));
  return read_table(values);
}

// Convert the even and the odd bytes of a register (codes, or indices into a table) to int16.
template <bool kTabled>
inline void widen(__m256i v, const Table& t, __m256i& even, __m256i& odd) {
  if constexpr (kTabled) {
    const __m256i low = _mm256_shuffle_epi8(t.low, v), high = _mm256_shuffle_epi8(t.high, v);
    const __m256i mask = _mm256_set1_epi16(short(0xff00));
    even = _mm256_blendv_epi8(low, _mm256_slli_epi16(high, 8), mask);
    odd = _mm256_blendv_epi8(_mm256_srli_epi16(low, 8), high, mask);
  } else {
    even = _mm256_and_si256(v, _mm256_set1_epi16(0x00ff));
    odd = _mm256_srli_epi16(v, 8);
  }
}

// Convert byte J of each lane (a code, or an index into a table) to float.
template <bool kTabled, int J>
inline __m256 as_float(__m256i v, const Table& t) {
  const __m256i moved = _mm256_srli_epi32(v, 8 * J);
  if constexpr (kTabled) {
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(moved, 28));  // bit 3 of the index as a sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.first, moved),
                            _mm256_permutevar8x32_ps(t.second, moved), upper);
  } else {
    return _mm256_cvtepi32_ps(J == 3 ? moved : _mm256_and_si256(moved, _mm256_set1_epi32(255)));
  }
}

// The 8 fp16 values at p.
inline __m256 read_halves(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

struct Group {
  __m256 scale, zero;
};

// Read the scales and zero points of 8 rows, and move `p` past them.
inline Group read_group(const Weight& w, const uint8_t*& p) {
  Group g;
  g.scale = read_halves(p);
  p += 16;
  if (w.zero_bytes == 4) {
    uint32_t nibbles;
    std::memcpy(&nibbles, p, 4);
    const __m256i shifted =
        _mm256_srlv_epi32(_mm256_set1_epi32(int(nibbles)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    g.zero = _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)));
  } else if (w.zero_bytes == 8) {
    g.zero = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  } else {
    g.zero = _mm256_set1_ps(w.zero);  // 0 with minimums, which follow the scales
  }
  p += w.zero_bytes;
  return g;
}

// The integers in front of a block of a K-quant, for each of its groups of columns. Without stored minimums,
// the zero point times the scale is the minimum.
template <int kKind>
struct Integers {
  __m256 scale[halves_of(kKind)], minimum[halves_of(kKind)];
};

template <int kKind>
inline Integers<kKind> read_integers(const uint8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i upper = _mm_unpackhi_epi64(all, all);
  const auto from_unsigned = [](__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)); };
  const auto from_signed = [](__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)); };
  Integers<kKind> in;
  if constexpr (kKind == kSuper2) {
    const __m128i low = _mm_set1_epi8(15);
    const __m128i scales = _mm_and_si128(all, low), minimums = _mm_and_si128(_mm_srli_epi16(all, 4), low);
    in.scale[0] = from_unsigned(scales);
    in.scale[1] = from_unsigned(_mm_unpackhi_epi64(scales, scales));
    in.minimum[0] = from_unsigned(minimums);
    in.minimum[1] = from_unsigned(_mm_unpackhi_epi64(minimums, minimums));
  } else if constexpr (halves_of(kKind) == 2) {
    in.scale[0] = in.minimum[0] = from_signed(all);
    in.scale[1] = in.minimum[1] = from_signed(upper);
  } else {
    in.scale[0] = from_unsigned(all);
    in.minimum[0] = from_unsigned(upper);
  }
  return in;
}

// The factors of a super-block's integers. The second is that of the minimums: −dmin, or −d times the zero
// point.
struct Factors {
  __m256 scale, minimum;
};

// Read the factors of 8 rows, and move `p` past them.
template <int kKind>
inline Factors read_factors(const Weight& w, const uint8_t*& p) {
  Factors f;
  f.scale = read_halves(p);
  if constexpr (has_super_minimums(kKind))
    f.minimum = _mm256_sub_ps(_mm256_setzero_ps(), read_halves(p + 16));
  else
    f.minimum = _mm256_mul_ps(f.scale, _mm256_set1_ps(-w.zero));
  p += has_super_minimums(kKind) ? 32 : 16;
  return f;
}

// Return a register whose lane r is the sum of register r.
inline __m256 sum_rows(const __m256 v[8]) {
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

}  // namespace
}  // namespace qcore
