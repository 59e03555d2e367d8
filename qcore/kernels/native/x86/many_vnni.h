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

inline bool in_bytes(int kind, int mode) { return (mode == kInt8 || mode == kInt8Token) && kind <= kBits2; }

inline void widen_bytes(const Weight& w, const uint8_t* panel, int64_t first, int64_t count, int side,
                        Stretch& to) {
  const int64_t group_bytes = 16 + w.zero_bytes + w.group_blocks * bytes_of(kBits8);
  for (int64_t i = 0, b = first; i < count; ++i, ++b) {
    const uint8_t* p = panel + b / w.group_blocks * group_bytes;
    const Group g = read_group(w, p);
    p += b % w.group_blocks * bytes_of(kBits8);
    _mm256_store_ps(to.scale[i] + 8 * side, g.scale);
    _mm256_store_ps(to.offset[i] + 8 * side,
                    _mm256_mul_ps(g.scale, _mm256_sub_ps(_mm256_setzero_ps(), g.zero)));
    for (int s = 0; s < 8; ++s)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to.bytes + ((i * 8 + s) * 2 + side) * 32),
                         load(p + 32 * s));
  }
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

template <int T>
void multiply_bytes(const Stretch& s, const uint8_t* q, const float* scale, const float* sum, int64_t count,
                    float (*y)[kPair]) {
  for (int64_t b = 0; b < count; ++b, q += kBlock * T, scale += T, sum += T) {
    typename Wide::Int acc[T * Wide::kParts];
    block_sums<T, 8>(s.bytes + b * 512, q, acc,
                     [](auto sums, auto codes, auto x) { return Wide::bytes(sums, codes, x); });
    each(Upto<T * Wide::kParts>(), [&](auto i) {
      constexpr int m = i() / Wide::kParts, lane = i() % Wide::kParts * kLanes;
      typename Wide::Float total = Wide::load_floats(y[m] + lane);
      total = Wide::fma(Wide::load_floats(s.offset[b] + lane), Wide::fill(sum[m]), total);
      total = Wide::fma(Wide::to_floats(acc[i()]),
                        Wide::times(Wide::load_floats(s.scale[b] + lane), Wide::fill(scale[m])), total);
      Wide::store_floats(y[m] + lane, total);
    });
  }
}

template <int T>
void multiply_words(const Stretch& s, const uint8_t* q, const float* scale, int64_t count,
                    float (*y)[kPair]) {
  for (int64_t b = 0; b < count; ++b, q += 2 * kBlock * T, scale += T) {
    typename Wide::Int acc[T * Wide::kParts];
    const uint8_t* words = reinterpret_cast<const uint8_t*>(s.words + b * 512);
    block_sums<T, 16>(words, q, acc,
                      [](auto sums, auto codes, auto x) { return Wide::words(sums, codes, x); });
    each(Upto<T * Wide::kParts>(), [&](auto i) {
      constexpr int m = i() / Wide::kParts, lane = i() % Wide::kParts * kLanes;
      const typename Wide::Float factor =
          Wide::times(Wide::load_floats(s.scale[b] + lane), Wide::fill(scale[m]));
      Wide::store_floats(y[m] + lane,
                         Wide::fma(Wide::to_floats(acc[i()]), factor, Wide::load_floats(y[m] + lane)));
    });
  }
}

inline void widen(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                  Stretch& to) {
  if (w.kind != kBits8 || !in_bytes(w.kind, mode)) return widen_avx2(w, a, b, mode, first, count, to);
  widen_bytes(w, a, first, count, 0, to);
  if (b) widen_bytes(w, b, first, count, 1, to);
}

inline void multiply(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                     int tokens, float (*y)[kPair]) {
  if (mode == kFloat) return multiply_avx2(w, s, mode, first, count, x, tokens, y);
  const bool bytes = in_bytes(w.kind, mode);
  const uint8_t* q = static_cast<const uint8_t*>(x.q) + first * kBlock * tokens * (bytes ? 1 : 2);
  const float *scale = x.scale + first * tokens, *sum = x.sum + first * tokens;
  with_tokens(tokens, [&](auto t) {
    if (bytes)
      multiply_bytes<t()>(s, q, scale, sum, count, y);
    else
      multiply_words<t()>(s, q, scale, count, y);
  });
}

constexpr Kernels vnni_kernels(const char* name, PanelKernel (*panel)(int kind, int mode, int tokens)) {
  return {name, true, fill_avx2, panel, widen, multiply};
}

}  // namespace
}  // namespace qcore
