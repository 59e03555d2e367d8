// The execution layout of a quantized weight, shared by every kernel.
//
// A weight has N rows (outputs) and K columns (inputs). A panel holds 8 rows, because a 256-bit register has
// one 32-bit lane per row: sums over k stay in their lanes, and no horizontal addition is needed. A block
// holds 32 columns in 8 steps of 4. Step s holds the columns 4s … 4s + 3; lane r of its 32 bytes belongs to
// row r.
//
//   panel = for each group of columns: 8 fp16 scales | zero points (absent if all are equal) | its blocks
//
// Codes are split into one or two planes. A plane of b bits takes 32b bytes: step s lies in the bytes
// 32⌊sb / 8⌋ …, from bit sb mod 8 of every byte on.
//
//   bits of a code     8      6       5      4     3      2
//   planes, in bits    8    4 + 2   4 + 1    4   2 + 1    2
//   bytes of a block  256    192     160    128   96     64
//
// The zero points of a group take 4 bytes (one nibble per row) for codes of at most 4 bits, and 8 bytes for
// wider codes. Formats with a minimum per group (scale * code + minimum) store 8 fp16 minimums, 16 bytes, in
// their place. Scales may be negative. The last group ends with the last block. Columns past K and rows past
// N have code 0, scale 0 and minimum 0, and are multiplied by activations of 0.
//
// K-quants have super-blocks of 8 blocks, which share fp16 factors d (and dmin) per row. Each block stores
// the small integers that these factors multiply:
//
//   panel = for each super-block: 8 fp16 d | 8 fp16 dmin (Q2, Q4, Q5) | 8 times: 16 integers | a block
//
//   Q4, Q5   d * scale * code - dmin * minimum   one group per block: 8 scales, 8 minimums
//   Q2       the same                            two groups of 16 columns, 8 bytes each: the scale in the low
//                                                nibble, the minimum in the high nibble
//   Q3, Q6   d * scale * (code - zero point)     two groups of 16 columns: 8 signed scales each
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

enum Kind : int32_t {
  kBits8 = 0,
  kBits6 = 1,
  kBits5 = 2,
  kBits4 = 3,
  kBits3 = 4,
  kBits2 = 5,
  kTable = 6,  // 4-bit indices
  kRowTable = 7,
  kSuper6 = 8,  // K-quants, from here on
  kSuper5 = 9,
  kSuper4 = 10,
  kSuper3 = 11,
  kSuper2 = 12,
};
enum Mode : int32_t { kFloat = 0, kInt16 = 1, kInt8 = 2, kInt8Token = 3 };  // how activations are multiplied

constexpr int kRows = 8;         // rows per panel
constexpr int kBlock = 32;       // columns per block
constexpr int kTile = 4;         // tokens per tile
constexpr int kMinimums = 16;    // the value of `zero_bytes` for fp16 minimums
constexpr int kSuperBlocks = 8;  // blocks per super-block
constexpr int kIntegers = 16;    // bytes of scales and minimums in front of a block of a K-quant
// The largest integer of a table: with 12 bits and a sign, 32 products with 14-bit activations fit in 32
// bits.
constexpr int kTableMax = 4095;

struct Weight {
  int32_t kind;
  int32_t zero_bytes;    // bytes of zero points per group and panel: 0, 4 or 8; kMinimums for minimums
  int32_t group_blocks;  // blocks per group or super-block; all blocks if a row is one group
  float zero;            // the zero point if none are stored; 0 with minimums
  int64_t rows, columns;
  int64_t blocks;  // of 32 columns; even for row tables
  int64_t panel_bytes;
  Buffer<uint8_t> panels;
  Buffer<const float> table;  // 16 values; kTable only
};

constexpr bool is_super(int kind) { return kind >= kSuper6; }

// Return the kind whose blocks of codes a K-quant has, or `kind` itself.
constexpr int codes_of(int kind) {
  switch (kind) {
    case kSuper6: return kBits6;
    case kSuper5: return kBits5;
    case kSuper4: return kBits4;
    case kSuper3: return kBits3;
    case kSuper2: return kBits2;
    default: return kind;
  }
}

// Return whether a K-quant stores minimums; the others have a zero point.
constexpr bool has_super_minimums(int kind) { return kind == kSuper5 || kind == kSuper4 || kind == kSuper2; }

// Return the number of groups in a block: two, of 16 columns each, for some K-quants.
constexpr int halves_of(int kind) { return kind == kSuper6 || kind == kSuper3 || kind == kSuper2 ? 2 : 1; }

// The bits of the two planes of codes; the second plane holds the upper bits.
struct Planes {
  int first, second;
};
constexpr Planes planes_of(int kind) {
  switch (codes_of(kind)) {
    case kBits8: return {8, 0};
    case kBits6: return {4, 2};
    case kBits5: return {4, 1};
    case kBits3: return {2, 1};
    case kBits2: return {2, 0};
    default: return {4, 0};
  }
}

// The bytes of the codes of a block.
constexpr int code_bytes(int kind) { return 32 * (planes_of(kind).first + planes_of(kind).second); }

// The bytes of a block with the integers in front of it.
constexpr int block_bytes(int kind) { return code_bytes(kind) + (is_super(kind) ? kIntegers : 0); }

// The bytes in front of the blocks of a group or super-block.
inline int header_bytes(const Weight& w) {
  return is_super(w.kind) ? (has_super_minimums(w.kind) ? 32 : 16) : 16 + w.zero_bytes;
}

inline int64_t panel_count(const Weight& w) { return (w.rows + kRows - 1) / kRows; }

inline int64_t group_count(const Weight& w) { return (w.blocks + w.group_blocks - 1) / w.group_blocks; }

// Return whether the numbers that determine the size of a panel are consistent.
inline bool is_consistent(const Weight& w) {
  if (w.kind < kBits8 || w.kind > kSuper2 || !is_size(w.rows) || !is_size(w.columns) || w.group_blocks < 1)
    return false;
  const int64_t blocks = (w.columns + kBlock - 1) / kBlock;
  if (w.blocks != (w.kind == kRowTable ? blocks + blocks % 2 : blocks)) return false;
  if (is_super(w.kind))
    return w.columns % (kSuperBlocks * kBlock) == 0 && w.group_blocks == kSuperBlocks && w.zero_bytes == 0;
  if (w.zero_bytes == kMinimums) return w.kind < kTable && w.zero == 0;
  return w.zero_bytes == 0 || (w.kind < kTable && w.zero_bytes == (w.kind <= kBits5 ? 8 : 4));
}

// The value that `panel_bytes` must have.
inline int64_t panel_size(const Weight& w) {
  if (w.kind == kRowTable) return kRows * 32 + w.blocks * block_bytes(kRowTable);
  return group_count(w) * header_bytes(w) + w.blocks * block_bytes(w.kind);
}

// Return kOk if kernels may read this weight.
inline Status check(const Weight& w) {
  if (!is_consistent(w) || w.panel_bytes != panel_size(w)) return kBadLayout;
  if (w.kind == kTable && !w.table.holds(16)) return kShortTable;
  return w.panels.holds(panel_count(w), w.panel_bytes) ? kOk : kShortPanels;
}

}  // namespace qcore
