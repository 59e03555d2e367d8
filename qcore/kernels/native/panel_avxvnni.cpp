// One to four tokens with AVX-VNNI: products of bytes go to 32-bit sums in one instruction.
#include "avxvnni.h"

#ifdef QCORE_AVXVNNI
#include "codes_avx2.h"

namespace qcore {
namespace {

struct Dot {
  static constexpr bool kWide = true;
  static __m256i bytes(__m256i acc, __m256i codes, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, codes, x); }
  static __m256i words(__m256i acc, __m256i codes, __m256i x) { return _mm256_dpwssd_avx_epi32(acc, codes, x); }
  static __m256i total(__m256i acc) { return acc; }
};

}  // namespace
}  // namespace qcore

#include "panel_x86.h"

namespace qcore {

PanelKernel panel_kernel_avxvnni(int kind, int mode, int tokens) {
  return mode == kFloat ? panel_kernel_avx2(kind, mode, tokens) : integer_kernel(kind, mode, tokens);
}

}  // namespace qcore
#endif
