// Conversion of stored rows of codes to panels and back, in plain C++: the compiler vectorizes the loops that
// matter.
#include "common/pack.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

namespace qcore {

struct Stored {  // the parts of a QuantizedTensor, with one byte per zero point
  int64_t bits;
  int64_t row_bytes, groups;
  Buffer<uint8_t> codes;    // (rows, row_bytes)
  Buffer<uint16_t> scale;   // (rows, groups); absent for row tables
  Buffer<uint8_t> zero;     // (rows, groups); absent if the weight stores no zero points
  Buffer<uint16_t> tables;  // (rows, 16); row tables only
};

namespace {

// Eight codes of `bits` bits take `bits` bytes, little-endian (formats/packing.py).
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
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i)
      codes[k + i] = (word >> (i * bits)) & ((1u << bits) - 1);
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
    for (int64_t i = 0; i < std::min<int64_t>(8, columns - k); ++i)
      word |= uint64_t(codes[k + i]) << (i * bits);
    std::memcpy(row, &word, bits);
  }
}

// Pack one block of 8 rows x 32 columns; `codes` has `stride` bytes per row.
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

// The bits per code of a kind other than kBits8, which holds codes of 5 to 8 bits.
int narrow_bits(int kind) { return kind == kBits3 ? 3 : kind == kBits2 ? 2 : 4; }

// Return kOk if the weight's parts are as large as its layout requires.
Status check(const Weight& w, const Stored& s) {
  if (const Status status = check(w)) return status;
  if (w.kind == kBits8 ? s.bits <= 4 || s.bits > 8 : s.bits != narrow_bits(w.kind)) return kBadLayout;
  if (s.row_bytes < (w.columns + 7) / 8 * s.bits || !s.codes.holds(w.rows, s.row_bytes)) return kShortCodes;
  if (w.kind == kRowTable) return s.tables.holds(w.rows, 16) ? kOk : kShortTable;
  if (s.groups != group_count(w)) return kBadLayout;
  if (!s.scale.holds(w.rows, s.groups)) return kShortScales;
  return !w.zero_bytes || s.zero.holds(w.rows, s.groups) ? kOk : kShortZeros;
}

void pack_panel(const Weight& w, const Stored& s, int64_t panel, uint8_t* rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  uint8_t* out = w.panels.data + panel * w.panel_bytes;
  std::memset(rows, 0, kRows * stride);
  for (int r = 0; r < used; ++r)
    read_row(s.codes.data + (first + r) * s.row_bytes, s.bits, w.columns, rows + r * stride);
  std::memset(out, 0, w.panel_bytes);
  if (w.kind == kRowTable) {
    std::memcpy(out, s.tables.data + first * 16, used * 32);
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
        std::memcpy(out + 2 * r, s.scale.data + (first + r) * s.groups + g, 2);
        if (w.zero_bytes == 8) out[16 + r] = s.zero.data[(first + r) * s.groups + g];
        if (w.zero_bytes == 4) out[16 + r / 2] |= s.zero.data[(first + r) * s.groups + g] << (4 * (r % 2));
      }
      out += 16 + w.zero_bytes;
    }
    write_block(w.kind, rows + b * kBlock, stride, out);
  }
}

void unpack_panel(const Weight& w, const Stored& s, int64_t panel, uint8_t* rows) {
  const int64_t stride = w.blocks * kBlock, first = panel * kRows;
  const int used = int(std::min<int64_t>(kRows, w.rows - first));
  const uint8_t* in = w.panels.data + panel * w.panel_bytes;
  if (w.kind == kRowTable) {
    std::memcpy(s.tables.data + first * 16, in, used * 32);
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
          std::memcpy(s.scale.data + (first + r) * s.groups + g, in + 2 * r, 2);
          if (w.zero_bytes == 8) s.zero.data[(first + r) * s.groups + g] = in[16 + r];
          if (w.zero_bytes == 4)
            s.zero.data[(first + r) * s.groups + g] = (in[16 + r / 2] >> (4 * (r % 2))) & 15;
        }
        in += 16 + w.zero_bytes;
      }
      read_block(w.kind, in, rows + b * kBlock, stride);
    }
  }
  for (int r = 0; r < used; ++r)
    write_row(rows + r * stride, s.bits, w.columns, s.codes.data + (first + r) * s.row_bytes);
}

// Call `work(panel, rows)` for every panel on all threads; `rows` (8, 32 * blocks) is working memory of the
// thread.
template <class Work>
Status for_panels(const Weight& w, int threads, Work&& work) {
  threads = thread_count(threads);
  const int64_t each = kRows * w.blocks * kBlock;
  const Memory<uint8_t> memory(threads * each);
  if (!memory) return kNoMemory;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < panel_count(w); ++p) work(p, memory.data() + omp_get_thread_num() * each);
  return kOk;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Return the bytes of a panel of `w`, or −1 if the numbers that determine it are inconsistent.
int64_t qcore_panel_bytes(const Weight* w) { return is_consistent(*w) ? panel_size(*w) : -1; }

// Pack the stored parts into w->panels.
int qcore_pack(const Weight* w, const Stored* stored, int threads) {
  if (const Status status = check(*w, *stored)) return status;
  return for_panels(*w, threads, [&](int64_t panel, uint8_t* rows) { pack_panel(*w, *stored, panel, rows); });
}

// Unpack w->panels into the stored parts.
int qcore_unpack(const Weight* w, const Stored* stored, int threads) {
  if (const Status status = check(*w, *stored)) return status;
  return for_panels(*w, threads,
                    [&](int64_t panel, uint8_t* rows) { unpack_panel(*w, *stored, panel, rows); });
}

#pragma GCC visibility pop
}  // extern "C"
