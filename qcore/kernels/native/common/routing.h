// The choice of the experts of a token.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "common/mixture.h"

namespace qcore {

// Choose the experts of a token from its logits, which are overwritten, as `scores` (experts) is. Ties go to
// the expert with the smaller number.
class Choice {
 public:
  Choice(const Router& router, float* logits, float* scores) : r_(router), s_(logits), by_(scores) {}

  void run(int32_t* experts, float* weights) {
    if (r_.logits_scale != 1.f)
      for (int64_t e = 0; e < r_.experts; ++e) s_[e] *= r_.logits_scale;
    for (int64_t e = 0; r_.bias.data && e < r_.experts; ++e) s_[e] += r_.bias.data[e];
    if (r_.jitter > 0) return mix(experts, weights);
    score();
    for (int64_t e = 0; e < r_.experts; ++e)
      by_[e] = s_[e] + (r_.correction.data ? r_.correction.data[e] : 0.f);
    if (r_.groups > r_.chosen_groups) keep_best_groups();
    best(by_, r_.experts, r_.chosen, experts);
    float total = 1.f;
    if (r_.normalized) {
      total = r_.sigmoid ? 1e-20f : 0.f;
      for (int64_t i = 0; i < r_.chosen; ++i) total += s_[experts[i]];
    }
    for (int64_t i = 0; i < r_.chosen; ++i) weights[i] = s_[experts[i]] / total * r_.scale;
    for (int64_t i = 0; r_.factors.data && i < r_.chosen; ++i) weights[i] *= r_.factors.data[experts[i]];
  }

 private:
  const Router& r_;
  float *const s_, *const by_;

  // The sparse mixer of Phi-3.5-MoE in inference: two experts, one after the other. The weight of each is its
  // softmax among the experts not chosen before whose logit z is near the largest m:
  // (m - z) / max(|z|, m) <= 2 * jitter.
  void mix(int32_t* experts, float* weights) {
    for (int i = 0; i < 2; ++i) {
      const int64_t before = i ? experts[0] : -1;
      int64_t most = -1;
      for (int64_t e = 0; e < r_.experts; ++e)
        if (e != before && (most < 0 || s_[e] > s_[most])) most = e;
      float total = 0;
      for (int64_t e = 0; e < r_.experts; ++e)
        if (e != before && !((s_[most] - s_[e]) / std::max(std::abs(s_[e]), s_[most]) > 2 * r_.jitter))
          total += std::exp(s_[e] - s_[most]);
      experts[i] = int32_t(most);
      weights[i] = 1.f / total;
    }
  }

  // Turn logits into scores.
  void score() {
    if (r_.sigmoid) {
      for (int64_t e = 0; e < r_.experts; ++e) s_[e] = 1.f / (1.f + std::exp(-s_[e]));
      return;
    }
    float most = -std::numeric_limits<float>::infinity(), total = 0.f;
    for (int64_t e = 0; e < r_.experts; ++e) most = std::max(most, s_[e]);
    for (int64_t e = 0; e < r_.experts; ++e) total += s_[e] = std::exp(s_[e] - most);
    for (int64_t e = 0; e < r_.experts; ++e) s_[e] /= total;
  }

  void keep_best_groups() {
    const int64_t size = r_.experts / r_.groups;
    const float least = -std::numeric_limits<float>::infinity();
    for (int64_t kept = 0; kept < r_.groups - r_.chosen_groups; ++kept) {  // remove the worst, one at a time
      int64_t worst = -1;
      float lowest = 0;
      for (int64_t g = 0; g < r_.groups; ++g) {
        if (by_[g * size] == least) continue;
        const float value = group_score(by_ + g * size, size);
        if (worst < 0 || value <= lowest) worst = g, lowest = value;
      }
      if (worst < 0) return;
      for (int64_t e = 0; e < size; ++e) by_[worst * size + e] = least;
    }
  }

  // The sum of the `group_best` largest scores.
  float group_score(const float* scores, int64_t size) const {
    float sum = 0, before = std::numeric_limits<float>::infinity();
    for (int64_t taken = 0; taken < r_.group_best;) {
      float most = -std::numeric_limits<float>::infinity();
      for (int64_t e = 0; e < size; ++e)
        if (scores[e] < before) most = std::max(most, scores[e]);
      const int64_t equal = std::count(scores, scores + size, most);
      if (!equal) return sum;
      for (int64_t i = 0; i < equal && taken < r_.group_best; ++i, ++taken) sum += most;
      before = most;
    }
    return sum;
  }

  // The indices of the `count` largest of n values. NaN is never larger, so the indices are always distinct.
  static void best(const float* values, int64_t n, int64_t count, int32_t* out) {
    int64_t held = 0;
    for (int64_t e = 0; e < n; ++e) {
      if (held == count && !(values[e] > values[out[held - 1]])) continue;
      int64_t at = held < count ? held++ : held - 1;
      for (; at > 0 && values[e] > values[out[at - 1]]; --at) out[at] = out[at - 1];
      out[at] = int32_t(e);
    }
  }
};

}  // namespace qcore
