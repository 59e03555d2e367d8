// Activations as the kernels read them: one tile of up to 4 tokens at a time.
//
// For a tile of T tokens and B blocks of 32 columns:
//   int8    q[B][8 steps][T][4]        columns 4s … 4s + 3 of a step
//   int16   q[B][16 pairs][T][2]       of step s: pair 2s = columns 4s, 4s + 2 and pair 2s + 1 = columns 4s + 1, 4s + 3, because the
//                                      even and the odd bytes of a weight register are what two instructions can widen
//   int16   q[B][T][32] for row tables: even columns 0, 2, … 30, then odd ones, for the same reason
//   float   q[B * 32][T]               (row tables: [T][B * 32])
// and, for the integers, scale[B][T] and sum[B][T] = scale * (sum of the block's integers), which pays for zero points.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "layout.h"

namespace qcore {

struct Tile {
  const void* q;
  const float* scale;
  const float* sum;
};

// Where the activations of one call live. Each call has its own, so that calls may run at once.
class Activations {
 public:
  Activations(const Weight& w, int mode, int64_t tokens) : row_major_(w.kind == kRowTable && tokens <= kTile), mode_(mode), blocks_(w.blocks), tokens_(tokens) {
    width_ = mode == kFloat ? 4 : element_bytes(w.kind, mode);
    const int64_t padded = (tokens + kTile - 1) / kTile * kTile;
    const int64_t values = padded * blocks_ * kBlock * width_;
    scales_ = mode == kFloat ? 0 : padded * blocks_;
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, (values + 2 * scales_ * 4 + 63 + 64) / 64 * 64)));
    scale_ = reinterpret_cast<float*>(memory_.get() + values);
    // 14 bits meet table values (see kTableMax), 15 bits meet codes
    limit_ = mode == kInt16 ? ((w.kind == kTable || w.kind == kRowTable) ? 16383 : 32767) : 127;
  }

  bool ok() const { return memory_ != nullptr; }
  int64_t tiles() const { return (tokens_ + kTile - 1) / kTile; }
  int tile_tokens(int64_t tile) const { return int(tokens_ - tile * kTile < kTile ? tokens_ - tile * kTile : kTile); }
  int width() const { return width_; }

  Tile tile(int64_t t) const {
    return {memory_.get() + t * kTile * blocks_ * kBlock * width_, scale_ + t * kTile * blocks_, scale_ + scales_ + t * kTile * blocks_};
  }

  // Fill tile `t` from `tokens` rows of x, `stride` floats apart, of `columns` values.
  void fill(int64_t t, const float* x, int64_t stride, int64_t columns);

  // Only codes below 8 bits and without a table have products small enough for 8-bit multiplication.
  static int element_bytes(int kind, int mode) { return (mode == kInt8 || mode == kInt8Token) && kind >= kBits4 && kind <= kBits2 ? 1 : 2; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  bool row_major_;
  int mode_, width_, limit_;
  int64_t blocks_, tokens_, scales_;
  float* scale_;
  std::unique_ptr<uint8_t, Free> memory_;
};

}  // namespace qcore
