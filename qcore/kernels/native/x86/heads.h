// Heads between their projection and attention: normalized, rotated and scaled in place.
#pragma once
#include <algorithm>

#include "x86/norms_avx2.h"

namespace qcore {

// Rotate pairs of dimensions: a and b become a cos − b sin and b cos + a sin. Multiply all by `scale`.
inline void rotate(float* x, int64_t size, const Rotation* rotation, int64_t position, float scale) {
  int64_t rest = 0;
  if (rotation) {
    const int64_t half = rotation->size / 2;
    const float *cosine = rotation->cosines.data + position * half,
                *sine = rotation->sines.data + position * half;
    if (rotation->interleaved) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = (a * cosine[i] - b * sine[i]) * scale;
        x[2 * i + 1] = (b * cosine[i] + a * sine[i]) * scale;
      }
    } else {
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = (a * cosine[i] - b * sine[i]) * scale;
        x[half + i] = (b * cosine[i] + a * sine[i]) * scale;
      }
    }
    rest = rotation->size;
  }
  if (scale != 1.f)
    for (int64_t i = rest; i < size; ++i) x[i] *= scale;
}

// The heads of one kind, queries or keys, of every token of a chunk.
class HeadKind {
 public:
  // `scales`: further factors, by position, or null. `whole`: the moments (tokens) of norms over the whole
  // projection.
  HeadKind(const Attention& attention, const Heads& heads, const Norm& norm, int64_t per_group, float scale,
           const float* scales, const Rotation* rotation, Moments* whole)
      : attention_(attention), heads_(heads), norm_(norm), per_group_(per_group), scale_(scale),
        scales_(scales), rotation_(rotation), whole_(whole) {}

  bool is_whole() const { return norm_.kind != kNoNorm && norm_.width != attention_.head_size; }

  // Compute the moments of token i, whose inputs are `row`: heads of norms over the whole projection lie side
  // by side.
  void measure(int64_t i, const float* row) const {
    float squares = 0;
    for (int64_t kv = 0; kv < attention_.kv_heads; ++kv)
      squares += sum_of_squares(row + at(kv * per_group_), per_group_ * attention_.head_size);
    whole_[i] = {0.f, 1.f / std::sqrt(squares / norm_.width + norm_.epsilon)};
  }

  // Return head h of token i, ready for attention from `position`.
  float* ready(int64_t i, int64_t h, int64_t position, float* row) const {
    const int64_t size = attention_.head_size;
    const float scale = scales_ ? scale_ * scales_[position] : scale_;
    float* x = row + at(h);
    if (!attention_.norm_last) {
      apply_norm(i, h, x);
      rotate(x, size, rotation_, position, scale);
    } else {
      rotate(x, size, rotation_, position, 1.f);
      apply_norm(i, h, x);
      rotate(x, size, nullptr, position, scale);
    }
    return x;
  }

 private:
  const Attention& attention_;
  const Heads& heads_;
  const Norm& norm_;
  const int64_t per_group_;  // heads per key-value head
  const float scale_;
  const float* const scales_;
  const Rotation* const rotation_;
  Moments* const whole_;

  int64_t at(int64_t h) const {
    return heads_.first + h / per_group_ * heads_.step + h % per_group_ * attention_.head_size;
  }

  void apply_norm(int64_t i, int64_t h, float* x) const {
    if (norm_.kind == kNoNorm) return;
    const bool whole = is_whole();
    if (norm_.each.data) {
      Norm own = norm_;
      own.weight = norm_.each.data[h];
      normalize(own, moments(own, x), x, 0, attention_.head_size, x);
      return;
    }
    normalize(norm_, whole ? whole_[i] : moments(norm_, x), x,
              whole || norm_.sets > 1 ? h * attention_.head_size : 0, attention_.head_size, x);
  }
};

}  // namespace qcore
