// Attention of a call's tokens over the key-value cache: rotates the heads, appends keys and values to the
// cache, and lets every token attend to the slots that it may see.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/decoder.h"
#include "x86/attention_avx2.h"
#include "x86/threads.h"

namespace qcore {

class CachedAttention {
 public:
  // With `few` tokens, the threads divide the cache among them, and each keeps its part of the result until
  // `read`. Otherwise they divide the tokens, which come in chunks of at most `chunk`.
  CachedAttention(const Model& model, const Cache& cache, const Call& call, int most_threads, int64_t chunk,
                  bool few, Barrier& barrier)
      : model_(model), cache_(cache), call_(call), chunk_(chunk), few_(few), barrier_(barrier),
        q_width_(model.heads * model.head_size), kv_width_(model.kv_heads * model.head_size),
        query_(chunk * q_width_), key_(chunk * kv_width_), value_(chunk * kv_width_),
        mixed_(chunk * q_width_ * (few ? most_threads : 1)),
        parts_((few ? chunk * model.heads : group()) * most_threads) {}

  bool ok() const { return query_ && key_ && value_ && mixed_ && parts_; }

  // The outputs of the projections, (tokens of the chunk, width) each.
  float* query() { return query_.data(); }
  float* key() { return key_.data(); }
  float* value() { return value_.data(); }

  // The floats of working memory that `run` needs per thread.
  static int64_t scratch(const Cache& cache) { return 3 * (cache.capacity + 16); }

  // Attention of the tokens `chunk` of the call. All threads call it.
  void run(int me, int threads, int64_t layer, Span chunk, float* scores) {
    if (cache_.half)
      run_in<uint16_t>(me, threads, layer, chunk, scores);
    else
      run_in<float>(me, threads, layer, chunk, scores);
  }

  // Copy the result for token `i` of the chunk; with few tokens, merge the threads' parts.
  void read(int threads, int64_t i, float* out) const {
    if (!few_) {
      std::memcpy(out, mixed_.data() + i * q_width_, q_width_ * 4);
      return;
    }
    const int64_t size = model_.head_size, stride = chunk_ * model_.heads;
    for (int64_t h = 0; h < model_.heads; ++h) {
      const Part* parts = parts_.data() + i * model_.heads + h;
      float most = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int n = 0; n < threads; ++n)
        if (parts[n * stride].sum != 0) most = std::max(parts[n * stride].most, most);
      for (int n = 0; n < threads; ++n)
        if (parts[n * stride].sum != 0)
          sum += parts[n * stride].sum * std::exp(parts[n * stride].most - most);
      bool add = false;
      for (int n = 0; n < threads; ++n) {
        const Part part = parts[n * stride];
        if (part.sum == 0) continue;
        scale(mixed_.data() + (n * chunk_ + i) * q_width_ + h * size, std::exp(part.most - most) / sum, size,
              add, out + h * size);
        add = true;
      }
    }
  }

 private:
  const Model& model_;
  const Cache& cache_;
  const Call& call_;
  const int64_t chunk_;  // tokens that the buffers hold
  const bool few_;
  Barrier& barrier_;
  const int64_t q_width_, kv_width_;
  Memory<float> query_, key_, value_;
  Memory<float> mixed_;  // (tokens, width) values weighted by attention; with few tokens, for each thread
  // For each thread: with few tokens (tokens, heads), otherwise (query heads of a group).
  Memory<Part> parts_;
  std::atomic<int64_t> jobs_{0};

  int64_t group() const { return model_.heads / model_.kv_heads; }  // query heads that share a key-value head

  // The slot of a token in the cache, and the first slot of its sequence that is not padding.
  int64_t slot(int64_t t) const { return call_.position + t % call_.tokens; }
  int64_t start(int64_t t) const { return call_.starts.data ? call_.starts.data[t / call_.tokens] : 0; }

  // Normalize (Qwen3) and rotate a head: a and b of its two halves become a cos − b sin and b cos + a sin.
  void rotate(float* x, int64_t position, const float* weight, float scale) const {
    const int64_t half = model_.head_size / 2;
    if (weight) rms_norm(x, weight, model_.norm_offset, model_.epsilon, model_.head_size, x);
    const float *cosine = call_.cosines.data + position * half, *sine = call_.sines.data + position * half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      x[i] = (a * cosine[i] - b * sine[i]) * scale;
      x[half + i] = (b * cosine[i] + a * sine[i]) * scale;
    }
  }

  // The keys or values of a key-value head, for the sequence of token t.
  template <class T>
  T* held(const Buffer<const Buffer<void>>& layers, int64_t layer, int64_t t, int64_t kv) const {
    return static_cast<T*>(layers.data[layer].data) +
           (t / call_.tokens * model_.kv_heads + kv) * cache_.capacity * model_.head_size;
  }

  template <class T>
  void run_in(int me, int threads, int64_t layer, Span chunk, float* scores) {
    const Block& block = model_.blocks.data[layer];
    if (me == 0) jobs_ = 0;
    const int64_t size = model_.head_size, all = model_.heads + model_.kv_heads;
    const Span part = share((chunk.last - chunk.first) * all, me, threads);
    for (int64_t n = part.first; n < part.last; ++n) {
      const int64_t i = n / all, h = n % all, t = chunk.first + i, place = slot(t),
                    position = std::max<int64_t>(0, place - start(t));
      if (h < model_.heads) {
        rotate(query_.data() + i * q_width_ + h * size, position, block.query_norm.data,
               model_.attention_scale);
        continue;
      }
      const int64_t kv = h - model_.heads;
      float* k = key_.data() + i * kv_width_ + kv * size;
      const float* v = value_.data() + i * kv_width_ + kv * size;
      rotate(k, position, block.key_norm.data, 1.f);
      T* keys = held<T>(cache_.keys, layer, t, kv) + place / 8 * 8 * size + place % 8;
      T* values = held<T>(cache_.values, layer, t, kv) + place * size;
      for (int64_t d = 0; d < size; ++d) {
        store1(keys + 8 * d, k[d]);
        store1(values + d, v[d]);
      }
    }
    barrier_.wait();
    if (few_)
      attend_some<T>(me, threads, layer, block.window, scores);
    else
      attend_all<T>(me, layer, chunk, block.window, scores);
    barrier_.wait();
  }

  // The slots that a token attends to: first … last − 1.
  Span seen(int64_t t, int64_t window) const {
    const int64_t last = slot(t) + 1,
                  first = std::min(start(t), last - 1);  // padding attends to itself, to stay finite
    return {window ? std::max(first, last - window) : first, last};
  }

  // Attention over `slots` of the query heads of token t that share a key-value head; `q` are the token's
  // queries.
  template <class T>
  void attend_group(int64_t layer, int64_t t, int64_t kv, Span slots, const float* q, float* scores,
                    float* out, Part* parts) const {
    const int64_t size = model_.head_size;
    attend(group(), q + kv * group() * size, held<const T>(cache_.keys, layer, t, kv),
           held<const T>(cache_.values, layer, t, kv), size, slots.first, slots.last, scores,
           cache_.capacity + 16, out + kv * group() * size, parts);
  }

  // Many tokens: one key-value head after another, so that it stays in the processor's cache. Later tokens
  // attend to more slots, so they come first.
  template <class T>
  void attend_all(int me, int64_t layer, Span chunk, int64_t window, float* scores) {
    const int64_t size = model_.head_size, tokens = chunk.last - chunk.first;
    Part* parts = parts_.data() + me * group();
    for (int64_t job; (job = jobs_.fetch_add(1)) < tokens * model_.kv_heads;) {
      const int64_t kv = job / tokens, i = tokens - 1 - job % tokens, t = chunk.first + i;
      attend_group<T>(layer, t, kv, seen(t, window), query_.data() + i * q_width_, scores,
                      mixed_.data() + i * q_width_, parts);
      float* out = mixed_.data() + i * q_width_ + kv * group() * size;
      for (int64_t h = 0; h < group(); ++h)
        scale(out + h * size, 1.f / parts[h].sum, size, false, out + h * size);
    }
  }

  // Few tokens: every thread reads an equal part of the key-value cache, regardless of where heads begin and
  // end.
  template <class T>
  void attend_some(int me, int threads, int64_t layer, int64_t window, float* scores) {
    constexpr int64_t kUnit = 16;  // slots
    Part* parts = parts_.data() + me * chunk_ * model_.heads;
    std::fill(parts, parts + chunk_ * model_.heads, Part{0, 0});
    auto units = [&](int64_t t) {
      return (seen(t, window).last + kUnit - 1) / kUnit - seen(t, window).first / kUnit;
    };
    int64_t all = 0, at = 0;
    for (int64_t t = 0; t < chunk_; ++t) all += units(t) * model_.kv_heads;
    const Span mine = share(all, me, threads);
    for (int64_t t = 0; t < chunk_; ++t) {
      const Span slots = seen(t, window);
      for (int64_t kv = 0, n = units(t); kv < model_.kv_heads; ++kv, at += n) {
        const int64_t from = std::max(mine.first, at) - at, to = std::min(mine.last, at + n) - at,
                      base = slots.first / kUnit;
        if (from >= to) continue;
        const Span some{std::max(slots.first, (base + from) * kUnit),
                        std::min(slots.last, (base + to) * kUnit)};
        attend_group<T>(layer, t, kv, some, query_.data() + t * q_width_, scores,
                        mixed_.data() + (me * chunk_ + t) * q_width_,
                        parts + t * model_.heads + kv * group());
      }
    }
  }
};

}  // namespace qcore
