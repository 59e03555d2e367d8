// Many tokens with AVX-VNNI: one instruction where AVX2 needs two, and sums of 32 bits instead of 16.
#include <cstring>

#include "common/kernels.h"
#include "x86/avxvnni.h"

#ifdef QCORE_AVXVNNI
namespace qcore {
namespace {

struct Wide {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int kParts = 2;  // registers per 16 lanes
  static Int zero() { return _mm256_setzero_si256(); }
  static Int load(const void* p) { return _mm256_load_si256(static_cast<const Int*>(p)); }
  static Int broadcast(const void* p) {
    int32_t value;
    std::memcpy(&value, p, 4);
    return _mm256_set1_epi32(value);
  }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int bytes(Int acc, Int codes, Int x) { return _mm256_dpbusd_avx_epi32(acc, codes, x); }
  static Int words(Int acc, Int codes, Int x) { return _mm256_dpwssd_avx_epi32(acc, codes, x); }
  static Float to_floats(Int v) { return _mm256_cvtepi32_ps(v); }
  static Float fill(float v) { return _mm256_set1_ps(v); }
  static Float times(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float load_floats(const float* p) { return _mm256_load_ps(p); }
  static void store_floats(float* p, Float v) { _mm256_store_ps(p, v); }
};

}  // namespace
}  // namespace qcore

#include "x86/many_vnni.h"

namespace {
constexpr qcore::Kernels kKernels = qcore::vnni_kernels("avxvnni", qcore::panel_kernel_avxvnni);
}
const qcore::Kernels* const qcore::kernels_avxvnni = &kKernels;
#else
const qcore::Kernels* const qcore::kernels_avxvnni = nullptr;
#endif
