// One to four tokens with AVX-VNNI: products of bytes go to 32-bit sums in one instruction.
#include "x86/avxvnni.h"

#ifdef QCORE_AVXVNNI
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

struct Dot {
  static constexpr int kAhead = 2048;
  static constexpr bool kWide = true;
  static __m256i bytes(__m256i acc, __m256i codes, __m256i x) {
    return _mm256_dpbusd_avx_epi32(acc, codes, x);
  }
  static __m256i words(__m256i acc, __m256i codes, __m256i x) {
    return _mm256_dpwssd_avx_epi32(acc, codes, x);
  }
  static __m256i total(__m256i acc) { return acc; }
  static void look_up(__m256i v, const Table& t, __m256i& even, __m256i& odd) {
    widen<true>(_mm256_and_si256(v, _mm256_set1_epi8(15)), t, even, odd);
  }
};

}  // namespace
}  // namespace qcore

#include "x86/panel_x86.h"

namespace qcore {

PanelKernel panel_kernel_avxvnni(int kind, int mode, int tokens) {
  return mode == kFloat ? panel_kernel_avx2(kind, mode, tokens) : integer_kernel(kind, mode, tokens);
}

}  // namespace qcore
#endif
