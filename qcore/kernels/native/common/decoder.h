// The decoder's description of a model, as data: what each block computes, in which order, and pointers to
// weights that Python owns. The decoder interprets it; no code depends on the family of a model.
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

enum NormKind : int32_t {
  kNoNorm = 0,
  kRootMeanSquare = 1,  // x / sqrt(mean(x^2) + epsilon) * (weight + offset)
  kLayerNorm = 2,       // (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias
};

// Of heads: `width` is the head size, with one set of weights for all heads or one per head; or it is the
// width of the whole projection.
struct Norm {
  int32_t kind;
  float epsilon, offset;                   // Gemma stores the weights minus 1
  int64_t width;                           // values that are normalized together
  int64_t sets;                            // of weights
  Buffer<const float> weight, bias;        // (sets, width); the bias may be absent
  Buffer<const Buffer<const float>> each;  // (sets) of (width), in place of `weight`; of heads only
};

// Where the heads of one kind lie in a token's row of projected inputs.
struct Heads {
  int64_t first;  // of key-value head 0
  int64_t step;   // from one key-value head to the next; the query heads of one lie side by side
};

constexpr int kInputs = 3;

// Attention over latents (DeepSeek-V3, arXiv 2412.19437). A token has one latent c for the keys and values of
// all heads, and one rotated part r of keys: key h is [K_h c | r], value h is V_h c. Only c and r are held.
// Queries are multiplied by K_h before attention, and its results by V_h after it.
struct Latent {
  int64_t rank;                  // of c; 0 for ordinary attention
  int64_t plain, rotated;        // dimensions of a query's head: without positions, and then with them
  int64_t values;                // dimensions of a value
  Norm norm;                     // of c
  Norm query_norm;               // of the first input, from which `queries` come
  Projection queries;            // without rows if the first input is the queries themselves
  Buffer<const float> matrices;  // (heads, plain + values, rank): K_h and V_h
};

struct Attention {
  int64_t heads, kv_heads, head_size;
  int64_t value_size;  // as held
  // Their outputs lie side by side in one row per token: queries, keys and values, or one fused projection.
  Projection inputs[kInputs];
  int64_t input_count;
  Heads queries, keys, values;  // values may be the projected keys, before norm and rotation
  Norm query_norm, key_norm, value_norm;
  int64_t norm_last;          // normalize heads after their rotation if not 0
  int64_t rotation;           // the index of the call's rotation, or -1 for a layer without positions
  float scale;                // of scores
  float cap;                  // scores become cap * tanh(score / cap); 0 for none
  int64_t window;             // positions that a token attends to, itself included; 0 for all
  int64_t source;             // the layer whose keys and values are read; another than this one adds none
  Buffer<const float> sinks;  // (heads): scores of a position without a value, or absent
  Projection output;
  Latent latent;  // held as keys [c | r] and values c of one head; `keys` says where they lie in the inputs
};

enum ActivationFunction : int64_t {
  kSilu = 0,
  kGeluTanh = 1,
  kGelu = 2,
  kRelu = 3,
  kReluSquared = 4,
  kGeluQuick = 5,
};

enum FeedForwardKind : int64_t {
  kDense = 0,    // down(act(gate(x)) * up(x)); down(act(gate(x))) if there is no `up`
  kMixture = 1,  // of experts
};

struct Mixture;

struct FeedForward {
  int64_t kind, activation;
  int64_t gated;  // whether there is an `up`
  int64_t inner;
  Projection gate, up, down;
  Buffer<const Mixture> mixture;  // instead of all the above but the kind
};

// What a block adds to the stream x for the token itself (the per-layer embeddings of Gemma 4):
//   x + after(down(act(gate(x)) * b * (norm(mix(e)) + own)))
// of the embedded token e, as it is before the first block, and the block's part `own` of the token's row in
// the model's `token_rows`.
struct TokenPart {
  Projection gate, mix;  // (width, hidden); without rows if a block has no such part
  Projection down;       // (hidden, width)
  int64_t activation;
  int64_t first;  // of the columns of the table
  Norm norm;      // over the width
  Norm after;
  float scale;  // the factor b
};

// x + a * after_attention(attention(before_attention(x))), and likewise the feed-forward part of that sum;
// or, if `parallel`, of x itself. Then comes the token's own part, and last the factor `scale`.
struct Block {
  Norm before_attention, after_attention, before_feed_forward, after_feed_forward;
  int64_t parallel;
  float residual;  // the factor a
  Attention attention;
  FeedForward feed_forward;
  // Experts that read the stream beside the feed-forward part, or absent: the sum becomes
  // after_dense(feed_forward) + after_beside(beside).
  Buffer<const Mixture> beside;
  Norm after_dense, after_beside;
  TokenPart token;
  Buffer<const float> scale;  // (1) of the stream, or absent
};

struct Model {
  int64_t layers, hidden, vocabulary;
  float embedding_scale;
  float logits_scale, logits_cap;  // logits become cap * tanh(scale * logit / cap); a cap of 0 for none
  Norm final_norm;
  Projection embedding, head;
  Projection positions;        // a row per position, added to embeddings; without rows if absent
  int64_t position_offset;     // of the row of position 0
  Projection token_rows;       // a row per token with the parts of all blocks; without rows if absent
  float token_scale;           // of those rows
  Buffer<const Block> blocks;  // (layers)
};

// Call `f` with every projection of a block but those of experts.
template <class F>
void each_projection(const Block& block, F&& f) {
  for (int64_t i = 0; i < block.attention.input_count; ++i) f(block.attention.inputs[i]);
  f(block.attention.output);
  if (block.attention.latent.queries.rows) f(block.attention.latent.queries);
  if (block.token.gate.rows)
    for (const Projection* each : {&block.token.gate, &block.token.mix, &block.token.down}) f(*each);
  if (block.feed_forward.kind != kDense) return;
  f(block.feed_forward.gate);
  if (block.feed_forward.gated) f(block.feed_forward.up);
  f(block.feed_forward.down);
}

// The floats per token of a block's projected queries, keys and values.
inline int64_t input_width(const Attention& attention) {
  int64_t width = 0;
  for (int64_t i = 0; i < attention.input_count; ++i) width += attention.inputs[i].rows;
  return width;
}

// Keys and values of each layer, in float32 or float16. All sequences hold the same number of tokens.
//   keys   [sequence][key-value head][slot / 8][head size][8]
//   values [sequence][key-value head][slot][value size]
// 8 keys lie side by side, so that 8 scores need no horizontal addition.
struct Cache {
  Buffer<const Buffer<void>> keys, values;  // (layers)
  int64_t capacity;                         // slots, a multiple of 8
  int64_t half;                             // float16 if not 0
};

// Rotary positions: the first `size` dimensions of a head are rotated, in pairs d and size / 2 + d, or
// 2d and 2d + 1 if interleaved.
struct Rotation {
  Buffer<const float> cosines, sines;  // (positions, size / 2)
  Buffer<const float> scales;          // (positions): factors of queries, or absent
  int64_t size, interleaved;
};

// One call: append `tokens` tokens to each sequence, from slot `position` on.
struct Call {
  int64_t sequences, tokens, position, threads;
  int64_t chunk;                 // tokens that go through a layer at a time: buffers hold as many
  Buffer<const int64_t> starts;  // (sequences): slots before it are padding; absent without padding
  Buffer<const int64_t> ids;     // (sequences, tokens)
  Buffer<const Rotation> rotations;
  int64_t counts_padding;          // whether the positions of tokens count the padding before them
  Buffer<const float> embeds;      // (sequences, tokens, hidden) in place of embedded ids; or absent
  Buffer<const float> token_rows;  // (sequences, tokens, columns of the table), scaled; only with `embeds`
  // The output: `hidden` after the last norm, for all tokens or, if `last` is not 0, for the last token of
  // the only sequence; or, if that is absent and there is one sequence, the logits after its last token and
  // the index of the largest.
  int64_t last;
  Buffer<float> hidden;  // (sequences, tokens, hidden), or (hidden)
  Buffer<float> logits;  // (vocabulary)
  int64_t* best;
};

// The slot of token t of the call in the cache, the first slot of its sequence that is not padding, and the
// token's position.
inline int64_t slot_of(const Call& call, int64_t t) { return call.position + t % call.tokens; }
inline int64_t start_of(const Call& call, int64_t t) {
  return call.starts.data ? call.starts.data[t / call.tokens] : 0;
}
inline int64_t position_of(const Call& call, int64_t t) {
  const int64_t slot = slot_of(call, t), start = call.counts_padding ? 0 : start_of(call, t);
  return slot > start ? slot - start : 0;
}

}  // namespace qcore
