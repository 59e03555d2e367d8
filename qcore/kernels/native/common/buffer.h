// Return values and arguments of the exported functions. Every pointer from Python comes with its size in
// bytes, and no function touches memory before it has checked the sizes against one another.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace qcore {

// kOk, or the reason why nothing was computed. kernels/library.py has a sentence for each.
enum Status : int32_t {
  kOk = 0,
  kNoMemory = 1,
  kNotFinite = 2,   // a scale is NaN, infinite, or too large for half precision
  kBadIndex = 3,    // a row, token or group does not exist
  kBadLayout = 4,   // the numbers of a description contradict one another
  kShortCodes = 5,  // from here on: a buffer is smaller than the numbers require
  kShortScales = 6,
  kShortZeros = 7,
  kShortTable = 8,
  kShortPanels = 9,
  kShortInput = 10,
  kShortBias = 11,
  kShortOutput = 12,
  kShortWeights = 13,  // of weights that are not quantized: norms, dense projections, matrices to quantize
  kShortCache = 14,
  kShortRotation = 15,
  kShortMinimums = 16,
};

template <class T>
struct Buffer {
  T* data;  // null if absent
  int64_t bytes;

  // Return whether the buffer holds `count` values, or `rows` times `columns` values.
  bool holds(int64_t count) const { return data && count >= 0 && count <= bytes / int64_t(sizeof(T)); }
  bool holds(int64_t rows, int64_t columns) const {
    int64_t count;
    return rows >= 0 && columns >= 0 && !__builtin_mul_overflow(rows, columns, &count) && holds(count);
  }
};

// The largest number of rows, columns or tokens: sums and small multiples of such numbers fit in 64 bits.
constexpr int64_t kMost = int64_t(1) << 40;

// The number of threads to start if the caller requests `n`.
inline int thread_count(int64_t n) { return int(n < 1 ? 1 : n > 1024 ? 1024 : n); }

inline bool is_size(int64_t n) { return n >= 1 && n <= kMost; }

// Working memory of one call, aligned to cache lines and uninitialized. Every call has its own, so calls may
// run concurrently. Allocate it before threads start, because an exception must not leave a parallel region.
// `data` is null if memory is exhausted.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t count)
      : data_(count < 0 || count > kMost
                  ? nullptr
                  : static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {}
  T* data() const { return data_.get(); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace qcore
