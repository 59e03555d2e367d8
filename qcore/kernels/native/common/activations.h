// Activations in the layout that the kernels read: tiles of up to 4 tokens.
//
// A tile of T tokens and B blocks of 32 columns is
//   int8    q[B][8][T][4]     step s holds the columns 4s … 4s + 3
//   int16   q[B][16][T][2]    pairs of columns: pair 2s = 4s and 4s + 2, pair 2s + 1 = 4s + 1 and 4s + 3
//   int16   q[B][T][32]       for row tables: the even columns, then the odd columns
//   float   q[B * 32][T]      for row tables: [T][B * 32]
// The kernels widen the even and the odd bytes of a register of codes with one instruction each, hence the
// order of int16. Integers also have scale[B][T]. Blocks that share a scale store it once each.
//
// A kernel multiplies the zero point or minimum of a group by the sum of its activations: sum[B][S][T], with
// S = 2 sums of 16 columns for groups of 16, else S = 1. The sums of floats are absent if nothing reads them.
#pragma once
#include <cstdint>

#include "common/layout.h"

namespace qcore {

struct Tile {
  const void* q;
  const float* scale;
  const float* sum;
  int64_t next;  // bytes from q to that of the next tile
};

// The layout and the rounding of a call's activations.
struct Form {
  bool row_major;  // for row tables
  int mode;
  int width;  // bytes per value
  int limit;  // the largest integer
  int64_t blocks;
  int64_t shared;  // consecutive blocks that share a scale
  int sums;        // per block: 0, 1 or 2
};

// The sum of 16 floats, added in the same order on every processor.
inline __attribute__((always_inline)) float sum16(const float* x) {
  float part[4] = {x[0], x[1], x[2], x[3]};
  for (int i = 4; i < 16; i += 4)
    for (int j = 0; j < 4; ++j) part[j] += x[i + j];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// Store the 0, 1 or 2 sums of the 32 floats of a block, `stride` floats apart.
inline __attribute__((always_inline)) void fill_sums(const float* x, int sums, float* out, int64_t stride) {
  if (!sums) return;
  const float first = sum16(x), second = sum16(x + 16);
  out[0] = sums == 1 ? first + second : first;
  if (sums == 2) out[stride] = second;
}

// The activations of one call, in memory of the caller. With `few`, all tokens fit in one tile, which is
// multiplied by panels. Otherwise tiles are multiplied by stretches, which have another layout for row
// tables.
class Activations {
 public:
  // `memory` has the size that `bytes` returns, and is aligned to 64 bytes.
  Activations(const Weight& w, int mode, int64_t tokens, bool few, uint8_t* memory)
      : tokens_(tokens), memory_(memory) {
    // Table values are multiplied by 14 bits (see kTableMax), codes by 15 bits.
    const int limit = mode == kInt16 ? ((w.kind == kTable || w.kind == kRowTable) ? 16383 : 32767) : 127;
    form_ = {w.kind == kRowTable && few, mode,         width_of(w.kind, mode), limit, w.blocks,
             shared_blocks(w, mode),     sums(w, mode)};
    tile_blocks_ = spaced(w.blocks, few);
    scales_ = mode == kFloat ? 0 : padded(tokens) * tile_blocks_;
    scale_ = reinterpret_cast<float*>(memory_ + padded(tokens) * tile_blocks_ * kBlock * form_.width);
  }

  // The bytes that the activations of `tokens` tokens take.
  static int64_t bytes(const Weight& w, int mode, int64_t tokens, bool few) {
    const int64_t blocks = padded(tokens) * spaced(w.blocks, few);
    return (blocks * kBlock * width_of(w.kind, mode) +
            blocks * ((mode == kFloat ? 0 : 1) + sums(w, mode)) * int64_t(sizeof(float)) + 63) /
           64 * 64;
  }

  int64_t tiles() const { return (tokens_ + kTile - 1) / kTile; }
  int tile_tokens(int64_t tile) const {
    return int(tokens_ - tile * kTile < kTile ? tokens_ - tile * kTile : kTile);
  }

  Tile tile(int64_t t) const {
    const int64_t size = kTile * tile_blocks_, bytes = size * kBlock * form_.width;
    return {memory_ + t * bytes, scale_ + t * size, scale_ + scales_ + t * size * form_.sums, bytes};
  }

  // Fill tile `t` from x, whose rows of `columns` values lie `stride` floats apart.
  void fill(int64_t t, const float* x, int64_t stride, int64_t columns);

  // The number of consecutive blocks that share a scale. 16-bit activations share it between two blocks if
  // the weight does: the sum of 64 products of codes fits in 32 bits (9 + 15 + 6 bits), that of table values
  // does not.
  static int64_t shared_blocks(const Weight& w, int mode) {
    if (mode == kInt8Token) return w.blocks;
    return mode == kInt16 && w.kind < kTable && (w.group_blocks == w.blocks || w.group_blocks % 2 == 0) ? 2
                                                                                                        : 1;
  }

  // The number of sums per block.
  static int sums(const Weight& w, int mode) {
    if (mode != kFloat) return halves_of(w.kind);
    return has_super_minimums(w.kind) || w.zero_bytes == kMinimums ? halves_of(w.kind) : 0;
  }

  // Bytes per activation with AVX2, whose 8-bit multiplication overflows for codes of more than 4 bits and
  // for table values.
  static int element_bytes(int kind, int mode) {
    const int codes = codes_of(kind);
    return (mode == kInt8 || mode == kInt8Token) && codes >= kBits4 && codes <= kBits2 ? 1 : 2;
  }

 private:
  static int width_of(int kind, int mode);
  static int64_t padded(int64_t tokens) { return (tokens + kTile - 1) / kTile * kTile; }
  // Tiles at a distance of a multiple of 4 KiB would compete for a few sets of the caches.
  static int64_t spaced(int64_t blocks, bool few) { return blocks + (!few && blocks % 16 == 0 ? 8 : 0); }

  Form form_;
  int64_t tokens_, tile_blocks_, scales_;
  uint8_t* memory_;
  float* scale_;
};

}  // namespace qcore
