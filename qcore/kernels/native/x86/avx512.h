// Intrinsics of AVX-512 VNNI, and QCORE_AVX512 if this compiler has them. Tests compile them in terms of AVX2 (QCORE_EMULATE).
#pragma once
#ifdef QCORE_EMULATE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#define QCORE_AVX512
inline __m512 emulated_cvtepi32_ps(__m512i v) {  // the one that SIMDe 0.7.4 does not have
  int whole[16];
  float result[16];
  _mm512_storeu_si512(whole, v);
  for (int i = 0; i < 16; ++i) result[i] = float(whole[i]);
  return _mm512_loadu_ps(result);
}
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#else
#include <immintrin.h>
#ifdef __AVX512VNNI__
#define QCORE_AVX512
#endif
#endif
