// A whole step of a Llama-type model in one call and one parallel region. Barriers separate the phases
//
//   norm, q k v | rotate, write the cache | attention | output, add | norm, gate, up, activation | down, add
//
// Every thread repeats small work (norms, quantization of activations) if that is cheaper than another
// barrier.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <optional>

#include "common/decoder.h"
#include "common/linear.h"
#include "x86/cached_attention.h"

namespace qcore {
namespace {

// -- checks of the arguments

Status check(const Projection& p, int64_t rows, int64_t columns) {
  if (p.rows != rows || p.columns != columns || p.mode < kFloat || p.mode > kInt8Token) return kBadLayout;
  if (p.bias.data && !p.bias.holds(rows)) return kShortBias;
  if (!p.packed) return p.dense.holds(rows, columns) ? kOk : kShortWeights;
  return p.packed->rows == rows && p.packed->columns == columns ? check(*p.packed) : kBadLayout;
}

Status check(const Block& block, const Model& model) {
  const int64_t queries = model.heads * model.head_size, keys = model.kv_heads * model.head_size;
  if (block.window < 0) return kBadLayout;
  if (!block.attention_norm.holds(model.hidden) || !block.mlp_norm.holds(model.hidden)) return kShortWeights;
  for (const Buffer<const float>* norm : {&block.query_norm, &block.key_norm})
    if (norm->data && !norm->holds(model.head_size)) return kShortWeights;
  const struct {
    const Projection& projection;
    int64_t rows, columns;
  } all[] = {{block.query, queries, model.hidden},    {block.key, keys, model.hidden},
             {block.value, keys, model.hidden},       {block.output, model.hidden, queries},
             {block.gate, model.inner, model.hidden}, {block.up, model.inner, model.hidden},
             {block.down, model.hidden, model.inner}};
  for (const auto& [projection, rows, columns] : all) {
    if (!projection.packed) return kBadLayout;  // dense projections: embedding and head only
    if (const Status status = check(projection, rows, columns)) return status;
  }
  return kOk;
}

Status check(const Model& model) {
  for (const int64_t size : {model.layers, model.hidden, model.heads, model.kv_heads, model.head_size,
                             model.inner, model.vocabulary})
    if (size < 1 || size > INT32_MAX) return kBadLayout;
  if (model.heads % model.kv_heads || model.head_size % 8) return kBadLayout;
  if (!model.final_norm.holds(model.hidden) || !model.blocks.holds(model.layers)) return kShortWeights;
  if (const Status status = check(model.head, model.vocabulary, model.hidden)) return status;
  if (const Status status = check(model.embedding, model.embedding.rows, model.hidden)) return status;
  for (int64_t l = 0; l < model.layers; ++l)
    if (const Status status = check(model.blocks.data[l], model)) return status;
  return kOk;
}

Status check(const Model& model, const Cache& cache, const Call& call) {
  for (const int64_t size : {call.sequences, call.tokens, call.threads, call.chunk, cache.capacity})
    if (size < 1 || size > INT32_MAX) return kBadLayout;
  const int64_t end = call.position + call.tokens;
  if (call.position < 0 || call.position > cache.capacity || end > cache.capacity || cache.capacity % 8)
    return kShortCache;
  if (!cache.keys.holds(model.layers) || !cache.values.holds(model.layers)) return kShortCache;
  const int64_t bytes = model.head_size * (cache.half ? 2 : 4);
  for (int64_t l = 0; l < model.layers; ++l)
    for (const Buffer<void>& held : {cache.keys.data[l], cache.values.data[l]})
      if (!Buffer<uint8_t>{static_cast<uint8_t*>(held.data), held.bytes / bytes}.holds(
              call.sequences * model.kv_heads, cache.capacity))
        return kShortCache;
  if (!call.cosines.holds(end, model.head_size / 2) || !call.sines.holds(end, model.head_size / 2))
    return kShortRotation;
  if (!call.ids.holds(call.sequences, call.tokens) ||
      (call.starts.data && !call.starts.holds(call.sequences)))
    return kShortInput;
  for (int64_t i = 0; i < call.sequences * call.tokens; ++i)
    if (call.ids.data[i] < 0 || call.ids.data[i] >= model.embedding.rows) return kBadIndex;
  for (int64_t i = 0; call.starts.data && i < call.sequences; ++i)
    if (call.starts.data[i] < 0) return kBadIndex;
  if (call.hidden.data)
    return call.hidden.holds(call.sequences * call.tokens, model.hidden) ? kOk : kShortOutput;
  return call.sequences == 1 && call.logits.holds(model.vocabulary) && call.best ? kOk : kShortOutput;
}

// -- the step

// The working memory of one thread.
struct Own {
  float* rows;           // the inputs of a tile
  float* scores;         // of attention
  uint8_t* activations;  // the inputs as the kernels read them
  uint8_t* others;       // the same for `up`, if it needs another layout than `gate`
};

// The sizes of `Own::rows` in floats, and of the activations in bytes: the largest that any projection needs.
struct Sizes {
  int64_t rows, activations;
  Sizes(const Model& model, int64_t tokens, bool few)
      : rows(std::max({model.hidden, model.heads * model.head_size, model.inner}) * kTile), activations(0) {
    const auto add = [&](const Projection& p, int64_t n, bool alone) {
      if (p.packed) activations = std::max(activations, Activations::bytes(*p.packed, p.mode, n, alone));
    };
    for (int64_t l = 0; l < model.layers; ++l) {
      const Block& b = model.blocks.data[l];
      for (const Projection* p : {&b.query, &b.key, &b.value, &b.output, &b.gate, &b.up, &b.down})
        add(*p, tokens, few);
    }
    add(model.head, 1, true);
  }
};

// The buffers and threads of one call. Matrices are (tokens, width), one sequence after another. Many tokens
// go through each layer in chunks, in order: a token attends only to tokens before it, whose keys and values
// are in the cache by then.
class Step {
 public:
  Step(const Model& model, const Cache& cache, const Call& call)
      : model_(model), call_(call), tokens_(call.sequences * call.tokens), few_(tokens_ <= kTile),
        chunk_(few_ ? tokens_ : std::min(tokens_, call.chunk)), sizes_(model, chunk_, few_),
        most_threads_(thread_count(call.threads)),
        attention_(model, cache, call, most_threads_, chunk_, few_, barrier_),
        scratch_(CachedAttention::scratch(cache)), stream_(call.hidden.data ? 0 : tokens_ * model.hidden),
        x_(call.hidden.data ? call.hidden.data : stream_.data()), gate_(chunk_ * model.inner + 8),
        up_(few_ ? 0 : chunk_ * model.inner + 8), delta_(few_ ? 0 : chunk_ * model.hidden),
        shared_(few_ ? 0 : sizes_.activations), rows_(most_threads_ * sizes_.rows),
        scores_(most_threads_ * scratch_), activations_(most_threads_ * kOwn * sizes_.activations),
        best_(most_threads_) {}

  bool ok() const {
    return attention_.ok() && stream_ && gate_ && up_ && delta_ && shared_ && rows_ && scores_ &&
           activations_ && best_;
  }

  int most_threads() const { return most_threads_; }

  // Set the number of threads that call `run`, which may be fewer.
  void set(int threads) {
    threads_ = threads;
    barrier_.set(threads);
  }

  void run(int me) {
    const Own own{rows_.data() + me * sizes_.rows, scores_.data() + me * scratch_,
                  activations_.data() + me * kOwn * sizes_.activations,
                  activations_.data() + (me * kOwn + 1) * sizes_.activations};
    const Span part = share(tokens_, me, threads_);
    for (int64_t t = part.first; t < part.last; ++t) embed(call_.ids.data[t], x_ + t * model_.hidden);
    barrier_.wait();
    for (int64_t l = 0; l < model_.layers; ++l)
      for (int64_t first = 0; first < tokens_; first += chunk_)
        layer(me, l, {first, std::min(first + chunk_, tokens_)}, own);
    finish(me, own);
  }

 private:
  static constexpr int kOwn = 2;  // buffers for activations per thread

  const Model& model_;
  const Call& call_;
  const int64_t tokens_;
  const bool few_;  // the tokens fit in one tile: codes are read once; every thread prepares its activations
  const int64_t chunk_;
  const Sizes sizes_;
  const int most_threads_;
  int threads_ = 1;
  Barrier barrier_;
  CachedAttention attention_;
  const int64_t scratch_;
  const Memory<float> stream_;
  float* const x_;  // (all tokens, hidden) the residual stream, in the call's `hidden` if there is one
  const Memory<float> gate_, up_, delta_;
  const Memory<uint8_t> shared_;
  const Memory<float> rows_, scores_;
  const Memory<uint8_t> activations_;
  std::optional<Activations> input_;  // shared by all threads
  std::atomic<int64_t> jobs_{0}, tiles_{0};
  struct Best {
    float value;
    int64_t index;
  };
  const Memory<Best> best_;

  bool is_whole() const { return chunk_ == tokens_; }

  void embed(int64_t id, float* out) const {
    const Projection& e = model_.embedding;
    if (e.packed)
      read_row(*e.packed, id, out);
    else
      std::memcpy(out, e.dense.data + id * e.columns, e.columns * 4);
    if (model_.embedding_scale != 1.f)
      for (int64_t i = 0; i < e.columns; ++i) out[i] *= model_.embedding_scale;
  }

  // One block of the model for a chunk of tokens. The next layer's norm adds the output of `down` to the
  // residual stream, which it reads anyway; with several chunks, it is added here, because the next chunk
  // overwrites it.
  void layer(int me, int64_t l, Span chunk, const Own& own) {
    const Block& block = model_.blocks.data[l];
    const Projection* qkv[] = {&block.query, &block.key, &block.value};
    float* to[] = {attention_.query(), attention_.key(), attention_.value()};
    project(me, chunk, qkv, to, 3, own, [&](int64_t i, float* out, bool again) {
      norm(chunk.first + i, i, l > 0 && !again && is_whole(), block.attention_norm.data, out);
    });
    attention_.run(me, threads_, l, chunk, own.scores);
    residual(me, chunk, block.output, own,
             [&](int64_t i, float* out, bool) { attention_.read(threads_, i, out); });
    mlp(me, chunk, block, own);
    residual(me, chunk, block.down, own, [&](int64_t i, float* out, bool) { activated(i, out); });
    if (is_whole()) return;
    const Span part = share(chunk.last - chunk.first, me, threads_);
    for (int64_t i = part.first; i < part.last; ++i) add_delta(chunk.first + i, i);
    barrier_.wait();
  }

  // Normalize the residual stream of token t, which is number i of its chunk. With `add`, first add the
  // output of the last projection (many tokens only: with few tokens, the projection has added it).
  void norm(int64_t t, int64_t i, bool add, const float* weight, float* out) {
    if (add && !few_) add_delta(t, i);
    rms_norm(x_ + t * model_.hidden, weight, model_.norm_offset, model_.epsilon, model_.hidden, out);
  }
  void add_delta(int64_t t, int64_t i) {
    float *x = x_ + t * model_.hidden, *d = delta_.data() + i * model_.hidden;
    for (int64_t n = 0; n < model_.hidden; ++n) x[n] += d[n];
  }

  // act(gate) * up of token i of the chunk. With few tokens, `mlp` has computed it.
  void activated(int64_t i, float* out) {
    const float* g = gate_.data() + i * model_.inner;
    if (few_) {
      std::memcpy(out, g, model_.inner * 4);
      return;
    }
    const float* u = up_.data() + i * model_.inner;
    for (int64_t n = 0; n < model_.inner; n += 8) {  // buffers end with 8 floats to spare
      const __m256 v = gated(_mm256_loadu_ps(g + n), _mm256_loadu_ps(u + n), model_.gelu);
      alignas(32) float last[8];
      if (n + 8 <= model_.inner) {
        _mm256_storeu_ps(out + n, v);
      } else {
        _mm256_store_ps(last, v);
        std::memcpy(out + n, last, (model_.inner - n) * 4);
      }
    }
  }

  // Return whether two projections of the same input read the same activations.
  static bool alike(const Projection& a, const Projection& b) {
    return a.mode == b.mode && a.packed->kind == b.packed->kind && a.packed->blocks == b.packed->blocks &&
           Activations::sums(*a.packed, a.mode) == Activations::sums(*b.packed, b.mode) &&
           Activations::shared_blocks(*a.packed, a.mode) == Activations::shared_blocks(*b.packed, b.mode);
  }

  // Multiply `count` projections by the same input. `input(i, out, again)` computes its row i; with `again`,
  // it must not change the residual stream a second time.
  template <class Input>
  void project(int me, Span chunk, const Projection* const* projections, float* const* to, int count,
               const Own& own, Input&& input) {
    if (few_) {
      const int64_t columns = projections[0]->columns;
      for (int64_t t = 0; t < tokens_; ++t) input(t, own.rows + t * columns, false);
      std::optional<Activations> x;
      for (int i = 0; i < count; ++i) {
        const Projection& p = *projections[i];
        prepare(x, i ? projections[i - 1] : nullptr, p, own.rows, own.activations);
        const Span part = share(panel_count(*p.packed), me, threads_);
        few_panels(*p.packed, p.mode, *x, int(tokens_), part.first, part.last, p.bias.data, to[i], p.rows);
      }
      barrier_.wait();
      return;
    }
    for (int i = 0; i < count; ++i) {
      const Projection& p = *projections[i];
      if (i == 0 || !alike(p, *projections[i - 1]))
        fill_input(me, chunk.last - chunk.first, p, own, input, i > 0);
      multiply_input(me, p, to[i]);
    }
  }

  void prepare(std::optional<Activations>& x, const Projection* before, const Projection& p,
               const float* rows, uint8_t* memory) const {
    if (before && alike(*before, p)) return;
    x.emplace(*p.packed, p.mode, tokens_, true, memory);
    x->fill(0, rows, p.columns, p.columns);
  }

  // Fill the tiles of the shared activations on all threads. `again`: the input has been computed before.
  template <class Input>
  void fill_input(int me, int64_t tokens, const Projection& p, const Own& own, Input&& input, bool again) {
    if (me == 0) {
      input_.emplace(*p.packed, p.mode, tokens, false, shared_.data());
      tiles_ = 0;
    }
    barrier_.wait();
    for (int64_t tile; (tile = tiles_.fetch_add(1)) < input_->tiles();) {
      for (int m = 0; m < input_->tile_tokens(tile); ++m)
        input(tile * kTile + m, own.rows + m * p.columns, again);
      input_->fill(tile, own.rows, p.columns, p.columns);
    }
    if (me == 0) jobs_ = 0;
    barrier_.wait();
  }

  void multiply_input(int me, const Projection& p, float* to) {
    const int64_t pairs = (panel_count(*p.packed) + 1) / 2, at_once = kTokensAtOnce / kTile,
                  tiles = input_->tiles();
    Stretch stretch;
    for (int64_t job; (job = jobs_.fetch_add(1)) < pairs * ((tiles + at_once - 1) / at_once);) {
      const int64_t first = job / pairs * at_once;
      many_pair(*p.packed, p.mode, *input_, first, std::min(first + at_once, tiles), job % pairs, p.bias.data,
                to, p.rows, stretch);
    }
    barrier_.wait();
    if (me == 0) jobs_ = 0;
    barrier_.wait();
  }

  // Add the projection of an input to the residual stream.
  template <class Input>
  void residual(int me, Span chunk, const Projection& p, const Own& own, Input&& input) {
    if (!few_) {
      const Projection* one[] = {&p};
      float* to[] = {delta_.data()};
      project(me, chunk, one, to, 1, own, input);
      return;
    }
    for (int64_t t = 0; t < tokens_; ++t) input(t, own.rows + t * p.columns, false);
    std::optional<Activations> x;
    prepare(x, nullptr, p, own.rows, own.activations);
    const Span part = share(panel_count(*p.packed), me, threads_);
    const PanelKernel kernel = kernels().panel(p.packed->kind, p.mode, int(tokens_));
    alignas(32) float out[kTile][kRows];
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      kernel(*p.packed, p.packed->panels.data + panel * p.packed->panel_bytes, x->tile(0), out);
      const int64_t row = panel * kRows, n = std::min<int64_t>(kRows, p.rows - row);
      for (int64_t t = 0; t < tokens_; ++t)
        for (int64_t r = 0; r < n; ++r)
          x_[t * p.rows + row + r] += out[t][r] + (p.bias.data ? p.bias.data[row + r] : 0.f);
    }
    barrier_.wait();
  }

  void mlp(int me, Span chunk, const Block& block, const Own& own) {
    auto input = [&](int64_t i, float* out, bool again) {
      norm(chunk.first + i, i, !again, block.mlp_norm.data, out);
    };
    if (!few_) {
      const Projection* both[] = {&block.gate, &block.up};
      float* to[] = {gate_.data(), up_.data()};
      project(me, chunk, both, to, 2, own, input);
      return;
    }
    for (int64_t t = 0; t < tokens_; ++t) input(t, own.rows + t * model_.hidden, false);
    std::optional<Activations> for_gate, for_up;
    prepare(for_gate, nullptr, block.gate, own.rows, own.activations);
    const bool same = alike(block.gate, block.up);
    if (!same) prepare(for_up, nullptr, block.up, own.rows, own.others);
    const Tile x = for_gate->tile(0), y = same ? x : for_up->tile(0);
    const PanelKernel gate = kernels().panel(block.gate.packed->kind, block.gate.mode, int(tokens_));
    const PanelKernel up = kernels().panel(block.up.packed->kind, block.up.mode, int(tokens_));
    const Span part = share(panel_count(*block.gate.packed), me, threads_);
    alignas(32) float g[kTile][kRows], u[kTile][kRows];
    for (int64_t panel = part.first; panel < part.last; ++panel) {
      gate(*block.gate.packed, block.gate.packed->panels.data + panel * block.gate.packed->panel_bytes, x, g);
      up(*block.up.packed, block.up.packed->panels.data + panel * block.up.packed->panel_bytes, y, u);
      const int64_t row = panel * kRows, n = std::min<int64_t>(kRows, model_.inner - row);
      for (int64_t t = 0; t < tokens_; ++t) {
        for (int64_t r = 0; r < n; ++r) {
          if (block.gate.bias.data) g[t][r] += block.gate.bias.data[row + r];
          if (block.up.bias.data) u[t][r] += block.up.bias.data[row + r];
        }
        _mm256_store_ps(g[t], gated(_mm256_load_ps(g[t]), _mm256_load_ps(u[t]), model_.gelu));
        std::memcpy(gate_.data() + t * model_.inner + row, g[t], n * 4);
      }
    }
    barrier_.wait();
  }

  // Compute the output: all tokens after the last norm, or the logits of the last token.
  void finish(int me, const Own& own) {
    if (!call_.hidden.data) return head(me, own);
    const Span part = share(tokens_, me, threads_);
    for (int64_t t = part.first; t < part.last; ++t)
      norm(t, t, is_whole(), model_.final_norm.data, x_ + t * model_.hidden);
  }

  // The logits of the last token of the only sequence, and the index of the first maximum.
  void head(int me, const Own& own) {
    const Projection& p = model_.head;
    const int64_t last = tokens_ - 1;
    if (!few_ && is_whole()) {
      if (me == 0) add_delta(last, last);
      barrier_.wait();
    }
    rms_norm(x_ + last * model_.hidden, model_.final_norm.data, model_.norm_offset, model_.epsilon,
             model_.hidden, own.rows);
    float* logits = call_.logits.data;
    const Span part = share((p.rows + kRows - 1) / kRows, me, threads_);
    const int64_t begin = part.first * kRows, end = std::min(part.last * kRows, p.rows);
    if (p.packed) {
      Activations x(*p.packed, p.mode, 1, true, own.activations);
      x.fill(0, own.rows, p.columns, p.columns);
      few_panels(*p.packed, p.mode, x, 1, part.first, part.last, p.bias.data, logits, p.rows);
    } else {
      dense(own.rows, begin, end, logits);
    }
    Best mine{-std::numeric_limits<float>::infinity(), begin};
    for (int64_t r = begin; r < end; ++r)
      if (logits[r] > mine.value) mine = {logits[r], r};
    best_.data()[me] = mine;
    barrier_.wait();
    if (me) return;
    for (int i = 0; i < threads_; ++i)
      if (best_.data()[i].value > mine.value) mine = best_.data()[i];
    *call_.best = mine.index;
  }

  // Multiply the rows begin … end − 1 of a dense head by x, four at a time; the last four may overlap the
  // four before them. A head of fewer than four rows is multiplied row by row.
  void dense(const float* x, int64_t begin, int64_t end, float* logits) const {
    const Projection& p = model_.head;
    const int64_t at_once = p.rows < 4 ? 1 : 4, stride = p.rows < 4 ? 0 : p.columns;
    float out[4];
    for (int64_t r = begin; r < end; r += at_once) {
      const int64_t n = std::min(at_once, end - r), from = std::max<int64_t>(0, r + n - at_once);
      dot4(x, p.dense.data + from * p.columns, stride, p.columns, out);
      for (int64_t i = r; i < r + n; ++i) logits[i] = out[i - from] + (p.bias.data ? p.bias.data[i] : 0.f);
    }
  }
};

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Append the call's tokens to the cache, and compute the call's output.
int qcore_decode(const Model* model, const Cache* cache, const Call* call) {
  if (const Status status = check(*model)) return status;
  if (const Status status = check(*model, *cache, *call)) return status;
  Step step(*model, *cache, *call);
  if (!step.ok()) return kNoMemory;
#pragma omp parallel num_threads(step.most_threads())
  {
#pragma omp single
    step.set(omp_get_num_threads());
    step.run(omp_get_thread_num());
  }
  return kOk;
}

#pragma GCC visibility pop
}  // extern "C"
