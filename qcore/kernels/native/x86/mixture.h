// A mixture of experts, computed by threads that the caller has started.
//
// Up to 4 tokens (`few`):   every thread routes all tokens; then two phases over panels of the reached
// experts
//
//   router | gate, up, activation | down, weighted sum
//
// More tokens: pairs of (token, expert) are sorted by expert, and each expert multiplies its tokens at once.
#pragma once
#include <cstring>
#include <optional>

#include "x86/gating.h"
#include "x86/mixture_routes.h"
#include "x86/norms_avx2.h"
#include "x86/product_jobs.h"
#include "x86/threads.h"

namespace qcore {

// The buffers of one call, for all mixtures of a model. Every thread of a team calls `run`, with one mixture
// after another.
class MixtureStep {
 public:
  // At most `tokens` tokens come at a time; with `few`, they fit in one tile. `sizes` are those for as many.
  MixtureStep(const MixtureSizes& sizes, int64_t tokens, bool few, int threads, Barrier& barrier)
      : barrier_(barrier), few_(few), need_(sizes), lists_(few ? threads : 1),
        logits_(few ? tokens * need_.experts : 0), inputs_(few ? 0 : tokens * need_.hidden),
        inner_((few ? 1 : 2) * need_.inner), outputs_(few ? 0 : need_.pairs * need_.hidden),
        hits_(lists_ * need_.hits), numbers_(lists_ * (2 * need_.pairs + need_.experts)),
        weights_(lists_ * 2 * need_.pairs), scores_(threads * scored() * need_.experts),
        rows_(threads * kTile * need_.rows), sums_(few ? threads * kTile * need_.hidden : 0),
        activations_(few ? threads * need_.activations : 0),
        jobs_(few ? 0 : 2 * need_.hits, few ? 0 : need_.activations, barrier) {}

  bool ok() const {
    return logits_ && inputs_ && inner_ && outputs_ && hits_ && numbers_ && weights_ && scores_ && rows_ &&
           sums_ && activations_ && jobs_.ok();
  }

  // Compute the layer for `tokens` tokens. `input(t, out)` writes the input (hidden) of token t.
  // `output(t, first, count, y)` receives outputs of token t; every output comes once, from some thread. The
  // team meets at the end. Without `given` experts, the router chooses them.
  template <class Input, class Output>
  void run(int me, int threads, const Mixture& m, int64_t tokens, Input&& input, Output&& output,
           const Routes& given = {}) {
    if (few_)
      few(me, threads, m, tokens, input, output, given);
    else
      many(me, threads, m, tokens, input, output, given);
  }

 private:
  Barrier& barrier_;
  const bool few_;
  const MixtureSizes need_;
  const int64_t lists_;  // of hits: one per thread with few tokens, else one
  const Memory<float> logits_, inputs_;
  const Memory<float> inner_;    // few: act(gate) * up of each pair; many: gate and up of each pair
  const Memory<float> outputs_;  // (pairs, hidden)
  const Memory<Hit> hits_;
  const Memory<int32_t> numbers_;
  const Memory<float> weights_, scores_, rows_, sums_;
  const Memory<uint8_t> activations_;
  ProductJobs jobs_;  // of many tokens
  int64_t hit_count_ = 0;

  Lists lists(int me) const {
    const int64_t i = few_ ? me : 0;
    int32_t* numbers = numbers_.data() + i * (2 * need_.pairs + need_.experts);
    float* weights = weights_.data() + i * 2 * need_.pairs;
    return {hits_.data() + i * need_.hits, numbers, numbers + need_.pairs,
            numbers + 2 * need_.pairs,     weights, weights + need_.pairs};
  }

  // The rows of `scores_` per thread: logits of the tokens that it routes at once, and scores of one.
  int64_t scored() const { return few_ ? 2 : kRouted + 1; }
  float* scores(int me) const { return scores_.data() + me * scored() * need_.experts; }
  float* rows(int me) const { return rows_.data() + me * kTile * need_.rows; }

  // The inputs of the router for `tokens` inputs of the layer: themselves, or normalized in `memory`.
  static const float* routed(const Mixture& m, const float* x, int64_t tokens, float* memory) {
    if (m.router.norm.kind == kNoNorm) return x;
    for (int64_t t = 0; t < tokens; ++t) normalize(m.router.norm, x + t * m.hidden, memory + t * m.hidden);
    return memory;
  }

  static void before(const Mixture& m, float* x) {
    if (m.before.kind != kNoNorm) normalize(m.before, x, x);
  }

  // -- up to 4 tokens

  template <class Input, class Output>
  void few(int me, int threads, const Mixture& m, int64_t tokens, Input& input, Output& output,
           const Routes& given) {
    float* x = rows(me);
    const Lists l = lists(me);
    float shared[kTile] = {}, *own = scores(me);
    for (int64_t t = 0; t < tokens; ++t) input(t, x + t * m.hidden);
    if (!given.experts) {
      const Span mine = share(m.router.experts, me, threads);
      const float* r = routed(m, x, tokens, sums_.data() + me * kTile * need_.hidden);  // not in use yet
      route_rows(m, r, tokens, mine.first, mine.last, logits_.data());
      barrier_.wait();
    }
    for (int64_t t = 0; t < tokens; ++t) before(m, x + t * m.hidden);
    for (int64_t t = 0; t < tokens; ++t) {
      if (given.experts) {
        take(m, given, t, l);
      } else {
        std::memcpy(own, logits_.data() + t * m.router.experts, m.router.experts * sizeof(float));
        choose(m, own, t, l, own + need_.experts);
      }
      if (m.shared.data) shared[t] = shared_weight(m, x + t * m.hidden);
    }
    const int64_t hits = sort(m, tokens, l, shared);
    few_inner(me, threads, m, tokens, l, hits, x);
    barrier_.wait();
    few_outer(me, threads, m, tokens, l, hits, output);
    barrier_.wait();
  }

  // The units of work of a hit: groups of 8 inner values; of 4, if rows alternate.
  static int64_t units(const Mixture& m, const Hit& hit) {
    const bool halves = m.interleaved && !hit.expert->up.packed;
    return halves ? panel_count(*hit.expert->gate.packed) : (hit.inner + kRows - 1) / kRows;
  }

  void few_inner(int me, int threads, const Mixture& m, int64_t tokens, const Lists& l, int64_t hits,
                 const float* x) const {
    int64_t all = 0;
    for (int64_t h = 0; h < hits; ++h) all += units(m, l.hits[h]);
    const Span mine = share(all, me, threads);
    uint8_t* memory = activations_.data() + me * need_.activations;
    std::optional<Activations> for_gate, for_up;
    const Hit* filled = nullptr;
    int64_t unit = 0;
    for (int64_t h = 0; h < hits; ++h) {
      const Hit& hit = l.hits[h];
      const int64_t count = units(m, hit), first = std::max(mine.first - unit, int64_t(0)),
                    last = std::min(mine.last - unit, count);
      unit += count;
      if (first >= last) continue;
      const Projection &gate = hit.expert->gate, &up = hit.expert->up;
      // with one token, experts of one format share its activations
      if (!filled || tokens > 1 || !alike(gate, filled->expert->gate)) {
        for_gate.emplace(*gate.packed, gate.mode, hit.count, true, memory);
        fill(*for_gate, m, l, hit, x, me);
      }
      const bool other = up.packed && !alike(gate, up);
      if (other) {
        for_up.emplace(*up.packed, up.mode, hit.count, true, memory + need_.activations / 2);
        fill(*for_up, m, l, hit, x, me);
      }
      filled = &hit;
      inner_units(m, hit, for_gate->tile(0), other ? for_up->tile(0) : for_gate->tile(0), first, last);
    }
  }

  // Quantize the inputs of a hit's tokens.
  void fill(Activations& to, const Mixture& m, const Lists& l, const Hit& hit, const float* x, int me) const {
    const int32_t* tokens = l.tokens + hit.first;
    if (hit.count == 1 || tokens[hit.count - 1] - tokens[0] == hit.count - 1) {  // one after another
      to.fill(0, x + tokens[0] * m.hidden, m.hidden, m.hidden);
      return;
    }
    float* own = sums_.data() + me * kTile * need_.hidden;  // not in use yet
    for (int64_t i = 0; i < hit.count; ++i)
      std::memcpy(own + i * m.hidden, x + tokens[i] * m.hidden, m.hidden * sizeof(float));
    to.fill(0, own, m.hidden, m.hidden);
  }

  void inner_units(const Mixture& m, const Hit& hit, const Tile& x, const Tile& y, int64_t first,
                   int64_t last) const {
    const Projection &gate_p = hit.expert->gate, &up_p = hit.expert->up;
    const int n = int(hit.count);
    const PanelKernel kernel = kernels().panel(gate_p.packed->kind, gate_p.mode, n);
    alignas(32) float g[kTile][kRows], u[kTile][2 * kRows];
    const auto panel = [&](const Projection& p, PanelKernel use, const Tile& tile, int64_t index,
                           float (*out)[kRows]) {
      use(*p.packed, p.packed->panels.data + index * p.packed->panel_bytes, tile, out);
      if (!p.bias.data) return;
      const int64_t rows = std::min<int64_t>(kRows, p.rows - index * kRows);
      for (int t = 0; t < n; ++t)
        for (int64_t r = 0; r < rows; ++r) out[t][r] += p.bias.data[index * kRows + r];
    };
    const auto store = [&](int t, int64_t row, int64_t width, __m256 value) {
      alignas(32) float last8[8];
      _mm256_store_ps(last8, value);
      std::memcpy(inner_.data() + hit.begin + t * hit.inner + row, last8,
                  std::min(width, hit.inner - row) * sizeof(float));
    };
    alignas(32) float v[kTile][kRows], w[kTile][kRows];
    if (up_p.packed) {
      const PanelKernel other = kernels().panel(up_p.packed->kind, up_p.mode, n);
      for (int64_t i = first; i < last; ++i) {
        panel(gate_p, kernel, x, i, g);
        panel(up_p, other, y, i, v);
        for (int t = 0; t < n; ++t)
          store(t, i * kRows, kRows, gate(m, _mm256_load_ps(g[t]), _mm256_load_ps(v[t])));
      }
    } else if (m.interleaved) {
      for (int64_t i = first; i < last; ++i) {
        panel(gate_p, kernel, x, i, g);
        for (int t = 0; t < n; ++t) {
          __m256 even, odd;
          part(_mm256_load_ps(g[t]), _mm256_setzero_ps(), even, odd);
          store(t, i * kRows / 2, kRows / 2, gate(m, even, odd));
        }
      }
    } else {
      const int64_t panels = panel_count(*gate_p.packed), shift = hit.inner % kRows;
      for (int64_t i = first; i < last; ++i) {
        panel(gate_p, kernel, x, i, g);
        const int64_t p = (hit.inner + i * kRows) / kRows;
        panel(gate_p, kernel, x, p, v);
        const bool more = shift && p + 1 < panels;
        if (more) panel(gate_p, kernel, x, p + 1, w);
        for (int t = 0; t < n; ++t) {
          std::memcpy(u[t], v[t], sizeof v[t]);
          std::memset(u[t] + kRows, 0, sizeof w[t]);
          if (more) std::memcpy(u[t] + kRows, w[t], sizeof w[t]);
          store(t, i * kRows, kRows, gate(m, _mm256_load_ps(g[t]), _mm256_loadu_ps(u[t] + shift)));
        }
      }
    }
  }

  template <class Output>
  void few_outer(int me, int threads, const Mixture& m, int64_t tokens, const Lists& l, int64_t hits,
                 Output& output) const {
    const Span mine = share((m.hidden + kRows - 1) / kRows, me, threads);
    float* sums = sums_.data() + me * kTile * need_.hidden;
    const int64_t from = mine.first * kRows, end = std::min(mine.last * kRows, m.hidden);
    if (from >= end) return;
    for (int64_t t = 0; t < tokens; ++t)
      std::fill(sums + t * need_.hidden + from, sums + t * need_.hidden + end, 0.f);
    uint8_t* memory = activations_.data() + me * need_.activations;
    alignas(32) float out[kTile][kRows];
    for (int64_t h = 0; h < hits; ++h) {
      const Hit& hit = l.hits[h];
      const Projection& down = hit.expert->down;
      Activations input(*down.packed, down.mode, hit.count, true, memory);
      input.fill(0, inner_.data() + hit.begin, hit.inner, hit.inner);
      const PanelKernel kernel = kernels().panel(down.packed->kind, down.mode, int(hit.count));
      for (int64_t p = mine.first; p < mine.last; ++p) {
        kernel(*down.packed, down.packed->panels.data + p * down.packed->panel_bytes, input.tile(0), out);
        const int64_t row = p * kRows, n = std::min<int64_t>(kRows, m.hidden - row);
        for (int64_t i = 0; i < hit.count; ++i) {
          const float weight = l.weights[hit.first + i];
          float* sum = sums + l.tokens[hit.first + i] * need_.hidden + row;
          for (int64_t r = 0; r < n; ++r)
            sum[r] += weight * (out[i][r] + (down.bias.data ? down.bias.data[row + r] : 0.f));
        }
      }
    }
    for (int64_t t = 0; t < tokens; ++t) output(t, from, end - from, sums + t * need_.hidden + from);
  }

  // -- many tokens

  template <class Input, class Output>
  void many(int me, int threads, const Mixture& m, int64_t tokens, Input& input, Output& output,
            const Routes& given) {
    const Lists l = lists(0);
    float* own = rows(me);
    const Span mine = share(tokens, me, threads);
    const int64_t pairs = tokens * m.router.chosen;
    for (int64_t t = mine.first; t < mine.last; ++t) {
      input(t, inputs_.data() + t * m.hidden);
      if (given.experts) take(m, given, t, l);
    }
    float *chosen_by = scores(me), *logits = chosen_by + need_.experts;
    const int64_t at_once = m.router.norm.kind == kNoNorm ? kRouted : kTile;  // a tile fits into `own`
    for (int64_t t = mine.first; !given.experts && t < mine.last; t += at_once) {
      const int64_t count = std::min(at_once, mine.last - t);
      const float* r = routed(m, inputs_.data() + t * m.hidden, count, own);
      route_rows(m, r, count, 0, m.router.experts, logits);
      for (int64_t i = 0; i < count; ++i) choose(m, logits + i * m.router.experts, t + i, l, chosen_by);
    }
    // `factors` has room for the shared expert's weights behind the routed ones
    for (int64_t t = mine.first; t < mine.last; ++t) {
      float* x = inputs_.data() + t * m.hidden;
      before(m, x);
      if (m.shared.data) l.factors[pairs + t] = shared_weight(m, x);
    }
    barrier_.wait();
    if (me == 0) {
      hit_count_ = sort(m, tokens, l, l.factors + pairs);
      plan_inner();
    }
    barrier_.wait();
    jobs_.run(
        [&](const Product& p, int64_t pair, float* out) {
          std::memcpy(out, inputs_.data() + l.tokens[pair] * m.hidden, p.matrix->columns * sizeof(float));
        },
        own);
    if (me == 0) plan_outer(m);
    barrier_.wait();
    jobs_.run(
        [&](const Product& p, int64_t pair, float* out) { activated(m, *p.hit, pair - p.hit->first, out); },
        own);
    combine(me, threads, m, tokens, l, output);
    barrier_.wait();
  }

  void plan_inner() {
    jobs_.begin();
    const Hit* hits = hits_.data();
    for (int64_t h = 0; h < hit_count_; ++h) {
      const Expert& e = *hits[h].expert;
      float* out = inner_.data() + 2 * hits[h].begin;
      jobs_.add(e.gate, hits[h], out, 2 * hits[h].inner, nullptr);
      if (e.up.packed)
        jobs_.add(e.up, hits[h], out + hits[h].inner, 2 * hits[h].inner,
                  alike(e.gate, e.up) ? &e.gate : nullptr);
    }
  }

  void plan_outer(const Mixture& m) {
    jobs_.begin();
    const Hit* hits = hits_.data();
    for (int64_t h = 0; h < hit_count_; ++h)
      jobs_.add(hits[h].expert->down, hits[h], outputs_.data() + hits[h].first * m.hidden, m.hidden, nullptr);
  }

  // act(gate) * up of pair number i of a hit.
  void activated(const Mixture& m, const Hit& hit, int64_t i, float* out) const {
    gate_row(m, hit.inner, m.interleaved && !hit.expert->up.packed,
             inner_.data() + 2 * (hit.begin + i * hit.inner), out);
  }

  // Add the outputs of each token's experts, in the order of the experts.
  template <class Output>
  void combine(int me, int threads, const Mixture& m, int64_t tokens, const Lists& l, Output& output) const {
    const Span mine = share(tokens, me, threads);
    const int64_t k = m.router.chosen, routed = tokens * k;
    float* sum = rows(me);
    for (int64_t t = mine.first; t < mine.last; ++t) {
      std::fill(sum, sum + m.hidden, 0.f);
      int32_t* places = l.routes + t * k;
      std::sort(places, places + k);
      for (int64_t i = 0; i < k; ++i) add_pair(m, l, places[i], sum);
      if (m.shared.data) add_pair(m, l, routed + t, sum);
      output(t, 0, m.hidden, sum);
    }
  }

  void add_pair(const Mixture& m, const Lists& l, int64_t pair, float* sum) const {
    const float weight = l.weights[pair], *y = outputs_.data() + pair * m.hidden;
    for (int64_t n = 0; n < m.hidden; ++n) sum[n] += weight * y[n];
  }
};

}  // namespace qcore
