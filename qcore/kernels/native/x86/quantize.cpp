// Round-to-nearest quantization of a matrix, row by row on all threads: the C interface.
#include "x86/quantize.h"

#include <omp.h>

#include <algorithm>

namespace qcore {
namespace {

Status check(const QuantizeJob& job) {
  const bool tabled = job.midpoints.data != nullptr;
  if (!is_size(job.rows) || !is_size(job.columns) || !is_size(job.group) || job.stride < 0 ||
      job.stride > kMost)
    return kBadLayout;
  if (job.dtype < kFloat32 || job.dtype > kFloat16 || job.bits < 2 || job.bits > 8 ||
      (tabled && job.bits != 4))
    return kBadLayout;
  if (job.group % 8 && job.group < job.columns) return kBadLayout;
  if (tabled && !(job.midpoints.holds(15) && job.order.holds(16))) return kShortTable;
  const int64_t size = job.dtype == kFloat32 ? 4 : 2;
  int64_t elements;
  if (__builtin_mul_overflow(job.rows - 1, job.stride, &elements) ||
      __builtin_add_overflow(elements, job.columns, &elements) || !job.weight.data ||
      elements > job.weight.bytes / size)
    return kShortWeights;
  const int64_t groups = (job.columns + job.group - 1) / job.group;
  const auto fits = [&](const auto& part) { return !part.data || part.holds(job.rows, groups); };
  if (!fits(job.kept) || !fits(job.scale) || !fits(job.half)) return kShortScales;
  if (!fits(job.zero)) return kShortZeros;
  const bool packed =
      job.row_bytes >= (job.columns + 7) / 8 * job.bits && job.codes.holds(job.rows, job.row_bytes);
  return !job.codes.data || packed ? kOk : kShortCodes;
}

}  // namespace
}  // namespace qcore

using namespace qcore;

extern "C" {
#pragma GCC visibility push(default)

// Return kNotFinite if the scale of a group is NaN, infinite, or too large for half precision.
int qcore_quantize(const QuantizeJob* job, int threads) {
  if (const Status status = check(*job)) return status;
  threads = thread_count(threads);
  const int64_t buffer = job->dtype == kFloat32 ? 0 : job->columns;  // other weights are widened row by row
  const Memory<float> memory(threads * buffer);
  if (!memory) return kNoMemory;
  bool bad = false;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(|| : bad)
  for (int64_t row = 0; row < job->rows; ++row)
    if (!quantize_row_avx2(*job, row, memory.data() + omp_get_thread_num() * buffer)) bad = true;
  return bad ? kNotFinite : kOk;
}

#pragma GCC visibility pop
}  // extern "C"
