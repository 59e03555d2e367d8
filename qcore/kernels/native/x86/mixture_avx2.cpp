// A mixture of experts by itself, for a model whose other layers run as modules.
#include <omp.h>

#include "x86/mixture.h"

namespace qcore {
namespace {

Status check_routes(const Router& router, const int64_t* experts, int64_t tokens) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < router.chosen; ++i) {
      const int64_t *all = experts + t * router.chosen, expert = all[i];
      if (expert < 0 || expert >= router.experts || std::find(all, all + i, expert) != all + i)
        return kBadIndex;
    }
  return kOk;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// y (tokens, hidden) = the mixture of x (tokens, hidden), `chunk` tokens at a time. `experts` (tokens,
// chosen) and their `weights` are null if the router chooses them. x_size and y_size count floats.
int qcore_mixture(const Mixture* mixture, const float* x, int64_t x_size,
                  const Buffer<const int64_t>* experts, const Buffer<const float>* weights, float* y,
                  int64_t y_size, int64_t chunk, int threads) {
  if (const Status status = check_mixture(*mixture, experts != nullptr)) return status;
  const int64_t hidden = mixture->hidden, chosen = mixture->router.chosen;
  if (x_size < 0 || x_size > kMost || x_size % hidden) return kShortInput;
  if (y_size != x_size) return kShortOutput;
  if (chunk < 1 || chunk > INT32_MAX) return kBadLayout;
  const int64_t tokens = x_size / hidden, most = std::min(tokens, chunk);
  if (!tokens) return kOk;
  if (experts) {
    if (!weights || !experts->holds(tokens, chosen) || !weights->holds(tokens, chosen)) return kShortInput;
    if (const Status status = check_routes(mixture->router, experts->data, tokens)) return status;
  }
  threads = thread_count(threads);
  Barrier barrier;
  const bool few = most <= kTile;
  MixtureSizes sizes;
  sizes.add(*mixture, most, few);
  MixtureStep step(sizes, most, few, threads, barrier);
  if (!step.ok()) return kNoMemory;
#pragma omp parallel num_threads(threads)
  {
    const int me = omp_get_thread_num(), all = omp_get_num_threads();
#pragma omp single
    barrier.set(all);
    for (int64_t first = 0; first < tokens; first += most) {
      const Routes given =
          experts ? Routes{experts->data + first * chosen, weights->data + first * chosen} : Routes{};
      step.run(
          me, all, *mixture, std::min(most, tokens - first),
          [&](int64_t t, float* out) { std::memcpy(out, x + (first + t) * hidden, hidden * sizeof(float)); },
          [&](int64_t t, int64_t row, int64_t count, const float* values) {
            std::memcpy(y + (first + t) * hidden + row, values, count * sizeof(float));
          },
          given);
    }
  }
  return kOk;
}

#pragma GCC visibility pop
}  // extern "C"
