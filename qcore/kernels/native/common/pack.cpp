// From rows of codes, as they are stored, to panels, and back. Plain C++: the compiler vectorizes what matters.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/pack.h"

namespace qcore {
namespace {

// Eight codes of `bits` bits are `bits` bytes, little-endian (formats/packing.py).
void read_row(const uint8_t* row, int bits, int64_t columns, uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, row, columns);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < columns / 2; ++i) {
      codes[2 * i] = row[i] & 15;
      codes[2 * i + 1] = row[i] >> 4;
    }
    if (columns % 2) codes[columns - 1] = row[columns / 2] & 15;
    return;
  }
  for (int64_t k = 0; k < columns; k += 8, row += bits) {
    uint64_t word = 0;
    std::memcpy(&word, row, bits);
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i) codes[k + i] = (word >> (i * bits)) & ((1u << bits) - 1);
  }
}

void write_row(const uint8_t* codes, int bits, int64_t columns, uint8_t* row) {
  if (bits == 8) {
    std::memcpy(row, codes, columns);
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < columns / 2; ++i) row[i] = codes[2 * i] | (codes[2 * i + 1] << 4);
    if (columns % 2) row[columns / 2] = codes[columns - 1];
    return;
  }
  for (int64_t k = 0; k < columns; k += 8, row += bits) {
    uint64_t word = 0;
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i) word |= uint64_t(codes[k + i]) << (i * bits);
    std::memcpy(row, &word, bits);
  }
}

// One block of 8 rows x 32 columns; `codes` has `stride` bytes a row.
void write_block(int kind, const uint8_t* codes, int64_t stride, uint8_t* out) {
#if defined(__x86_64__)
  if (kind != kBits3 && kind != kBits2) return write_block_avx2(kind == kBits8 ? 8 : 4, codes, stride, out);
#endif
  for (int step = 0; step < 8; ++step)
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 4; ++j) {
        const uint8_t code = codes[r * stride + 4 * step + j];
        const int at = 4 * r + j;
        if (kind == kBits8) {
          out[32 * step + at] = code;
        } else if (kind != kBits3 && kind != kBits2) {
          out[32 * (step / 2) + at] |= code << (4 * (step % 2));
        } else {
          out[32 * (step / 4) + at] |= (code & 3) << (2 * (step % 4));
          if (kind == kBits3) out[64 + at] |= (code >> 2) << step;
        }
      }
}

inline uint8_t code_at(int kind, const uint8_t* block, int step, int at) {
  if (kind == kBits8) return block[32 * step + at];
  if (kind != kBits3 && kind != kBits2) return (block[32 * (step / 2) + at] >> (4 * (step % 2))) & 15;
  const uint8_t low = (block[32 * (step / 4) + at] >> (2 * (step % 4))) & 3;
  return kind == kBits2 ? low : low | ((block[64 + at] >> step) & 1) << 2;
}

void read_block(int kind, const uint8_t* in, uint8_t* codes, int64_t stride) {
#if defined(__x86_64__)
  if (kind != kBits3 && kind != kBits2) return read_block_avx2(kind == kBits8 ? 8 : 4, in, codes, stride);
#endif
  for (int step = 0; step < 8; ++step)
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < 4; ++j) codes[r * stride + 4 * step + j] = code_at(kind, in, step, 4 * r + j);
}

struct Stored {  // the parts of a QuantizedTensor; zero points as one byte each
  int bits;
  int64_t row_bytes, groups;
  uint8_t* codes;
  uint16_t* scale;
  uint8_t* zero;
  uint16_t* tables;
};

void pack_panel(const Weight& w, const Stored& s, int64_t panel, uint8_t* out, std::vector<uint8_t>& rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  std::fill(rows.begin(), rows.end(), 0);
  for (int r = 0; r < used; ++r) read_row(s.codes + (first + r) * s.row_bytes, s.bits, w.columns, rows.data() + r * stride);
  std::memset(out, 0, w.panel_bytes);
  if (w.kind == kRowTable) {
    std::memcpy(out, s.tables + first * 16, used * 32);
    out += kRows * 32;
    for (int64_t k = 0; k < stride; k += 64)
      for (int r = 0; r < kRows; ++r, out += 32)
        for (int i = 0; i < 32; ++i) out[i] = rows[r * stride + k + i] | (rows[r * stride + k + 32 + i] << 4);
    return;
  }
  const int size = block_bytes(w.kind);
  for (int64_t b = 0; b < w.blocks; ++b, out += size) {
    if (b % w.group_blocks == 0) {
      const int64_t g = b / w.group_blocks;
      for (int r = 0; r < used; ++r) {
        std::memcpy(out + 2 * r, s.scale + (first + r) * s.groups + g, 2);
        if (w.zero_bytes == 8) out[16 + r] = s.zero[(first + r) * s.groups + g];
        if (w.zero_bytes == 4) out[16 + r / 2] |= s.zero[(first + r) * s.groups + g] << (4 * (r % 2));
      }
      out += 16 + w.zero_bytes;
    }
    write_block(w.kind, rows.data() + b * kBlock, stride, out);
  }
}

void unpack_panel(const Weight& w, const Stored& s, int64_t panel, const uint8_t* in, std::vector<uint8_t>& rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  if (w.kind == kRowTable) {
    std::memcpy(s.tables + first * 16, in, used * 32);
    in += kRows * 32;
    for (int64_t k = 0; k < stride; k += 64)
      for (int r = 0; r < kRows; ++r, in += 32)
        for (int i = 0; i < 32; ++i) {
          rows[r * stride + k + i] = in[i] & 15;
          rows[r * stride + k + 32 + i] = in[i] >> 4;
        }
  } else {
    const int size = block_bytes(w.kind);
    for (int64_t b = 0; b < w.blocks; ++b, in += size) {
      if (b % w.group_blocks == 0) {
        const int64_t g = b / w.group_blocks;
        for (int r = 0; r < used; ++r) {
          std::memcpy(s.scale + (first + r) * s.groups + g, in + 2 * r, 2);
          if (w.zero_bytes == 8) s.zero[(first + r) * s.groups + g] = in[16 + r];
          if (w.zero_bytes == 4) s.zero[(first + r) * s.groups + g] = (in[16 + r / 2] >> (4 * (r % 2))) & 15;
        }
        in += 16 + w.zero_bytes;
      }
      read_block(w.kind, in, rows.data() + b * kBlock, stride);
    }
  }
  for (int r = 0; r < used; ++r) write_row(rows.data() + r * stride, s.bits, w.columns, s.codes + (first + r) * s.row_bytes);
}

}  // namespace
}  // namespace qcore

extern "C" {
#pragma GCC visibility push(default)

// Bytes of a panel of `w`: depends on kind, zero_bytes, group_blocks and blocks only.
int64_t qcore_panel_bytes(const qcore::Weight* w) {
  if (w->kind == qcore::kRowTable) return qcore::kRows * 32 + w->blocks * 128;
  const int64_t groups = (w->blocks + w->group_blocks - 1) / w->group_blocks;
  return groups * (16 + w->zero_bytes) + w->blocks * qcore::block_bytes(w->kind);
}

void qcore_pack(const qcore::Weight* w, int bits, int64_t row_bytes, int64_t groups, uint8_t* codes, uint16_t* scale, uint8_t* zero,
                uint16_t* tables, uint8_t* panels, int threads) {
  const qcore::Stored stored{bits, row_bytes, groups, codes, scale, zero, tables};
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> rows(qcore::kRows * w->blocks * qcore::kBlock);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < qcore::panel_count(*w); ++p) qcore::pack_panel(*w, stored, p, panels + p * w->panel_bytes, rows);
  }
}

void qcore_unpack(const qcore::Weight* w, int bits, int64_t row_bytes, int64_t groups, uint8_t* codes, uint16_t* scale, uint8_t* zero,
                  uint16_t* tables, int threads) {
  const qcore::Stored stored{bits, row_bytes, groups, codes, scale, zero, tables};
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> rows(qcore::kRows * w->blocks * qcore::kBlock);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < qcore::panel_count(*w); ++p) qcore::unpack_panel(*w, stored, p, w->panels + p * w->panel_bytes, rows);
  }
}

#pragma GCC visibility pop
}  // extern "C"
