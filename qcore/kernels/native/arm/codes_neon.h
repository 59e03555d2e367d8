// Reads panels with NEON: the 8 rows of a step take two registers of 4 rows. The formulas are those of
// codes_avx2.h, so all instruction sets round in the same way.
#pragma once
#include <cstring>

#include "arm/neon.h"
#include "common/kernels.h"
#include "common/unroll.h"

namespace qcore {
namespace {  // private to each file, because files are compiled for different instruction sets

constexpr int kHalf = 4;  // rows per register

// The number of steps to unroll: with several tokens, more steps would start more products than registers
// hold.
template <int T>
constexpr int kTogether = T == 1 ? 8 : 2;

template <int kKind>
constexpr int kCodeBytes = code_bytes(kKind);
template <int kKind>
constexpr int kBlockBytes = block_bytes(kKind);

// The 4 bytes at p in all lanes.
inline int8x16_t broadcast4(const void* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// The bytes of 4 rows in step `s` of a plane of kBits bits, moved to bit kTo of every byte. In an unrolled
// loop over steps, the shifts are constants.
template <int kBits, int kTo>
inline uint8x16_t plane_step(const uint8_t* p, int s) {
  const uint8x16_t v = vld1q_u8(p + 32 * (s * kBits / 8));
  if constexpr (kBits == 8) return v;
  const int8x16_t left = vdupq_n_s8(int8_t(kTo - s * kBits % 8));  // right, if negative
  return vandq_u8(vshlq_u8(v, left), vdupq_n_u8(((1 << kBits) - 1) << kTo));
}

// The bytes of 4 rows in step `s` of a block; `p` points to the 16 bytes of these rows in the block's first
// 32 bytes.
template <int kKind>
inline uint8x16_t step(const uint8_t* p, int s) {
  constexpr Planes planes = planes_of(kKind);
  const uint8x16_t low = plane_step<planes.first, 0>(p, s);
  if constexpr (planes.second == 0) return low;
  const uint8x16_t high = plane_step<planes.second, planes.first>(p + 32 * planes.first, s);
  return vorrq_u8(low, high);
}

inline float32x4_t from_half(const uint8_t* p) {
  uint16x4_t bits;
  std::memcpy(&bits, p, 8);
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

inline int32x4_t round(float32x4_t v) { return vcvtq_s32_f32(vrndnq_f32(v)); }

// A table of 16 values as integers of 13 bits (split into low and high bytes) and as floats.
struct Table {
  uint8x16_t low, high;
  uint8x16x4_t floats;
  float scale;  // value = scale * integer
};

inline Table read_table(const float* values) {
  Table t;
  float32x4_t most = vdupq_n_f32(0);
  for (int i = 0; i < 4; ++i) {
    const float32x4_t v = vld1q_f32(values + 4 * i);
    t.floats.val[i] = vreinterpretq_u8_f32(v);
    most = vmaxq_f32(most, vabsq_f32(v));
  }
  const float largest = vmaxvq_f32(most);
  t.scale = largest / kTableMax;
  const float inverse = largest > 1e-30f ? kTableMax / largest : 0.f;
  uint8_t low[16], high[16];
  for (int i = 0; i < 4; ++i) {
    int32_t whole[4];
    vst1q_s32(whole, round(vmulq_n_f32(vld1q_f32(values + 4 * i), inverse)));
    for (int k = 0; k < 4; ++k) {
      low[4 * i + k] = uint8_t(whole[k]);
      high[4 * i + k] = uint8_t(whole[k] >> 8);
    }
  }
  t.low = vld1q_u8(low);
  t.high = vld1q_u8(high);
  return t;
}

inline Table read_half_table(const uint8_t* halves) {
  float values[16];
  for (int i = 0; i < 4; ++i) vst1q_f32(values + 4 * i, from_half(halves + 8 * i));
  return read_table(values);
}

struct Words {
  int16x8_t even, odd;
};

// Convert the even and the odd bytes of a register (codes, or indices into a table) to int16.
template <bool kTabled>
inline Words widen(uint8x16_t v, const Table& t) {
  const uint16x8_t byte = vdupq_n_u16(0x00ff);
  if constexpr (kTabled) {
    const uint16x8_t low = vreinterpretq_u16_u8(vqtbl1q_u8(t.low, v)),
                     high = vreinterpretq_u16_u8(vqtbl1q_u8(t.high, v));
    return {vreinterpretq_s16_u16(vbslq_u16(byte, low, vshlq_n_u16(high, 8))),
            vreinterpretq_s16_u16(vbslq_u16(byte, vshrq_n_u16(low, 8), high))};
  } else {
    const uint16x8_t pairs = vreinterpretq_u16_u8(v);
    return {vreinterpretq_s16_u16(vandq_u16(pairs, byte)), vreinterpretq_s16_u16(vshrq_n_u16(pairs, 8))};
  }
}

// Look up 4 indices below 16 in the table of floats.
inline float32x4_t look_up(const Table& t, uint32x4_t index) {
  const uint32x4_t bytes =
      vmlaq_u32(vdupq_n_u32(0x03020100), index, vdupq_n_u32(0x04040404));  // of the 64 bytes of the table
  return vreinterpretq_f32_u8(vqtbl4q_u8(t.floats, vreinterpretq_u8_u32(bytes)));
}

// Convert byte j of each lane (a code, or an index into a table) to float.
template <bool kTabled>
inline float32x4_t as_float(uint8x16_t v, int j, const Table& t) {
  const uint32x4_t byte =
      vandq_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-8 * j)), vdupq_n_u32(255));
  if constexpr (kTabled)
    return look_up(t, byte);
  else
    return vcvtq_f32_u32(byte);
}

struct Group {
  float32x4_t scale[2], zero[2];
};

// Read the scales and zero points of 8 rows, and move `p` past them.
inline Group read_group(const Weight& w, const uint8_t*& p) {
  Group g;
  float zero[kRows];
  for (int r = 0; r < kRows; ++r)
    zero[r] = w.zero_bytes == 8   ? p[16 + r]
              : w.zero_bytes == 4 ? float((p[16 + r / 2] >> (4 * (r % 2))) & 15)
                                  : w.zero;
  for (int h = 0; h < 2; ++h) {
    g.scale[h] = from_half(p + 8 * h);
    g.zero[h] = vld1q_f32(zero + kHalf * h);
  }
  p += 16 + w.zero_bytes;
  return g;
}

// Read the 8 minimums of a group, which begins at `header`.
inline void read_minimums(const uint8_t* header, float32x4_t (&minimum)[2]) {
  for (int h = 0; h < 2; ++h) minimum[h] = from_half(header + 16 + 8 * h);
}

// The integers in front of a block of a K-quant, for each of its groups of columns and 4 rows. Without stored
// minimums, the zero point times the scale is the minimum.
template <int kKind>
struct Integers {
  float32x4_t scale[halves_of(kKind)][2], minimum[halves_of(kKind)][2];
};

template <int kKind>
inline Integers<kKind> read_integers(const uint8_t* p) {
  constexpr int halves = halves_of(kKind);
  float scale[halves][kRows], minimum[halves][kRows];
  for (int half = 0; half < halves; ++half)
    for (int r = 0; r < kRows; ++r) {
      const uint8_t byte = p[kRows * half + r];
      if constexpr (kKind == kSuper2) {
        scale[half][r] = byte & 15;
        minimum[half][r] = byte >> 4;
      } else if constexpr (halves == 2) {
        scale[half][r] = minimum[half][r] = int8_t(byte);
      } else {
        scale[half][r] = byte;
        minimum[half][r] = p[kRows + r];
      }
    }
  Integers<kKind> in;
  for (int half = 0; half < halves; ++half)
    for (int h = 0; h < 2; ++h) {
      in.scale[half][h] = vld1q_f32(scale[half] + kHalf * h);
      in.minimum[half][h] = vld1q_f32(minimum[half] + kHalf * h);
    }
  return in;
}

// The factors of a super-block's integers. The second is that of the minimums: −dmin, or −d times the zero
// point.
struct Factors {
  float32x4_t scale[2], minimum[2];
};

// Read the factors of 8 rows, and move `p` past them.
template <int kKind>
inline Factors read_factors(const Weight& w, const uint8_t*& p) {
  Factors f;
  for (int h = 0; h < 2; ++h) {
    f.scale[h] = from_half(p + 8 * h);
    f.minimum[h] =
        has_super_minimums(kKind) ? vnegq_f32(from_half(p + 16 + 8 * h)) : vmulq_n_f32(f.scale[h], -w.zero);
  }
  p += has_super_minimums(kKind) ? 32 : 16;
  return f;
}

// K-quants, for one to four tokens. `multiply(half, p, q, value)` sets value[2 * m + h] to the products of a
// half of a block, or of the whole block if it is one group. Register 2 * m + h belongs to token m and the
// rows 4h … 4h + 3.
template <int kKind, int T, class Value, class Multiply>
inline void panel_super(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows],
                        Multiply&& multiply) {
  constexpr bool integer = sizeof(Value) < 4;
  constexpr bool with_sums = integer || has_super_minimums(kKind);
  const Value* q = static_cast<const Value*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  float32x4_t total[2 * T];
  for (int i = 0; i < 2 * T; ++i) total[i] = vdupq_n_f32(0);
  for (int64_t left = w.blocks; left > 0; left -= kSuperBlocks) {
    const Factors factors = read_factors<kKind>(w, p);
    float32x4_t part[2 * T], minimums[2 * T];
    for (int i = 0; i < 2 * T; ++i) part[i] = minimums[i] = vdupq_n_f32(0);
    for (int b = 0; b < kSuperBlocks; ++b) {
      const Integers<kKind> integers = read_integers<kKind>(p);
      p += kIntegers;
      each(Upto<halves_of(kKind)>(), [&](auto half) {
        float32x4_t value[2 * T];
        multiply(half, p, q, value);
#pragma GCC unroll 8
        for (int i = 0; i < 2 * T; ++i) {
          if constexpr (integer) value[i] = vmulq_n_f32(value[i], scale[i / 2]);
          part[i] = vfmaq_f32(part[i], value[i], integers.scale[half()][i % 2]);
          if constexpr (with_sums)
            minimums[i] = vfmaq_n_f32(minimums[i], integers.minimum[half()][i % 2], sum[half() * T + i / 2]);
        }
      });
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += halves_of(kKind) * T;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; ++i) {
      total[i] = vfmaq_f32(total[i], part[i], factors.scale[i % 2]);
      if constexpr (with_sums) total[i] = vfmaq_f32(total[i], minimums[i], factors.minimum[i % 2]);
    }
  }
  for (int i = 0; i < 2 * T; ++i) vst1q_f32(y[i / 2] + kHalf * (i % 2), total[i]);
}

// Add the minimums of a group, which begins at `header`, times the sums of its activations.
template <int T>
inline void add_minimums(const uint8_t* header, const float* sum, int64_t blocks,
                         float32x4_t (&total)[2 * T]) {
  float32x4_t minimum[2];
  read_minimums(header, minimum);
  for (; blocks > 0; --blocks, sum += T)
    for (int i = 0; i < 2 * T; ++i) total[i] = vfmaq_n_f32(total[i], minimum[i % 2], sum[i / 2]);
}

}  // namespace
}  // namespace qcore
