// One to four tokens with AVX2, and exact products in floats, which newer instruction sets use, too.
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

struct Dot {
  static constexpr int kAhead = 2048;
  static constexpr bool kWide =
      false;  // 8 products of at most 15 * 127, pairwise added, fit int16 for one block
  static __m256i bytes(__m256i acc, __m256i codes, __m256i x) { return multiply_add8(acc, codes, x); }
  static __m256i words(__m256i acc, __m256i codes, __m256i x) { return multiply_add16(acc, codes, x); }
  static __m256i total(__m256i acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
  static void look_up(__m256i v, const Table& t, __m256i& even, __m256i& odd) {
    widen<true>(_mm256_and_si256(v, _mm256_set1_epi8(15)), t, even, odd);
  }
};

}  // namespace
}  // namespace qcore

#include "x86/panel_x86.h"

namespace qcore {
namespace {

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block by floats, in two sums per token. Code minus
// zero point is a small integer and exact in float, so only the products and sums with x round.
template <int kKind, int T, int kFirst, int kSteps, bool kZero>
inline void multiply_floats(const uint8_t* p, const Table& table, __m256 zero, const float* q,
                            __m256 (&part)[T][2]) {
  each(Upto<kSteps>(), [&](auto i) {
    constexpr int s = kFirst + i();
    const __m256i v = step<kKind, s>(p);
    each(Upto<4>(), [&](auto j) {
      __m256 value = as_float<kKind == kTable, j()>(v, table);
      if constexpr (kZero) value = _mm256_sub_ps(value, zero);
      each(Upto<T>(), [&](auto m) {
        part[m()][j() % 2] =
            _mm256_fmadd_ps(value, _mm256_set1_ps(q[(4 * s + j()) * T + m()]), part[m()][j() % 2]);
      });
    });
  });
}

template <int kKind, int T>
void panel_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const float *q = static_cast<const float*>(x.q), *sum = x.sum;
  Table table;
  if constexpr (kKind == kTable) table = read_table(w.table.data);
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T][2];
    each(Upto<T>(), [&](auto m) { part[m()][0] = part[m()][1] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<kCodeBytes<kKind>>(p);
      multiply_floats<kKind, T, 0, 8, kKind != kTable>(p, table, g.zero, q, part);
      p += kCodeBytes<kKind>;
      q += kBlock * T;
    }
    each(Upto<T>(), [&](auto m) {
      total[m()] = _mm256_fmadd_ps(_mm256_add_ps(part[m()][0], part[m()][1]), g.scale, total[m()]);
    });
    if constexpr (kKind != kTable)
      if (__builtin_expect(w.zero_bytes == kMinimums, 0)) {
        const int64_t blocks = std::min<int64_t>(left, w.group_blocks);
        sum += blocks * T;
        add_minimums<kKind, T>(p, sum, blocks, total);
      }
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

template <int kKind, int T>
void panel_super_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const __m256 zero = _mm256_set1_ps(w.zero);
  panel_super<kKind, T, float>(
      w, p, x, y, [&](auto half, const uint8_t* codes, const float* q, __m256(&value)[T]) {
        constexpr int steps = 8 / halves_of(kKind);
        __m256 part[T][2];
        each(Upto<T>(), [&](auto m) { part[m()][0] = part[m()][1] = _mm256_setzero_ps(); });
        multiply_floats<kKind, T, half() * steps, steps, !has_super_minimums(kKind)>(codes, Table(), zero, q,
                                                                                     part);
        each(Upto<T>(), [&](auto m) { value[m()] = _mm256_add_ps(part[m()][0], part[m()][1]); });
      });
}

template <int T>
void panel_rows_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const uint8_t* codes = p + kRows * 32;
  __m256 sums[T][kRows];
  for (int r = 0; r < kRows; ++r, codes += 32) {
    const Table table = read_half_table(p + 32 * r);
    const uint8_t* at = codes;
    __m256 total[T][2];
    each(Upto<T>(), [&](auto m) { total[m()][0] = total[m()][1] = _mm256_setzero_ps(); });
    for (int64_t b = 0; b < w.blocks; b += 2, at += kRows * 32)
      for (int i = 0; i < 4; ++i) {  // 8 bytes: columns 8i …, and 32 columns on
        const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + 8 * i)));
        const __m256 low = as_float<true, 0>(v, table),
                     high = as_float<true, 0>(_mm256_srli_epi32(v, 4), table);
        for (int m = 0; m < T; ++m) {
          const float* q = static_cast<const float*>(x.q) + (m * w.blocks + b) * kBlock + 8 * i;
          total[m][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(q), total[m][0]);
          total[m][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(q + kBlock), total[m][1]);
        }
      }
    each(Upto<T>(), [&](auto m) { sums[m()][r] = _mm256_add_ps(total[m()][0], total[m()][1]); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], sum_rows(sums[m]));
}

}  // namespace

PanelKernel panel_kernel_avx2(int kind, int mode, int tokens) {
  if (mode != kFloat) return integer_kernel(kind, mode, tokens);
  return with_kind(kind, tokens, [](auto k, auto t) -> PanelKernel {
    if constexpr (k() == kRowTable)
      return panel_rows_float<t()>;
    else if constexpr (is_super(k()))
      return panel_super_float<k(), t()>;
    else
      return panel_float<k(), t()>;
  });
}

}  // namespace qcore
