// The instruction set in use: chosen when the library is loaded, or by the caller.
#include <cstring>

#include "common/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qcore {
namespace {

struct Candidate {
  const Kernels* kernels;  // null if the compiler does not know the instruction set
  bool (*runs)();
};

#if defined(__x86_64__) || defined(QCORE_EMULATE)
constexpr Kernels kAvx2{"avx2", false, fill_avx2, panel_kernel_avx2, widen_avx2, multiply_avx2};
#endif
#if defined(__aarch64__) || defined(QCORE_EMULATE)
constexpr Kernels kDotprod{"dotprod", true, fill_neon, panel_kernel_dotprod, widen_neon, multiply_dotprod};
constexpr Kernels kNeon{"neon", true, fill_neon, panel_kernel_neon, widen_neon, multiply_neon};
#endif

// Candidates, the fastest first.

#if defined(QCORE_EMULATE)  // for tests: all of them, expressed in AVX2

bool always() { return true; }

const Candidate candidates[] = {{kernels_avx512, always},
                                {kernels_avxvnni, always},
                                {&kAvx2, always},
                                {&kDotprod, always},
                                {&kNeon, always}};

#elif defined(__x86_64__)

bool avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool avx512() {
  return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

bool avxvnni() {  // by CPUID: older compilers do not know the name "avxvnni"
  unsigned a = 0, b, c, d;
  return avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

const Candidate candidates[] = {{kernels_avx512, avx512}, {kernels_avxvnni, avxvnni}, {&kAvx2, avx2}};

#else

bool neon() { return true; }  // part of the 64-bit ARM architecture

bool dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // Apple's processors, which all have dot products
#endif
}

const Candidate candidates[] = {{&kDotprod, dotprod}, {&kNeon, neon}};

#endif

const Kernels* find(const char* name) {
  for (const Candidate& candidate : candidates)
    if (candidate.kernels && (!name || !std::strcmp(name, candidate.kernels->name)) && candidate.runs())
      return candidate.kernels;
  return nullptr;
}

const Kernels* chosen = find(nullptr);

}  // namespace

const Kernels& kernels() { return *chosen; }

}  // namespace qcore

extern "C" {
#pragma GCC visibility push(default)

// Return the name of the instruction set in use, or null if the library supports none of this processor. In
// that case, no other function may be called.
const char* qcore_instructions() { return qcore::chosen ? qcore::chosen->name : nullptr; }

// Use the instruction set `name`, or the fastest one if `name` is null. Return 1, or return 0 and change
// nothing if the processor or the library does not support it. No other call may run at the same time.
int qcore_choose(const char* name) {
  const qcore::Kernels* found = qcore::find(name);
  if (found) qcore::chosen = found;
  return found != nullptr;
}

#pragma GCC visibility pop
}  // extern "C"
