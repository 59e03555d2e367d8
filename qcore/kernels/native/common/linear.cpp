// y = x · Wᵀ + bias: the loops around the kernels, and the C interface.
#include "common/linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "common/kernels.h"

namespace qcore {
namespace {

// Store the outputs `row` … of a token: kCount of them, or as many as the weight has left.
template <int kCount>
inline void put(const Weight& w, int64_t row, const float* values, const float* bias, float* y) {
  const int n = int(std::min<int64_t>(kCount, w.rows - row));
  for (int r = 0; r < n; ++r) y[row + r] = bias ? values[r] + bias[row + r] : values[r];
}

}  // namespace

int Activations::width_of(int kind, int mode) {
  if (mode == kFloat) return 4;
  return codes_of(kind) <= kBits5 && mode != kInt16 && kernels().wide_bytes ? 1 : element_bytes(kind, mode);
}

void Activations::fill(int64_t t, const float* x, int64_t stride, int64_t columns) {
  kernels().fill(form_, tile(t), tile_tokens(t), x, stride, columns);
}

void few_panels(const Weight& w, int mode, const Activations& x, int tokens, int64_t first, int64_t last,
                const float* bias, float* y, int64_t y_stride) {
  const PanelKernel kernel = kernels().panel(w.kind, mode, tokens);
  const Tile tile = x.tile(0);
  alignas(32) float out[kTile][kRows];
  for (int64_t p = first; p < last; ++p) {
    kernel(w, w.panels.data + p * w.panel_bytes, tile, out);
    for (int m = 0; m < tokens; ++m) put<kRows>(w, p * kRows, out[m], bias, y + m * y_stride);
  }
}

void many_pair(const Weight& w, int mode, const Activations& x, int64_t first_tile, int64_t last_tile,
               int64_t pair, const float* bias, float* y, int64_t y_stride, Stretch& stretch) {
  const uint8_t* a = w.panels.data + 2 * pair * w.panel_bytes;
  const uint8_t* b = 2 * pair + 1 < panel_count(w) ? a + w.panel_bytes : nullptr;
  const Kernels& use = kernels();
  alignas(64) float out[kTokensAtOnce][kPair];
  std::memset(out, 0, sizeof out[0] * std::min<int64_t>(kTokensAtOnce, (last_tile - first_tile) * kTile));
  for (int64_t k = 0; k < w.blocks; k += kStretch) {
    const int64_t count = std::min<int64_t>(kStretch, w.blocks - k);
    use.widen(w, a, b, mode, k, count, stretch);
    for (int64_t t = first_tile; t < last_tile; ++t)
      use.multiply(w, stretch, mode, k, count, x.tile(t), x.tile_tokens(t), out + (t - first_tile) * kTile);
  }
  for (int64_t t = first_tile; t < last_tile; ++t)
    for (int m = 0; m < x.tile_tokens(t); ++m)
      put<kPair>(w, 2 * pair * kRows, out[(t - first_tile) * kTile + m], bias,
                 y + (t * kTile + m) * y_stride);
}

}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// y (tokens, rows) = x (tokens, columns) · Wᵀ + bias (rows, or null). All are contiguous; sizes count floats.
int qcore_linear(const Weight* w, const float* x, int64_t x_size, const float* bias, int64_t bias_size,
                 float* y, int64_t y_size, int mode, int threads) {
  if (const Status status = check(*w)) return status;
  if (mode < kFloat || mode > kInt8Token) return kBadLayout;
  const int64_t columns = w->columns, rows = w->rows, tokens = x_size / columns;
  if (x_size < 0 || x_size % columns) return kShortInput;
  if (bias && bias_size != rows) return kShortBias;
  if (y_size % rows || y_size / rows != tokens) return kShortOutput;
  const bool few = tokens <= kTile;
  threads = thread_count(threads);
  const Memory<uint8_t> memory(Activations::bytes(*w, mode, tokens, few));
  if (!memory) return kNoMemory;
  Activations input(*w, mode, tokens, few, memory.data());
  const int64_t panels = panel_count(*w);
  if (few) {
    if (!tokens) return kOk;
    input.fill(0, x, columns, columns);
    const int64_t chunk =
        std::max<int64_t>(1, std::min<int64_t>(panels / (8 * threads), (1 << 17) / w->panel_bytes));
    std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads)
    for (int64_t p; (p = next.fetch_add(chunk)) < panels;)
      few_panels(*w, mode, input, int(tokens), p, std::min(p + chunk, panels), bias, y, rows);
    return kOk;
  }
  const int64_t pairs = (panels + 1) / 2, tiles = input.tiles(), at_once = kTokensAtOnce / kTile;
  std::atomic<int64_t> next_tile{0}, next_job{0};
  const int64_t jobs = pairs * ((tiles + at_once - 1) / at_once);
#pragma omp parallel num_threads(threads)
  {
    for (int64_t t; (t = next_tile.fetch_add(1)) < tiles;)
      input.fill(t, x + t * kTile * columns, columns, columns);
#pragma omp barrier
    Stretch stretch;
    for (int64_t job; (job = next_job.fetch_add(1)) < jobs;) {
      const int64_t first = job / pairs * at_once;
      many_pair(*w, mode, input, first, std::min(first + at_once, tiles), job % pairs, bias, y, rows,
                stretch);
    }
  }
  return kOk;
}

// Dequantize the rows `ids` (count) of the weight into out (count, columns), whose size counts floats.
int qcore_rows(const Weight* w, const int64_t* ids, int64_t count, float* out, int64_t out_size) {
  if (const Status status = check(*w)) return status;
  if (count < 0 || out_size / w->columns < count) return kShortOutput;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= w->rows) return kBadIndex;
  for (int64_t i = 0; i < count; ++i) read_row(*w, ids[i], 0, w->columns, out + i * w->columns);
  return kOk;
}

#pragma GCC visibility pop
}  // extern "C"
