// y = x · Wᵀ + bias: the loops around the kernels, and the plain C interface.
#include "common/linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/kernels.h"

namespace qcore {
namespace {

// Write kCount rows of a token, or what the weight has left of them.
template <int kCount>
inline void put(const Weight& w, int64_t row, const float* values, const float* bias, float* y) {
  const int n = int(std::min<int64_t>(kCount, w.rows - row));
  y += row;
  if (bias)
    for (int r = 0; r < n; ++r) y[r] = values[r] + bias[row + r];
  else if (n == kCount)
    std::memcpy(y, values, kCount * sizeof(float));
  else
    std::memcpy(y, values, n * sizeof(float));
}

}  // namespace

int Activations::width_of(int kind, int mode) {
  if (mode == kFloat) return 4;
  return kind == kBits8 && mode != kInt16 && kernels().wide_bytes ? 1 : element_bytes(kind, mode);
}

void Activations::fill(int64_t t, const float* x, int64_t stride, int64_t columns) {
  kernels().fill(form_, tile(t), tile_tokens(t), x, stride, columns);
}

void few_panels(const Weight& w, int mode, const Activations& x, int tokens, int64_t first, int64_t last, const float* bias, float* y, int64_t y_stride) {
  const PanelKernel kernel = kernels().panel(w.kind, mode, tokens);
  const Tile tile = x.tile(0);
  alignas(32) float out[kTile][kRows];
  for (int64_t p = first; p < last; ++p) {
    kernel(w, w.panels + p * w.panel_bytes, tile, out);
    for (int m = 0; m < tokens; ++m) put<kRows>(w, p * kRows, out[m], bias, y + m * y_stride);
  }
}

void many_pair(const Weight& w, int mode, const Activations& x, int64_t first_tile, int64_t last_tile, int64_t pair, const float* bias, float* y,
               int64_t y_stride, Stretch& stretch) {
  const uint8_t* a = w.panels + 2 * pair * w.panel_bytes;
  const uint8_t* b = 2 * pair + 1 < panel_count(w) ? a + w.panel_bytes : nullptr;
  const Kernels& use = kernels();
  alignas(64) float out[kTokensAtOnce][kPair];
  std::memset(out, 0, sizeof out[0] * std::min<int64_t>(kTokensAtOnce, (last_tile - first_tile) * kTile));
  for (int64_t k = 0; k < w.blocks; k += kStretch) {
    const int64_t count = std::min<int64_t>(kStretch, w.blocks - k);
    use.widen(w, a, b, mode, k, count, stretch);
    for (int64_t t = first_tile; t < last_tile; ++t) use.multiply(w, stretch, mode, k, count, x.tile(t), x.tile_tokens(t), out + (t - first_tile) * kTile);
  }
  for (int64_t t = first_tile; t < last_tile; ++t)
    for (int m = 0; m < x.tile_tokens(t); ++m) put<kPair>(w, 2 * pair * kRows, out[(t - first_tile) * kTile + m], bias, y + (t * kTile + m) * y_stride);
}

}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// y (tokens, rows) = x (tokens, columns) · Wᵀ + bias (rows, or null). Strides in floats. Returns 0, or 1 without memory.
int qcore_linear(const Weight* w, const float* x, int64_t tokens, int64_t x_stride, const float* bias, float* y, int64_t y_stride, int mode, int threads) {
  Activations input(*w, mode, tokens);
  if (!input.ok()) return 1;
  const int64_t panels = panel_count(*w);
  if (tokens <= kTile) {
    input.fill(0, x, x_stride, w->columns);
    const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(panels / (8 * threads), (1 << 17) / w->panel_bytes));
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
    for (int64_t p; (p = next.fetch_add(chunk)) < panels;)
      few_panels(*w, mode, input, int(tokens), p, std::min(p + chunk, panels), bias, y, y_stride);
    return 0;
  }
  const int64_t pairs = (panels + 1) / 2, tiles = input.tiles(), at_once = kTokensAtOnce / kTile;
  std::atomic<int64_t> next_tile{0}, next_job{0};
  const int64_t jobs = pairs * ((tiles + at_once - 1) / at_once);
#pragma omp parallel num_threads(threads)
  {
    for (int64_t t; (t = next_tile.fetch_add(1)) < tiles;) input.fill(t, x + t * kTile * x_stride, x_stride, w->columns);
#pragma omp barrier
    Stretch stretch;
    for (int64_t job; (job = next_job.fetch_add(1)) < jobs;) {
      const int64_t first = job / pairs * at_once;
      many_pair(*w, mode, input, first, std::min(first + at_once, tiles), job % pairs, bias, y, y_stride, stretch);
    }
  }
  return 0;
}

// The weight's rows as floats, for embeddings: out (count, columns). `rows` are checked by the caller.
void qcore_rows(const Weight* w, const int64_t* rows, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) read_row(*w, rows[i], out + i * w->columns);
}

#pragma GCC visibility pop
}  // extern "C"
