// Many tokens with AVX-512 VNNI: a register holds 16 rows, and 32 registers hold all that 4 tokens need.
#include "x86/avx512.h"

#include <cstring>

#include "common/kernels.h"

#ifdef QCORE_AVX512
namespace qcore {
namespace {

struct Wide {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kParts = 1;  // registers of 16 lanes
  static Int zero() { return _mm512_setzero_si512(); }
  static Int load(const void* p) { return _mm512_load_si512(static_cast<const Int*>(p)); }
  static Int broadcast(const void* p) {
    int32_t value;
    std::memcpy(&value, p, 4);
    return _mm512_set1_epi32(value);
  }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int bytes(Int acc, Int codes, Int x) { return _mm512_dpbusd_epi32(acc, codes, x); }
  static Int words(Int acc, Int codes, Int x) { return _mm512_dpwssd_epi32(acc, codes, x); }
  static Float to_floats(Int v) { return _mm512_cvtepi32_ps(v); }
  static Float fill(float v) { return _mm512_set1_ps(v); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float load_floats(const float* p) { return _mm512_load_ps(p); }
  static void store_floats(float* p, Float v) { _mm512_store_ps(p, v); }
};

}  // namespace
}  // namespace qcore

#include "x86/many_vnni.h"

namespace qcore {

void widen_avx512(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count, Stretch& to) {
  widen(w, a, b, mode, first, count, to);
}

void multiply_avx512(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x, int tokens, float (*y)[kPair]) {
  multiply(w, s, mode, first, count, x, tokens, y);
}

namespace {
constexpr Kernels kTable_{"avx512vnni", true, fill_avx2, panel_kernel_avx512, widen_avx512, multiply_avx512};
}
const Kernels* const kernels_avx512 = &kTable_;

}  // namespace qcore
#else
namespace qcore {
const Kernels* const kernels_avx512 = nullptr;
}
#endif
