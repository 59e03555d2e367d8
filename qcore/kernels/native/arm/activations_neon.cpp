// Quantizes activations with NEON, to the same integers and scales as activations_avx2.cpp.
#include <cstring>

#include "arm/neon.h"
#include "common/kernels.h"

namespace qcore {
namespace {

// Blocks below this magnitude become zero: the reciprocal of their scale would overflow.
constexpr float kTiny = 1e-30f;

// The bits of the largest magnitude of 32 floats. Bits compare like magnitudes, and NaN is larger than any
// number.
inline uint32_t magnitude(const float* x) {
  uint32x4_t most = vdupq_n_u32(0);
  for (int i = 0; i < 8; ++i)
    most = vmaxq_u32(most, vandq_u32(vdupq_n_u32(0x7fffffff), vreinterpretq_u32_f32(vld1q_f32(x + 4 * i))));
  return vmaxvq_u32(most);
}

struct Scale {
  float scale, inverse;
};

inline Scale scale_of(uint32_t bits, int limit) {
  float most;
  std::memcpy(&most, &bits, 4);
  if (bits >= 0x7f800000) return {__builtin_nanf(""), 0.f};  // NaN or infinity
  if (most < kTiny) return {0.f, 0.f};
  return {most / limit, limit / most};
}

// Round 16 floats to integers, in order, and return their sum.
inline int32_t round_half(const float* x, float inverse, int16_t* out) {
  const int32x4_t valid = vdupq_n_s32(inverse == 0.f ? 0 : -1);  // discards 0 * NaN
  int32x4_t sum = vdupq_n_s32(0);
  for (int i = 0; i < 4; ++i) {
    const int32x4_t whole =
        vandq_s32(valid, vcvtq_s32_f32(vrndnq_f32(vmulq_n_f32(vld1q_f32(x + 4 * i), inverse))));
    sum = vaddq_s32(sum, whole);
    vst1_s16(out + 4 * i, vmovn_s32(whole));
  }
  return vaddvq_s32(sum);
}

}  // namespace

void fill_neon(const Form& form, const Tile& to, int tokens, const float* x, int64_t stride,
               int64_t columns) {
  const int64_t full = columns / kBlock;
  float tail[kBlock];
  for (int m = 0; m < tokens; ++m, x += stride) {
    auto block = [&](int64_t b) -> const float* {
      if (b < full) return x + b * kBlock;
      std::memset(tail, 0, sizeof tail);
      if (b == full) std::memcpy(tail, x + b * kBlock, (columns - b * kBlock) * sizeof(float));
      return tail;
    };
    if (form.mode == kFloat) {
      float* q = static_cast<float*>(const_cast<void*>(to.q));
      for (int64_t b = 0; b < form.blocks; ++b) {
        const float* in = block(b);
        fill_sums(in, form.sums, const_cast<float*>(to.sum) + b * form.sums * tokens + m, tokens);
        if (form.row_major || tokens == 1)
          std::memcpy(q + (m * form.blocks + b) * kBlock, in, kBlock * 4);
        else
          for (int k = 0; k < kBlock; ++k) q[(b * kBlock + k) * tokens + m] = in[k];
      }
      continue;
    }
    Scale s{};
    for (int64_t b = 0; b < form.blocks; ++b) {
      if (b % form.shared == 0) {
        uint32_t most = 0;
        for (int64_t i = b; i < b + form.shared && i < form.blocks; ++i) {
          const uint32_t here = magnitude(block(i));
          if (here > most) most = here;
        }
        s = scale_of(most, form.limit);
      }
      const float* in = block(b);
      int16_t whole[kBlock];
      const int32_t first = round_half(in, s.inverse, whole),
                    second = round_half(in + 16, s.inverse, whole + 16);
      const_cast<float*>(to.scale)[b * tokens + m] = s.scale;
      float* sum = const_cast<float*>(to.sum) + b * form.sums * tokens + m;
      sum[0] = s.scale * (form.sums == 1 ? first + second : first);
      if (form.sums == 2) sum[tokens] = s.scale * second;
      if (form.width == 1) {  // 4 columns per step
        int8_t* out = static_cast<int8_t*>(const_cast<void*>(to.q)) + b * kBlock * tokens + 4 * m;
        for (int k = 0; k < kBlock; ++k) out[k / 4 * 4 * tokens + k % 4] = int8_t(whole[k]);
      } else if (form.row_major) {  // even columns, then odd ones
        int16_t* out = static_cast<int16_t*>(const_cast<void*>(to.q)) + (b * tokens + m) * kBlock;
        for (int k = 0; k < kBlock; ++k) out[k % 2 * 16 + k / 2] = whole[k];
      } else {  // pairs of columns 4s and 4s + 2, 4s + 1 and 4s + 3
        int16_t* out = static_cast<int16_t*>(const_cast<void*>(to.q)) + b * kBlock * tokens + 2 * m;
        for (int k = 0; k < kBlock; ++k) out[(k / 4 * 2 + k % 2) * 2 * tokens + k % 4 / 2] = whole[k];
      }
    }
  }
}

}  // namespace qcore
