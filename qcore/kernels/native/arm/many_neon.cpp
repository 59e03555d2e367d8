// Many tokens with NEON. In a stretch, int16 codes are stored column by column, 16 rows each, because NEON
// does not add neighbouring products of int16. The columns of a step have the order of the activations: 4s,
// 4s + 2, 4s + 1, 4s + 3.
// clang-format off: bytes_neon.h uses what dot_neon.h defines
#include "arm/dot_neon.h"
#include "arm/bytes_neon.h"
// clang-format on

namespace qcore {
namespace {

// The factors of the 8 rows in a block: w = scale * (code - zero) + minimum, for each of its groups of
// columns.
template <int kKind>
struct Scales {
  float32x4_t scale[halves_of(kKind)][2], minimum[halves_of(kKind)][2], zero[2];
};

// Read the factors of block `b`, and set `codes` to its codes. `minimum` is valid if the weight has minimums.
template <int kKind>
inline Scales<kKind> read_scales(const Weight& w, const uint8_t* panel, int64_t b, const uint8_t*& codes) {
  const int64_t group_bytes = header_bytes(w) + w.group_blocks * kBlockBytes<kKind>;
  const uint8_t* header = panel + b / w.group_blocks * group_bytes;
  Scales<kKind> s;
  const uint8_t* p = header;
  if constexpr (is_super(kKind)) {
    const Factors factors = read_factors<kKind>(w, p);
    p += b % w.group_blocks * kBlockBytes<kKind>;
    const Integers<kKind> integers = read_integers<kKind>(p);
    codes = p + kIntegers;
    for (int h = 0; h < 2; ++h) {
      s.zero[h] = vdupq_n_f32(w.zero);
      for (int half = 0; half < halves_of(kKind); ++half) {
        s.scale[half][h] = vmulq_f32(factors.scale[h], integers.scale[half][h]);
        s.minimum[half][h] = vmulq_f32(factors.minimum[h], integers.minimum[half][h]);
      }
    }
  } else {
    const Group g = read_group(w, p);
    codes = p + b % w.group_blocks * kBlockBytes<kKind>;
    for (int h = 0; h < 2; ++h) {
      s.scale[0][h] = g.scale[h];
      s.zero[h] = g.zero[h];
      s.minimum[0][h] = vdupq_n_f32(0);
    }
    if (w.zero_bytes == kMinimums) read_minimums(header, s.minimum[0]);
  }
  return s;
}

template <int kKind>
void widen_panel(const Weight& w, const uint8_t* panel, int mode, int64_t first, int64_t count, int side,
                 Stretch& to) {
  constexpr bool tabled = kKind == kTable;
  constexpr int halves = halves_of(kKind);
  const bool bytes = in_bytes(kKind, mode), minimums = has_super_minimums(kKind) || w.zero_bytes == kMinimums;
  Table table{};
  if constexpr (tabled) table = read_table(w.table.data);
  for (int64_t i = 0, b = first; i < count; ++i, ++b) {
    const uint8_t* p;
    Scales<kKind> of = read_scales<kKind>(w, panel, b, p);
    const float32x4_t shift = vdupq_n_f32(kKind == kBits8 ? 128 : 0);
    for (int half = 0; half < halves; ++half)
      for (int h = 0; h < 2; ++h) {
        const int row = kRows * side + kHalf * h;
        if (tabled && mode != kFloat) of.scale[half][h] = vmulq_n_f32(of.scale[half][h], table.scale);
        vst1q_f32(to.scale[i * halves + half] + row, of.scale[half][h]);
        // Words have the zero point subtracted.
        float32x4_t offset = vdupq_n_f32(0);
        if (bytes) offset = vmulq_f32(of.scale[half][h], vsubq_f32(shift, of.zero[h]));
        if (minimums) offset = vaddq_f32(offset, of.minimum[half][h]);
        vst1q_f32(to.offset[i * halves + half] + row, offset);
      }
    if (mode == kFloat) {
      for (int c = 0; c < kBlock; ++c)
        for (int h = 0; h < 2; ++h) {
          const int half = c * halves / kBlock;
          float32x4_t value = as_float<tabled>(step<kKind>(p + 16 * h, c / 4), c % 4, table);
          if constexpr (!tabled) value = vsubq_f32(value, of.zero[h]);
          value = vmulq_f32(value, of.scale[half][h]);
          if (minimums) value = vaddq_f32(value, of.minimum[half][h]);
          vst1q_f32(to.floats + (i * kBlock + c) * kPair + kRows * side + kHalf * h, value);
        }
    } else if (bytes) {
      for (int s = 0; s < 8; ++s)
        for (int h = 0; h < 2; ++h) {
          const int8x16_t codes = signed_step<kKind>(p + 16 * h, s);
          vst1q_s8(reinterpret_cast<int8_t*>(to.bytes + ((i * 8 + s) * 2 + side) * 32 + 16 * h), codes);
        }
    } else {
      const int16x8_t zero =
          vcombine_s16(vmovn_s32(vcvtq_s32_f32(of.zero[0])), vmovn_s32(vcvtq_s32_f32(of.zero[1])));
      for (int s = 0; s < 8; ++s) {
        const Words upper = widen<tabled>(step<kKind>(p, s), table),
                    lower = widen<tabled>(step<kKind>(p + 16, s), table);
        int16x8_t column[4] = {vuzp1q_s16(upper.even, lower.even), vuzp2q_s16(upper.even, lower.even),
                               vuzp1q_s16(upper.odd, lower.odd), vuzp2q_s16(upper.odd, lower.odd)};
        for (int n = 0; n < 4; ++n) {
          if constexpr (!tabled) column[n] = vsubq_s16(column[n], zero);
          vst1q_s16(to.words + (i * kBlock + 4 * s + n) * kPair + kRows * side, column[n]);
        }
      }
    }
  }
}

// Without vector instructions, because a stretch is widened once for all tokens.
void widen_row_tables(const uint8_t* panel, int mode, int64_t first, int64_t count, int side, Stretch& to) {
  static constexpr int place[4] = {0, 2, 1, 3};
  for (int r = 0; r < kRows; ++r) {
    const Table table = read_half_table(panel + 32 * r);
    float floats[16];
    uint8_t low[16], high[16];
    for (int i = 0; i < 4; ++i) vst1q_f32(floats + 4 * i, vreinterpretq_f32_u8(table.floats.val[i]));
    vst1q_u8(low, table.low);
    vst1q_u8(high, table.high);
    for (int64_t i = 0, b = first; i < count; ++i, ++b) {
      const uint8_t* p = panel + kRows * 32 + (b / 2 * kRows + r) * 32;
      to.scale[i][kRows * side + r] = table.scale;
      for (int c = 0; c < kBlock; ++c) {
        const int code = b % 2 ? p[c] >> 4 : p[c] & 15;
        if (mode == kFloat)
          to.floats[(i * kBlock + c) * kPair + kRows * side + r] = floats[code];
        else
          to.words[(i * kBlock + c / 4 * 4 + place[c % 4]) * kPair + kRows * side + r] =
              int16_t(low[code] | high[code] << 8);
      }
    }
  }
}

void widen_side(const Weight& w, const uint8_t* panel, int mode, int64_t first, int64_t count, int side,
                Stretch& to) {
  with_kind(w.kind, [&](auto kind) {
    if constexpr (kind() == kRowTable)
      widen_row_tables(panel, mode, first, count, side, to);
    else
      widen_panel<kind()>(w, panel, mode, first, count, side, to);
  });
}

// Sum 4 * m + r belongs to token m and the rows 4r … 4r + 3. A block has kHalves groups of columns; group g
// is a part of block g / kHalves. Without kOffset, sums are not read.
template <int T, int kHalves, bool kOffset>
void multiply_words(const Stretch& s, const int16_t* q, const float* scale, const float* sum, int64_t count,
                    float (*y)[kPair]) {
  for (int64_t g = 0; g < count * kHalves; ++g, q += kBlock / kHalves * T, sum += T) {
    int32x4_t acc[4 * T];
    for (int i = 0; i < 4 * T; ++i) acc[i] = vdupq_n_s32(0);
    const int16_t* words = s.words + g * (512 / kHalves);
    for (int c = 0; c < kBlock / kHalves; ++c, words += kPair) {
      const int16x8_t first = vld1q_s16(words), second = vld1q_s16(words + 8);
#pragma GCC unroll 4
      for (int m = 0; m < T; ++m) {
        const int16x8_t values = vdupq_n_s16(q[(c / 2 * T + m) * 2 + c % 2]);
        acc[4 * m] = vmlal_s16(acc[4 * m], vget_low_s16(first), vget_low_s16(values));
        acc[4 * m + 1] = vmlal_high_s16(acc[4 * m + 1], first, values);
        acc[4 * m + 2] = vmlal_s16(acc[4 * m + 2], vget_low_s16(second), vget_low_s16(values));
        acc[4 * m + 3] = vmlal_high_s16(acc[4 * m + 3], second, values);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * T; ++i) {
      float* to = y[i / 4] + kHalf * (i % 4);
      const float32x4_t factor =
          vmulq_n_f32(vld1q_f32(s.scale[g] + kHalf * (i % 4)), scale[g / kHalves * T + i / 4]);
      float32x4_t total = vld1q_f32(to);
      if constexpr (kOffset) total = vfmaq_n_f32(total, vld1q_f32(s.offset[g] + kHalf * (i % 4)), sum[i / 4]);
      vst1q_f32(to, vfmaq_f32(total, vcvtq_f32_s32(acc[i]), factor));
    }
  }
}

template <int T>
void multiply_floats(const Stretch& s, const float* q, int64_t count, float (*y)[kPair]) {
  float32x4_t acc[4 * T];
  for (int i = 0; i < 4 * T; ++i) acc[i] = vld1q_f32(y[i / 4] + kHalf * (i % 4));
  const float* values = s.floats;
  for (int64_t k = 0; k < count * kBlock; ++k, values += kPair, q += T) {
    const float32x4_t of[4] = {vld1q_f32(values), vld1q_f32(values + 4), vld1q_f32(values + 8),
                               vld1q_f32(values + 12)};
#pragma GCC unroll 16
    for (int i = 0; i < 4 * T; ++i) acc[i] = vfmaq_n_f32(acc[i], of[i % 4], q[i / 4]);
  }
  for (int i = 0; i < 4 * T; ++i) vst1q_f32(y[i / 4] + kHalf * (i % 4), acc[i]);
}

}  // namespace

void widen_neon(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                Stretch& to) {
  widen_side(w, a, mode, first, count, 0, to);
  if (b) widen_side(w, b, mode, first, count, 1, to);
}

void multiply_neon(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                   int tokens, float (*y)[kPair]) {
  if (in_bytes(w.kind, mode)) return multiply_bytes(w, s, first, count, x, tokens, y);
  with_tokens(tokens, [&](auto t) {
    constexpr int T = t();
    const int64_t at = first * T;
    if (mode == kFloat) return multiply_floats<T>(s, static_cast<const float*>(x.q) + at * kBlock, count, y);
    const int halves = halves_of(w.kind);
    const auto multiply = halves == 2 ? multiply_words<T, 2, true>
                          : has_super_minimums(w.kind) || w.zero_bytes == kMinimums
                              ? multiply_words<T, 1, true>
                              : multiply_words<T, 1, false>;
    multiply(s, static_cast<const int16_t*>(x.q) + at * kBlock, x.scale + at, x.sum + at * halves, count, y);
  });
}

}  // namespace qcore
