// The decoder's description of a Llama-type model: sizes, and pointers to weights that Python owns.
#pragma once
#include "common/layout.h"

namespace qcore {

struct Projection {
  const Weight* packed;       // null for a dense projection
  Buffer<const float> dense;  // (rows, columns)
  Buffer<const float> bias;   // (rows), or absent
  int64_t rows, columns;
  int32_t mode;
};

struct Block {
  Buffer<const float> attention_norm, mlp_norm;  // (hidden)
  Buffer<const float> query_norm, key_norm;      // (head size), or absent
  Projection query, key, value, output, gate, up, down;
  int64_t window;  // positions that a token attends to, itself included; 0 for all
};

struct Model {
  int64_t layers, hidden, heads, kv_heads, head_size, inner, vocabulary;
  float epsilon, attention_scale, embedding_scale;
  float norm_offset;  // added to the weights of every norm: Gemma stores them minus 1
  int64_t gelu;       // the activation function: GELU (tanh approximation) if not 0, else SiLU
  Buffer<const float> final_norm;
  Projection embedding, head;
  Buffer<const Block> blocks;  // (layers)
};

// Keys and values of each layer, in float32 or float16. All sequences hold the same number of tokens.
//   keys   [sequence][key-value head][slot / 8][head size][8]
//   values [sequence][key-value head][slot][head size]
// 8 keys lie side by side, so that 8 scores need no horizontal addition.
struct Cache {
  Buffer<const Buffer<void>> keys, values;  // (layers)
  int64_t capacity;                         // slots, a multiple of 8
  int64_t half;                             // float16 if not 0
};

// One call: append `tokens` tokens to each sequence, from slot `position` on.
struct Call {
  int64_t sequences, tokens, position, threads;
  int64_t chunk;                       // tokens that go through a layer at a time: buffers hold as many
  Buffer<const int64_t> starts;        // (sequences): slots before it are padding; absent without padding
  Buffer<const int64_t> ids;           // (sequences, tokens)
  Buffer<const float> cosines, sines;  // (positions, head size / 2)
  // The output: `hidden` for all tokens after the last norm; or, if that is absent and there is one sequence,
  // the logits after its last token and the index of the largest.
  Buffer<float> hidden;  // (sequences, tokens, hidden)
  Buffer<float> logits;  // (vocabulary)
  int64_t* best;
};

}  // namespace qcore
