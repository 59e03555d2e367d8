// Codes times int8 with NEON, for one token and for many. The including file defines
//
//   dot(acc, a, b)    acc + the sum of the four products of signed bytes in each 32-bit lane
//
// Codes of 8 bits become signed: 128 is subtracted from them and from their zero points, which cancels out.
#pragma once
#include "arm/codes_neon.h"
#include "common/kernels.h"

namespace qcore {
namespace {

template <int kKind>
inline int8x16_t signed_step(const uint8_t* p, int s) {
  const uint8x16_t v = step<kKind>(p, s);
  return vreinterpretq_s8_u8(kKind == kBits8 ? veorq_u8(v, vdupq_n_u8(128)) : v);
}

// Multiply the steps kFirst … kFirst + kSteps − 1 of a block. Register 2 * m + h belongs to token m and the
// rows 4h … 4h + 3.
template <int kKind, int T, int kFirst, int kSteps>
inline void multiply_steps(const uint8_t* p, const int8_t* q, int32x4_t (&acc)[2 * T]) {
  constexpr int together = kTogether<T> < kSteps ? kTogether<T> : kSteps;
  for (int i = 0; i < 2 * T; ++i) acc[i] = vdupq_n_s32(0);
  for (int from = kFirst; from < kFirst + kSteps; from += together)
#pragma GCC unroll 8
    for (int s = from; s < from + together; ++s) {
      const int8x16_t first = signed_step<kKind>(p, s), second = signed_step<kKind>(p + 16, s);
#pragma GCC unroll 4
      for (int m = 0; m < T; ++m) {
        const int8x16_t values = broadcast4(q + (s * T + m) * 4);
        acc[2 * m] = dot(acc[2 * m], first, values);
        acc[2 * m + 1] = dot(acc[2 * m + 1], second, values);
      }
    }
}

template <int kKind, int T>
void panel_int8(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  const int8_t* q = static_cast<const int8_t*>(x.q);
  const float *scale = x.scale, *sum = x.sum;
  float32x4_t total[2 * T];
  for (int i = 0; i < 2 * T; ++i) total[i] = vdupq_n_f32(0);
  for (int64_t left = w.blocks; left > 0; left -= w.group_blocks) {
    const uint8_t* header = p;
    const float* sums = sum;
    const Group g = read_group(w, p);
    const float32x4_t shift = vdupq_n_f32(kKind == kBits8 ? 128 : 0);
    const float32x4_t minus_zero[2] = {vsubq_f32(shift, g.zero[0]), vsubq_f32(shift, g.zero[1])};
    float32x4_t part[2 * T];
    for (int i = 0; i < 2 * T; ++i) part[i] = vdupq_n_f32(0);
    for (int64_t b = left < w.group_blocks ? left : w.group_blocks; b > 0; --b) {
      int32x4_t acc[2 * T];
      multiply_steps<kKind, T, 0, 8>(p, q, acc);
#pragma GCC unroll 8
      for (int i = 0; i < 2 * T; ++i) {
        part[i] = vfmaq_n_f32(part[i], vcvtq_f32_s32(acc[i]), scale[i / 2]);
        part[i] = vfmaq_n_f32(part[i], minus_zero[i % 2], sum[i / 2]);
      }
      p += kCodeBytes<kKind>;
      q += kBlock * T;
      scale += T;
      sum += T;
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2 * T; ++i) total[i] = vfmaq_f32(total[i], part[i], g.scale[i % 2]);
    if (w.zero_bytes == kMinimums) add_minimums<T>(header, sums, (sum - sums) / T, total);
  }
  for (int i = 0; i < 2 * T; ++i) vst1q_f32(y[i / 2] + kHalf * (i % 2), total[i]);
}

template <int kKind, int T>
void panel_super_int8(const Weight& w, const uint8_t* p, const Tile& x, float (*y)[kRows]) {
  panel_super<kKind, T, int8_t>(
      w, p, x, y, [](auto half, const uint8_t* codes, const int8_t* q, float32x4_t(&value)[2 * T]) {
        constexpr int steps = 8 / halves_of(kKind);
        int32x4_t acc[2 * T];
        multiply_steps<kKind, T, half() * steps, steps>(codes, q, acc);
        for (int i = 0; i < 2 * T; ++i) value[i] = vcvtq_f32_s32(acc[i]);
      });
}

// Return the kernel for codes that are multiplied as bytes, or null for other kinds.
inline PanelKernel bytes_kernel(int kind, int tokens) {
  return with_kind(kind, tokens, [](auto k, auto t) -> PanelKernel {
    if constexpr (k() == kTable || k() == kRowTable)
      return nullptr;
    else if constexpr (is_super(k()))
      return panel_super_int8<k(), t()>;
    else
      return panel_int8<k(), t()>;
  });
}

// Register 4 * m + r belongs to token m and the rows 4r … 4r + 3 of a pair of panels. A block has kHalves
// groups of columns; group g is a part of block g / kHalves.
template <int T, int kHalves>
void multiply_bytes(const Stretch& s, const int8_t* q, const float* scale, const float* sum, int64_t count,
                    float (*y)[kPair]) {
  for (int64_t g = 0; g < count * kHalves; ++g, q += kBlock / kHalves * T, sum += T) {
    int32x4_t acc[4 * T];
    for (int i = 0; i < 4 * T; ++i) acc[i] = vdupq_n_s32(0);
    const int8_t* codes = reinterpret_cast<const int8_t*>(s.bytes + g * (512 / kHalves));
    for (int i = 0; i < 8 / kHalves; ++i, codes += 64) {
      const int8x16_t of[4] = {vld1q_s8(codes), vld1q_s8(codes + 16), vld1q_s8(codes + 32),
                               vld1q_s8(codes + 48)};
#pragma GCC unroll 4
      for (int m = 0; m < T; ++m) {
        const int8x16_t values = broadcast4(q + (i * T + m) * 4);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) acc[4 * m + r] = dot(acc[4 * m + r], of[r], values);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4 * T; ++i) {
      const int m = i / 4, row = kHalf * (i % 4);
      float32x4_t total = vfmaq_n_f32(vld1q_f32(y[m] + row), vld1q_f32(s.offset[g] + row), sum[m]);
      total = vfmaq_f32(total, vcvtq_f32_s32(acc[i]),
                        vmulq_n_f32(vld1q_f32(s.scale[g] + row), scale[g / kHalves * T + m]));
      vst1q_f32(y[m] + row, total);
    }
  }
}

inline bool in_bytes(int kind, int mode) {
  return (mode == kInt8 || mode == kInt8Token) && codes_of(kind) <= kBits2;
}

inline void multiply_bytes(const Weight& w, const Stretch& s, int64_t first, int64_t count, const Tile& x,
                           int tokens, float (*y)[kPair]) {
  with_tokens(tokens, [&](auto t) {
    const int64_t at = first * t();
    const int8_t* q = static_cast<const int8_t*>(x.q) + at * kBlock;
    if (halves_of(w.kind) == 2)
      multiply_bytes<t(), 2>(s, q, x.scale + at, x.sum + 2 * at, count, y);
    else
      multiply_bytes<t(), 1>(s, q, x.scale + at, x.sum + at, count, y);
  });
}

}  // namespace
}  // namespace qcore
