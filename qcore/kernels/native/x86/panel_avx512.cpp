// One to four tokens with AVX-512 VNNI: products of bytes go to 32-bit sums in one instruction.
#include "x86/avx512.h"

#ifdef QCORE_AVX512
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

struct Dot {
  // A tenth more of the memory bandwidth than 2048; 6144 gains nothing.
  // Measured on 2026-11-28; `python benchmarks/kernels.py` measures it again.
  static constexpr int kAhead = 4096;
  static constexpr bool kWide = true;
  static __m256i bytes(__m256i acc, __m256i codes, __m256i x) { return _mm256_dpbusd_epi32(acc, codes, x); }
  static __m256i words(__m256i acc, __m256i codes, __m256i x) { return _mm256_dpwssd_epi32(acc, codes, x); }
  static __m256i total(__m256i acc) { return acc; }
  // vpermw uses the low four bits of each word and ignores the others.
  static void look_up(__m256i v, const Table& t, __m256i& even, __m256i& odd) {
    even = _mm256_permutexvar_epi16(v, t.words);
    odd = _mm256_permutexvar_epi16(_mm256_srli_epi16(v, 8), t.words);
  }
};

}  // namespace
}  // namespace qcore

#include "x86/panel_x86.h"

namespace qcore {

PanelKernel panel_kernel_avx512(int kind, int mode, int tokens) {
  return mode == kFloat ? panel_kernel_avx2(kind, mode, tokens) : integer_kernel(kind, mode, tokens);
}

}  // namespace qcore
#endif
