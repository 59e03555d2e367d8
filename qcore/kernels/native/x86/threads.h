// Threads that work on one call: a barrier, and the division of work.
#pragma once
#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <cstdint>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace qcore {

// A thread that arrives early spins about as long as going to sleep and waking up take (0.1 ms), because the
// others usually arrive within microseconds. Then it sleeps, because the missing thread is not running: its
// core is taken by another process, or the control group has used up its quota, which spinning would use,
// too. With more threads than processors nobody spins.
class Barrier {
 public:
  // Set the number of threads that meet. Call it before the first `wait`.
  void set(int threads) {
    threads_ = threads;
    spins_ = threads > omp_get_num_procs() ? 0 : kSpins;
  }

  void wait() {
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      // Sequentially consistent: either the sleeper sees the new round, or this thread sees the sleeper.
      round_.store(round + 1);
      if (sleepers_.load()) wake();
      return;
    }
    for (int spin = 0; spin < spins_; ++spin) {
      if (round_.load(std::memory_order_acquire) != round) return;
      _mm_pause();
    }
    sleepers_.fetch_add(1);
    while (round_.load() == round) sleep(round);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  static constexpr int kSpins = 4000;

#ifdef __linux__
  // Sleep until woken, unless the round is over already.
  void sleep(int round) { syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0); }
  void wake() { syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, threads_, nullptr, nullptr, 0); }
#else
  void sleep(int) { sched_yield(); }
  void wake() {}
#endif

  int threads_ = 1, spins_ = 0;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};  // the word that sleepers wait on
  std::atomic<int> sleepers_{0};
  static_assert(sizeof(std::atomic<int>) == sizeof(int), "the kernel compares an int");
};

struct Span {
  int64_t first, last;
};

// Return the part of 0 … n − 1 that thread `me` of `all` works on.
inline Span share(int64_t n, int me, int all) { return {n * me / all, n * (me + 1) / all}; }

}  // namespace qcore
