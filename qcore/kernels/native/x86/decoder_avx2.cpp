// The step of a model as one call.
#include <omp.h>

#include "x86/decoder_checks.h"
#include "x86/step.h"

namespace qcore {
namespace {

void run(Step& step) {
#pragma omp parallel num_threads(step.most_threads())
  {
#pragma omp single
    step.set(omp_get_num_threads());
    step.run(omp_get_thread_num());
  }
}

// The number of layers that many tokens go through. The layers after the last one with keys and values of its
// own read those of earlier layers, so that the last token needs no other token there.
int64_t shared_by_all(const Model& model, const Call& call) {
  const bool all = call.hidden.data && !call.last;
  int64_t layers = model.layers;
  if (!all && call.tokens > kTile)
    while (layers > 1 && model.blocks.data[layers - 1].attention.source != layers - 1) --layers;
  return layers;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Append the call's tokens to the cache, and compute the call's output.
int qcore_decode(const Model* model, const Cache* cache, const Call* call) {
  if (const Status status = check(*model, *cache, *call)) return status;
  const int64_t layers = shared_by_all(*model, *call), before = call->tokens - 1;
  if (layers == model->layers) {
    Step step(*model, *cache, *call, {0, layers}, nullptr, nullptr);
    if (!step.ok()) return kNoMemory;
    run(step);
    return kOk;
  }
  Call last = *call;
  last.tokens = 1;
  last.position += before;
  last.ids.data += before;
  if (last.embeds.data) last.embeds.data += before * model->hidden;
  if (last.token_rows.data) last.token_rows.data += before * model->token_rows.columns;
  const Memory<float> stream(model->hidden);
  Step first(*model, *cache, *call, {0, layers}, nullptr, stream.data()),
      rest(*model, *cache, last, {layers, model->layers}, stream.data(), nullptr);
  if (!stream || !first.ok() || !rest.ok()) return kNoMemory;
  run(first);
  run(rest);
  return kOk;
}

#pragma GCC visibility pop
}  // extern "C"
