// The products before and after attention over latents, see `Latent`: queries by K_h, results by V_h.
#pragma once
#include <algorithm>
#include <cstring>

#include "x86/heads.h"
#include "x86/products.h"

namespace qcore {

class Latents {
 public:
  // Buffers for chunks of at most `chunk` tokens.
  Latents(const Model& model, int64_t chunk)
      : queries_(chunk * most(model, [](const Attention& a) { return a.latent.queries.rows; })),
        seeking_(chunk * most(model, [](const Attention& a) { return a.heads * a.head_size; })),
        results_(chunk * most(model, [](const Attention& a) { return a.heads * a.latent.values; })) {}

  bool ok() const { return queries_ && seeking_ && results_; }

  // The query heads (heads, rank + rotated) of token i of the chunk.
  const float* seeking(const Attention& a, int64_t i) const {
    return seeking_.data() + i * a.heads * a.head_size;
  }

  // Compute the queries of a layer from its first input, unless they are that; rows of `inputs` lie `width`
  // floats apart. All threads call it.
  void project(int me, int threads, int64_t tokens, const Attention& a, const float* inputs, int64_t width,
               const Own& own, Products& products) {
    const Projection& queries = a.latent.queries;
    if (!queries.rows) return;
    const Projection* all[] = {&queries};
    const Target to{queries_.data(), queries.rows};
    products.project(me, threads, tokens, all, &to, 1, own, [&](int64_t i, float* out, bool) {
      if (a.latent.query_norm.kind == kNoNorm)
        std::memcpy(out, inputs + i * width, queries.columns * 4);
      else
        normalize(a.latent.query_norm, inputs + i * width, out);
    });
  }

  // Make head h of the queries of token i, whose inputs are `row`, ready for attention from `position`.
  void seek(const Attention& a, int64_t i, int64_t h, const float* row, const Rotation& rotation,
            int64_t position) const {
    const Latent& latent = a.latent;
    const int64_t size = latent.plain + latent.rotated;
    const float* q = (latent.queries.rows ? queries_.data() + i * latent.queries.rows : row) + h * size;
    const float* k = latent.matrices.data + h * (latent.plain + latent.values) * latent.rank;
    float* out = seeking_.data() + (i * a.heads + h) * a.head_size;
    const float factor = rotation.scales.data ? a.scale * rotation.scales.data[position] : a.scale;
    for (int64_t n = 0; n < latent.rank; n += 32) {  // a multiple of 8
      const int64_t count = std::min<int64_t>(32, latent.rank - n) / 8;
      __m256 sum[4] = {};
      for (int64_t d = 0; d < latent.plain; ++d) {
        const __m256 x = _mm256_set1_ps(q[d] * factor);
        for (int64_t v = 0; v < count; ++v)
          sum[v] = _mm256_fmadd_ps(x, _mm256_loadu_ps(k + d * latent.rank + n + 8 * v), sum[v]);
      }
      for (int64_t v = 0; v < count; ++v) _mm256_storeu_ps(out + n + 8 * v, sum[v]);
    }
    turn(q + latent.plain, latent.rotated, rotation, position, factor, out + latent.rank);
  }

  // Rotate x into `out`, whose pairs lie half its size apart, whatever the order in x.
  static void turn(const float* x, int64_t size, const Rotation& rotation, int64_t position, float factor,
                   float* out) {
    const int64_t half = size / 2, next = rotation.interleaved ? 1 : half,
                  step = rotation.interleaved ? 2 : 1;
    const float *cosine = rotation.cosines.data + position * half,
                *sine = rotation.sines.data + position * half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[i * step], b = x[i * step + next];
      out[i] = (a * cosine[i] - b * sine[i]) * factor;
      out[half + i] = (b * cosine[i] + a * sine[i]) * factor;
    }
  }

  // Multiply the result (rank) of attention of head h of token i by V_h.
  void expand(const Attention& a, int64_t i, int64_t h, const float* mixed) const {
    const Latent& latent = a.latent;
    const float* v = latent.matrices.data + (h * (latent.plain + latent.values) + latent.plain) * latent.rank;
    float* out = results_.data() + (i * a.heads + h) * latent.values;
    for (int64_t n = 0; n < latent.values; n += 4)  // a multiple of 8
      dot4(mixed, v + n * latent.rank, latent.rank, latent.rank, out + n);
  }

  // Copy the values of all heads of token i.
  void read(const Attention& a, int64_t i, float* out) const {
    const int64_t width = a.heads * a.latent.values;
    std::memcpy(out, results_.data() + i * width, width * 4);
  }

 private:
  const Memory<float> queries_;  // (tokens, heads * (plain + rotated))
  const Memory<float> seeking_;  // (tokens, heads, rank + rotated)
  const Memory<float> results_;  // (tokens, heads, values)

  template <class F>
  static int64_t most(const Model& model, F&& f) {
    int64_t found = 0;
    for (int64_t l = 0; l < model.layers; ++l) {
      const Attention& attention = model.blocks.data[l].attention;
      if (attention.latent.rank) found = std::max<int64_t>(found, f(attention));
    }
    return found;
  }
};

}  // namespace qcore
