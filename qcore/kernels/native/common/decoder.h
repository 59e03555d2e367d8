// A Llama-type model as the decoder sees it: pointers to weights that Python owns, and sizes.
#pragma once
#include "common/layout.h"

namespace qcore {

struct Projection {
  const Weight* packed;       // or null, and then:
  Buffer<const float> dense;  // (rows, columns)
  Buffer<const float> bias;   // (rows), or absent
  int64_t rows, columns;
  int32_t mode;
};

struct Block {
  Buffer<const float> attention_norm, mlp_norm;  // (hidden)
  Buffer<const float> query_norm, key_norm;      // (head size), or absent
  Projection query, key, value, output, gate, up, down;
  int64_t window;  // how many positions attention looks back, itself included; 0: all
};

struct Model {
  int64_t layers, hidden, heads, kv_heads, head_size, inner, vocabulary;
  float epsilon, attention_scale, embedding_scale;
  float norm_offset;  // added to the weights of every norm: Gemma keeps them less 1
  int64_t gelu;       // the activation function: gelu (tanh approximation), or silu
  Buffer<const float> final_norm;
  Projection embedding, head;
  Buffer<const Block> blocks;  // (layers)
};

// Keys and values of each layer, in float or fp16. All sequences hold the same number of tokens:
//   keys   [sequence][key-value head][slot / 8][head size][8]   8 slots side by side: a query meets 8 keys without adding across
//   values [sequence][key-value head][slot][head size]          capacity is a multiple of 8
struct Cache {
  Buffer<const Buffer<void>> keys, values;  // (layers)
  int64_t capacity;
  int64_t half;
};

// `tokens` tokens for each sequence, to be appended at slot `position`.
struct Call {
  int64_t sequences, tokens, position, threads;
  int64_t chunk;                       // how many tokens go through a layer at a time: memory is taken for as many
  Buffer<const int64_t> starts;        // (sequences): slots before it are padding; absent: there is none
  Buffer<const int64_t> ids;           // (sequences, tokens)
  Buffer<const float> cosines, sines;  // (positions, head size / 2)
  Buffer<float> hidden;                // (sequences, tokens, hidden), or absent, and then for the one sequence:
  Buffer<float> logits;                // (vocabulary)
  int64_t* best;                       // index of the largest
};

}  // namespace qcore
