// What a mixture of experts is made of: checks of its description, and the sizes of buffers.
#pragma once
#include <algorithm>

#include "common/linear.h"
#include "common/mixture.h"
#include "x86/products.h"
#include "x86/projection_checks.h"

namespace qcore {

inline Status check_expert(const Expert& e, int64_t inner, int64_t hidden) {
  const bool fused = !e.up.packed;
  if (const Status status = check_packed(e.gate, fused ? 2 * inner : inner, hidden)) return status;
  if (!fused)
    if (const Status status = check_packed(e.up, inner, hidden)) return status;
  return check_packed(e.down, hidden, inner);
}

// With `routed`, the caller chooses the experts, and the router has no weights.
inline Status check_mixture(const Mixture& m, bool routed = false) {
  const Router& r = m.router;
  for (const int64_t size : {m.hidden, m.inner, r.experts, r.chosen, r.groups, r.chosen_groups, r.group_best})
    if (size < 1 || size > INT32_MAX / 2) return kBadLayout;
  if (r.experts % r.groups || r.chosen_groups > r.groups || r.group_best > r.experts / r.groups ||
      r.chosen > r.experts / r.groups * r.chosen_groups || (r.jitter > 0 && r.chosen != 2) ||
      m.activation < kSilu || m.activation > kGeluQuick)
    return kBadLayout;
  if ((!routed && !r.weight.holds(r.experts, m.hidden)) || !m.experts.holds(r.experts)) return kShortWeights;
  for (const Norm* norm : {&m.before, &r.norm})
    if (const Status status = check(*norm, m.hidden)) return status;
  for (const Buffer<const float>* each : {&r.bias, &r.correction, &r.factors})
    if (each->data && !each->holds(r.experts)) return kShortBias;
  if (m.shared_gate.data && !m.shared_gate.holds(m.hidden)) return kShortWeights;
  const Expert& first = m.experts.data[0];
  for (int64_t e = 0; e < r.experts; ++e) {
    const Expert& each = m.experts.data[e];
    if (const Status status = check_expert(each, m.inner, m.hidden)) return status;
    if (!each.up.packed != !first.up.packed || !alike(each.gate, first.gate) || !alike(each.down, first.down))
      return kBadLayout;  // buffers are sized for the first expert
    if (each.up.packed && !alike(each.up, first.up)) return kBadLayout;
  }
  if (!m.shared.data) return kOk;
  if (m.shared_inner < 1 || m.shared_inner > INT32_MAX / 2) return kBadLayout;
  return m.shared.holds(1) ? check_expert(m.shared.data[0], m.shared_inner, m.hidden) : kShortWeights;
}

// An expert and its tokens: the pairs first … first + count − 1.
struct Hit {
  const Expert* expert;
  int64_t inner, count, first;
  int64_t begin;  // the inner values of the pairs before it
};

// The experts of each token (tokens, chosen), no two alike, and their weights, if the caller has chosen them.
struct Routes {
  const int64_t* experts = nullptr;
  const float* weights = nullptr;
};

// The product of the tokens of a hit and one matrix, when there are many tokens.
struct Product {
  const Projection* matrix;
  const Hit* hit;
  uint8_t* activations;
  int64_t tiles, jobs;  // those of the products before it
  float* out;
  int64_t stride;
  bool few;

  Activations input() const { return {*matrix->packed, matrix->mode, hit->count, few, activations}; }
};

// The sizes that the buffers of a call need: the largest of any mixture.
struct MixtureSizes {
  int64_t experts = 0, chosen = 0, hidden = 0, pairs = 0, hits = 0, inner = 0, rows = 0, activations = 0;

  void add(const Mixture& m, int64_t tokens, bool few) {
    const int64_t routed = tokens * m.router.chosen, all = m.shared.data ? tokens : 0;
    const int64_t reached = std::min(m.router.experts, routed) + (all ? 1 : 0);
    experts = std::max(experts, m.router.experts);
    chosen = std::max(chosen, m.router.chosen);
    hidden = std::max(hidden, m.hidden);
    pairs = std::max(pairs, routed + all);
    hits = std::max(hits, reached);
    inner = std::max(inner, routed * m.inner + all * m.shared_inner);
    rows = std::max({rows, m.hidden, m.inner, all ? m.shared_inner : 0});
    int64_t tile = bytes(m.experts.data[0], few);
    if (all) tile = std::max(tile, bytes(m.shared.data[0], few));
    // each hit begins a tile of its own; two buffers, should gate and up read different activations
    activations = std::max(activations, 2 * tile * (few ? 1 : (routed + all) / kTile + reached + 1));
  }

 private:
  static int64_t bytes(const Expert& e, bool few) {
    int64_t most = 0;
    for (const Projection* p : {&e.gate, &e.up, &e.down}) {
      if (!p->packed) continue;
      most = std::max(most, Activations::bytes(*p->packed, p->mode, kTile, true));
      if (!few) most = std::max(most, Activations::bytes(*p->packed, p->mode, kTile, false));
    }
    return most;
  }
};

}  // namespace qcore
