// Matrix products of a step, whose threads it divides among the rows of a weight.
#pragma once
#include <algorithm>
#include <atomic>
#include <optional>

#include "common/decoder.h"
#include "common/linear.h"
#include "x86/threads.h"

namespace qcore {

// The working memory of one thread.
struct Own {
  float* rows;           // the inputs of a tile
  float* spare;          // (2, hidden), or more
  float* stream;         // (tokens, hidden) with few tokens: the thread's own residual stream
  float* scores;         // of attention
  uint8_t* activations;  // the inputs as the kernels read them
  uint8_t* others;       // the same for `up`, if it needs another layout than `gate`
};

// Where a product is stored: rows of one token each, `stride` floats apart.
struct Target {
  float* rows;
  int64_t stride;
};

// The floats of `Own::rows`, and the bytes of activations: the most that any projection needs.
struct Sizes {
  int64_t rows, activations;
  Sizes(const Model& model, int64_t tokens, bool few) : rows(model.hidden), activations(0) {
    const auto add = [&](const Projection& p, int64_t n, bool alone) {
      rows = std::max(rows, p.columns);
      if (p.packed) activations = std::max(activations, Activations::bytes(*p.packed, p.mode, n, alone));
    };
    for (int64_t l = 0; l < model.layers; ++l)
      each_projection(model.blocks.data[l], [&](const Projection& p) { add(p, tokens, few); });
    add(model.head, 1, true);
    rows *= kTile;
  }
};

// Return whether two projections of the same input read the same activations.
inline bool alike(const Projection& a, const Projection& b) {
  return a.mode == b.mode && a.packed->kind == b.packed->kind && a.packed->blocks == b.packed->blocks &&
         Activations::sums(*a.packed, a.mode) == Activations::sums(*b.packed, b.mode) &&
         Activations::shared_blocks(*a.packed, a.mode) == Activations::shared_blocks(*b.packed, b.mode);
}

class Products {
 public:
  // With `few` tokens, all fit in one tile: codes are read once, and every thread prepares its activations.
  Products(const Sizes& sizes, bool few, Barrier& barrier)
      : few_(few), barrier_(barrier), shared_(few ? 0 : sizes.activations) {}

  bool ok() const { return bool(shared_); }
  bool few() const { return few_; }

  // Multiply `count` projections by the same input of `tokens` tokens. `input(i, out, again)` computes its
  // row i; with `again`, it must not change the residual stream a second time. All threads call it, and
  // return when all products are stored; with few tokens, only if they `meet`.
  template <class Input>
  void project(int me, int threads, int64_t tokens, const Projection* const* projections, const Target* to,
               int count, const Own& own, Input&& input, bool meet = true) {
    if (few_) {
      const int64_t columns = projections[0]->columns;
      for (int64_t t = 0; t < tokens; ++t) input(t, own.rows + t * columns, false);
      std::optional<Activations> x;
      for (int i = 0; i < count; ++i) {
        const Projection& p = *projections[i];
        prepare(x, i ? projections[i - 1] : nullptr, p, tokens, own.rows, own.activations);
        const Span part = share(panel_count(*p.packed), me, threads);
        few_panels(*p.packed, p.mode, *x, int(tokens), part.first, part.last, p.bias.data, to[i].rows,
                   to[i].stride);
      }
      if (meet) barrier_.wait();
      return;
    }
    for (int i = 0; i < count; ++i) {
      const Projection& p = *projections[i];
      if (i == 0 || !alike(p, *projections[i - 1])) fill(me, tokens, p, own, input, i > 0);
      multiply(me, p, to[i]);
    }
  }

  // Few tokens: quantize `rows` for `p`, unless that has been done for the projection `before` it.
  static void prepare(std::optional<Activations>& x, const Projection* before, const Projection& p,
                      int64_t tokens, const float* rows, uint8_t* memory) {
    if (before && alike(*before, p)) return;
    x.emplace(*p.packed, p.mode, tokens, true, memory);
    x->fill(0, rows, p.columns, p.columns);
  }

 private:
  const bool few_;
  Barrier& barrier_;
  const Memory<uint8_t> shared_;
  std::optional<Activations> input_;  // shared by all threads
  std::atomic<int64_t> jobs_{0}, tiles_{0};

  // Fill the tiles of the shared activations on all threads. `again`: the input has been computed before.
  template <class Input>
  void fill(int me, int64_t tokens, const Projection& p, const Own& own, Input&& input, bool again) {
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

  void multiply(int me, const Projection& p, const Target& to) {
    const int64_t pairs = (panel_count(*p.packed) + 1) / 2, at_once = kTokensAtOnce / kTile,
                  tiles = input_->tiles();
    Stretch stretch;
    for (int64_t job; (job = jobs_.fetch_add(1)) < pairs * ((tiles + at_once - 1) / at_once);) {
      const int64_t first = job / pairs * at_once;
      many_pair(*p.packed, p.mode, *input_, first, std::min(first + at_once, tiles), job % pairs, p.bias.data,
                to.rows, to.stride, stretch);
    }
    barrier_.wait();
    if (me == 0) jobs_ = 0;
    barrier_.wait();
  }
};

}  // namespace qcore
