// Many tokens with AVX-512 VNNI: a register holds 16 rows, and 32 registers are enough for 4 tokens.
#include <cstring>

#include "common/kernels.h"
#include "x86/avx512.h"

#ifdef QCORE_AVX512
namespace qcore {
namespace {

struct Wide {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int kParts = 1;  // registers per 16 lanes
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

namespace {
constexpr qcore::Kernels kKernels = qcore::vnni_kernels("avx512vnni", qcore::panel_kernel_avx512);
}
const qcore::Kernels* const qcore::kernels_avx512 = &kKernels;
#else
const qcore::Kernels* const qcore::kernels_avx512 = nullptr;
#endif
