// The inner loop of GPTQ and of coordinate descent (quantization/methods/gptq.py and descent.py): chooses the
// codes of a block of inputs for all outputs, one input after another. Each choice changes the state of the
// later inputs.
//
// All matrices are (inputs, outputs). Outputs are independent, so sixteen of them are processed side by side,
// in plain loops that the compiler vectorizes. The state of the block stays in the first-level cache.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/buffer.h"

namespace qcore {

constexpr int kLanes = 16, kInputs = 64, kEntries = 16;

struct ChooseJob {
  int64_t first, last;            // the inputs of the block, at most kInputs
  int64_t outputs;                // N
  int64_t inputs;                 // K
  int64_t groups;                 // G
  int64_t per_output;             // 1 if each output has its own table, else 0
  int32_t entries;                // of a table, at most kEntries; 0 for uniform grids
  float middle, lowest, highest;  // uniform grids: the zero point if none are stored, and the range of codes
  Buffer<const float> matrix;     // (K, K): how the error of one input changes the state of the others
  Buffer<float> state;            // (K, N): GPTQ: the corrected weights. Descent: the gradient of the error
  Buffer<const float> values;     // (K, N): descent: the current weights. GPTQ: absent
  Buffer<const float> step;       // (K,): GPTQ: the factor of the error. Descent: 1 / curvature
  Buffer<const int32_t> group;    // (K,): the group of each input
  Buffer<const float> inverse;    // (G, N): 1 / scale
  Buffer<const float> scale;      // (G, N)
  Buffer<const float> zero;       // (G, N): zero points, or absent
  Buffer<const float> minimum;    // (G, N): the value of code 0 in an affine grid, or absent
  Buffer<const float> table;      // (entries,) or (N, entries), ascending
  Buffer<const float> midpoints;  // (entries − 1,) or (N, entries − 1)
  Buffer<float> codes;            // (K, N): output
  Buffer<float> errors;           // (last − first, N): output
};

namespace {

using Lane = float[kLanes];

struct Table {
  alignas(32) Lane values[kEntries], midpoints[kEntries - 1];
};

void load(const float* from, int n, Lane& to) {
  if (n == kLanes) {
    std::memcpy(to, from, sizeof to);
    return;
  }
  for (int i = 0; i < kLanes; ++i) to[i] = i < n ? from[i] : 0.f;
}

void store(const Lane& from, int n, float* to) { std::memcpy(to, from, n * sizeof(float)); }

// Round `target` to the nearest values of a uniform grid, and return their codes, too.
void round_uniform(const Lane& target, const Lane& inverse, const Lane& scale, const Lane& zero, float lowest,
                   float highest, Lane& codes, Lane& rounded) {
  for (int i = 0; i < kLanes; ++i) {
    const float code = std::min(std::max(std::nearbyint(target[i] * inverse[i]) + zero[i], lowest), highest);
    codes[i] = code;
    rounded[i] = (code - zero[i]) * scale[i];
  }
}

// The same for an affine grid, whose code 0 stands for `minimum`.
void round_affine(const Lane& target, const Lane& inverse, const Lane& scale, const Lane& minimum,
                  float highest, Lane& codes, Lane& rounded) {
  for (int i = 0; i < kLanes; ++i) {
    const float code =
        std::min(std::max(std::nearbyint((target[i] - minimum[i]) * inverse[i]), 0.f), highest);
    codes[i] = code;
    rounded[i] = code * scale[i] + minimum[i];
  }
}

// The same for a table: the code is the number of midpoints below the value.
void round_table(const Lane& target, const Lane& inverse, const Lane& scale, const Table& table, int entries,
                 Lane& codes, Lane& rounded) {
  alignas(32) Lane relative, value;
  for (int i = 0; i < kLanes; ++i) relative[i] = target[i] * inverse[i];
  std::memcpy(value, table.values[0], sizeof value);
  std::memset(codes, 0, sizeof codes);
  for (int entry = 1; entry < entries; ++entry)
    for (int i = 0; i < kLanes; ++i) {
      const bool above = relative[i] > table.midpoints[entry - 1][i];
      value[i] = above ? table.values[entry][i] : value[i];
      codes[i] = above ? float(entry) : codes[i];
    }
  for (int i = 0; i < kLanes; ++i) rounded[i] = value[i] * scale[i];
}

void read_table(const ChooseJob& job, int64_t output, int n, Table& table) {
  for (int i = 0; i < kLanes; ++i) {
    const int64_t row = job.per_output ? output + std::min(i, n - 1) : 0;
    for (int entry = 0; entry < job.entries; ++entry)
      table.values[entry][i] = job.table.data[row * job.entries + entry];
    for (int entry = 0; entry + 1 < job.entries; ++entry)
      table.midpoints[entry][i] = job.midpoints.data[row * (job.entries - 1) + entry];
  }
}

void choose(const ChooseJob& job, int64_t output, int n) {
  const int columns = int(job.last - job.first);
  alignas(32) Lane state[kInputs];
  Table table;
  if (job.entries) read_table(job, output, n, table);
  for (int j = 0; j < columns; ++j)
    load(job.state.data + (job.first + j) * job.outputs + output, n, state[j]);
  for (int j = 0; j < columns; ++j) {
    const int64_t input = job.first + j, at = input * job.outputs + output,
                  group = job.group.data[input] * job.outputs + output;
    const float step = job.step.data[input];
    alignas(32) Lane now, target, inverse, scale, zero, codes, rounded, error;
    load(job.inverse.data + group, n, inverse);
    load(job.scale.data + group, n, scale);
    if (job.values.data) {
      load(job.values.data + at, n, now);
      for (int i = 0; i < kLanes; ++i) target[i] = now[i] - step * state[j][i];
    } else {
      std::memcpy(now, state[j], sizeof now);
      std::memcpy(target, now, sizeof target);
    }
    if (job.entries) {
      round_table(target, inverse, scale, table, job.entries, codes, rounded);
    } else if (job.minimum.data) {
      load(job.minimum.data + group, n, zero);
      round_affine(target, inverse, scale, zero, job.highest, codes, rounded);
    } else {
      if (job.zero.data)
        load(job.zero.data + group, n, zero);
      else
        std::fill(zero, zero + kLanes, job.middle);
      round_uniform(target, inverse, scale, zero, job.lowest, job.highest, codes, rounded);
    }
    const float share = job.values.data ? 1.f : step;
    for (int i = 0; i < kLanes; ++i) error[i] = (rounded[i] - now[i]) * share;
    store(codes, n, job.codes.data + at);
    store(error, n, job.errors.data + j * job.outputs + output);
    const float* row = job.matrix.data + input * job.inputs + job.first;
    for (int k = j + 1; k < columns; ++k)
      for (int i = 0; i < kLanes; ++i) state[k][i] += row[k] * error[i];
  }
}

Status check(const ChooseJob& job) {
  const int64_t count = job.last - job.first, inputs = job.inputs, outputs = job.outputs;
  if (!is_size(inputs) || !is_size(outputs) || !is_size(job.groups) || job.first < 0 || count < 0 ||
      count > kInputs || job.last > inputs || job.entries < 0 || job.entries > kEntries)
    return kBadLayout;
  const bool weights = job.matrix.holds(inputs, inputs) && job.state.holds(inputs, outputs) &&
                       job.step.holds(inputs) && (!job.values.data || job.values.holds(inputs, outputs));
  if (!weights) return kShortWeights;
  if (!job.inverse.holds(job.groups, outputs) || !job.scale.holds(job.groups, outputs)) return kShortScales;
  if (job.zero.data && !job.zero.holds(job.groups, outputs)) return kShortZeros;
  if (job.minimum.data && !job.minimum.holds(job.groups, outputs)) return kShortZeros;
  const int64_t tables = job.per_output ? outputs : 1;
  if (job.entries && !job.table.holds(tables, job.entries)) return kShortTable;
  if (job.entries > 1 && !job.midpoints.holds(tables, job.entries - 1)) return kShortTable;
  if (!job.codes.holds(inputs, outputs) || !job.errors.holds(count, outputs)) return kShortOutput;
  if (!job.group.holds(inputs)) return kShortInput;
  for (int64_t input = job.first; input < job.last; ++input)
    if (job.group.data[input] < 0 || job.group.data[input] >= job.groups) return kBadIndex;
  return kOk;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Choose the codes of a block of inputs for all outputs. The caller propagates `errors` to the later inputs.
int qcore_choose_codes(const ChooseJob* job, int threads) {
  if (const Status status = check(*job)) return status;
#pragma omp parallel for num_threads(thread_count(threads)) schedule(static)
  for (int64_t output = 0; output < job->outputs; output += kLanes)
    choose(*job, output, int(std::min<int64_t>(kLanes, job->outputs - output)));
  return kOk;
}

#pragma GCC visibility pop
}  // extern "C"
