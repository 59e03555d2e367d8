// Round-to-nearest quantization of a matrix, row by row on all threads: the plain C interface.
#include "x86/quantize.h"

#include <cstdlib>
#include <new>
#include <vector>

extern "C" {
#pragma GCC visibility push(default)

// Returns 0; 1 if a group's scale is infinite, NaN or too large for half precision; 2 without memory.
int qcore_quantize(const qcore::QuantizeJob* job, int threads) {
  const bool widens = job->dtype != qcore::kFloat32;
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    float* buffer = widens ? static_cast<float*>(std::malloc(job->columns * sizeof(float))) : nullptr;
    if (widens && !buffer) failed |= 2;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < job->rows; ++row)
      if (!(widens && !buffer) && !qcore::quantize_row_avx2(*job, row, buffer)) failed |= 1;
    std::free(buffer);
  }
  return failed;
}

#pragma GCC visibility pop
}  // extern "C"
