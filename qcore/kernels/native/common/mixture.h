// The description of a mixture-of-experts feed-forward layer: sizes, and pointers to weights that Python
// owns.
//
//   y = sum over the chosen experts e of w_e * (down_e · (act(gate_e · x) * (up_e · x))) + w_s * shared(x)
#pragma once
#include "common/decoder.h"

namespace qcore {

// How the experts of a token are chosen from the router's logits, and what they are multiplied by.
struct Router {
  Norm norm;                       // of its input, or none
  float logits_scale;              // of the product with its weight
  Buffer<const float> weight;      // (experts, hidden)
  Buffer<const float> bias;        // (experts), added to the logits; or absent
  Buffer<const float> correction;  // (experts), added to the scores for the choice only; or absent
  int64_t experts, chosen;
  int64_t groups, chosen_groups;  // experts are chosen from the best groups only; 1, 1 without groups
  int64_t group_best;             // a group's score is the sum of as many of its best scores
  int64_t sigmoid;                // scores are the sigmoid of the logits if not 0, else their softmax
  int64_t normalized;             // the chosen scores are divided by their sum if not 0
  float scale;                    // of the scores, at last
  Buffer<const float> factors;    // (experts), of the scores of each expert, at last; or absent
  float jitter;                   // if not 0, the two experts of a sparse mixer, see `Choice::mix`
};

// With a packed `up`, gate and up are (inner, hidden) each. Without, `gate` (2 * inner, hidden) holds both.
struct Expert {
  Projection gate, up, down;
};

struct Mixture {
  int64_t hidden, inner, shared_inner;
  int64_t interleaved;  // rows of a fused gate alternate if not 0, else the gate's rows come first
  int64_t activation;   // the function act
  // act(g) * u is min(g, limit) * sigmoid(alpha * min(g, limit)) * (clamp(u, ±limit) + 1) if not 0
  int64_t clamped;
  float alpha, limit;
  Norm before;  // of the input of the experts, or none
  Router router;
  Buffer<const Expert> experts;     // (experts), all in the same format
  Buffer<const Expert> shared;      // one that all tokens reach, or absent
  Buffer<const float> shared_gate;  // (hidden): w_s is the sigmoid of its product with x; w_s = 1 if absent
};

}  // namespace qcore
