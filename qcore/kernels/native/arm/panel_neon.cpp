// One to four tokens with NEON. Codes are read once, from memory, and stay in registers.
// clang-format off: bytes_neon.h uses what dot_neon.h defines
#include "arm/dot_neon.h"
#include "arm/bytes_neon.h"
// clang-format on

namespace qcore {
namespace {

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block by int16. Two sums per register of 4 rows,
// because products of int16 fill two registers: one for the rows 0 and 1, one for the rows 2 and 3, with two
// columns per row.
template <int kKind, int T, int kFirst, int kSteps>
inline void multiply_words(const uint8_t* p, const Table& table, const int16_t* q, int32x4_t (&acc)[2 * T]) {
  constexpr bool tabled = kKind == kTable;
  constexpr int together = kTogether<T> < kSteps ? kTogether<T> : kSteps;
  int32x4_t low[2 * T], high[2 * T];
  for (int i = 0; i < 2 * T; ++i) low[i] = high[i] = vdupq_n_s32(0);
  for (int from = kFirst; from < kFirst + kSteps; from += together)
#pragma GCC unroll 8
    for (int s = from; s < from + together; ++s) {
      const Words of[2] = {widen<tabled>(step<kKind>(p, s), table),
                           widen<tabled>(step<kKind>(p + 16, s), table)};
#pragma GCC unroll 8
      for (int i = 0; i < 2 * T; ++i) {
        const int16x8_t even = vreinterpretq_s16_s8(broadcast4(q + (2 * s * T + i / 2) * 2));
        const int16x8_t odd = vreinterpretq_s16_s8(broadcast4(q + ((2 * s + 1) * T + i / 2) * 2));
        const Words& c = of[i % 2];
        low[i] = vmlal_s16(vmlal_s16(low[i], vget_low_s16(c.even), vget_low_s16(even)), vget_low_s16(c.odd),
                           vget_low_s16(odd));
        high[i] = vmlal_high_s16(vmlal_high_s16(high[i], c.even, even), c.odd, odd);
      }
    }
  for (int i = 0; i < 2 * T; ++i) acc[i] = vpaddq_s32(low[i], high[i]);
}

template <int kKind, int T>
void panel_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  constexpr bool tabled = kKind == kTable;
  const int16_t* q = static_cast<const int16_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  Table table{};
  if constexpr (tabled) table = read_table(w.table.data);
  float32x4_t total[2 * T];
  for (int i = 0; i < 2 * T; ++i) total[i] = vdupq_n_f32(0);
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const uint8_t* header = p;
    const float* sums = sum;
    const Group g = read_group(w, p);
    const float32x4_t minus_zero[2] = {vnegq_f32(g.zero[0]), vnegq_f32(g.zero[1])};
    float32x4_t part[2 * T];
    for (int i = 0; i < 2 * T; ++i) part[i] = vdupq_n_f32(0);
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      int32x4_t acc[2 * T];
      multiply_words<kKind, T, 0, 8>(p, table, q, acc);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * T; ++i) {
        part[i] = vfmaq_n_f32(part[i], vcvtq_f32_s32(acc[i]), scale[i / 2]);
        if constexpr (!tabled) part[i] = vfmaq_n_f32(part[i], minus_zero[i % 2], sum[i / 2]);
      }
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += T;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; ++i)
      total[i] =
          vfmaq_f32(total[i], part[i], tabled ? vmulq_n_f32(g.scale[i % 2], table.scale) : g.scale[i % 2]);
    if (!tabled && w.zero_bytes == kMinimums) add_minimums<T>(header, sums, (sum - sums) / T, total);
  }
  for (int i = 0; i < 2 * T; ++i) vst1q_f32(y[i / 2] + kHalf * (i % 2), total[i]);
}

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block by floats. Code minus zero point is a small
// integer and exact in float, so only the products and sums with x round. Two sums, for the even and the odd
// columns, hide the latency of the additions.
template <int kKind, int T, int kFirst, int kSteps, bool kZero>
inline void multiply_floats(const uint8_t* p, const Table& table, const float32x4_t (&zero)[2],
                            const float* q, float32x4_t (&even)[2 * T], float32x4_t (&odd)[2 * T]) {
  constexpr bool tabled = kKind == kTable;
  constexpr int together = kTogether<T> < kSteps ? kTogether<T> : kSteps;
  for (int from = kFirst; from < kFirst + kSteps; from += together)
#pragma GCC unroll 8
    for (int s = from; s < from + together; ++s)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const uint8x16_t codes = step<kKind>(p + 16 * h, s);
#pragma GCC unroll 2
        for (int j = 0; j < 4; j += 2) {
          float32x4_t first = as_float<tabled>(codes, j, table),
                      second = as_float<tabled>(codes, j + 1, table);
          if constexpr (kZero) {
            first = vsubq_f32(first, zero[h]);
            second = vsubq_f32(second, zero[h]);
          }
          const float* at = q + (4 * s + j) * T;
#pragma GCC unroll 4
          for (int m = 0; m < T; ++m) {
            even[2 * m + h] = vfmaq_n_f32(even[2 * m + h], first, at[m]);
            odd[2 * m + h] = vfmaq_n_f32(odd[2 * m + h], second, at[T + m]);
          }
        }
      }
}

template <int kKind, int T>
void panel_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  constexpr bool tabled = kKind == kTable;
  const float *q = static_cast<const float*>(x.q), *sum = x.sum;
  Table table{};
  if constexpr (tabled) table = read_table(w.table.data);
  float32x4_t total[2 * T];
  for (int i = 0; i < 2 * T; ++i) total[i] = vdupq_n_f32(0);
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const uint8_t* header = p;
    const Group g = read_group(w, p);
    float32x4_t even[2 * T], odd[2 * T];
    for (int i = 0; i < 2 * T; ++i) even[i] = odd[i] = vdupq_n_f32(0);
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      multiply_floats<kKind, T, 0, 8, !tabled>(p, table, g.zero, q, even, odd);
      p += kCodeBytes<kKind>;
      q += kBlock * T;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; ++i)
      total[i] = vfmaq_f32(total[i], vaddq_f32(even[i], odd[i]), g.scale[i % 2]);
    if (!tabled && w.zero_bytes == kMinimums) {
      const int64_t blocks = left < w.group_blocks ? left : w.group_blocks;
      add_minimums<T>(header, sum, blocks, total);
      sum += blocks * T;
    }
  }
  for (int i = 0; i < 2 * T; ++i) vst1q_f32(y[i / 2] + kHalf * (i % 2), total[i]);
}

template <int kKind, int T>
void panel_super_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  panel_super<kKind, T, int16_t>(
      w, p, x, y, [](auto half, const uint8_t* codes, const int16_t* q, float32x4_t(&value)[2 * T]) {
        constexpr int steps = 8 / halves_of(kKind);
        int32x4_t acc[2 * T];
        multiply_words<kKind, T, half() * steps, steps>(codes, Table{}, q, acc);
        for (int i = 0; i < 2 * T; ++i) value[i] = vcvtq_f32_s32(acc[i]);
      });
}

template <int kKind, int T>
void panel_super_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const float32x4_t zero[2] = {vdupq_n_f32(w.zero), vdupq_n_f32(w.zero)};
  panel_super<kKind, T, float>(
      w, p, x, y, [&](auto half, const uint8_t* codes, const float* q, float32x4_t(&value)[2 * T]) {
        constexpr int steps = 8 / halves_of(kKind);
        float32x4_t even[2 * T], odd[2 * T];
        for (int i = 0; i < 2 * T; ++i) even[i] = odd[i] = vdupq_n_f32(0);
        multiply_floats<kKind, T, half() * steps, steps, !has_super_minimums(kKind)>(codes, Table{}, zero, q,
                                                                                     even, odd);
        for (int i = 0; i < 2 * T; ++i) value[i] = vaddq_f32(even[i], odd[i]);
      });
}

// A table per row: a register holds columns of one row, so activations are read in order, and each row is
// summed at the end. The panel is read front to back, while the tables of its rows stay in the first-level
// cache.
template <int T>
void panel_rows_int16(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  Table tables[kRows];
  float32x4_t total[kRows][T];
  for (int r = 0; r < kRows; ++r, p += 32) {
    tables[r] = read_half_table(p);
    for (int m = 0; m < T; ++m) total[r][m] = vdupq_n_f32(0);
  }
  const int16_t* q = static_cast<const int16_t*>(x.q);
  for (int64_t b = 0; b < w.blocks; b += 2, q += 2 * kBlock * T)
    for (int r = 0; r < kRows; ++r, p += 32) {
      const uint8x16_t packed[2] = {vld1q_u8(p), vld1q_u8(p + 16)};
      for (int half = 0; half < 2; ++half) {
        Words of[2];  // columns 0 … 15 and 16 … 31 of the block
        for (int i = 0; i < 2; ++i)
          of[i] =
              widen<true>(half ? vshrq_n_u8(packed[i], 4) : vandq_u8(packed[i], vdupq_n_u8(15)), tables[r]);
        for (int m = 0; m < T; ++m) {
          const int16_t* at = q + (half * T + m) * kBlock;
          int32x4_t sum = vdupq_n_s32(0);
          for (int i = 0; i < 2; ++i) {
            const int16x8_t even = vld1q_s16(at + 8 * i), odd = vld1q_s16(at + 16 + 8 * i);
            sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(of[i].even), vget_low_s16(even)), of[i].even,
                                 even);
            sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(of[i].odd), vget_low_s16(odd)), of[i].odd, odd);
          }
          total[r][m] = vfmaq_n_f32(total[r][m], vcvtq_f32_s32(sum), x.scale[(b + half) * T + m]);
        }
      }
    }
  for (int r = 0; r < kRows; ++r)
    for (int m = 0; m < T; ++m) y[m][r] = vaddvq_f32(total[r][m]) * tables[r].scale;
}

template <int T>
void panel_rows_float(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  Table tables[kRows];
  float32x4_t total[kRows][T][2];
  for (int r = 0; r < kRows; ++r, p += 32) {
    tables[r] = read_half_table(p);
    for (int m = 0; m < T; ++m) total[r][m][0] = total[r][m][1] = vdupq_n_f32(0);
  }
  const float* q = static_cast<const float*>(x.q);
  for (int64_t b = 0; b < w.blocks; b += 2)
    for (int r = 0; r < kRows; ++r, p += 32)
      for (int c = 0; c < kBlock; c += 4) {  // 4 bytes: columns c …, and 32 columns on
        uint32_t four = 0;
        std::memcpy(&four, p + c, 4);
        const uint32x4_t bytes = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
        const float32x4_t low = look_up(tables[r], vandq_u32(bytes, vdupq_n_u32(15))),
                          high = look_up(tables[r], vshrq_n_u32(bytes, 4));
        for (int m = 0; m < T; ++m) {
          const float* at = q + (m * w.blocks + b) * kBlock + c;
          total[r][m][0] = vfmaq_f32(total[r][m][0], low, vld1q_f32(at));
          total[r][m][1] = vfmaq_f32(total[r][m][1], high, vld1q_f32(at + kBlock));
        }
      }
  for (int r = 0; r < kRows; ++r)
    for (int m = 0; m < T; ++m) y[m][r] = vaddvq_f32(vaddq_f32(total[r][m][0], total[r][m][1]));
}

}  // namespace

PanelKernel panel_kernel_neon(int kind, int mode, int tokens) {
  if (in_bytes(kind, mode)) return bytes_kernel(kind, tokens);
  return with_kind(kind, tokens, [&](auto k, auto t) -> PanelKernel {
    if constexpr (k() == kRowTable)
      return mode == kFloat ? panel_rows_float<t()> : panel_rows_int16<t()>;
    else if constexpr (is_super(k()))
      return mode == kFloat ? panel_super_float<k(), t()> : panel_super_int16<k(), t()>;
    else
      return mode == kFloat ? panel_float<k(), t()> : panel_int16<k(), t()>;
  });
}

}  // namespace qcore
