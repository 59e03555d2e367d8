// Packs and unpacks blocks of codes. The four codes of a row in a step are one 32-bit number,
// so a block in a panel is the transpose of the 8 x 8 matrix (rows, steps).
#include <immintrin.h>

#include "common/pack.h"

namespace qcore {
namespace {

inline void transpose(__m256i (&m)[8]) {  // 8 x 8 numbers of 32 bits
  __m256i a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(m[i], m[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
    m[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
  }
}

inline __m256i load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store(uint8_t* to, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }

// Store `width` bits of every code, from bit `low` on, as a plane.
inline void write_plane(const __m256i (&steps)[8], int width, int low, uint8_t* out) {
  const __m256i mask = _mm256_set1_epi8(char((1 << width) - 1));
  for (int i = 0, s = 0; i < width; ++i) {
    __m256i all = _mm256_setzero_si256();
    for (int at = 0; at < 8; at += width, ++s)
      all = _mm256_or_si256(all,
                            _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(steps[s], low), mask), at));
    store(out + 32 * i, all);
  }
}

inline void read_plane(const uint8_t* in, int width, int low, __m256i (&steps)[8]) {
  const __m256i mask = _mm256_set1_epi8(char((1 << width) - 1));
  for (int i = 0, s = 0; i < width; ++i) {
    const __m256i all = load(in + 32 * i);
    for (int at = 0; at < 8; at += width, ++s)
      steps[s] = _mm256_or_si256(steps[s],
                                 _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(all, at), mask), low));
  }
}

}  // namespace

void write_block_avx2(Planes planes, const uint8_t* codes, int64_t stride, uint8_t* out) {
  __m256i m[8];
  for (int r = 0; r < kRows; ++r) m[r] = load(codes + r * stride);
  transpose(m);
  write_plane(m, planes.first, 0, out);
  if (planes.second) write_plane(m, planes.second, planes.first, out + 32 * planes.first);
}

void read_block_avx2(Planes planes, const uint8_t* in, uint8_t* codes, int64_t stride) {
  __m256i m[8];
  for (__m256i& step : m) step = _mm256_setzero_si256();
  read_plane(in, planes.first, 0, m);
  if (planes.second) read_plane(in + 32 * planes.first, planes.second, planes.first, m);
  transpose(m);
  for (int r = 0; r < kRows; ++r) store(codes + r * stride, m[r]);
}

}  // namespace qcore
