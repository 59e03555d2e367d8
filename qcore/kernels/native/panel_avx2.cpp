// One to four tokens: the codes are read once, straight from memory, with a prefetch ahead, and never leave the registers.
// At one token the reading is what takes the time, so all that counts is to keep up with memory.
#include "codes_avx2.h"
#include "kernels.h"

namespace qcore {
namespace {

constexpr int kAhead = 2048;  // bytes to prefetch ahead of the codes

template <int kBytes>
inline void prefetch(const uint8_t* p) {
  for (int i = 0; i < kBytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead + i), _MM_HINT_T0);
}

// Codes below 8 bits times int8: 8 products of at most 15 * 127, pairwise added, fit int16 for one block.
template <int kKind, int T>
void panel_int8(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const int8_t* q = static_cast<const int8_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T];
    each(Upto<T>(), [&](auto m) { part[m()] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<bytes_of(kKind)>(p);
      __m256i acc[T];
      each(Upto<T>(), [&](auto m) { acc[m()] = _mm256_setzero_si256(); });
      each(Upto<8>(), [&](auto s) {
        const __m256i v = step<kKind, s()>(p);
        each(Upto<T>(), [&](auto m) { acc[m()] = multiply_add8(acc[m()], v, broadcast4(q + (s() * T + m()) * 4)); });
      });
      for (int m = 0; m < T; ++m) {
        part[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(acc[m], ones)), _mm256_set1_ps(scale[m]), part[m]);
        part[m] = _mm256_fnmadd_ps(g.zero, _mm256_set1_ps(sum[m]), part[m]);
      }
      p += bytes_of(kKind);
      q += kBlock * T;
      scale += T;
      sum += T;
    }
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_fmadd_ps(part[m()], g.scale, total[m()]); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

template <int kKind, int T>
void panel_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const int16_t* q = static_cast<const int16_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  Table table;
  if constexpr (kKind == kTable) table = read_table(w.table);
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T];
    each(Upto<T>(), [&](auto m) { part[m()] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<bytes_of(kKind)>(p);
      __m256i acc[T], acc2[T];  // two, because an addition waits for the multiplication before it
      each(Upto<T>(), [&](auto m) { acc[m()] = acc2[m()] = _mm256_setzero_si256(); });
      each(Upto<8>(), [&](auto s) {
        __m256i even, odd;
        widen<kKind == kTable>(step<kKind, s()>(p), table, even, odd);
        each(Upto<T>(), [&](auto m) {
          acc[m()] = multiply_add16(acc[m()], even, broadcast4(q + (2 * s() * T + m()) * 2));
          acc2[m()] = multiply_add16(acc2[m()], odd, broadcast4(q + ((2 * s() + 1) * T + m()) * 2));
        });
      });
      for (int m = 0; m < T; ++m) {
        part[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(acc[m], acc2[m])), _mm256_set1_ps(scale[m]), part[m]);
        if constexpr (kKind != kTable) part[m] = _mm256_fnmadd_ps(g.zero, _mm256_set1_ps(sum[m]), part[m]);
      }
      p += bytes_of(kKind);
      q += kBlock * T;
      scale += T;
      sum += T;
    }
    const __m256 factor = kKind == kTable ? _mm256_mul_ps(g.scale, _mm256_set1_ps(table.scale)) : g.scale;
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_fmadd_ps(part[m()], factor, total[m()]); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

// Exact: code minus zero point is a small integer, so only the float products and sums round.
template <int kKind, int T>
void panel_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const float* q = static_cast<const float*>(x.q);
  Table table;
  if constexpr (kKind == kTable) table = read_table(w.table);
  __m256 total[T];
  each(Upto<T>(), [&](auto m) { total[m()] = _mm256_setzero_ps(); });
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const Group g = read_group(w, p);
    __m256 part[T][2];
    each(Upto<T>(), [&](auto m) { part[m()][0] = part[m()][1] = _mm256_setzero_ps(); });
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      prefetch<bytes_of(kKind)>(p);
      each(Upto<8>(), [&](auto s) {
        const __m256i v = step<kKind, s()>(p);
        each(Upto<4>(), [&](auto j) {
          __m256 value = as_float<kKind == kTable, j()>(v, table);
          if constexpr (kKind != kTable) value = _mm256_sub_ps(value, g.zero);
          each(Upto<T>(), [&](auto m) {
            part[m()][j() % 2] = _mm256_fmadd_ps(value, _mm256_set1_ps(q[(4 * s() + j()) * T + m()]), part[m()][j() % 2]);
          });
        });
      });
      p += bytes_of(kKind);
      q += kBlock * T;
    }
    each(Upto<T>(), [&](auto m) { total[m()] = _mm256_fmadd_ps(_mm256_add_ps(part[m()][0], part[m()][1]), g.scale, total[m()]); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], total[m]);
}

// A table per row: a register holds 32 columns of one row, so activations are read as they lie and rows are summed at the end.
// One token: the panel is read front to back, and the rows' tables wait in the first-level cache.
void panel_rows_int16_one(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  Table tables[kRows];
  for (int r = 0; r < kRows; ++r) tables[r] = read_half_table(p + 32 * r);
  p += kRows * 32;
  const int16_t* q = static_cast<const int16_t*>(x.q);
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256 total[kRows];
  each(Upto<kRows>(), [&](auto r) { total[r()] = _mm256_setzero_ps(); });
  for (int64_t b = 0; b < w.blocks; b += 2, p += kRows * 32, q += 2 * kBlock) {
    prefetch<kRows * 32>(p);
    const __m256i x0 = load(q), x1 = load(q + 16), x2 = load(q + 32), x3 = load(q + 48);
    const __m256 low_scale = _mm256_set1_ps(x.scale[b]), high_scale = _mm256_set1_ps(x.scale[b + 1]);
    each(Upto<kRows>(), [&](auto r) {
      const __m256i v = load(p + 32 * r());
      __m256i even, odd;
      widen<true>(_mm256_and_si256(v, nibble), tables[r()], even, odd);
      const __m256i low = multiply_add16(_mm256_madd_epi16(even, x0), odd, x1);
      widen<true>(_mm256_and_si256(_mm256_srli_epi16(v, 4), nibble), tables[r()], even, odd);
      const __m256i high = multiply_add16(_mm256_madd_epi16(even, x2), odd, x3);
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
        widen<true>(_mm256_and_si256(half ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15)), table, even, odd);
        for (int m = 0; m < T; ++m) {
          const __m256i product = _mm256_add_epi32(_mm256_madd_epi16(even, load(q + 32 * m)), _mm256_madd_epi16(odd, load(q + 32 * m + 16)));
          total[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), _mm256_set1_ps(scale[m]), total[m]);
        }
      }
    }
    each(Upto<T>(), [&](auto m) { sums[m()][r] = _mm256_mul_ps(total[m()], _mm256_set1_ps(table.scale)); });
  }
  for (int m = 0; m < T; ++m) _mm256_storeu_ps(y[m], sum_rows(sums[m]));
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
        const __m256 low = as_float<true, 0>(v, table), high = as_float<true, 0>(_mm256_srli_epi32(v, 4), table);
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

template <int kKind, int T>
PanelKernel choose(int mode) {
  if constexpr (kKind == kRowTable) return mode == kFloat ? panel_rows_float<T> : T == 1 ? panel_rows_int16_one : panel_rows_int16<T>;
  else if (mode == kFloat) return panel_float<kKind, T>;
  else if constexpr (kKind == kBits4 || kKind == kBits3 || kKind == kBits2) return mode == kInt16 ? panel_int16<kKind, T> : panel_int8<kKind, T>;
  else return panel_int16<kKind, T>;
}

template <int kKind>
PanelKernel choose(int mode, int tokens) {
  switch (tokens) {
    case 1: return choose<kKind, 1>(mode);
    case 2: return choose<kKind, 2>(mode);
    case 3: return choose<kKind, 3>(mode);
    default: return choose<kKind, 4>(mode);
  }
}

}  // namespace

PanelKernel panel_kernel_avx2(int kind, int mode, int tokens) {
  switch (kind) {
    case kBits8: return choose<kBits8>(mode, tokens);
    case kBits4: return choose<kBits4>(mode, tokens);
    case kBits3: return choose<kBits3>(mode, tokens);
    case kBits2: return choose<kBits2>(mode, tokens);
    case kTable: return choose<kTable>(mode, tokens);
    default: return choose<kRowTable>(mode, tokens);
  }
}

}  // namespace qcore
