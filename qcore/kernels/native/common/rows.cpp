// Dequantizes single rows, for embeddings. Plain C++: a row takes microseconds in any case.
#include <cstring>

#include "common/linear.h"

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

int code_at(int kind, const uint8_t* block, int r, int column) {
  const int step = column / 4, at = 4 * r + column % 4;
  switch (kind) {
    case kBits8: return block[32 * step + at];
    case kBits4:
    case kTable: return (block[32 * (step / 2) + at] >> (4 * (step % 2))) & 15;
    default: {
      const int low = (block[32 * (step / 4) + at] >> (2 * (step % 4))) & 3;
      return kind == kBits2 ? low : low | ((block[64 + at] >> step) & 1) << 2;
    }
  }
}

}  // namespace

void read_row(const Weight& w, int64_t row, float* out) {
  const uint8_t* panel = w.panels.data + row / kRows * w.panel_bytes;
  const int r = int(row % kRows);
  if (w.kind == kRowTable) {
    float table[16];
    for (int i = 0; i < 16; ++i) table[i] = from_half(panel + 32 * r + 2 * i);
    const uint8_t* codes = panel + kRows * 32;
    for (int64_t k = 0; k < w.columns; ++k) {
      const uint8_t byte = codes[(k / 64 * kRows + r) * 32 + k % 32];
      out[k] = table[k % 64 < 32 ? byte & 15 : byte >> 4];
    }
    return;
  }
  const int size = block_bytes(w.kind);
  const int64_t group_bytes = 16 + w.zero_bytes + w.group_blocks * size;
  for (int64_t b = 0; b * kBlock < w.columns; ++b) {
    const uint8_t* header = panel + b / w.group_blocks * group_bytes;
    const uint8_t* block = header + 16 + w.zero_bytes + b % w.group_blocks * size;
    const float scale = from_half(header + 2 * r);
    float zero = w.zero;
    if (w.zero_bytes == 8) zero = header[16 + r];
    if (w.zero_bytes == 4) zero = (header[16 + r / 2] >> (4 * (r % 2))) & 15;
    for (int c = 0; c < kBlock && b * kBlock + c < w.columns; ++c) {
      const int code = code_at(w.kind, block, r, c);
      out[b * kBlock + c] = (w.kind == kTable ? w.table.data[code] : code - zero) * scale;
    }
  }
}

}  // namespace qcore
