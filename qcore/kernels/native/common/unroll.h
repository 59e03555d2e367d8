// Compile-time numbers: unrolled loops, and template arguments chosen at run time.
#pragma once
#include <utility>

#include "common/layout.h"

namespace qcore {

// Call f(0) … f(n − 1) with compile-time numbers. Compilers keep arrays of registers that are indexed by them
// in registers; with an ordinary loop, GCC keeps such arrays on the stack.
template <int... I, class F>
inline __attribute__((always_inline)) void each(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int kCount>
using Upto = std::make_integer_sequence<int, kCount>;

// Call f with the number of tokens, 1 … 4, as a compile-time number.
template <class F>
inline auto with_tokens(int tokens, F&& f) {
  switch (tokens) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    default: return f(std::integral_constant<int, 4>());
  }
}

// Call f with the kind as a compile-time number.
template <class F>
inline auto with_kind(int kind, F&& of) {
  switch (kind) {
    case kBits8: return of(std::integral_constant<int, kBits8>());
    case kBits6: return of(std::integral_constant<int, kBits6>());
    case kBits5: return of(std::integral_constant<int, kBits5>());
    case kBits4: return of(std::integral_constant<int, kBits4>());
    case kBits3: return of(std::integral_constant<int, kBits3>());
    case kBits2: return of(std::integral_constant<int, kBits2>());
    case kTable: return of(std::integral_constant<int, kTable>());
    case kSuper6: return of(std::integral_constant<int, kSuper6>());
    case kSuper5: return of(std::integral_constant<int, kSuper5>());
    case kSuper4: return of(std::integral_constant<int, kSuper4>());
    case kSuper3: return of(std::integral_constant<int, kSuper3>());
    case kSuper2: return of(std::integral_constant<int, kSuper2>());
    default: return of(std::integral_constant<int, kRowTable>());
  }
}

// Call f with the kind and the number of tokens as compile-time numbers.
template <class F>
inline auto with_kind(int kind, int tokens, F&& f) {
  return with_kind(kind,
                   [&](auto known) { return with_tokens(tokens, [&](auto t) { return f(known, t); }); });
}

}  // namespace qcore
