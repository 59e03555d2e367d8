// The routes of tokens to experts, and the pairs of (token, expert) sorted by expert.
#pragma once
#include <cstring>

#include "common/routing.h"
#include "x86/math_avx2.h"
#include "x86/mixture_parts.h"

namespace qcore {

// The experts of each token (tokens, chosen) with their weights, and the same pairs sorted by expert. Then
// come the pairs of the shared expert.
struct Lists {
  Hit* hits;
  int32_t *routes, *tokens, *counts;
  float *factors, *weights;
};

// The weight of the shared expert for an input.
inline float shared_weight(const Mixture& m, const float* x) {
  if (!m.shared_gate.data) return 1.f;
  float dot[4];
  dot4(x, m.shared_gate.data, 0, m.hidden, dot);
  return 1.f / (1.f + std::exp(-dot[0]));
}

constexpr int64_t kRouted = 8;  // tokens for which a thread reads the router once, when there are many

// Multiply rows first … last − 1 of the router by the inputs x (tokens, hidden). The rows are read once; four
// of them stay in the processor's cache for all tokens.
inline void route_rows(const Mixture& m, const float* x, int64_t tokens, int64_t first, int64_t last,
                       float* logits) {
  const int64_t all = m.router.experts, at_once = all < 4 ? 1 : 4, stride = all < 4 ? 0 : m.hidden;
  float out[4];
  for (int64_t e = first; e < last; e += at_once) {
    const int64_t n = std::min(at_once, last - e), from = std::max<int64_t>(0, e + n - at_once);
    for (int64_t t = 0; t < tokens; ++t) {
      dot4(x + t * m.hidden, m.router.weight.data + from * m.hidden, stride, m.hidden, out);
      for (int64_t i = e; i < e + n; ++i) logits[t * all + i] = out[i - from];
    }
  }
}

// Choose the experts of token t. `logits` and `scores` are overwritten.
inline void choose(const Mixture& m, float* logits, int64_t t, const Lists& to, float* scores) {
  const int64_t k = m.router.chosen;
  Choice(m.router, logits, scores).run(to.routes + t * k, to.factors + t * k);
}

inline void take(const Mixture& m, const Routes& given, int64_t t, const Lists& to) {
  for (int64_t i = t * m.router.chosen; i < (t + 1) * m.router.chosen; ++i) {
    to.routes[i] = int32_t(given.experts[i]);
    to.factors[i] = given.weights[i];
  }
}

// Sort the pairs by expert; those of one expert keep the order of the tokens. Each route becomes the place
// of its pair. Return the number of hits.
inline int64_t sort(const Mixture& m, int64_t tokens, const Lists& l, const float* shared) {
  const int64_t k = m.router.chosen, routed = tokens * k;
  std::memset(l.counts, 0, m.router.experts * sizeof(int32_t));
  for (int64_t i = 0; i < routed; ++i) ++l.counts[l.routes[i]];
  int64_t hits = 0, pair = 0;
  for (int64_t e = 0; e < m.router.experts; ++e) {
    const int32_t count = l.counts[e];
    if (count) l.hits[hits++] = {&m.experts.data[e], m.inner, count, pair, pair * m.inner};
    l.counts[e] = int32_t(pair);
    pair += count;
  }
  for (int64_t i = 0; i < routed; ++i) {
    const int32_t at = l.counts[l.routes[i]]++;
    l.tokens[at] = int32_t(i / k);
    l.weights[at] = l.factors[i];
    l.routes[i] = at;
  }
  if (!m.shared.data) return hits;
  l.hits[hits++] = {m.shared.data, m.shared_inner, tokens, routed, routed * m.inner};
  for (int64_t t = 0; t < tokens; ++t) {
    l.tokens[routed + t] = int32_t(t);
    l.weights[routed + t] = shared[t];
  }
  return hits;
}

}  // namespace qcore
