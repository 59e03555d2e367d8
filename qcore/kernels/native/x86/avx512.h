// The intrinsics of AVX-512 VNNI. Defines QCORE_AVX512 if the compiler knows them. Tests express them in AVX2
// (QCORE_EMULATE).
#pragma once
#ifdef QCORE_EMULATE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#define QCORE_AVX512
inline __m512 emulated_cvtepi32_ps(__m512i v) {  // missing from SIMDe 0.7.4
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
