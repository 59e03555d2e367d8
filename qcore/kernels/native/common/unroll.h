// Numbers that are known at compile time: loops that are gone once compiled, and the choice of a template's arguments at run time.
#pragma once
#include <utility>

#include "common/layout.h"

namespace qcore {

// f(0) … f(n − 1), each with its number known at compile time. Compilers scalarize arrays of registers that are indexed so; with an
// ordinary loop GCC keeps them on the stack.
template <int... I, class F>
inline __attribute__((always_inline)) void each(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int kCount>
using Upto = std::make_integer_sequence<int, kCount>;

// f(tokens) with their number, 1 … 4, known at compile time.
template <class F>
inline auto with_tokens(int tokens, F&& f) {
  switch (tokens) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    default: return f(std::integral_constant<int, 4>());
  }
}

// f(kind, tokens) with both known at compile time.
template <class F>
inline auto with_kind(int kind, int tokens, F&& f) {
  const auto of = [&](auto known) { return with_tokens(tokens, [&](auto t) { return f(known, t); }); };
  switch (kind) {
    case kBits8: return of(std::integral_constant<int, kBits8>());
    case kBits4: return of(std::integral_constant<int, kBits4>());
    case kBits3: return of(std::integral_constant<int, kBits3>());
    case kBits2: return of(std::integral_constant<int, kBits2>());
    case kTable: return of(std::integral_constant<int, kTable>());
    default: return of(std::integral_constant<int, kRowTable>());
  }
}

}  // namespace qcore
