// A whole step of a Llama-type model in one call and one parallel region. Threads meet at barriers of their own between the phases
//
//   norm, q k v | rotate, write the cache | attention | output, add | norm, gate, up, activation | down, add
//
// and repeat the small work (norms, quantizing activations) each for itself where that is cheaper than meeting once more.
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "attention_avx2.h"
#include "decoder.h"
#include "linear.h"

namespace qcore {
namespace {

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 4000)
        _mm_pause();
      else
        sched_yield();  // someone else has the core that the other thread needs
    }
  }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

struct Span {
  int64_t first, last;
};

// The part of 0 … n − 1 that thread `me` of `all` takes.
inline Span share(int64_t n, int me, int all) { return {n * me / all, n * (me + 1) / all}; }

using Floats = std::vector<float>;

// One call's buffers and threads. Tokens are rows of (tokens, width) matrices, one sequence after the other.
class Step {
 public:
  Step(const Model& model, const Cache& cache, const Call& call, int threads)
      : model_(model), cache_(cache), call_(call), tokens_(call.sequences * call.tokens), threads_(threads), few_(tokens_ <= kTile), barrier_(threads),
        q_width_(model.heads * model.head_size), kv_width_(model.kv_heads * model.head_size), x_(tokens_ * model.hidden), query_(tokens_ * q_width_),
        key_(tokens_ * kv_width_), value_(tokens_ * kv_width_), mixed_(tokens_ * q_width_ * (few_ ? threads : 1)),
        parts_(few_ ? threads * tokens_ * model.heads : 0), gate_(tokens_ * model.inner + 8),
        up_(few_ ? 0 : tokens_ * model.inner + 8), delta_(few_ ? 0 : tokens_ * model.hidden) {}

  void run(int me) {
    Span part = share(tokens_, me, threads_);
    for (int64_t t = part.first; t < part.last; ++t) embed(call_.ids[t], x_.data() + t * model_.hidden);
    Floats rows(std::max({model_.hidden, q_width_, model_.inner}) * kTile), scores(3 * (cache_.capacity + 16));
    barrier_.wait();
    for (int64_t l = 0; l < model_.layers; ++l) {
      const Block& block = model_.blocks[l];
      const Projection* qkv[] = {&block.query, &block.key, &block.value};
      float* to[] = {query_.data(), key_.data(), value_.data()};
      project(me, qkv, to, 3, rows, [&](int64_t t, float* out, bool again) { norm(t, l > 0 && !again, block.attention_norm, out); });
      if (cache_.half)
        attention<uint16_t>(me, l, scores);
      else
        attention<float>(me, l, scores);
      residual(me, block.output, rows, [&](int64_t t, float* out, bool) { attended(t, out); });
      mlp(me, block, rows);
      residual(me, block.down, rows, [&](int64_t t, float* out, bool) { activated(t, out); });
    }
    finish(me, rows);
  }

 private:
  const Model& model_;
  const Cache& cache_;
  const Call& call_;
  const int64_t tokens_;
  const int threads_;
  const bool few_;  // tokens fit one tile: codes are read once and every thread prepares the activations for itself
  Barrier barrier_;
  const int64_t q_width_, kv_width_;
  Floats x_, query_, key_, value_;
  Floats mixed_;             // values weighted by attention; with few tokens one (tokens, width) for each thread, and its
  std::vector<Part> parts_;  // (tokens, heads)
  Floats gate_, up_, delta_;
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

  // Where a token stands: its place in the cache, and its distance from the first token of its sequence that is no padding.
  int64_t slot(int64_t t) const { return call_.position + t % call_.tokens; }
  int64_t start(int64_t t) const { return call_.starts ? call_.starts[t / call_.tokens] : 0; }

  // Normalize (Qwen3) and rotate a head: (a, b) of the two halves becomes (a cos − b sin, b cos + a sin).
  void rotate(float* x, int64_t position, const float* weight, float scale) const {
    const int64_t half = model_.head_size / 2;
    if (weight) rms_norm(x, weight, model_.norm_offset, model_.epsilon, model_.head_size, x);
    const float *cosine = call_.cosines + position * half, *sine = call_.sines + position * half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = (a * cosine[i] - b * sine[i]) * scale;
      x[half + i] = (b * cosine[i] + a * sine[i]) * scale;
    }
  }

  // The keys or values of a key-value head of a token's sequence.
  template <class T>
  T* held(void* const* layers, int64_t layer, int64_t t, int64_t kv) const {
    return static_cast<T*>(layers[layer]) + (t / call_.tokens * model_.kv_heads + kv) * cache_.capacity * model_.head_size;
  }

  template <class T>
  void attention(int me, int64_t layer, Floats& scores) {
    const Block& block = model_.blocks[layer];
    const int64_t size = model_.head_size, all = model_.heads + model_.kv_heads;
    const Span part = share(tokens_ * all, me, threads_);
    for (int64_t i = part.first; i < part.last; ++i) {
      const int64_t t = i / all, h = i % all, place = slot(t), position = std::max<int64_t>(0, place - start(t));
      if (h < model_.heads) {
        rotate(query_.data() + t * q_width_ + h * size, position, block.query_norm, model_.attention_scale);
        continue;
      }
      const int64_t kv = h - model_.heads;
      float* k = key_.data() + t * kv_width_ + kv * size;
      const float* v = value_.data() + t * kv_width_ + kv * size;
      rotate(k, position, block.key_norm, 1.f);
      T* keys = held<T>(cache_.keys, layer, t, kv) + place / 8 * 8 * size + place % 8;
      T* values = held<T>(cache_.values, layer, t, kv) + place * size;
      for (int64_t d = 0; d < size; ++d) {
        store1(keys + 8 * d, k[d]);
        store1(values + d, v[d]);
      }
    }
    barrier_.wait();
    if (few_)
      attend_some<T>(me, layer, scores);
    else
      attend_all<T>(layer, scores);
    barrier_.wait();
  }

  // The slots that a token meets: first … last − 1.
  Span seen(int64_t t, int64_t window) const {
    const int64_t last = slot(t) + 1, first = std::min(start(t), last - 1);  // padding meets itself, so that it stays finite
    return {window ? std::max(first, last - window) : first, last};
  }

  // A token's query heads that share a key-value head, over some slots.
  template <class T>
  void attend_group(int64_t layer, int64_t t, int64_t kv, Span slots, Floats& scores, float* out, Part* parts) const {
    const int64_t size = model_.head_size, group = model_.heads / model_.kv_heads;
    attend(group, query_.data() + t * q_width_ + kv * group * size, held<const T>(cache_.keys, layer, t, kv), held<const T>(cache_.values, layer, t, kv), size,
           slots.first, slots.last, scores.data(), cache_.capacity + 16, out + (t * model_.heads + kv * group) * size, parts);
  }

  // Many tokens: one key-value head after the other, so that it stays in the cache; later tokens are more work, so they come first.
  template <class T>
  void attend_all(int64_t layer, Floats& scores) {
    const int64_t size = model_.head_size, group = model_.heads / model_.kv_heads;
    std::vector<Part> parts(group);
    for (int64_t job; (job = jobs_.fetch_add(1)) < tokens_ * model_.kv_heads;) {
      const int64_t kv = job / tokens_, t = tokens_ - 1 - job % tokens_;
      attend_group<T>(layer, t, kv, seen(t, model_.blocks[layer].window), scores, mixed_.data(), parts.data());
      float* out = mixed_.data() + t * q_width_ + kv * group * size;
      for (int64_t h = 0; h < group; ++h) scale(out + h * size, 1.f / parts[h].sum, size, false, out + h * size);
    }
  }

  // Few tokens: the cache is read once from memory, and each thread reads as much of it as the others, wherever a head begins or ends.
  template <class T>
  void attend_some(int me, int64_t layer, Floats& scores) {
    constexpr int64_t kUnit = 16;  // slots
    const int64_t window = model_.blocks[layer].window, group = model_.heads / model_.kv_heads;
    Part* parts = parts_.data() + me * tokens_ * model_.heads;
    std::fill(parts, parts + tokens_ * model_.heads, Part{0, 0});
    auto units = [&](int64_t t) { return (seen(t, window).last + kUnit - 1) / kUnit - seen(t, window).first / kUnit; };
    int64_t all = 0, at = 0;
    for (int64_t t = 0; t < tokens_; ++t) all += units(t) * model_.kv_heads;
    const Span mine = share(all, me, threads_);
    for (int64_t t = 0; t < tokens_; ++t) {
      const Span slots = seen(t, window);
      for (int64_t kv = 0, n = units(t); kv < model_.kv_heads; ++kv, at += n) {
        const int64_t from = std::max(mine.first, at) - at, to = std::min(mine.last, at + n) - at, base = slots.first / kUnit;
        if (from >= to) continue;
        const Span some{std::max(slots.first, (base + from) * kUnit), std::min(slots.last, (base + to) * kUnit)};
        attend_group<T>(layer, t, kv, some, scores, mixed_.data() + me * tokens_ * q_width_, parts + t * model_.heads + kv * group);
      }
    }
  }

  // What attention gives for a token: with few tokens, the threads' parts joined.
  void attended(int64_t t, float* out) const {
    if (!few_) {
      std::memcpy(out, mixed_.data() + t * q_width_, q_width_ * 4);
      return;
    }
    const int64_t size = model_.head_size, stride = tokens_ * model_.heads;
    for (int64_t h = 0; h < model_.heads; ++h) {
      const Part* parts = parts_.data() + t * model_.heads + h;
      float most = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int i = 0; i < threads_; ++i)
        if (parts[i * stride].sum != 0) most = std::max(parts[i * stride].most, most);
      for (int i = 0; i < threads_; ++i)
        if (parts[i * stride].sum != 0) sum += parts[i * stride].sum * std::exp(parts[i * stride].most - most);
      bool add = false;
      for (int i = 0; i < threads_; ++i) {
        const Part part = parts[i * stride];
        if (part.sum == 0) continue;
        scale(mixed_.data() + (i * tokens_ + t) * q_width_ + h * size, std::exp(part.most - most) / sum, size, add, out + h * size);
        add = true;
      }
    }
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
