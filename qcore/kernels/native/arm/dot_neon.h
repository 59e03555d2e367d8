// The dot product of bytes for ARM processors that have no instruction for it.
#pragma once
#include "arm/neon.h"

namespace qcore {
namespace {

inline int32x4_t dot(int32x4_t acc, int8x16_t a, int8x16_t b) {
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

}  // namespace
}  // namespace qcore
