// A Llama-type model as the decoder sees it: pointers to weights that Python owns, and sizes.
#pragma once
#include "layout.h"

namespace qcore {

struct Projection {
  const Weight* packed;  // or null, and then:
  const float* dense;    // (rows, columns)
  const float* bias;     // (rows) or null
  int64_t rows, columns;
  int32_t mode;
  int32_t unused;
};

struct Block {
  const float *attention_norm, *mlp_norm;  // (hidden)
  const float *query_norm, *key_norm;      // (head size) or null
  Projection query, key, value, output, gate, up, down;
  void *keys, *values;  // the cache, see below
  int64_t window;       // how many positions attention looks back, itself included; 0: all
};

// The cache of one block, in float or fp16:
//   keys   [key-value head][position / 8][head size][8]   8 positions side by side, so that a query meets 8 keys without adding across
//   values [key-value head][position][head size]          capacity is a multiple of 8
struct Model {
  int64_t layers, hidden, heads, kv_heads, head_size, inner, vocabulary, capacity;
  float epsilon, attention_scale;
  int32_t half_cache, threads;
  const float* cosines;  // (capacity, head size / 2)
  const float* sines;
  const float* final_norm;
  Projection embedding, head;
  const Block* blocks;
};

}  // namespace qcore
