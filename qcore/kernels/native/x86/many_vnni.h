// Many tokens with instructions that add four products of bytes, or two of int16, to a 32-bit number.
// Stretches have the layout of AVX2, except that codes of 8 bits remain bytes, because their sums cannot
// overflow.
//
// The including file describes its registers in a struct `Wide`: the types `Int` and `Float`, the number
// `kParts` of registers that hold 16 lanes, and the operations used below.
#pragma once
#include "common/kernels.h"
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

constexpr int kLanes = kPair / Wide::kParts;
constexpr int kChains = 2 / Wide::kParts;  // 4 tokens need 8 sums to hide the latency of the multiplications

inline bool in_bytes(int kind, int mode) {
  return (mode == kInt8 || mode == kInt8Token) && codes_of(kind) <= kBits2;
}

// The sums of products of T tokens with `kSteps` registers of codes (bytes or int16) per part.
template <int T, int kSteps, class Multiply>
inline void block_sums(const uint8_t* codes, const uint8_t* x, typename Wide::Int (&acc)[T * Wide::kParts],
                       Multiply&& multiply) {
  typename Wide::Int chain[T * Wide::kParts * kChains];
  each(Upto<T * Wide::kParts * kChains>(), [&](auto i) { chain[i()] = Wide::zero(); });
  for (int step = 0; step < kSteps; step += 2, codes += 128, x += 8 * T)
    each(Upto<2>(), [&](auto s) {
      typename Wide::Int part[Wide::kParts];
      each(Upto<Wide::kParts>(),
           [&](auto r) { part[r()] = Wide::load(codes + 64 * s() + r() * 4 * kLanes); });
      each(Upto<T>(), [&](auto m) {
        const typename Wide::Int values = Wide::broadcast(x + (s() * T + m()) * 4);
        each(Upto<Wide::kParts>(), [&](auto r) {
          constexpr int at = (m() * Wide::kParts + r()) * kChains + s() % kChains;
          chain[at] = multiply(chain[at], part[r()], values);
        });
      });
    });
  each(Upto<T * Wide::kParts>(), [&](auto i) {
    acc[i()] =
        kChains == 1 ? chain[i()] : Wide::add(chain[i() * kChains], chain[i() * kChains + kChains - 1]);
  });
}

// Bytes, or words if kWords. A block has kHalves groups of columns. Without kOffset, sums are not read.
template <int T, bool kWords, int kHalves, bool kOffset>
void multiply_block(const Stretch& s, const uint8_t* q, const float* scale, const float* sum, int64_t count,
                    float (*y)[kPair]) {
  constexpr int steps = (kWords ? 16 : 8) / kHalves, bytes = (kWords ? 1024 : 512) / kHalves;
  const uint8_t* codes = kWords ? reinterpret_cast<const uint8_t*>(s.words) : s.bytes;
  for (int64_t b = 0; b < count; ++b, scale += T)
    for (int h = 0; h < kHalves; ++h, q += 4 * steps * T, codes += bytes, sum += T) {
      const int64_t g = b * kHalves + h;
      typename Wide::Int acc[T * Wide::kParts];
      block_sums<T, steps>(codes, q, acc, [](auto sums, auto values, auto x) {
        return kWords ? Wide::words(sums, values, x) : Wide::bytes(sums, values, x);
      });
      each(Upto<T * Wide::kParts>(), [&](auto i) {
        constexpr int m = i() / Wide::kParts, lane = i() % Wide::kParts * kLanes;
        typename Wide::Float total = Wide::load_floats(y[m] + lane);
        if constexpr (kOffset)
          total = Wide::fma(Wide::load_floats(s.offset[g] + lane), Wide::fill(sum[m]), total);
        total = Wide::fma(Wide::to_floats(acc[i()]),
                          Wide::times(Wide::load_floats(s.scale[g] + lane), Wide::fill(scale[m])), total);
        Wide::store_floats(y[m] + lane, total);
      });
    }
}

inline void widen(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                  Stretch& to) {
  if (in_bytes(w.kind, mode)) return widen_bytes_avx2(w, a, b, first, count, to);
  widen_avx2(w, a, b, mode, first, count, to);
}

inline void multiply(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                     int tokens, float (*y)[kPair]) {
  if (mode == kFloat) return multiply_avx2(w, s, mode, first, count, x, tokens, y);
  const bool bytes = in_bytes(w.kind, mode), two = halves_of(w.kind) == 2;
  const bool minimums = has_super_minimums(w.kind) || w.zero_bytes == kMinimums;
  const uint8_t* q = static_cast<const uint8_t*>(x.q) + first * kBlock * tokens * (bytes ? 1 : 2);
  const float *scale = x.scale + first * tokens, *sum = x.sum + first * halves_of(w.kind) * tokens;
  with_tokens(tokens, [&](auto t) {
    constexpr int T = t();
    const auto multiply = bytes
                              ? (two ? multiply_block<T, false, 2, true> : multiply_block<T, false, 1, true>)
                          : two      ? multiply_block<T, true, 2, true>
                          : minimums ? multiply_block<T, true, 1, true>
                                     : multiply_block<T, true, 1, false>;
    multiply(s, q, scale, sum, count, y);
  });
}

constexpr Kernels vnni_kernels(const char* name, PanelKernel (*panel)(int kind, int mode, int tokens)) {
  return {name, true, fill_avx2, panel, widen, multiply};
}

}  // namespace
}  // namespace qcore
