// Choosing codes one input at a time, each choice moving what the later ones start from: the inner loop of GPTQ and of coordinate descent
// (methods/gptq.py, methods/descent.py), for one block of inputs and all outputs.
//
// Everything is (inputs, outputs), so sixteen outputs, which have nothing to do with one another, are worked on side by side; what the
// choices in a block change in the block stays in the first-level cache. The arithmetic is written in plain loops over those sixteen.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16, kBlock = 64, kEntries = 16;

}  // namespace

extern "C" {

struct QcoreChooseJob {
  int64_t first, last;         // the inputs of the block, at most kBlock
  int64_t outputs;             // N: floats from an input's row to the next, in all matrices that have N columns
  int64_t inputs;              // K
  const float* matrix;         // (K, K): what a move of one input changes in the others' state
  float* state;                // (K, N): GPTQ: what is left of each weight. Descent: the slope of the error in each weight
  const float* values;         // descent: (K, N), the weights as they stand; GPTQ: null
  const float* step;           // (K,): GPTQ: what an error is multiplied by to give a move. Descent: 1 / curvature
  const int32_t* group;        // (K,): the group each input is in
  const float* inverse;        // (groups, N): 1 / scale
  const float* scale;          // (groups, N)
  const float* zero;           // (groups, N) zero points, or null: `middle` is the zero point of all
  float middle, lowest, highest;
  int32_t entries;             // of a table of values: at most kEntries; 0 for uniform grids
  const float* table;          // (entries,) or (N, entries), ascending
  const float* midpoints;      // (entries − 1,) or (N, entries − 1)
  int64_t per_output;          // whether each output has a table of its own
  float* codes;                // (K, N), written
  float* moves;                // (last − first, N), written
};

}  // extern "C"

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

// The nearest values of a uniform grid to `wish`, and their codes.
void round_uniform(const Lane& wish, const Lane& inverse, const Lane& scale, const Lane& zero, float lowest, float highest, Lane& codes,
                   Lane& rounded) {
  for (int i = 0; i < kLanes; ++i) {
    const float code = std::min(std::max(std::nearbyint(wish[i] * inverse[i]) + zero[i], lowest), highest);
    codes[i] = code;
    rounded[i] = (code - zero[i]) * scale[i];
  }
}

// The same for a table: the entry above as many midpoints as the value is.
void round_table(const Lane& wish, const Lane& inverse, const Lane& scale, const Table& table, int entries, Lane& codes, Lane& rounded) {
  alignas(32) Lane relative, value;
  for (int i = 0; i < kLanes; ++i) relative[i] = wish[i] * inverse[i];
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

void read_table(const QcoreChooseJob& job, int64_t output, int n, Table& table) {
  for (int i = 0; i < kLanes; ++i) {
    const int64_t row = job.per_output ? output + std::min(i, n - 1) : 0;
    for (int entry = 0; entry < job.entries; ++entry) table.values[entry][i] = job.table[row * job.entries + entry];
    for (int entry = 0; entry + 1 < job.entries; ++entry) table.midpoints[entry][i] = job.midpoints[row * (job.entries - 1) + entry];
  }
}

void choose(const QcoreChooseJob& job, int64_t output, int n) {
  const int columns = int(job.last - job.first);
  alignas(32) Lane state[kBlock];
  Table table;
  if (job.entries) read_table(job, output, n, table);
  for (int j = 0; j < columns; ++j) load(job.state + (job.first + j) * job.outputs + output, n, state[j]);
  for (int j = 0; j < columns; ++j) {
    const int64_t input = job.first + j, at = input * job.outputs + output, group = job.group[input] * job.outputs + output;
    const float step = job.step[input];
    alignas(32) Lane now, wish, inverse, scale, zero, codes, rounded, move;
    load(job.inverse + group, n, inverse);
    load(job.scale + group, n, scale);
    if (job.values) {
      load(job.values + at, n, now);
      for (int i = 0; i < kLanes; ++i) wish[i] = now[i] - step * state[j][i];
    } else {
      std::memcpy(now, state[j], sizeof now);
      std::memcpy(wish, now, sizeof wish);
    }
    if (job.entries) {
      round_table(wish, inverse, scale, table, job.entries, codes, rounded);
    } else {
      if (job.zero)
        load(job.zero + group, n, zero);
      else
        std::fill(zero, zero + kLanes, job.middle);
      round_uniform(wish, inverse, scale, zero, job.lowest, job.highest, codes, rounded);
    }
    const float share = job.values ? 1.f : step;
    for (int i = 0; i < kLanes; ++i) move[i] = (rounded[i] - now[i]) * share;
    store(codes, n, job.codes + at);
    store(move, n, job.moves + j * job.outputs + output);
    const float* row = job.matrix + input * job.inputs + job.first;
    for (int k = j + 1; k < columns; ++k)
      for (int i = 0; i < kLanes; ++i) state[k][i] += row[k] * move[i];
  }
}

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

// Choose the codes of a block's inputs for all outputs; what they change outside the block is `moves`, for the caller to apply.
void qcore_choose_codes(const QcoreChooseJob* job, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t output = 0; output < job->outputs; output += kLanes)
    choose(*job, output, int(std::min<int64_t>(kLanes, job->outputs - output)));
}

#pragma GCC visibility pop
}  // extern "C"
