// The NEON intrinsics of 64-bit ARM processors. Tests express them in AVX2 (QCORE_EMULATE).
#pragma once
#ifdef QCORE_EMULATE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#else
#include <arm_neon.h>
#endif
