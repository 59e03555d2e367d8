// Many tokens: the codes of a stretch (256 columns of 16 rows) are widened once and stay in the first-level
// cache while they are multiplied by every tile of 4 tokens. 16 rows x 4 tokens are 8 accumulators, which
// hide the latency of the multiplications.
#include <algorithm>

#include "common/kernels.h"
#include "x86/codes_avx2.h"

namespace qcore {
namespace {

inline void store(void* p, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }

inline void transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    v[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

template <int kBytes>
inline void fetch(const void* from, int64_t ahead) {
  for (int i = 0; i < kBytes; i += 64) _mm_prefetch(static_cast<const char*>(from) + ahead + i, _MM_HINT_T0);
}

// The values of a stretch: the weights themselves, or the codes in one of two widths.
enum Values { kFloats, kBytes, kWords };

// The factors of the 8 rows in a block: w = scale * (code - zero) + minimum, for each of its groups of
// columns.
template <int kKind>
struct Scales {
  __m256 scale[halves_of(kKind)], minimum[halves_of(kKind)], zero;
};

// Read the factors of block `b`, and set `codes` to its codes. `minimum` is valid if the weight has minimums.
template <int kKind>
inline Scales<kKind> read_scales(const Weight& w, const uint8_t* panel, int64_t b, const uint8_t*& codes) {
  const int64_t group_bytes = header_bytes(w) + w.group_blocks * kBlockBytes<kKind>;
  const uint8_t* header = panel + b / w.group_blocks * group_bytes;
  Scales<kKind> s;
  const uint8_t* p = header;
  if constexpr (is_super(kKind)) {
    const Factors factors = read_factors<kKind>(w, p);
    p += b % w.group_blocks * kBlockBytes<kKind>;
    const Integers<kKind> integers = read_integers<kKind>(p);
    codes = p + kIntegers;
    s.zero = _mm256_set1_ps(w.zero);
    for (int h = 0; h < halves_of(kKind); ++h) {
      s.scale[h] = _mm256_mul_ps(factors.scale, integers.scale[h]);
      s.minimum[h] = _mm256_mul_ps(factors.minimum, integers.minimum[h]);
    }
  } else {
    const Group g = read_group(w, p);
    codes = p + b % w.group_blocks * kBlockBytes<kKind>;
    s.scale[0] = g.scale;
    s.zero = g.zero;
    s.minimum[0] = w.zero_bytes == kMinimums ? read_halves(header + 16) : _mm256_setzero_ps();
  }
  return s;
}

template <int kKind>
void widen_panel(const Weight& w, const uint8_t* panel, Values values, int64_t first, int64_t count, int side,
                 Stretch& to) {
  constexpr int halves = halves_of(kKind);
  const bool minimums = has_super_minimums(kKind) || w.zero_bytes == kMinimums;
  Table table;
  if constexpr (kKind == kTable) table = read_table(w.table.data);
  for (int64_t i = 0, b = first; i < count; ++i, ++b) {
    const uint8_t* p;
    Scales<kKind> s = read_scales<kKind>(w, panel, b, p);
    fetch<kBlockBytes<kKind>>(p, kStretch * kBlockBytes<kKind>);  // the next stretch
    if (kKind == kTable && values != kFloats)
      s.scale[0] = _mm256_mul_ps(s.scale[0], _mm256_set1_ps(table.scale));
    for (int h = 0; h < halves; ++h) {
      _mm256_store_ps(to.scale[i * halves + h] + 8 * side, s.scale[h]);
      // Words have the zero point subtracted.
      const __m256 offset = minimums ? s.minimum[h]
                            : values == kBytes
                                ? _mm256_mul_ps(s.scale[h], _mm256_sub_ps(_mm256_setzero_ps(), s.zero))
                                : _mm256_setzero_ps();
      _mm256_store_ps(to.offset[i * halves + h] + 8 * side, offset);
    }
    if (values == kFloats) {
      each(Upto<8>(), [&](auto step_number) {
        constexpr int n = step_number(), h = n * halves / 8;
        const __m256i v = step<kKind, n>(p);
        each(Upto<4>(), [&](auto j) {
          __m256 value = as_float<kKind == kTable, j()>(v, table);
          if constexpr (kKind != kTable) value = _mm256_sub_ps(value, s.zero);
          value = _mm256_mul_ps(value, s.scale[h]);
          if (minimums) value = _mm256_add_ps(value, s.minimum[h]);
          _mm256_store_ps(to.floats + (i * kBlock + 4 * n + j()) * kPair + 8 * side, value);
        });
      });
    } else if (values == kBytes) {
      each(Upto<8>(),
           [&](auto n) { store(to.bytes + ((i * 8 + n()) * 2 + side) * 32, step<kKind, n()>(p)); });
    } else {
      const __m256i zero = _mm256_cvtps_epi32(s.zero);
      const __m256i zeros = _mm256_or_si256(zero, _mm256_slli_epi32(zero, 16));
      each(Upto<8>(), [&](auto n) {
        __m256i even, odd;
        widen<kKind == kTable>(step<kKind, n()>(p), table, even, odd);
        if constexpr (kKind != kTable) {
          even = _mm256_sub_epi16(even, zeros);
          odd = _mm256_sub_epi16(odd, zeros);
        }
        store(to.words + ((i * 16 + 2 * n()) * 2 + side) * 16, even);
        store(to.words + ((i * 16 + 2 * n() + 1) * 2 + side) * 16, odd);
      });
    }
  }
}

void widen_row_tables(const uint8_t* panel, Values values, int64_t first, int64_t count, int side,
                      Stretch& to) {
  Table tables[kRows];
  alignas(32) float scales[kRows];
  for (int r = 0; r < kRows; ++r) {
    tables[r] = read_half_table(panel + 32 * r);
    scales[r] = tables[r].scale;
  }
  for (int64_t i = 0, b = first; i < count; ++i, ++b) {
    const uint8_t* p = panel + kRows * 32 + b / 2 * kRows * 32;
    const bool high = b % 2;
    std::memcpy(to.scale[i] + 8 * side, scales, sizeof scales);
    if (values == kFloats) {
      for (int c = 0; c < kBlock; c += 8) {
        __m256i v[8];
        for (int r = 0; r < kRows; ++r) {
          __m256i index =
              _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 32 * r + c)));
          if (high) index = _mm256_srli_epi32(index, 4);
          v[r] = _mm256_castps_si256(as_float<true, 0>(index, tables[r]));
        }
        transpose(v);
        for (int k = 0; k < 8; ++k) store(to.floats + (i * kBlock + c + k) * kPair + 8 * side, v[k]);
      }
      continue;
    }
    __m256i even[8], odd[8];
    for (int r = 0; r < kRows; ++r) {
      const __m256i v = load(p + 32 * r);
      widen<true>(_mm256_and_si256(high ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15)), tables[r],
                  even[r], odd[r]);
    }
    transpose(even);
    transpose(odd);
    for (int s = 0; s < 8; ++s) {
      store(to.words + ((i * 16 + 2 * s) * 2 + side) * 16, even[s]);
      store(to.words + ((i * 16 + 2 * s + 1) * 2 + side) * 16, odd[s]);
    }
  }
}

void widen_side(const Weight& w, const uint8_t* panel, Values values, int64_t first, int64_t count, int side,
                Stretch& to) {
  with_kind(w.kind, [&](auto kind) {
    if constexpr (kind() == kRowTable)
      widen_row_tables(panel, values, first, count, side, to);
    else
      widen_panel<kind()>(w, panel, values, first, count, side, to);
  });
}

void widen_pair(const Weight& w, const uint8_t* a, const uint8_t* b, Values values, int64_t first,
                int64_t count, Stretch& to) {
  widen_side(w, a, values, first, count, 0, to);
  if (b) widen_side(w, b, values, first, count, 1, to);
}

// The inner loop for 4 tokens in assembly: 8 accumulators, two registers of codes, and for each token a
// broadcast that is multiplied by both. From intrinsics, GCC spills accumulators in every iteration and
// reaches half the speed (measured on 2026-11-25; `python benchmarks/kernels.py` measures the loop). `steps`
// counts registers of codes per panel.
// clang-format off
#define QCORE_TOKEN(multiply, add, at, first, second)                                                    \
  "vpbroadcastd " #at "(%[x]), %%ymm10\n\t"                                                              \
  multiply " %%ymm10, %%ymm8, %%ymm11\n\t"                                                               \
  multiply " %%ymm10, %%ymm9, %%ymm12\n\t"                                                               \
  add " %%ymm11, " first ", " first "\n\t"                                                               \
  add " %%ymm12, " second ", " second "\n\t"
#define QCORE_STEP(multiply, add, codes0, codes1, x0, x1, x2, x3)                                        \
  "vmovdqa " #codes0 "(%[codes]), %%ymm8\n\t"                                                            \
  "vmovdqa " #codes1 "(%[codes]), %%ymm9\n\t"                                                            \
  QCORE_TOKEN(multiply, add, x0, "%%ymm0", "%%ymm1")                                                     \
  QCORE_TOKEN(multiply, add, x1, "%%ymm2", "%%ymm3")                                                     \
  QCORE_TOKEN(multiply, add, x2, "%%ymm4", "%%ymm5")                                                     \
  QCORE_TOKEN(multiply, add, x3, "%%ymm6", "%%ymm7")
#define QCORE_LOOP(multiply, add)                                                                        \
  asm volatile(                                                                                          \
      "vpxor %%xmm0, %%xmm0, %%xmm0\n\tvpxor %%xmm1, %%xmm1, %%xmm1\n\tvpxor %%xmm2, %%xmm2, %%xmm2\n\t" \
      "vpxor %%xmm3, %%xmm3, %%xmm3\n\tvpxor %%xmm4, %%xmm4, %%xmm4\n\tvpxor %%xmm5, %%xmm5, %%xmm5\n\t" \
      "vpxor %%xmm6, %%xmm6, %%xmm6\n\tvpxor %%xmm7, %%xmm7, %%xmm7\n"                                   \
      "1:\n\t"                                                                                           \
      QCORE_STEP(multiply, add, 0, 32, 0, 4, 8, 12)                                                      \
      QCORE_STEP(multiply, add, 64, 96, 16, 20, 24, 28)                                                  \
      "add $128, %[codes]\n\tadd $32, %[x]\n\tsub $2, %[steps]\n\tjnz 1b\n\t"                            \
      "vmovdqa %%ymm0, (%[acc])\n\tvmovdqa %%ymm1, 32(%[acc])\n\tvmovdqa %%ymm2, 64(%[acc])\n\t"         \
      "vmovdqa %%ymm3, 96(%[acc])\n\tvmovdqa %%ymm4, 128(%[acc])\n\tvmovdqa %%ymm5, 160(%[acc])\n\t"     \
      "vmovdqa %%ymm6, 192(%[acc])\n\tvmovdqa %%ymm7, 224(%[acc])\n\t"                                   \
      : [codes] "+r"(codes), [x] "+r"(x), [steps] "+r"(steps)                                            \
      : [acc] "r"(acc)                                                                                   \
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",         \
        "xmm11", "xmm12", "memory", "cc")
// clang-format on

inline void four_tokens_bytes(const void* codes, const void* x, long steps, __m256i* acc) {
  QCORE_LOOP("vpmaddubsw", "vpaddw");
}
inline void four_tokens_words(const void* codes, const void* x, long steps, __m256i* acc) {
  QCORE_LOOP("vpmaddwd", "vpaddd");
}

// acc[2 * m + side] belongs to token m and the panel `side` of the pair. A block has kHalves groups.
template <int T, int kHalves>
void multiply_bytes(const Stretch& s, const int8_t* q, const float* scale, const float* sum, int64_t count,
                    int64_t ahead, float (*y)[kPair]) {
  constexpr int steps = 8 / kHalves;
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t g = 0; g < count * kHalves; ++g, q += kBlock / kHalves * T, sum += T) {
    if (g % kHalves == 0) fetch<kBlock * T>(q, ahead);  // the next tile
    __m256i acc[2 * T];
    const uint8_t* codes = s.bytes + g * (512 / kHalves);
    if constexpr (T == 4) {
      four_tokens_bytes(codes, q, steps, acc);
    } else {
      each(Upto<2 * T>(), [&](auto a) { acc[a()] = _mm256_setzero_si256(); });
      for (int i = 0; i < steps; ++i)
        each(Upto<2 * T>(), [&](auto a) {
          acc[a()] = multiply_add8(acc[a()], load(codes + 64 * i + 32 * (a() % 2)),
                                   broadcast4(q + (i * T + a() / 2) * 4));
        });
    }
    each(Upto<2 * T>(), [&](auto a) {
      constexpr int m = a() / 2, side = a() % 2;
      const __m256 part = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[a()], ones));
      __m256 total = _mm256_load_ps(y[m] + 8 * side);
      total = _mm256_fmadd_ps(_mm256_load_ps(s.offset[g] + 8 * side), _mm256_set1_ps(sum[m]), total);
      total = _mm256_fmadd_ps(
          part, _mm256_mul_ps(_mm256_load_ps(s.scale[g] + 8 * side), _mm256_set1_ps(scale[m])), total);
      _mm256_store_ps(y[m] + 8 * side, total);
    });
    if (g % kHalves == kHalves - 1) scale += T;
  }
}

// `span` consecutive blocks share the scales of the weight and of the tokens: their integers are summed
// before they are scaled. With two groups per block, `span` is 1.
template <int T, int kHalves, bool kOffset>
void multiply_words(const Stretch& s, const int16_t* q, const float* scale, const float* sum, int64_t count,
                    int64_t span, int64_t ahead, float (*y)[kPair]) {
  for (int64_t g = 0, n; g < count * kHalves; g += n, q += n * (kBlock / kHalves) * T, sum += n * T) {
    n = std::min(span, count * kHalves - g);
    if (g % kHalves == 0)
      for (int64_t i = 0; i < n; ++i) fetch<2 * kBlock * T>(q + i * kBlock * T, ahead);
    __m256i acc[2 * T];
    const int16_t* words = s.words + g * (512 / kHalves);
    if constexpr (T == 4) {
      four_tokens_words(words, q, 16 / kHalves * n, acc);
    } else {
      each(Upto<2 * T>(), [&](auto a) { acc[a()] = _mm256_setzero_si256(); });
      for (int i = 0; i < 16 / kHalves * n; ++i)
        each(Upto<2 * T>(), [&](auto a) {
          acc[a()] = multiply_add16(acc[a()], load(words + 32 * i + 16 * (a() % 2)),
                                    broadcast4(q + (i * T + a() / 2) * 2));
        });
    }
    each(Upto<2 * T>(), [&](auto a) {
      constexpr int m = a() / 2, side = a() % 2;
      const __m256 factor = _mm256_mul_ps(_mm256_load_ps(s.scale[g] + 8 * side), _mm256_set1_ps(scale[m]));
      __m256 total = _mm256_load_ps(y[m] + 8 * side);
      if constexpr (kOffset)
        for (int64_t i = 0; i < n; ++i)
          total =
              _mm256_fmadd_ps(_mm256_load_ps(s.offset[g] + 8 * side), _mm256_set1_ps(sum[i * T + m]), total);
      _mm256_store_ps(y[m] + 8 * side, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[a()]), factor, total));
    });
    if ((g + n) % kHalves == 0) scale += kHalves == 1 ? n * T : T;
  }
}

template <int T>
void multiply_floats(const Stretch& s, const float* q, int64_t count, float (*y)[kPair]) {
  __m256 acc[2 * T];
  each(Upto<2 * T>(), [&](auto a) { acc[a()] = _mm256_load_ps(y[a() / 2] + 8 * (a() % 2)); });
  const float* values = s.floats;
#pragma GCC unroll 2
  for (int64_t k = 0; k < count * kBlock; ++k, values += kPair, q += T) {
    const __m256 v0 = _mm256_load_ps(values), v1 = _mm256_load_ps(values + 8);
    each(Upto<T>(), [&](auto m) {
      const __m256 xs = _mm256_broadcast_ss(q + m());
      acc[2 * m()] = _mm256_fmadd_ps(v0, xs, acc[2 * m()]);
      acc[2 * m() + 1] = _mm256_fmadd_ps(v1, xs, acc[2 * m() + 1]);
    });
  }
  each(Upto<2 * T>(), [&](auto a) { _mm256_store_ps(y[a() / 2] + 8 * (a() % 2), acc[a()]); });
}

template <int T>
void multiply(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
              float (*y)[kPair]) {
  const int64_t at = first * kBlock * T;
  if (mode == kFloat) return multiply_floats<T>(s, static_cast<const float*>(x.q) + at, count, y);
  const int halves = halves_of(w.kind);
  const float *scale = x.scale + first * T, *sum = x.sum + first * halves * T;
  if (Activations::element_bytes(w.kind, mode) == 1) {
    const int8_t* q = static_cast<const int8_t*>(x.q) + at;
    return (halves == 2 ? multiply_bytes<T, 2> : multiply_bytes<T, 1>)(s, q, scale, sum, count, x.next, y);
  }
  // Blocks of a stretch that share a scale of the weight.
  const int64_t shared = is_super(w.kind)             ? 1
                         : w.group_blocks == w.blocks ? kStretch
                         : kStretch % w.group_blocks  ? 1
                                                      : w.group_blocks;
  const auto multiply = halves == 2 ? multiply_words<T, 2, true>
                        : has_super_minimums(w.kind) || w.zero_bytes == kMinimums
                            ? multiply_words<T, 1, true>
                            : multiply_words<T, 1, false>;
  multiply(s, static_cast<const int16_t*>(x.q) + at, scale, sum, count,
           std::min(shared, Activations::shared_blocks(w, mode)), x.next, y);
}

}  // namespace

void widen_avx2(const Weight& w, const uint8_t* a, const uint8_t* b, int mode, int64_t first, int64_t count,
                Stretch& to) {
  const Values values = mode == kFloat                                  ? kFloats
                        : Activations::element_bytes(w.kind, mode) == 1 ? kBytes
                                                                        : kWords;
  widen_pair(w, a, b, values, first, count, to);
}

void widen_bytes_avx2(const Weight& w, const uint8_t* a, const uint8_t* b, int64_t first, int64_t count,
                      Stretch& to) {
  widen_pair(w, a, b, kBytes, first, count, to);
}

void multiply_avx2(const Weight& w, const Stretch& s, int mode, int64_t first, int64_t count, const Tile& x,
                   int tokens, float (*y)[kPair]) {
  switch (tokens) {
    case 1: return multiply<1>(w, s, mode, first, count, x, y);
    case 2: return multiply<2>(w, s, mode, first, count, x, y);
    case 3: return multiply<3>(w, s, mode, first, count, x, y);
    default: return multiply<4>(w, s, mode, first, count, x, y);
  }
}

}  // namespace qcore
