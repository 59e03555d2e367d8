// Dequantizes single rows, for embeddings. Plain C++: a row takes microseconds in any case.
#include <algorithm>
#include <cstring>

#include "common/linear.h"
#include "common/pack.h"

namespace qcore {
namespace {

float from_half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  const uint32_t sign = uint32_t(h >> 15) << 31, exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 0) return (sign ? -1.f : 1.f) * float(mantissa) * (1.f / (1 << 24));
  const uint32_t bits = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Multiply the factors in scale[0] and minimum[0] by the integers of row `r` in front of a block of a
// K-quant.
void read_integers(int kind, const uint8_t* p, int r, float (&scale)[2], float (&minimum)[2]) {
  const float d = scale[0], dmin = minimum[0];
  for (int half = 0; half < halves_of(kind); ++half) {
    const uint8_t byte = p[kRows * half + r];
    if (kind == kSuper2) {
      scale[half] = d * (byte & 15);
      minimum[half] = -dmin * (byte >> 4);
    } else if (halves_of(kind) == 2) {
      scale[half] = d * int8_t(byte);
      minimum[half] = 0.f;
    } else {
      scale[half] = d * byte;
      minimum[half] = -dmin * p[kRows + r];
    }
  }
}

}  // namespace

void read_row(const Weight& w, int64_t row, int64_t first, int64_t last, float* out) {
  const uint8_t* panel = w.panels.data + row / kRows * w.panel_bytes;
  const int r = int(row % kRows);
  if (w.kind == kRowTable) {
    float table[16];
    for (int i = 0; i < 16; ++i) table[i] = from_half(panel + 32 * r + 2 * i);
    const uint8_t* codes = panel + kRows * 32;
    for (int64_t k = first; k < last; ++k) {
      const uint8_t byte = codes[(k / 64 * kRows + r) * 32 + k % 32];
      out[k - first] = table[k % 64 < 32 ? byte & 15 : byte >> 4];
    }
    return;
  }
  const int size = block_bytes(w.kind), halves = halves_of(w.kind);
  const Planes planes = planes_of(w.kind);
  const int64_t group_bytes = header_bytes(w) + w.group_blocks * size;
  for (int64_t b = first / kBlock; b * kBlock < last; ++b) {
    const uint8_t* header = panel + b / w.group_blocks * group_bytes;
    const uint8_t* block = header + header_bytes(w) + b % w.group_blocks * size;
    float zero = w.zero;
    if (w.zero_bytes == 8) zero = header[16 + r];
    if (w.zero_bytes == 4) zero = (header[16 + r / 2] >> (4 * (r % 2))) & 15;
    float scale[2] = {from_half(header + 2 * r)};
    const bool minimums = header_bytes(w) == 32;
    float minimum[2] = {minimums ? from_half(header + 16 + 2 * r) : 0.f};
    if (is_super(w.kind)) {
      read_integers(w.kind, block, r, scale, minimum);
      block += kIntegers;
    }
    for (int64_t k = std::max(first, b * kBlock); k < std::min(last, (b + 1) * kBlock); ++k) {
      const int c = int(k - b * kBlock);
      const int code = code_at(planes, block, c / 4, 4 * r + c % 4), half = c * halves / kBlock;
      const float value = (w.kind == kTable ? w.table.data[code] : code - zero) * scale[half];
      out[k - first] = minimums ? value + minimum[half] : value;
    }
  }
}

}  // namespace qcore
