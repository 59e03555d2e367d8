// A whole step of a model, or some of its layers, in one parallel region. Barriers separate the phases
//
//   norm, q k v | rotate, write the cache | attention | output | norm, gate, up, activation | down
//
// and, in a block with a part for the token itself, | gate, mix | down.
//
// A norm first adds the outputs before it to the residual stream. Every thread repeats small work (norms,
// quantization of activations) if that is cheaper than another barrier.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>

#include "common/decoder.h"
#include "x86/cached_attention.h"
#include "x86/feed_forward.h"
#include "x86/products.h"
#include "x86/token_parts.h"

namespace qcore {

// The buffers and threads of one call. Matrices are (tokens, width), one sequence after another. Many tokens
// go through each layer in chunks, in order: a token attends only to tokens before it, whose keys and values
// are in the cache by then.
class Step {
 public:
  // Of the given layers. The first ones leave the stream (hidden) of the last token in `end`; the others
  // begin with that of the only token in `begin`.
  Step(const Model& model, const Cache& cache, const Call& call, Span layers, const float* begin, float* end)
      : model_(model), call_(call), layers_(layers), begin_(begin), end_(end),
        tokens_(call.sequences * call.tokens), few_(tokens_ <= kTile),
        chunk_(few_ ? tokens_ : std::min(tokens_, call.chunk)), sizes_(model, chunk_, few_),
        most_threads_(thread_count(call.threads)), products_(sizes_, few_, barrier_),
        attention_(model, cache, call, most_threads_, chunk_, few_, barrier_),
        feed_forward_(model, chunk_, most_threads_, products_, barrier_),
        token_parts_(model, call, chunk_, products_), scratch_(CachedAttention::scratch(cache)),
        spare_(std::max(2 * model.hidden, TokenParts::width(model))),
        in_place_(!few_ && !end && call.hidden.data && !call.last), stream_((few_        ? most_threads_
                                                                             : in_place_ ? 0
                                                                                         : 1) *
                                                                            tokens_ * model.hidden),
        deltas_((two_deltas(model) ? 2 : 1) * chunk_ * model.hidden), rows_(most_threads_ * sizes_.rows),
        spares_(most_threads_ * spare_), scores_(most_threads_ * scratch_),
        activations_(most_threads_ * kOwn * sizes_.activations), best_(most_threads_) {}

  bool ok() const {
    return products_.ok() && attention_.ok() && feed_forward_.ok() && token_parts_.ok() && stream_ &&
           deltas_ && rows_ && spares_ && scores_ && activations_ && best_;
  }

  int most_threads() const { return most_threads_; }

  // Set the number of threads that call `run`, which may be fewer.
  void set(int threads) {
    threads_ = threads;
    barrier_.set(threads);
  }

  void run(int me) {
    const int64_t all = tokens_ * model_.hidden;
    const Own own{rows_.data() + me * sizes_.rows,
                  spares_.data() + me * spare_,
                  few_        ? stream_.data() + me * all
                  : in_place_ ? call_.hidden.data
                              : stream_.data(),
                  scores_.data() + me * scratch_,
                  activations_.data() + me * kOwn * sizes_.activations,
                  activations_.data() + (me * kOwn + 1) * sizes_.activations};
    const Span part = few_ ? Span{0, tokens_} : share(tokens_, me, threads_);
    if (begin_)
      std::memcpy(own.stream, begin_, model_.hidden * 4);
    else
      for (int64_t t = part.first; t < part.last; ++t) embed(t, own);
    if (!few_) barrier_.wait();
    for (int64_t l = layers_.first; l < layers_.last; ++l)
      for (int64_t first = 0; first < tokens_; first += chunk_)
        layer(me, l, {first, std::min(first + chunk_, tokens_)}, own);
    if (!end_)
      finish(me, own);
    else if (me == 0)
      std::memcpy(end_, own.stream + (tokens_ - 1) * model_.hidden, model_.hidden * 4);
  }

 private:
  static constexpr int kOwn = 2;  // buffers for activations per thread

  // Outputs of projections that a norm adds to the residual stream: a * after(row i) of `rows`. With
  // `beside`, rows is the sum of two outputs with norms of their own.
  struct Added {
    const float* rows;
    const Norm* after;
    float factor;
    const float* beside = nullptr;
    const Norm *after_rows = nullptr, *after_beside = nullptr;
  };
  struct Addends {
    Added of[2];
    int count;
    float scale = 1.f;  // of the sum
  };

  const Model& model_;
  const Call& call_;
  const Span layers_;
  const float* const begin_;
  float* const end_;
  const int64_t tokens_;
  const bool few_;  // the tokens fit in one tile: every thread keeps a residual stream of its own
  const int64_t chunk_;
  const Sizes sizes_;
  const int most_threads_;
  int threads_ = 1;
  Barrier barrier_;
  Products products_;
  CachedAttention attention_;
  FeedForwards feed_forward_;
  TokenParts token_parts_;
  const int64_t scratch_, spare_;
  const bool in_place_;  // the stream is in the call's `hidden`
  // (all tokens, hidden) the residual stream; with many tokens, in the call's `hidden` if there is one
  const Memory<float> stream_;
  const Memory<float> deltas_;  // (tokens, hidden) outputs of attention and of the feed-forward part
  const Memory<float> rows_, spares_, scores_;
  const Memory<uint8_t> activations_;
  struct Best {
    float value;
    int64_t index;
  };
  const Memory<Best> best_;

  static bool two_deltas(const Model& model) {
    for (int64_t l = 0; l < model.layers; ++l)
      if (model.blocks.data[l].parallel || model.blocks.data[l].beside.data) return true;
    return false;
  }

  // Whether the outputs of layer l wait for the next norm, because those of all tokens fit.
  bool waits(int64_t l) const { return chunk_ == tokens_ && !(end_ && l + 1 == layers_.last); }

  // Parallel parts of a block keep their outputs side by side until the next block.
  float* attention_delta() const { return deltas_.data(); }
  float* feed_forward_delta(const Block& block) const {
    return deltas_.data() + (block.parallel ? chunk_ * model_.hidden : 0);
  }
  Added attended(const Block& block) const {
    return {attention_delta(), &block.after_attention, block.residual};
  }
  float* beside_delta() const { return deltas_.data() + chunk_ * model_.hidden; }
  // The outputs of the feed-forward part, and of attention beside it, that are not in the stream yet.
  Addends fed(const Block& block) const {
    Added fed{feed_forward_delta(block), &block.after_feed_forward, block.residual};
    if (block.beside.data)
      fed.beside = beside_delta(), fed.after_rows = &block.after_dense,
      fed.after_beside = &block.after_beside;
    if (block.parallel) return {{attended(block), fed}, 2};
    return {{fed}, 1};
  }
  // The outputs of block l that are not in the residual stream once the block is done.
  Addends outputs(int64_t l) const {
    const Block& block = model_.blocks.data[l];
    Addends all =
        block.token.gate.rows ? Addends{{{deltas_.data(), &block.token.after, 1.f}}, 1} : fed(block);
    if (block.scale.data) all.scale = *block.scale.data;
    return all;
  }

  // The embedded token t, without its position.
  void embedded(int64_t t, float* x) const {
    if (call_.embeds.data) {
      std::memcpy(x, call_.embeds.data + t * model_.hidden, model_.hidden * 4);
      return;
    }
    look_up(model_.embedding, call_.ids.data[t], 0, model_.hidden, x);
    if (model_.embedding_scale != 1.f)
      for (int64_t i = 0; i < model_.hidden; ++i) x[i] *= model_.embedding_scale;
  }

  void embed(int64_t t, const Own& own) const {
    float* x = own.stream + t * model_.hidden;
    embedded(t, x);
    if (!model_.positions.rows) return;
    look_up(model_.positions, model_.position_offset + position_of(call_, t), 0, model_.hidden, own.spare);
    for (int64_t i = 0; i < model_.hidden; ++i) x[i] += own.spare[i];
  }

  // One block of the model for a chunk of tokens. The next layer's norm adds its outputs to the residual
  // stream, which it reads anyway; with several chunks, they are added here, because the next chunk
  // overwrites them.
  void layer(int me, int64_t l, Span chunk, const Own& own) {
    const Block& block = model_.blocks.data[l];
    const Attention& attention = block.attention;
    const int64_t tokens = chunk.last - chunk.first, width = input_width(attention);
    const Addends before = l > layers_.first && waits(l - 1) ? outputs(l - 1) : Addends{};
    const Projection* inputs[kInputs];
    Target to[kInputs];
    for (int64_t i = 0, at = 0; i < attention.input_count; at += attention.inputs[i++].rows) {
      inputs[i] = &attention.inputs[i];
      to[i] = {attention_.inputs() + at, width};
    }
    products_.project(me, threads_, tokens, inputs, to, int(attention.input_count), own,
                      [&](int64_t i, float* out, bool again) {
                        norm(chunk.first + i, i, again ? Addends{} : before, block.before_attention, own,
                             out);
                      });
    attention_.project(me, threads_, tokens, attention, own, products_);
    attention_.run(me, threads_, l, attention, chunk, own.scores);
    const Projection* output[] = {&attention.output};
    const Target attended_to{attention_delta(), model_.hidden};
    products_.project(me, threads_, tokens, output, &attended_to, 1, own,
                      [&](int64_t i, float* out, bool) { attention_.read(threads_, attention, i, out); });
    const Addends middle = block.parallel ? Addends{} : Addends{{attended(block)}, 1};
    feed_forward_.run(me, threads_, tokens, block.feed_forward, own,
                      [&](int64_t i, float* out, bool again) {
                        norm(chunk.first + i, i, again ? Addends{} : middle, block.before_feed_forward, own,
                             out);
                      },
                      {feed_forward_delta(block), model_.hidden});
    if (block.beside.data)
      feed_forward_.experts(me, threads_, tokens, *block.beside.data,
                            [&](int64_t i, float* out) {
                              std::memcpy(out, own.stream + (chunk.first + i) * model_.hidden,
                                          model_.hidden * 4);
                            },
                            {beside_delta(), model_.hidden});
    if (block.token.gate.rows)
      token_parts_.run(
          me, threads_, chunk.first, tokens, block.token, own,
          [&](int64_t i, float* out, bool) { norm(chunk.first + i, i, fed(block), Norm{}, own, out); },
          [&](int64_t i, float* out, bool) { embedded(chunk.first + i, out); },
          {deltas_.data(), model_.hidden});
    if (waits(l)) return;
    const Span part = share(tokens, me, threads_);
    for (int64_t i = part.first; i < part.last; ++i) add(chunk.first + i, i, outputs(l), own);
    barrier_.wait();
  }

  // Add `addends` to the residual stream of token t, number i of its chunk, and normalize the sum into `out`.
  void norm(int64_t t, int64_t i, const Addends& addends, const Norm& norm, const Own& own,
            float* out) const {
    add(t, i, addends, own);
    const float* x = own.stream + t * model_.hidden;
    if (norm.kind != kNoNorm)
      normalize(norm, x, out);
    else if (out != x)
      std::memcpy(out, x, model_.hidden * 4);
  }

  void add(int64_t t, int64_t i, const Addends& addends, const Own& own) const {
    float* x = own.stream + t * model_.hidden;
    for (int a = 0; a < addends.count; ++a) {
      const Added& added = addends.of[a];
      const float* d = added.rows + i * model_.hidden;
      if (added.beside) d = both(added, i, own.spare);
      if (added.after->kind != kNoNorm) {
        normalize(*added.after, d, own.spare);
        d = own.spare;
      }
      if (added.factor == 1.f)
        for (int64_t n = 0; n < model_.hidden; ++n) x[n] += d[n];
      else
        for (int64_t n = 0; n < model_.hidden; ++n) x[n] += added.factor * d[n];
    }
    if (addends.scale != 1.f)
      for (int64_t n = 0; n < model_.hidden; ++n) x[n] *= addends.scale;
  }

  // Return the sum of row i of two outputs, each normalized, in `spare` (2, hidden).
  const float* both(const Added& added, int64_t i, float* spare) const {
    const int64_t hidden = model_.hidden;
    const float *a = added.rows + i * hidden, *b = added.beside + i * hidden;
    if (added.after_rows->kind != kNoNorm) normalize(*added.after_rows, a, spare), a = spare;
    if (added.after_beside->kind != kNoNorm)
      normalize(*added.after_beside, b, spare + hidden), b = spare + hidden;
    for (int64_t n = 0; n < hidden; ++n) spare[n] = a[n] + b[n];
    return spare;
  }

  // Compute the output: all tokens after the last norm, or the logits of the last token.
  void finish(int me, const Own& own) {
    if (!call_.hidden.data) return head(me, own);
    if (call_.last) {
      if (me == 0) normed_last(own, call_.hidden.data);
      return;
    }
    const Addends rest = waits(model_.layers - 1) ? outputs(model_.layers - 1) : Addends{};
    const Span part = share(tokens_, me, threads_);
    for (int64_t t = part.first; t < part.last; ++t)
      norm(t, t, rest, model_.final_norm, own, call_.hidden.data + t * model_.hidden);
  }

  // The last token after the last norm. With many tokens, one thread calls it.
  void normed_last(const Own& own, float* out) const {
    const int64_t last = tokens_ - 1, l = model_.layers - 1;
    norm(last, last, waits(l) ? outputs(l) : Addends{}, model_.final_norm, own, out);
  }

  // The logits of the last token of the only sequence, and the index of the first maximum.
  void head(int me, const Own& own) {
    const Projection& p = model_.head;
    if (few_) {
      normed_last(own, own.rows);
    } else {
      if (me == 0) normed_last(own, rows_.data());
      barrier_.wait();
      if (me) std::memcpy(own.rows, rows_.data(), model_.hidden * 4);
    }
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
    shape(logits, begin, end);
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

  // Scale and cap the logits begin … end − 1, of which all but the last are whole vectors.
  void shape(float* logits, int64_t begin, int64_t end) const {
    if (model_.logits_scale != 1.f)
      for (int64_t r = begin; r < end; ++r) logits[r] *= model_.logits_scale;
    if (model_.logits_cap == 0.f) return;
    for (int64_t r = begin; r < end; r += 8) {
      alignas(32) float some[8] = {};
      const size_t bytes = std::min<int64_t>(8, end - r) * 4;
      std::memcpy(some, logits + r, bytes);
      _mm256_store_ps(some, capped(_mm256_load_ps(some), model_.logits_cap));
      std::memcpy(logits + r, some, bytes);
    }
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

}  // namespace qcore
