// Threads that work on one call: a barrier, and the division of work.
#pragma once
#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace qcore {

class Barrier {
 public:
  // Set the number of threads that meet. Call it before the first `wait`.
  void set(int threads) { threads_ = threads; }

  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 4000)
        _mm_pause();
      else
        sched_yield();  // another process runs on the core that the missing thread needs
    }
  }

 private:
  int threads_ = 1;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

struct Span {
  int64_t first, last;
};

// Return the part of 0 … n − 1 that thread `me` of `all` works on.
inline Span share(int64_t n, int me, int all) { return {n * me / all, n * (me + 1) / all}; }

}  // namespace qcore
