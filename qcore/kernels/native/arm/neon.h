// The intrinsics of NEON as 64-bit ARM processors have them. Tests compile them in terms of AVX2 (QCORE_EMULATE).
#pragma once
#ifdef QCORE_EMULATE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#else
#include <arm_neon.h>
#endif
