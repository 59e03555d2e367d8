// Activations as the kernels read them: one tile of up to 4 tokens at a time.
//
// For a tile of T tokens and B blocks of 32 columns:
//   int8    q[B][8 steps][T][4]        columns 4s … 4s + 3 of a step
//   int16   q[B][16 pairs][T][2]       of step s: pair 2s = columns 4s, 4s + 2 and pair 2s + 1 = columns 4s + 1, 4s + 3, because the
//                                      even and the odd bytes of a weight register are what two instructions can widen
//   int16   q[B][T][32] for row tables: even columns 0, 2, … 30, then odd ones, for the same reason
//   float   q[B * 32][T]               (row tables: [T][B * 32])
// and, for the integers, scale[B][T] and sum[B][T] = scale * (sum of the block's integers), which pays for zero points. Blocks that share
// a scale each hold it.
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

// How a call's activations are laid out and rounded.
struct Form {
  bool row_major;  // for row tables
  int mode;
  int width;       // bytes of a value
  int limit;       // the largest integer
  int64_t blocks;
  int64_t shared;  // blocks in a row that share a scale
};

// The activations of one call, in memory of the caller. `few`: all tokens fit one tile and meet the panels directly; otherwise tiles meet
// stretches, which are laid out differently for row tables.
class Activations {
 public:
  // `memory` holds `bytes(…)` bytes, aligned to 64.
  Activations(const Weight& w, int mode, int64_t tokens, bool few, uint8_t* memory) : tokens_(tokens), memory_(memory) {
    // 14 bits meet table values (see kTableMax), 15 bits meet codes
    const int limit = mode == kInt16 ? ((w.kind == kTable || w.kind == kRowTable) ? 16383 : 32767) : 127;
    form_ = {w.kind == kRowTable && few, mode, width_of(w.kind, mode), limit, w.blocks, shared_blocks(w, mode)};
    tile_blocks_ = spaced(w.blocks, few);
    scales_ = mode == kFloat ? 0 : padded(tokens) * tile_blocks_;
    scale_ = reinterpret_cast<float*>(memory_ + padded(tokens) * tile_blocks_ * kBlock * form_.width);
  }

  // Bytes for the activations of `tokens` tokens.
  static int64_t bytes(const Weight& w, int mode, int64_t tokens, bool few) {
    const int64_t blocks = padded(tokens) * spaced(w.blocks, few);
    return (blocks * kBlock * width_of(w.kind, mode) + (mode == kFloat ? 0 : 2 * blocks * int64_t(sizeof(float))) + 63) / 64 * 64;
  }

  int64_t tiles() const { return (tokens_ + kTile - 1) / kTile; }
  int tile_tokens(int64_t tile) const { return int(tokens_ - tile * kTile < kTile ? tokens_ - tile * kTile : kTile); }

  Tile tile(int64_t t) const {
    const int64_t size = kTile * tile_blocks_, bytes = size * kBlock * form_.width;
    return {memory_ + t * bytes, scale_ + t * size, scale_ + scales_ + t * size, bytes};
  }

  // Fill tile `t` from `tokens` rows of x, `stride` floats apart, of `columns` values.
  void fill(int64_t t, const float* x, int64_t stride, int64_t columns);

  // 16-bit activations share a scale between two blocks where the weight does: their 64 products are summed as integers, which fits 32 bits
  // for codes (9 + 15 + 6 bits), though not for the values of a table.
  static int64_t shared_blocks(const Weight& w, int mode) {
    if (mode == kInt8Token) return w.blocks;
    return mode == kInt16 && w.kind < kTable && (w.group_blocks == w.blocks || w.group_blocks % 2 == 0) ? 2 : 1;
  }

  // Only codes below 8 bits and without a table have products small enough for 8-bit multiplication in AVX2.
  static int element_bytes(int kind, int mode) { return (mode == kInt8 || mode == kInt8Token) && kind >= kBits4 && kind <= kBits2 ? 1 : 2; }

 private:
  static int width_of(int kind, int mode);
  static int64_t padded(int64_t tokens) { return (tokens + kTile - 1) / kTile * kTile; }
  // Tiles that lie a multiple of 4 KiB apart would meet in a few sets of the caches.
  static int64_t spaced(int64_t blocks, bool few) { return blocks + (!few && blocks % 16 == 0 ? 8 : 0); }

  Form form_;
  int64_t tokens_, tile_blocks_, scales_;
  uint8_t* memory_;
  float* scale_;
};

}  // namespace qcore
