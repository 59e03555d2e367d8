// Reads memory and does nothing else: the limit for the speed of a product with one token.
#include <cstdint>

extern "C" {
#pragma GCC visibility push(default)

// Return the sum modulo 2⁶⁴ of `count` words, each read once. Prefetches explicitly, because hardware
// prefetching stops at page boundaries.
uint64_t qcore_sum_words(const uint64_t* words, int64_t count, int threads) {
  constexpr int64_t kLine = 8, kAhead = 64 * kLine;
  uint64_t total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
  for (int64_t line = 0; line < count / kLine; ++line) {
    const uint64_t* at = words + line * kLine;
    __builtin_prefetch(at + kAhead);
    for (int i = 0; i < kLine; ++i) total += at[i];
  }
  for (int64_t i = count / kLine * kLine; i < count; ++i) total += words[i];
  return total;
}

#pragma GCC visibility pop
}  // extern "C"
