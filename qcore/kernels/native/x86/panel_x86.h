// One to four tokens on x86. Codes are read once, from memory, with a prefetch ahead, and stay in registers.
// One token is limited by memory bandwidth, so the arithmetic only has to keep up with it.
//
// The including file describes the multiplication of an instruction set in a struct `Dot`:
//   kAhead                    bytes to prefetch ahead of the codes
//   kWide                     `bytes` accepts all codes; else sums of 8 products must fit in 16 bits
//   bytes(acc, u, x)          acc + the products of unsigned bytes u and signed bytes x
//   total(acc)                the sum of acc as one 32-bit number per row
//   words(acc, c, x)          acc + the products of int16, added in pairs, in 32 bits
//   look_up(v, t, even, odd)  the values in table t of the low nibbles of v's even and odd bytes, as int16
#pragma once
#include <algorithm>

#include "common/kernels.h"
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

template <int kBytes>
inline void prefetch(const uint8_t* p) {
  for (int i = 0; i < kBytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + Dot::kAhead + i), _MM_HINT_T0);
}

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block by int8.
template <int kKind, int T, int kFirst, int kSteps>
inline void multiply_bytes(const uint8_t* p, const int8_t* q, __m256i (&acc)[T]) {
  each(Upto<T>(), [&](auto m) { acc[m()] = _mm256_setzero_si256(); });
  each(Upto<kSteps>(), [&](auto i) {
    constexpr int s = kFirst + i();
    const __m256i v = step<kKind, s>(p);
    each(Upto<T>(), [&](auto m) { acc[m()] = Dot::bytes(acc[m()], v, broadcast4(q + (s * T + m()) * 4)); });
  });
}

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block by int16.
template <int kKind, int T, int kFirst, int kSteps>
inline void multiply_words(const uint8_t* p, const Table& table, const int16_t* q, __m256i (&acc)[T]) {
  __m256i acc2[T];  // two chains hide the latency of the multiplications
  each(Upto<T>(), [&](auto m) { acc[m()] = acc2[m()] = _mm256_setzero_si256(); });
  each(Upto<kSteps>(), [&](auto i) {
    constexpr int s = kFirst + i();
    __m256i even, odd;
    if constexpr (kKind == kTable)
      Dot::look_up(nibbles<s>(p), table, even, odd);
    else
      widen<false>(step<kKind, s>(p), table, even, odd);
    each(Upto<T>(), [&](auto m) {
      acc[m()] = Dot::words(acc[m()], even, broadcast4(q + (2 * s * T + m()) * 2));
      acc2[m()] = Dot::words(acc2[m()], odd, broadcast4(q + ((2 * s + 1) * T + m()) * 2));
    });
  });
  each(Upto<T>(), [&](auto m) { acc[m()] = _mm256_add_epi32(acc[m()], acc2[m()]); });
}

// Add the minimums of a group, which ends at `p` and `sum`, times the sums of its activations. They are
// addressed from the end, so that formats without minimums need no registers for the start.
template <int kKind, int T>
inline void add_minimums(const uint8_t* p, const float* sum, int64_t blocks, __m256 (&total)[T]) {
  const __m256 minimum = read_halves(p - blocks * kCodeBytes<kKind> - kMinimums);
  for (sum -= blocks * T; blocks > 0; --blocks, sum += T)
    each(Upto<T>(),
         [&](auto m) { total[m()] = _mm256_fmadd_ps(minimum, _mm256_set1_ps(sum[m()]), total[m()]); });
}

// Codes times int8.
template <int kKind, int T>
void panel_int8(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const int8_t* q = static_cast<const int8_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T];
    each(Upto<T>(), [&](auto m) { part[m()] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<kCodeBytes<kKind>>(p);
      __m256i acc[T];
      multiply_bytes<kKind, T, 0, 8>(p, q, acc);
      for (int m = 0; m < T; ++m) {
        part[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(Dot::total(acc[m])), _mm256_set1_ps(scale[m]), part[m]);
        part[m] = _mm256_fnmadd_ps(g.zero, _mm256_set1_ps(sum[m]), part[m]);
      }
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += T;
    }
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_fmadd_ps(part[m()], g.scale, total[m()]); });
    if (__builtin_expect(w.zero_bytes == kMinimums, 0))
      add_minimums<kKind, T>(p, sum, std::min<int64_t>(left, w.group_blocks), total);
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

template <int kKind, int T>
void panel_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const int16_t* q = static_cast<const int16_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  Table table;
  if constexpr (kKind == kTable) table = read_table(w.table.data);
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T];
    each(Upto<T>(), [&](auto m) { part[m()] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<kCodeBytes<kKind>>(p);
      __m256i acc[T];
      multiply_words<kKind, T, 0, 8>(p, table, q, acc);
      for (int m = 0; m < T; ++m) {
        part[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m]), _mm256_set1_ps(scale[m]), part[m]);
        if constexpr (kKind != kTable) part[m] = _mm256_fnmadd_ps(g.zero, _mm256_set1_ps(sum[m]), part[m]);
      }
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += T;
    }
    const __m256 factor = kKind == kTable ? _mm256_mul_ps(g.scale, _mm256_set1_ps(table.scale)) : g.scale;
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_fmadd_ps(part[m()], factor, total[m()]); });
    if constexpr (kKind != kTable)
      if (__builtin_expect(w.zero_bytes == kMinimums, 0))
        add_minimums<kKind, T>(p, sum, std::min<int64_t>(left, w.group_blocks), total);
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

// K-quants. `multiply(half, p, q, value)` sets value[m] to the products of a half of a block, or of the whole
// block if it is one group.
template <int kKind, int T, class Value, class Multiply>
inline void panel_super(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows],
                        Multiply&& multiply) {
  constexpr bool integer = sizeof(Value) < 4;
  constexpr bool with_sums = integer || has_super_minimums(kKind);
  const Value* q = static_cast<const Value*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= kSuperBlocks) {
    const Factors factors = read_factors<kKind>(w, p);
    __m256 part[T], minimums[T];
    each(Upto<T>(), [&](auto m) { part[m()] = minimums[m()] = _mm256_setzero_ps(); });
    for (int b = 0; b < kSuperBlocks; ++b) {
      prefetch<kCodeBytes<kKind>>(p);
      const Integers<kKind> integers = read_integers<kKind>(p);
      p += kIntegers;
      each(Upto<halves_of(kKind)>(), [&](auto half) {
        __m256 value[T];
        multiply(half, p, q, value);
        each(Upto<T>(), [&](auto m) {
          if constexpr (integer) value[m()] = _mm256_mul_ps(value[m()], _mm256_set1_ps(scale[m()]));
          part[m()] = _mm256_fmadd_ps(value[m()], integers.scale[half()], part[m()]);
          if constexpr (with_sums)
            minimums[m()] = _mm256_fmadd_ps(integers.minimum[half()], _mm256_set1_ps(sum[half() * T + m()]),
                                            minimums[m()]);
        });
      });
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += halves_of(kKind) * T;
    }
    each(Upto<T>(), [&](auto m) {
      total[m()] = _mm256_fmadd_ps(part[m()], factors.scale, total[m()]);
      if constexpr (with_sums) total[m()] = _mm256_fmadd_ps(minimums[m()], factors.minimum, total[m()]);
    });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

template <int kKind, int T>
void panel_super_int8(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  panel_super<kKind, T, int8_t>(
      w, p, x, y, [](auto half, const uint8_t* codes, const int8_t* q, __m256(&value)[T]) {
        constexpr int steps = 8 / halves_of(kKind);
        __m256i acc[T];
        multiply_bytes<kKind, T, half() * steps, steps>(codes, q, acc);
        each(Upto<T>(), [&](auto m) { value[m()] = _mm256_cvtepi32_ps(Dot::total(acc[m()])); });
      });
}

template <int kKind, int T>
void panel_super_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  panel_super<kKind, T, int16_t>(
      w, p, x, y, [](auto half, const uint8_t* codes, const int16_t* q, __m256(&value)[T]) {
        constexpr int steps = 8 / halves_of(kKind);
        __m256i acc[T];
        multiply_words<kKind, T, half() * steps, steps>(codes, Table(), q, acc);
        each(Upto<T>(), [&](auto m) { value[m()] = _mm256_cvtepi32_ps(acc[m()]); });
      });
}

// A table per row: a register holds 32 columns of one row, so activations are read in order, and each row is
// summed at the end. With one token, the panel is read front to back, while the tables of its rows stay in
// the first-level cache.
void panel_rows_int16_one(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  Table tables[kRows];
  for (int r = 0; r < kRows; ++r) tables[r] = read_half_table(p + 32 * r);
  p += kRows * 32;
  const int16_t* q = static_cast<const int16_t*>(x.q);
  __m256 total[kRows];
  each(Upto<kRows>(), [&](auto r) { total[r()] = _mm256_setzero_ps(); });
  for (int64_t b = 0; b < w.blocks; b += 2, p += kRows * 32, q += 2 * kBlock) {
    prefetch<kRows * 32>(p);
    const __m256i x0 = load(q), x1 = load(q + 16), x2 = load(q + 32), x3 = load(q + 48);
    const __m256 low_scale = _mm256_set1_ps(x.scale[b]), high_scale = _mm256_set1_ps(x.scale[b + 1]);
    each(Upto<kRows>(), [&](auto r) {
      const __m256i v = load(p + 32 * r());
      __m256i even, odd;
      Dot::look_up(v, tables[r()], even, odd);
      const __m256i low = Dot::words(_mm256_madd_epi16(even, x0), odd, x1);
      Dot::look_up(_mm256_srli_epi16(v, 4), tables[r()], even, odd);
      const __m256i high = Dot::words(_mm256_madd_epi16(even, x2), odd, x3);
      total[r()] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), low_scale, total[r()]);
      total[r()] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), high_scale, total[r()]);
    });
  }
  alignas(32) float scales[kRows];
  for (int r = 0; r < kRows; ++r) scales[r] = tables[r].scale;
  _mm256_storeu_ps(y[0], _mm256_mul_ps(sum_rows(total), _mm256_load_ps(scales)));
}

template <int T>
void panel_rows_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const uint8_t* codes = p + kRows * 32;
  __m256 sums[T][kRows];
  for (int r = 0; r < kRows; ++r, codes += 32) {
    const Table table = read_half_table(p + 32 * r);
    const int16_t* q = static_cast<const int16_t*>(x.q);
    const float* scale = x.scale;
    const uint8_t* at = codes;
    __m256 total[T];
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
    for (int64_t b = 0; b < w.blocks; b += 2, at += kRows * 32) {
      const __m256i v = load(at);
      for (int half = 0; half < 2; ++half, q += kBlock * T, scale += T) {
        __m256i even, odd;
        Dot::look_up(half ? _mm256_srli_epi16(v, 4) : v, table, even, odd);
        for (int m = 0; m < T; ++m) {
          const __m256i product =
              Dot::words(_mm256_madd_epi16(even, load(q + 32 * m)), odd, load(q + 32 * m + 16));
          total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_set1_ps(scale[m]), total[m]);
        }
      }
    }
    each(Upto<T>(), [&](auto m) { sums[m()][r] = _mm256_mul_ps(total[m()], _mm256_set1_ps(table.scale)); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], sum_rows(sums[m]));
}

// The kernels for integer activations.
inline PanelKernel integer_kernel(int kind, int mode, int tokens) {
  return with_kind(kind, tokens, [&](auto k, auto t) -> PanelKernel {
    constexpr int kKind = k(), T = t();
    if constexpr (kKind == kRowTable)
      return T == 1 ? panel_rows_int16_one : panel_rows_int16<T>;
    else if constexpr (kKind == kTable || (kKind <= kBits5 && !Dot::kWide))
      return panel_int16<kKind, T>;
    else if constexpr (!is_super(kKind))
      return mode == kInt16 ? panel_int16<kKind, T> : panel_int8<kKind, T>;
    else if constexpr (codes_of(kKind) <= kBits5 && !Dot::kWide)
      return panel_super_int16<kKind, T>;
    else
      return mode == kInt16 ? panel_super_int16<kKind, T> : panel_super_int8<kKind, T>;
  });
}

}  // namespace
}  // namespace qcore
