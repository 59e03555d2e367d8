// The intrinsics of AVX-VNNI. Defines QCORE_AVXVNNI if the compiler knows them. Tests express them in AVX2
// (QCORE_EMULATE).
#pragma once
#include <immintrin.h>

#ifdef QCORE_EMULATE
#include <simde/x86/avx512.h>
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
#define _mm256_dpwssd_avx_epi32 simde_mm256_dpwssd_epi32
#define QCORE_AVXVNNI
#elif defined(__AVXVNNI__)
#define QCORE_AVXVNNI
#endif
