// The execution layout of a quantized weight, shared by every kernel.
//
// A weight has N rows (outputs) and K columns (inputs). A panel holds 8 rows, because a 256-bit register has
// one 32-bit lane per row: sums over k stay in their lanes, and no horizontal addition is needed. A block
// holds 32 columns in 8 steps of 4. Step s holds the columns 4s … 4s + 3; lane r of its 32 bytes belongs to
// row r.
//
//   panel = for each group of columns: 8 fp16 scales | zero points (absent if all are equal) | its blocks
//
//   block   bytes   byte of lane r, column j of the step
//   8 bit    256    step s: bytes 32s …
//   4 bit    128    bytes 32i …: step 2i in the low nibble, step 2i + 1 in the high nibble
//   3 bit     96    bytes 0 …: the low two bits, as for 2 bit; bytes 64 …: bit s is the third bit of step s
//   2 bit     64    bytes 32i …: step 4i + t in the bits 2t and 2t + 1
//
// The zero points of a group take 8 bytes for codes of 8 bits, and 4 bytes (one nibble per row) for narrower
// codes. The last group ends with the last block. Columns past K and rows past N have code 0 and scale 0, and
// are multiplied by activations of 0.
//
// If every row has a table of 16 values of its own, the rows cannot share a register that holds the table.
// Such blocks are stored row by row:
//
//   panel = 8 tables of 16 fp16 values | for each 64 columns: 8 rows of 32 bytes
//
// Byte k holds column k in the low nibble and column 32 + k in the high nibble.
//
// Activations are quantized in the same blocks of 32 columns, with one scale per block or per token. A tile
// holds up to 4 tokens, whose bytes are interleaved so that a single pointer runs over all of them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/buffer.h"

namespace qcore {

enum Kind : int32_t { kBits8 = 0, kBits4 = 1, kBits3 = 2, kBits2 = 3, kTable = 4, kRowTable = 5 };
enum Mode : int32_t { kFloat = 0, kInt16 = 1, kInt8 = 2, kInt8Token = 3 };  // how activations are multiplied

constexpr int kRows = 8;    // rows per panel
constexpr int kBlock = 32;  // columns per block
constexpr int kTile = 4;    // tokens per tile
// The largest integer of a table: with 12 bits and a sign, 32 products with 14-bit activations fit in 32
// bits.
constexpr int kTableMax = 4095;

struct Weight {
  int32_t kind;
  int32_t zero_bytes;    // bytes of zero points per group and panel: 0, 4 or 8
  int32_t group_blocks;  // blocks per group; all blocks if a row is one group
  float zero;            // the zero point if none are stored
  int64_t rows, columns;
  int64_t blocks;  // of 32 columns; even for row tables
  int64_t panel_bytes;
  Buffer<uint8_t> panels;
  Buffer<const float> table;  // 16 values; kTable only
};

constexpr int block_bytes(int kind) {
  switch (kind) {
    case kBits8: return 256;
    case kBits3: return 96;
    case kBits2: return 64;
    default: return 128;
  }
}

inline int64_t panel_count(const Weight& w) { return (w.rows + kRows - 1) / kRows; }

inline int64_t group_count(const Weight& w) { return (w.blocks + w.group_blocks - 1) / w.group_blocks; }

// Return whether the numbers that determine the size of a panel are consistent.
inline bool is_consistent(const Weight& w) {
  if (w.kind < kBits8 || w.kind > kRowTable || !is_size(w.rows) || !is_size(w.columns) || w.group_blocks < 1)
    return false;
  const int64_t blocks = (w.columns + kBlock - 1) / kBlock;
  if (w.blocks != (w.kind == kRowTable ? blocks + blocks % 2 : blocks)) return false;
  return w.zero_bytes == 0 || (w.kind < kTable && w.zero_bytes == (w.kind == kBits8 ? 8 : 4));
}

// The value that `panel_bytes` must have.
inline int64_t panel_size(const Weight& w) {
  if (w.kind == kRowTable) return kRows * 32 + w.blocks * block_bytes(kRowTable);
  return group_count(w) * (16 + w.zero_bytes) + w.blocks * block_bytes(w.kind);
}

// Return kOk if kernels may read this weight.
inline Status check(const Weight& w) {
  if (!is_consistent(w) || w.panel_bytes != panel_size(w)) return kBadLayout;
  if (w.kind == kTable && !w.table.holds(16)) return kShortTable;
  return w.panels.holds(panel_count(w), w.panel_bytes) ? kOk : kShortPanels;
}

}  // namespace qcore
