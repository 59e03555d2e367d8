// Packs and unpacks blocks of 8-bit and 4-bit codes. The four codes of a row in a step are one 32-bit number,
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

}  // namespace

void write_block_avx2(int bits, const uint8_t* codes, int64_t stride, uint8_t* out) {
  __m256i m[8];
  for (int r = 0; r < kRows; ++r) m[r] = load(codes + r * stride);
  transpose(m);
  if (bits == 8) {
    for (int step = 0; step < 8; ++step) store(out + 32 * step, m[step]);
  } else {
    for (int i = 0; i < 4; ++i)
      store(out + 32 * i,
            _mm256_or_si256(m[2 * i], _mm256_slli_epi16(m[2 * i + 1], 4)));  // codes are below 16
  }
}

void read_block_avx2(int bits, const uint8_t* in, uint8_t* codes, int64_t stride) {
  __m256i m[8];
  if (bits == 8) {
    for (int step = 0; step < 8; ++step) m[step] = load(in + 32 * step);
  } else {
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 4; ++i) {
      const __m256i both = load(in + 32 * i);
      m[2 * i] = _mm256_and_si256(both, low);
      m[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
  }
  transpose(m);
  for (int r = 0; r < kRows; ++r) store(codes + r * stride, m[r]);
}

}  // namespace qcore
