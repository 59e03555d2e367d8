// A whole step of a Llama-type model in one call and one parallel region. Threads meet at barriers of their own between the phases
//
//   norm, q k v | rotate, write the cache | attention | output, add | norm, gate, up, activation | down, add
//
// and repeat the small work (norms, quantizing activations) each for itself where that is cheaper than meeting once more.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "x86/cached_attention.h"
#include "common/decoder.h"
#include "common/linear.h"

namespace qcore {
namespace {

using Floats = std::vector<float>;

// One call's buffers and threads. Tokens are rows of (tokens, width) matrices, one sequence after the other.
class Step {
 public:
  Step(const Model& model, const Cache& cache, const Call& call, int threads)
      : model_(model), call_(call), tokens_(call.sequences * call.tokens), threads_(threads), few_(tokens_ <= kTile), barrier_(threads),
        attention_(model, cache, call, threads, few_, barrier_), x_(tokens_ * model.hidden), gate_(tokens_ * model.inner + 8),
        up_(few_ ? 0 : tokens_ * model.inner + 8), delta_(few_ ? 0 : tokens_ * model.hidden) {}

  void run(int me) {
    Span part = share(tokens_, me, threads_);
    for (int64_t t = part.first; t < part.last; ++t) embed(call_.ids[t], x_.data() + t * model_.hidden);
    Floats rows(std::max({model_.hidden, model_.heads * model_.head_size, model_.inner}) * kTile), scores(attention_.scratch());
    barrier_.wait();
    for (int64_t l = 0; l < model_.layers; ++l) {
      const Block& block = model_.blocks[l];
      const Projection* qkv[] = {&block.query, &block.key, &block.value};
      float* to[] = {attention_.query(), attention_.key(), attention_.value()};
      project(me, qkv, to, 3, rows, [&](int64_t t, float* out, bool again) { norm(t, l > 0 && !again, block.attention_norm, out); });
      attention_.run(me, l, scores.data());
      residual(me, block.output, rows, [&](int64_t t, float* out, bool) { attention_.read(t, out); });
      mlp(me, block, rows);
      residual(me, block.down, rows, [&](int64_t t, float* out, bool) { activated(t, out); });
    }
    finish(me, rows);
  }

 private:
  const Model& model_;
  const Call& call_;
  const int64_t tokens_;
  const int threads_;
  const bool few_;  // tokens fit one tile: codes are read once and every thread prepares the activations for itself
  Barrier barrier_;
  CachedAttention attention_;
  Floats x_, gate_, up_, delta_;
  std::optional<Activations> shared_;
  std::atomic<int64_t> jobs_{0}, tiles_{0};
  struct Best {
    float value;
    int64_t index;
  };
  std::vector<Best> best_ = std::vector<Best>(threads_);

  void embed(int64_t id, float* out) const {
    const Projection& e = model_.embedding;
    if (e.packed)
      read_row(*e.packed, id, out);
    else
      std::memcpy(out, e.dense + id * e.columns, e.columns * 4);
    if (model_.embedding_scale != 1.f)
      for (int64_t i = 0; i < e.columns; ++i) out[i] *= model_.embedding_scale;
  }

  // The token's residual stream, with what the last projection has to add to it (many tokens), normalized.
  void norm(int64_t t, bool add, const float* weight, float* out) {
    float* x = x_.data() + t * model_.hidden;
    if (add && !few_) add_delta(t);
    rms_norm(x, weight, model_.norm_offset, model_.epsilon, model_.hidden, out);
  }
  void add_delta(int64_t t) {
    float *x = x_.data() + t * model_.hidden, *d = delta_.data() + t * model_.hidden;
    for (int64_t i = 0; i < model_.hidden; ++i) x[i] += d[i];
  }

  // act(gate) * up of a token. With few tokens that has been done already.
  void activated(int64_t t, float* out) {
    const float* g = gate_.data() + t * model_.inner;
    if (few_) {
      std::memcpy(out, g, model_.inner * 4);
      return;
    }
    const float* u = up_.data() + t * model_.inner;
    for (int64_t i = 0; i < model_.inner; i += 8) {  // buffers end with 8 floats to spare
      const __m256 v = gated(_mm256_loadu_ps(g + i), _mm256_loadu_ps(u + i), model_.gelu);
      alignas(32) float last[8];
      if (i + 8 <= model_.inner) {
        _mm256_storeu_ps(out + i, v);
      } else {
        _mm256_store_ps(last, v);
        std::memcpy(out + i, last, (model_.inner - i) * 4);
      }
    }
  }

  // Whether two projections of the same input can read the same activations.
  static bool alike(const Projection& a, const Projection& b) {
    return a.mode == b.mode && a.packed->kind == b.packed->kind && a.packed->blocks == b.packed->blocks &&
           Activations::shared_blocks(*a.packed, a.mode) == Activations::shared_blocks(*b.packed, b.mode);
  }

  // `count` projections of the same input, whose rows `input(t, out, again)` gives; what it does to the residual stream it does once.
  template <class Input>
  void project(int me, const Projection* const* projections, float* const* to, int count, Floats& rows, Input&& input) {
    if (few_) {
      const int64_t columns = projections[0]->columns;
      for (int64_t t = 0; t < tokens_; ++t) input(t, rows.data() + t * columns, false);
      std::optional<Activations> own;
      for (int i = 0; i < count; ++i) {
        const Projection& p = *projections[i];
        prepare(own, i ? projections[i - 1] : nullptr, p, rows.data());
        const Span part = share(panel_count(*p.packed), me, threads_);
        few_panels(*p.packed, p.mode, *own, int(tokens_), part.first, part.last, p.bias, to[i], p.rows);
      }
      barrier_.wait();
      return;
    }
    for (int i = 0; i < count; ++i) {
      const Projection& p = *projections[i];
      if (i == 0 || !alike(p, *projections[i - 1])) fill_shared(me, p, rows, input, i > 0);
      multiply_shared(me, p, to[i]);
    }
  }

  void prepare(std::optional<Activations>& own, const Projection* before, const Projection& p, const float* rows) const {
    if (before && alike(*before, p)) return;
    own.emplace(*p.packed, p.mode, tokens_);
    own->fill(0, rows, p.columns, p.columns);
  }

  // All threads fill the tiles of the shared activations. `again` says that the same input is filled another time.
  template <class Input>
  void fill_shared(int me, const Projection& p, Floats& rows, Input&& input, bool again) {
    if (me == 0) {
      shared_.emplace(*p.packed, p.mode, tokens_);
      tiles_ = 0;
    }
    barrier_.wait();
    for (int64_t tile; (tile = tiles_.fetch_add(1)) < shared_->tiles();) {
      for (int m = 0; m < shared_->tile_tokens(tile); ++m) input(tile * kTile + m, rows.data() + m * p.columns, again);
      shared_->fill(tile, rows.data(), p.columns, p.columns);
    }
    if (me == 0) jobs_ = 0;
    barrier_.wait();
  }

  void multiply_shared(int me, const Projection& p, float* to) {
    const int64_t pairs = (panel_count(*p.packed) + 1) / 2, at_once = kTokensAtOnce / kTile, tiles = shared_->tiles();
    Stretch stretch;
    for (int64_t job; (job = jobs_.fetch_add(1)) < pairs * ((tiles + at_once - 1) / at_once);) {
      const int64_t first = job / pairs * at_once;
      many_pair(*p.packed, p.mode, *shared_, first, std::min(first + at_once, tiles), job % pairs, p.bias, to, p.rows, stretch);
    }
    barrier_.wait();
    if (me == 0) jobs_ = 0;
    barrier_.wait();
  }

  // x += projection of the input.
  template <class Input>
  void residual(int me, const Projection& p, Floats& rows, Input&& input) {
    if (!few_) {
      const Projection* one[] = {&p};
      float* to[] = {delta_.data()};
      project(me, one, to, 1, rows, input);
      return;
    }
    for (int64_t t = 0; t < tokens_; ++t) input(t, rows.data() + t * p.columns, false);
    std::optional<Activations> own;
    prepare(own, nullptr, p, rows.data());
    const Span part = share(panel_count(*p.packed), me, threads_);
    const PanelKernel kernel = kernels().panel(p.packed->kind, p.mode, int(tokens_));
    alignas(32) float out[kTile][kRows];
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      kernel(*p.packed, p.packed->panels + panel * p.packed->panel_bytes, own->tile(0), out);
      const int64_t row = panel * kRows, n = std::min<int64_t>(kRows, p.rows - row);
      for (int64_t t = 0; t < tokens_; ++t)
        for (int64_t r = 0; r < n; ++r) x_[t * p.rows + row + r] += out[t][r] + (p.bias ? p.bias[row + r] : 0.f);
    }
    barrier_.wait();
  }

  void mlp(int me, const Block& block, Floats& rows) {
    auto input = [&](int64_t t, float* out, bool again) { norm(t, !again, block.mlp_norm, out); };
    if (!few_) {
      const Projection* both[] = {&block.gate, &block.up};
      float* to[] = {gate_.data(), up_.data()};
      project(me, both, to, 2, rows, input);
      return;
    }
    for (int64_t t = 0; t < tokens_; ++t) input(t, rows.data() + t * model_.hidden, false);
    std::optional<Activations> own, other;
    prepare(own, nullptr, block.gate, rows.data());
    const bool same = alike(block.gate, block.up);
    if (!same) prepare(other, nullptr, block.up, rows.data());
    const Tile x = own->tile(0), y = same ? x : other->tile(0);
    const PanelKernel gate = kernels().panel(block.gate.packed->kind, block.gate.mode, int(tokens_));
    const PanelKernel up = kernels().panel(block.up.packed->kind, block.up.mode, int(tokens_));
    const Span part = share(panel_count(*block.gate.packed), me, threads_);
    alignas(32) float g[kTile][kRows], u[kTile][kRows];
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      gate(*block.gate.packed, block.gate.packed->panels + panel * block.gate.packed->panel_bytes, x, g);
      up(*block.up.packed, block.up.packed->panels + panel * block.up.packed->panel_bytes, y, u);
      const int64_t row = panel * kRows, n = std::min<int64_t>(kRows, model_.inner - row);
      for (int64_t t = 0; t < tokens_; ++t) {
        for (int64_t r = 0; r < n; ++r) {
          if (block.gate.bias) g[t][r] += block.gate.bias[row + r];
          if (block.up.bias) u[t][r] += block.up.bias[row + r];
        }
        _mm256_store_ps(g[t], gated(_mm256_load_ps(g[t]), _mm256_load_ps(u[t]), model_.gelu));
        std::memcpy(gate_.data() + t * model_.inner + row, g[t], n * 4);
      }
    }
    barrier_.wait();
  }

  // What was asked for: all tokens after the last norm, or the last token's logits.
  void finish(int me, Floats& rows) {
    if (call_.hidden) {
      const Span part = share(tokens_, me, threads_);
      for (int64_t t = part.first; t < part.last; ++t) norm(t, true, model_.final_norm, call_.hidden + t * model_.hidden);
      return;
    }
    head(me, rows, call_.logits, call_.best);
  }

  // Logits of the last token of the one sequence, and the first of the largest.
  void head(int me, Floats& rows, float* logits, int64_t* best) {
    const Projection& p = model_.head;
    const int64_t last = tokens_ - 1;
    if (!few_ && me == 0) add_delta(last);
    if (!few_) barrier_.wait();
    rms_norm(x_.data() + last * model_.hidden, model_.final_norm, model_.norm_offset, model_.epsilon, model_.hidden, rows.data());
    const int64_t units = (p.rows + kRows - 1) / kRows;
    const Span part = share(units, me, threads_);
    if (p.packed) {
      Activations own(*p.packed, p.mode, 1);
      own.fill(0, rows.data(), p.columns, p.columns);
      few_panels(*p.packed, p.mode, own, 1, part.first, part.last, p.bias, logits, p.rows);
    } else {
      const int64_t end = std::min(part.last * kRows, p.rows);
      float out[4];
      for (int64_t r = part.first * kRows; r < end; r += 4) {
        const int64_t n = std::min<int64_t>(4, end - r), from = std::max<int64_t>(0, r + n - 4);
        dot4(rows.data(), p.dense + from * p.columns, p.columns, p.columns, out);  // the last ones together with some before them
        for (int64_t i = r; i < r + n; ++i) logits[i] = out[i - from] + (p.bias ? p.bias[i] : 0.f);
      }
    }
    Best mine{-std::numeric_limits<float>::infinity(), part.first * kRows};
    for (int64_t r = part.first * kRows; r < std::min(part.last * kRows, p.rows); ++r)
      if (logits[r] > mine.value) mine = {logits[r], r};
    best_[me] = mine;
    barrier_.wait();
    if (me) return;
    for (const Best& b : best_)
      if (b.value > mine.value) mine = b;
    *best = mine.index;
  }
};

}  // namespace
}  // namespace qcore

extern "C" {
#pragma GCC visibility push(default)

// Append the call's tokens to the cache.
void qcore_decode(const qcore::Model* model, const qcore::Cache* cache, const qcore::Call* call) {
  std::unique_ptr<qcore::Step> step;
#pragma omp parallel num_threads(call->threads)
  {
#pragma omp single
    step = std::make_unique<qcore::Step>(*model, *cache, *call, omp_get_num_threads());
    step->run(omp_get_thread_num());
  }
}

#pragma GCC visibility pop
}  // extern "C"
