// The execution layout of a quantized weight, shared by every kernel.
//
// A weight has N rows (outputs) and K columns (inputs). Rows are taken in panels of 8, because a 256-bit register holds one
// 32-bit lane per row: a sum over k then stays in its lane and no horizontal addition is needed. Columns are taken in blocks of
// 32, each in 8 steps of 4: step s holds the columns 4s … 4s + 3, and lane r of a step's 32 bytes holds them for row r.
//
//   panel = for each group of columns:   8 x fp16 scale | zero points (absent if all equal) | the group's blocks
//
//   block   bytes   byte of lane r, column j of the step
//   8 bit    256    step s is bytes 32s …
//   4 bit    128    bytes 32i …: step 2i in the low, 2i + 1 in the high nibble
//   3 bit     96    bytes 0 … 63: the low two bits as in the 2-bit block; bytes 64 …: bit s is the third bit of step s
//   2 bit     64    bytes 32i …: step 4i + t in the bits 2t, 2t + 1
//
// Zero points take 8 bytes a group for 8-bit codes and 4 bytes (a nibble a row) for narrower ones. The last group is cut short
// after the last block; columns past K and rows past N hold code 0 and scale 0, and meet activations that are 0.
//
// A weight with a table of 16 values *per row* cannot share a register's table among rows, so its blocks are laid row by row:
//
//   panel = 8 x 16 fp16 tables | for each 64 columns: 8 rows x 32 bytes, column k in the low, 32 + k in the high nibble of byte k
//
// Activations are quantized in the same blocks of 32, each with a scale of its own (or one for the whole token), in tiles of up
// to 4 tokens whose bytes are interleaved so that one pointer walks them all.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/buffer.h"

namespace qcore {

enum Kind : int32_t { kBits8 = 0, kBits4 = 1, kBits3 = 2, kBits2 = 3, kTable = 4, kRowTable = 5 };
enum Mode : int32_t { kFloat = 0, kInt16 = 1, kInt8 = 2, kInt8Token = 3 };  // how activations are multiplied

constexpr int kRows = 8;    // rows of a panel
constexpr int kBlock = 32;  // columns of a block
constexpr int kTile = 4;    // tokens of a tile
constexpr int kTableMax = 4095;  // tables as integers: 12 bits and a sign, so that 32 products with 14-bit activations fit 32 bits

struct Weight {
  int32_t kind;
  int32_t zero_bytes;    // bytes of zero points a group and panel: 0, 4 or 8
  int32_t group_blocks;  // blocks a group; one group a row: all of them
  float zero;            // the zero point where none are stored
  int64_t rows, columns;
  int64_t blocks;        // of 32 columns; even for row tables
  int64_t panel_bytes;
  Buffer<uint8_t> panels;
  Buffer<const float> table;  // 16 values, kTable only
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

// Whether the numbers from which a panel's size follows agree with one another.
inline bool is_consistent(const Weight& w) {
  if (w.kind < kBits8 || w.kind > kRowTable || !is_size(w.rows) || !is_size(w.columns) || w.group_blocks < 1) return false;
  const int64_t blocks = (w.columns + kBlock - 1) / kBlock;
  if (w.blocks != (w.kind == kRowTable ? blocks + blocks % 2 : blocks)) return false;
  return w.zero_bytes == 0 || (w.kind < kTable && w.zero_bytes == (w.kind == kBits8 ? 8 : 4));
}

inline int64_t panel_size(const Weight& w) {
  if (w.kind == kRowTable) return kRows * 32 + w.blocks * block_bytes(kRowTable);
  return group_count(w) * (16 + w.zero_bytes) + w.blocks * block_bytes(w.kind);
}

// kOk if a kernel may read this weight.
inline Status check(const Weight& w) {
  if (!is_consistent(w) || w.panel_bytes != panel_size(w)) return kBadLayout;
  if (w.kind == kTable && !w.table.holds(16)) return kShortTable;
  return w.panels.holds(panel_count(w), w.panel_bytes) ? kOk : kShortPanels;
}

}  // namespace qcore
