// The part of a block that depends on the token itself, see `TokenPart`.
#pragma once
#include <algorithm>
#include <cstring>

#include "x86/functions_avx2.h"
#include "x86/norms_avx2.h"
#include "x86/products.h"

namespace qcore {

// The columns first … first + n − 1 of a row of a table.
inline void look_up(const Projection& table, int64_t row, int64_t first, int64_t n, float* out) {
  if (table.packed)
    read_row(*table.packed, row, first, first + n, out);
  else
    std::memcpy(out, table.dense.data + row * table.columns + first, n * 4);
}

class TokenParts {
 public:
  // Buffers for chunks of at most `chunk` tokens.
  TokenParts(const Model& model, const Call& call, int64_t chunk, Products& products)
      : model_(model), call_(call), products_(products), gate_(chunk * width(model)),
        mix_(chunk * width(model)) {}

  bool ok() const { return gate_ && mix_; }

  // The floats of the widest part.
  static int64_t width(const Model& model) {
    int64_t most = 0;
    for (int64_t l = 0; l < model.layers; ++l) most = std::max(most, model.blocks.data[l].token.gate.rows);
    return most;
  }

  // Compute `part` for the tokens from number `first` of the call on. `stream(i, out, again)` and
  // `embedded(i, out, again)` compute inputs as for `Products`. All threads call it, and return when all rows
  // of `to` are stored.
  template <class Stream, class Embedded>
  void run(int me, int threads, int64_t first, int64_t tokens, const TokenPart& part, const Own& own,
           Stream&& stream, Embedded&& embedded, const Target& to) {
    const int64_t width = part.gate.rows;
    const Projection *gate[] = {&part.gate}, *mix[] = {&part.mix}, *down[] = {&part.down};
    const Target to_gate{gate_.data(), width}, to_mix{mix_.data(), width};
    products_.project(me, threads, tokens, gate, &to_gate, 1, own, stream, false);
    products_.project(me, threads, tokens, mix, &to_mix, 1, own, embedded);
    products_.project(me, threads, tokens, down, &to, 1, own,
                      [&](int64_t i, float* out, bool) { read(part, first + i, i, own.spare, out); });
  }

 private:
  const Model& model_;
  const Call& call_;
  Products& products_;
  const Memory<float> gate_, mix_;  // (tokens, width)

  // The input of `down` for token t of the call, number i of its chunk. `row` has room for the width.
  void read(const TokenPart& part, int64_t t, int64_t i, float* row, float* out) const {
    const int64_t width = part.gate.rows;
    const float *gate = gate_.data() + i * width, *mix = mix_.data() + i * width;
    float scale = model_.token_scale;
    if (call_.embeds.data) {
      std::memcpy(row, call_.token_rows.data + t * model_.token_rows.columns + part.first, width * 4);
      scale = 1.f;
    } else {
      look_up(model_.token_rows, call_.ids.data[t], part.first, width, row);
    }
    if (part.norm.kind == kNoNorm)
      std::memcpy(out, mix, width * 4);
    else
      normalize(part.norm, mix, out);
    const __m256 factor = _mm256_set1_ps(part.scale), own = _mm256_set1_ps(scale);
    for (int64_t n = 0; n < width; n += 8) {  // a multiple of 8
      const __m256 sum = _mm256_fmadd_ps(own, _mm256_loadu_ps(row + n), _mm256_loadu_ps(out + n));
      const __m256 act = activate(part.activation, _mm256_loadu_ps(gate + n));
      _mm256_storeu_ps(out + n, _mm256_mul_ps(act, _mm256_mul_ps(sum, factor)));
    }
  }
};

}  // namespace qcore
