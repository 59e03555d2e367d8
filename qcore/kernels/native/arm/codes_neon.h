// Reads panels with NEON: the 8 rows of a step take two registers of 4 rows. The formulas are those of
// codes_avx2.h, so all instruction sets round in the same way.
#pragma once
#include <cstring>

#include "arm/neon.h"
#include "common/layout.h"
#include "common/unroll.h"

namespace qcore {
namespace {  // private to each file, because files are compiled for different instruction sets

constexpr int kHalf = 4;  // rows per register

// The number of steps to unroll: with several tokens, more steps would start more products than registers
// hold.
template <int T>
constexpr int kTogether = T == 1 ? 8 : 2;

constexpr int bytes_of(int kind) {
  return kind == kBits8 ? 256 : kind == kBits3 ? 96 : kind == kBits2 ? 64 : 128;
}

// The 4 bytes at p in all lanes.
inline int8x16_t broadcast4(const void* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// The bytes of 4 rows in step `s` of a block; `p` points to the 16 bytes of these rows in the block's first
// 32 bytes. In an unrolled loop over steps, the shifts are constants.
template <int kKind>
inline uint8x16_t step(const uint8_t* p, int s) {
  const auto right = [](uint8x16_t v, int bits) {
    return vshlq_u8(v, vdupq_n_s8(int8_t(-bits)));
  };  // left, if negative
  if constexpr (kKind == kBits8) {
    return vld1q_u8(p + 32 * s);
  } else if constexpr (kKind == kBits4 || kKind == kTable) {
    return vandq_u8(right(vld1q_u8(p + 32 * (s / 2)), 4 * (s % 2)), vdupq_n_u8(15));
  } else {
    const uint8x16_t low = vandq_u8(right(vld1q_u8(p + 32 * (s / 4)), 2 * (s % 4)), vdupq_n_u8(3));
    if constexpr (kKind == kBits2) return low;
    return vorrq_u8(low, vandq_u8(right(vld1q_u8(p + 64), s - 2), vdupq_n_u8(4)));
  }
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

}  // namespace
}  // namespace qcore
