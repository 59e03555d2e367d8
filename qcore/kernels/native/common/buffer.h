// What the exported functions return, and the memory they are handed: every pointer from Python comes with its size in bytes, and a
// function reads or writes nothing before it has held the sizes against one another.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace qcore {

// kOk, or why nothing was computed; kernels/library.py has a sentence for each.
enum Status : int32_t {
  kOk = 0,
  kNoMemory = 1,
  kNotFinite = 2,  // a scale is NaN, infinite or too large for half precision
  kBadIndex = 3,   // a row, token or group that does not exist
  kBadLayout = 4,  // numbers of a layout that contradict one another
  kShortCodes = 5,
  kShortScales = 6,
  kShortZeros = 7,
  kShortTable = 8,
  kShortPanels = 9,
  kShortInput = 10,
  kShortBias = 11,
  kShortOutput = 12,
  kShortWeights = 13,  // weights that are not quantized: norms, dense projections, matrices to quantize
  kShortCache = 14,
  kShortRotation = 15,
};

template <class T>
struct Buffer {
  T* data;  // null: absent
  int64_t bytes;

  // Whether there is room for `count` values, or for `rows` times `columns` of them.
  bool holds(int64_t count) const { return data && count >= 0 && count <= bytes / int64_t(sizeof(T)); }
  bool holds(int64_t rows, int64_t columns) const {
    int64_t count;
    return rows >= 0 && columns >= 0 && !__builtin_mul_overflow(rows, columns, &count) && holds(count);
  }
};

constexpr int64_t kMost = int64_t(1) << 40;  // of rows, columns, tokens …: sums and small multiples of them fit 64 bits

// How many threads to start where the caller asks for `n`.
inline int thread_count(int64_t n) { return int(n < 1 ? 1 : n > 1024 ? 1024 : n); }

inline bool is_size(int64_t n) { return n >= 1 && n <= kMost; }

// Memory of a call, aligned to cache lines and not initialized. Each call has its own, so that calls may run at once. It is taken before
// threads start, because an exception must not leave a parallel region: without memory `data` is null.
template <class T>
class Memory {
 public:
  explicit Memory(int64_t count)
      : data_(count < 0 || count > kMost ? nullptr : static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {}
  T* data() const { return data_.get(); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace qcore
