// Codes times int8 on ARM processors with dot products: one instruction adds four products of bytes to a
// 32-bit number. Everything else is done as with NEON alone.
#include "arm/neon.h"

namespace qcore {
namespace {

inline int32x4_t dot(int32x4_t acc, int8x16_t a, int8x16_t b) { return vdotq_s32(acc, a, b); }

}  // namespace
}  // namespace qcore

#include "arm/bytes_neon.h"

namespace qcore {

PanelKernel panel_kernel_dotprod(int kind, int mode, int tokens) {
  return in_bytes(kind, mode) ? bytes_kernel(kind, tokens) : panel_kernel_neon(kind, mode, tokens);
}

void multiply_dotprod(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count,
                      const Tile& x, int tokens, float (*y)[kPair]) {
  if (in_bytes(w.kind, mode))
    multiply_bytes(w, s, first, count, x, tokens, y);
  else
    multiply_neon(w, s, mode, first, count, x, tokens, y);
}

}  // namespace qcore
