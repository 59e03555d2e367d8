// Attention of a call's tokens over the key-value cache: normalizes and rotates the heads, appends keys and
// values to the cache, and lets every token attend to the slots that it may see.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/decoder.h"
#include "x86/attention_avx2.h"
#include "x86/heads.h"
#include "x86/latents.h"
#include "x86/threads.h"

namespace qcore {

class CachedAttention {
 public:
  // With `few` tokens, the threads divide the cache among them, and each keeps its part of the result until
  // `read`. Otherwise they divide the tokens, which come in chunks of at most `chunk`.
  CachedAttention(const Model& model, const Cache& cache, const Call& call, int most_threads, int64_t chunk,
                  bool few, Barrier& barrier)
      : cache_(cache), call_(call), chunk_(chunk), few_(few), barrier_(barrier),
        heads_(most(model, [](const Attention& a) { return a.heads; })),
        width_(most(model, [](const Attention& a) { return a.heads * a.value_size; })),
        inputs_(chunk * most(model, input_width)), mixed_(chunk * width_ * (few ? most_threads : 1)),
        parts_((few ? chunk : 1) * heads_ * most_threads), whole_(2 * chunk),
        size_(most(model, [](const Attention& a) { return std::max(a.head_size, a.value_size); })),
        values_(most_threads * size_), latents_(model, chunk) {}

  bool ok() const { return inputs_ && mixed_ && parts_ && whole_ && values_ && latents_.ok(); }

  // The outputs of the projections, one row of `input_width` per token of the chunk.
  float* inputs() { return inputs_.data(); }

  // The floats of working memory that `run` needs per thread.
  static int64_t scratch(const Cache& cache) { return 3 * (cache.capacity + 16); }

  // Compute the queries of attention over latents, which come from the first input. All threads call it.
  void project(int me, int threads, int64_t tokens, const Attention& attention, const Own& own,
               Products& products) {
    latents_.project(me, threads, tokens, attention, inputs_.data(), input_width(attention), own, products);
  }

  // Attention of the tokens `chunk` of the call in a layer. All threads call it.
  void run(int me, int threads, int64_t layer, const Attention& attention, Span chunk, float* scores) {
    const int64_t source = attention.source;
    const Layer here{attention,
                     cache_.keys.data[source].data,
                     cache_.values.data[source].data,
                     input_width(attention),
                     attention.heads / attention.kv_heads,
                     source == layer};
    if (cache_.half)
      run_in<uint16_t>(me, threads, here, chunk, scores);
    else
      run_in<float>(me, threads, here, chunk, scores);
    if (!attention.latent.rank) return;
    const int64_t tokens = chunk.last - chunk.first, heads = attention.heads;
    float* own = values_.data() + me * size_;
    const Span part = share(tokens * heads, me, threads);
    for (int64_t n = part.first; n < part.last; ++n)
      latents_.expand(attention, n / heads, n % heads, mixed(threads, attention, n / heads, n % heads, own));
    barrier_.wait();
  }

  // Copy the result for token `i` of the chunk; with few tokens, merge the threads' parts.
  void read(int threads, const Attention& attention, int64_t i, float* out) const {
    if (attention.latent.rank) return latents_.read(attention, i, out);
    const int64_t size = attention.value_size, width = attention.heads * size;
    if (!few_) {
      std::memcpy(out, mixed_.data() + i * width, width * 4);
      return;
    }
    for (int64_t h = 0; h < attention.heads; ++h) mixed(threads, attention, i, h, out + h * size);
  }

 private:
  // What `run` knows of one layer.
  struct Layer {
    const Attention& attention;
    void *keys, *values;
    int64_t width;  // of a token's inputs
    int64_t group;  // query heads that share a key-value head
    bool appends;   // keys and values to the cache
  };

  // Return the values that head h of token i of the chunk has mixed; with few tokens, merged in `out`.
  const float* mixed(int threads, const Attention& attention, int64_t i, int64_t h, float* out) const {
    const int64_t size = attention.value_size, stride = chunk_ * heads_;
    if (!few_) return mixed_.data() + (i * attention.heads + h) * size;
    const Part* parts = parts_.data() + i * heads_ + h;
    float most = attention.sinks.data ? attention.sinks.data[h] : -std::numeric_limits<float>::infinity();
    for (int n = 0; n < threads; ++n)
      if (parts[n * stride].sum != 0) most = std::max(parts[n * stride].most, most);
    float sum = attention.sinks.data ? std::exp(attention.sinks.data[h] - most) : 0.f;
    for (int n = 0; n < threads; ++n)
      if (parts[n * stride].sum != 0) sum += parts[n * stride].sum * std::exp(parts[n * stride].most - most);
    bool add = false;
    for (int n = 0; n < threads; ++n) {
      const Part part = parts[n * stride];
      if (part.sum == 0) continue;
      scale(mixed_.data() + (n * chunk_ + i) * width_ + h * size, std::exp(part.most - most) / sum, size, add,
            out);
      add = true;
    }
    return out;
  }

  const Cache& cache_;
  const Call& call_;
  const int64_t chunk_;  // tokens that the buffers hold
  const bool few_;
  Barrier& barrier_;
  const int64_t heads_, width_;  // the most of any layer
  const Memory<float> inputs_;
  const Memory<float> mixed_;  // (tokens, width) values weighted by attention; with few tokens, per thread
  // For each thread: with few tokens (tokens, heads), otherwise (query heads of a group).
  const Memory<Part> parts_;
  const Memory<Moments> whole_;  // (2, tokens) of norms over whole projections: queries, keys
  const int64_t size_;
  const Memory<float> values_;  // of one head, per thread
  Latents latents_;
  std::atomic<int64_t> jobs_{0};

  template <class F>
  static int64_t most(const Model& model, F&& f) {
    int64_t found = 0;
    for (int64_t l = 0; l < model.layers; ++l)
      found = std::max<int64_t>(found, f(model.blocks.data[l].attention));
    return found;
  }

  // Where the keys or values `layer` of a key-value head begin, of `size` each, for the sequence of token t.
  template <class T>
  T* held(void* layer, const Attention& attention, int64_t t, int64_t kv, int64_t size) const {
    return static_cast<T*>(layer) + (t / call_.tokens * attention.kv_heads + kv) * cache_.capacity * size;
  }

  template <class T>
  void run_in(int me, int threads, const Layer& here, Span chunk, float* scores) {
    if (me == 0) jobs_ = 0;
    if (here.attention.latent.rank)
      append_latents<T>(me, threads, here, chunk);
    else
      append<T>(me, threads, here, chunk);
    barrier_.wait();
    if (few_)
      attend_some<T>(me, threads, here, scores);
    else
      attend_all<T>(me, here, chunk, scores);
    barrier_.wait();
  }

  // Make the heads ready, and append keys and values to the cache, unless the layer reads those of another.
  template <class T>
  void append(int me, int threads, const Layer& here, Span chunk) {
    const Attention& a = here.attention;
    const Rotation* rotation = a.rotation < 0 ? nullptr : call_.rotations.data + a.rotation;
    const int64_t size = a.head_size, all = a.heads + (here.appends ? a.kv_heads : 0),
                  tokens = chunk.last - chunk.first;
    const HeadKind queries(a, a.queries, a.query_norm, here.group, a.scale,
                           rotation ? rotation->scales.data : nullptr, rotation, whole_.data());
    const HeadKind keys(a, a.keys, a.key_norm, 1, 1.f, nullptr, rotation, whole_.data() + chunk_);
    float* own = values_.data() + me * size_;
    if (queries.is_whole() || keys.is_whole()) {
      const Span part = share(tokens, me, threads);
      for (int64_t i = part.first; i < part.last; ++i)
        for (const HeadKind* kind : {&queries, &keys})
          if (kind->is_whole()) kind->measure(i, inputs_.data() + i * here.width);
      barrier_.wait();
    }
    const Span part = share(tokens * all, me, threads);
    for (int64_t n = part.first; n < part.last; ++n) {
      const int64_t i = n / all, h = n % all, t = chunk.first + i, place = slot_of(call_, t),
                    position = position_of(call_, t);
      float* row = inputs_.data() + i * here.width;
      if (h < a.heads) {
        queries.ready(i, h, position, row);
        continue;
      }
      const int64_t kv = h - a.heads;
      const float* v = row + a.values.first + kv * a.values.step;
      T* to_keys = held<T>(here.keys, a, t, kv, size) + place / 8 * 8 * size + place % 8;
      T* to_values = held<T>(here.values, a, t, kv, a.value_size) + place * a.value_size;
      if (a.value_norm.kind != kNoNorm) {
        normalize(a.value_norm, v, own);
        v = own;
      }
      for (int64_t d = 0; d < a.value_size; ++d)
        store1(to_values + d, v[d]);  // before the keys, which it may be
      const float* k = keys.ready(i, kv, position, row);
      for (int64_t d = 0; d < size; ++d) store1(to_keys + 8 * d, k[d]);
    }
  }

  // The same for attention over latents.
  template <class T>
  void append_latents(int me, int threads, const Layer& here, Span chunk) {
    const Attention& a = here.attention;
    const Rotation& rotation = call_.rotations.data[a.rotation];
    const int64_t rank = a.latent.rank, size = a.head_size, all = a.heads + 1,
                  tokens = chunk.last - chunk.first;
    float* own = values_.data() + me * size_;
    const Span part = share(tokens * all, me, threads);
    for (int64_t n = part.first; n < part.last; ++n) {
      const int64_t i = n / all, h = n % all, t = chunk.first + i, place = slot_of(call_, t),
                    position = position_of(call_, t);
      const float *row = inputs_.data() + i * here.width, *c = row + a.keys.first;
      if (h < a.heads) {
        latents_.seek(a, i, h, row, rotation, position);
        continue;
      }
      if (a.latent.norm.kind == kNoNorm)
        std::memcpy(own, c, rank * 4);
      else
        normalize(a.latent.norm, c, own);
      Latents::turn(c + rank, a.latent.rotated, rotation, position, 1.f, own + rank);
      T* to_keys = held<T>(here.keys, a, t, 0, size) + place / 8 * 8 * size + place % 8;
      T* to_values = held<T>(here.values, a, t, 0, rank) + place * rank;
      for (int64_t d = 0; d < size; ++d) store1(to_keys + 8 * d, own[d]);
      for (int64_t d = 0; d < rank; ++d) store1(to_values + d, own[d]);
    }
  }

  // The slots that a token attends to: first … last − 1.
  Span seen(int64_t t, int64_t window) const {
    const int64_t last = slot_of(call_, t) + 1,
                  first =
                      std::min(start_of(call_, t), last - 1);  // padding attends to itself, to stay finite
    return {window ? std::max(first, last - window) : first, last};
  }

  // Attention over `slots` of the query heads of token t, number i of its chunk, that share a key-value head.
  template <class T>
  void attend_group(const Layer& here, int64_t t, int64_t i, int64_t kv, Span slots, float* scores,
                    float* out, Part* parts) const {
    const Attention& a = here.attention;
    const float* q = a.latent.rank ? latents_.seeking(a, i)
                                   : inputs_.data() + i * here.width + a.queries.first + kv * a.queries.step;
    attend(here.group, q, held<const T>(here.keys, a, t, kv, a.head_size),
           held<const T>(here.values, a, t, kv, a.value_size), a.head_size, a.value_size, slots.first,
           slots.last, a.cap, scores, cache_.capacity + 16, out + kv * here.group * a.value_size, parts);
  }

  // Many tokens: one key-value head after another, so that it stays in the processor's cache. Later tokens
  // attend to more slots, so they come first.
  template <class T>
  void attend_all(int me, const Layer& here, Span chunk, float* scores) {
    const Attention& a = here.attention;
    const int64_t size = a.value_size, tokens = chunk.last - chunk.first, width = a.heads * size;
    Part* parts = parts_.data() + me * heads_;
    for (int64_t job; (job = jobs_.fetch_add(1)) < tokens * a.kv_heads;) {
      const int64_t kv = job / tokens, i = tokens - 1 - job % tokens, t = chunk.first + i;
      attend_group<T>(here, t, i, kv, seen(t, a.window), scores, mixed_.data() + i * width, parts);
      float* out = mixed_.data() + i * width + kv * here.group * size;
      for (int64_t h = 0; h < here.group; ++h) {
        const float* sink = a.sinks.data ? a.sinks.data + kv * here.group + h : nullptr;
        scale(out + h * size, share_of(parts[h], sink), size, false, out + h * size);
      }
    }
  }

  // The factor that turns a part over all positions into attention.
  static float share_of(Part part, const float* sink) {
    if (!sink) return 1.f / part.sum;
    const float most = std::max(part.most, *sink), factor = std::exp(part.most - most);
    return factor / (part.sum * factor + std::exp(*sink - most));
  }

  // Few tokens: every thread reads an equal part of the key-value cache, regardless of where heads begin and
  // end.
  template <class T>
  void attend_some(int me, int threads, const Layer& here, float* scores) {
    constexpr int64_t kUnit = 16;  // slots
    const int64_t window = here.attention.window, kv_heads = here.attention.kv_heads;
    Part* parts = parts_.data() + me * chunk_ * heads_;
    std::fill(parts, parts + chunk_ * heads_, Part{0, 0});
    auto units = [&](int64_t t) {
      return (seen(t, window).last + kUnit - 1) / kUnit - seen(t, window).first / kUnit;
    };
    int64_t all = 0, at = 0;
    for (int64_t t = 0; t < chunk_; ++t) all += units(t) * kv_heads;
    const Span mine = share(all, me, threads);
    for (int64_t t = 0; t < chunk_; ++t) {
      const Span slots = seen(t, window);
      for (int64_t kv = 0, n = units(t); kv < kv_heads; ++kv, at += n) {
        const int64_t from = std::max(mine.first, at) - at, to = std::min(mine.last, at + n) - at,
                      base = slots.first / kUnit;
        if (from >= to) continue;
        const Span some{std::max(slots.first, (base + from) * kUnit),
                        std::min(slots.last, (base + to) * kUnit)};
        attend_group<T>(here, t, t, kv, some, scores, mixed_.data() + (me * chunk_ + t) * width_,
                        parts + t * heads_ + kv * here.group);
      }
    }
  }
};

}  // namespace qcore
