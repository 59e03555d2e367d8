// Attention of a call's tokens over the cache: heads are rotated, keys and values written, then every token meets the slots it sees.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "x86/attention_avx2.h"
#include "common/decoder.h"
#include "x86/threads.h"

namespace qcore {

class CachedAttention {
 public:
  // `few`: the cache is read once for all tokens, and each thread keeps its part of the result until it is read.
  CachedAttention(const Model& model, const Cache& cache, const Call& call, int threads, bool few, Barrier& barrier)
      : model_(model), cache_(cache), call_(call), tokens_(call.sequences * call.tokens), threads_(threads), few_(few), barrier_(barrier),
        q_width_(model.heads * model.head_size), kv_width_(model.kv_heads * model.head_size), query_(tokens_ * q_width_), key_(tokens_ * kv_width_),
        value_(tokens_ * kv_width_), mixed_(tokens_ * q_width_ * (few ? threads : 1)), parts_(few ? threads * tokens_ * model.heads : 0) {}

  // Where the projections write, (tokens, width) each.
  float* query() { return query_.data(); }
  float* key() { return key_.data(); }
  float* value() { return value_.data(); }

  // Floats that each thread needs for `run`.
  int64_t scratch() const { return 3 * (cache_.capacity + 16); }

  void run(int me, int64_t layer, float* scores) {
    if (cache_.half)
      run_in<uint16_t>(me, layer, scores);
    else
      run_in<float>(me, layer, scores);
  }

  // What attention gives for a token: with few tokens, the threads' parts joined.
  void read(int64_t t, float* out) const {
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

 private:
  const Model& model_;
  const Cache& cache_;
  const Call& call_;
  const int64_t tokens_;
  const int threads_;
  const bool few_;
  Barrier& barrier_;
  const int64_t q_width_, kv_width_;
  std::vector<float> query_, key_, value_;
  std::vector<float> mixed_;  // values weighted by attention; with few tokens one (tokens, width) for each thread, and its
  std::vector<Part> parts_;   // (tokens, heads)
  std::atomic<int64_t> jobs_{0};

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
  void run_in(int me, int64_t layer, float* scores) {
    const Block& block = model_.blocks[layer];
    if (me == 0) jobs_ = 0;
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
      attend_some<T>(me, layer, block.window, scores);
    else
      attend_all<T>(layer, block.window, scores);
    barrier_.wait();
  }

  // The slots that a token meets: first … last − 1.
  Span seen(int64_t t, int64_t window) const {
    const int64_t last = slot(t) + 1, first = std::min(start(t), last - 1);  // padding meets itself, so that it stays finite
    return {window ? std::max(first, last - window) : first, last};
  }

  // A token's query heads that share a key-value head, over some slots.
  template <class T>
  void attend_group(int64_t layer, int64_t t, int64_t kv, Span slots, float* scores, float* out, Part* parts) const {
    const int64_t size = model_.head_size, group = model_.heads / model_.kv_heads;
    attend(group, query_.data() + t * q_width_ + kv * group * size, held<const T>(cache_.keys, layer, t, kv), held<const T>(cache_.values, layer, t, kv), size,
           slots.first, slots.last, scores, cache_.capacity + 16, out + (t * model_.heads + kv * group) * size, parts);
  }

  // Many tokens: one key-value head after the other, so that it stays in the cache; later tokens are more work, so they come first.
  template <class T>
  void attend_all(int64_t layer, int64_t window, float* scores) {
    const int64_t size = model_.head_size, group = model_.heads / model_.kv_heads;
    std::vector<Part> parts(group);
    for (int64_t job; (job = jobs_.fetch_add(1)) < tokens_ * model_.kv_heads;) {
      const int64_t kv = job / tokens_, t = tokens_ - 1 - job % tokens_;
      attend_group<T>(layer, t, kv, seen(t, window), scores, mixed_.data(), parts.data());
      float* out = mixed_.data() + t * q_width_ + kv * group * size;
      for (int64_t h = 0; h < group; ++h) scale(out + h * size, 1.f / parts[h].sum, size, false, out + h * size);
    }
  }

  // Few tokens: the cache is read once from memory, and each thread reads as much of it as the others, wherever a head begins or ends.
  template <class T>
  void attend_some(int me, int64_t layer, int64_t window, float* scores) {
    constexpr int64_t kUnit = 16;  // slots
    const int64_t group = model_.heads / model_.kv_heads;
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
};

}  // namespace qcore
