// The feed-forward part of a block, by its kind.
#pragma once
#include <cstring>

#include "x86/functions_avx2.h"
#include "x86/mixture.h"
#include "x86/products.h"

namespace qcore {

class FeedForwards {
 public:
  // Buffers for chunks of at most `chunk` tokens and as many threads.
  FeedForwards(const Model& model, int64_t chunk, int threads, Products& products, Barrier& barrier)
      : products_(products), barrier_(barrier), gate_(chunk * inner(model) + 8),
        up_(products.few() ? 0 : chunk * inner(model) + 8),
        mixtures_(sizes(model, chunk, products.few()), chunk, products.few(), threads, barrier) {}

  bool ok() const { return gate_ && up_ && mixtures_.ok(); }

  // Compute `part` for `tokens` tokens, whose inputs `input(i, out, again)` computes as for `Products`. All
  // threads call it, and return when all rows of `to` are stored.
  template <class Input>
  void run(int me, int threads, int64_t tokens, const FeedForward& part, const Own& own, Input&& input,
           const Target& to) {
    if (part.kind == kMixture) {
      experts(
          me, threads, tokens, *part.mixture.data, [&](int64_t i, float* out) { input(i, out, false); }, to);
      return;
    }
    if (products_.few())
      few_gates(me, threads, tokens, part, own, input);
    else
      many_gates(me, threads, tokens, part, own, input);
    const Projection* down[] = {&part.down};
    products_.project(me, threads, tokens, down, &to, 1, own,
                      [&](int64_t i, float* out, bool) { activated(part, i, out); });
  }

  // The same for a mixture, whose inputs `input(i, out)` computes.
  template <class Input>
  void experts(int me, int threads, int64_t tokens, const Mixture& mixture, Input&& input, const Target& to) {
    mixtures_.run(me, threads, mixture, tokens, input,
                  [&](int64_t i, int64_t first, int64_t count, const float* y) {
                    std::memcpy(to.rows + i * to.stride + first, y, count * sizeof(float));
                  });
  }

 private:
  Products& products_;
  Barrier& barrier_;
  const Memory<float> gate_, up_;  // (tokens, inner)
  MixtureStep mixtures_;

  static int64_t inner(const Model& model) {
    int64_t most = 0;
    for (int64_t l = 0; l < model.layers; ++l) {
      const FeedForward& part = model.blocks.data[l].feed_forward;
      if (part.kind == kDense) most = std::max(most, part.inner);
    }
    return most;
  }

  static MixtureSizes sizes(const Model& model, int64_t chunk, bool few) {
    MixtureSizes sizes;
    for (int64_t l = 0; l < model.layers; ++l) {
      const Block& block = model.blocks.data[l];
      if (block.feed_forward.kind == kMixture) sizes.add(*block.feed_forward.mixture.data, chunk, few);
      if (block.beside.data) sizes.add(*block.beside.data, chunk, few);
    }
    return sizes;
  }

  template <class Input>
  void many_gates(int me, int threads, int64_t tokens, const FeedForward& part, const Own& own,
                  Input&& input) {
    const Projection* both[] = {&part.gate, &part.up};
    const Target to[] = {{gate_.data(), part.inner}, {up_.data(), part.inner}};
    products_.project(me, threads, tokens, both, to, part.gated ? 2 : 1, own, input);
  }

  // Gate, up and activation in one pass over the panels.
  template <class Input>
  void few_gates(int me, int threads, int64_t tokens, const FeedForward& part, const Own& own,
                 Input&& input) {
    const Projection &gate = part.gate, &up = part.gated ? part.up : part.gate;
    for (int64_t t = 0; t < tokens; ++t) input(t, own.rows + t * gate.columns, false);
    std::optional<Activations> for_gate, for_up;
    Products::prepare(for_gate, nullptr, gate, tokens, own.rows, own.activations);
    const bool same = alike(gate, up);
    if (!same) Products::prepare(for_up, nullptr, up, tokens, own.rows, own.others);
    const Tile x = for_gate->tile(0), y = same ? x : for_up->tile(0);
    const PanelKernel gate_kernel = kernels().panel(gate.packed->kind, gate.mode, int(tokens));
    const PanelKernel up_kernel = kernels().panel(up.packed->kind, up.mode, int(tokens));
    const Span panels = share(panel_count(*gate.packed), me, threads);
    alignas(32) float g[kTile][kRows], u[kTile][kRows];
    for (int64_t panel = panels.first; panel < panels.last; ++panel) {
      const int64_t row = panel * kRows, n = std::min<int64_t>(kRows, part.inner - row);
      gate_kernel(*gate.packed, gate.packed->panels.data + panel * gate.packed->panel_bytes, x, g);
      if (part.gated) up_kernel(*up.packed, up.packed->panels.data + panel * up.packed->panel_bytes, y, u);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; gate.bias.data && r < n; ++r) g[t][r] += gate.bias.data[row + r];
        for (int64_t r = 0; part.gated && up.bias.data && r < n; ++r) u[t][r] += up.bias.data[row + r];
        __m256 v = activate(part.activation, _mm256_load_ps(g[t]));
        if (part.gated) v = _mm256_mul_ps(v, _mm256_load_ps(u[t]));
        _mm256_store_ps(g[t], v);
        std::memcpy(gate_.data() + t * part.inner + row, g[t], n * 4);
      }
    }
    barrier_.wait();
  }

  // The input of `down` for token i. With few tokens, `few_gates` has computed it.
  void activated(const FeedForward& part, int64_t i, float* out) const {
    const float* g = gate_.data() + i * part.inner;
    if (products_.few()) {
      std::memcpy(out, g, part.inner * 4);
      return;
    }
    const float* u = up_.data() + i * part.inner;
    for (int64_t n = 0; n < part.inner; n += 8) {  // buffers end with 8 floats to spare
      __m256 v = activate(part.activation, _mm256_loadu_ps(g + n));
      if (part.gated) v = _mm256_mul_ps(v, _mm256_loadu_ps(u + n));
      alignas(32) float last[8];
      if (n + 8 <= part.inner) {
        _mm256_storeu_ps(out + n, v);
      } else {
        _mm256_store_ps(last, v);
        std::memcpy(out + n, last, (part.inner - n) * 4);
      }
    }
  }
};

}  // namespace qcore
