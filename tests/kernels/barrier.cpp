// Threads that meet at the native step's barrier, for test_barrier.py.
//
//   barrier wait THREADS     one thread comes 0.3 s late; prints the processor seconds that the others used
//   barrier meet THREADS     many rounds, some of them uneven; prints "met"
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include "x86/threads.h"

int main(int, char** arguments) {
  const bool meet = !std::strcmp(arguments[1], "meet");
  const int threads = std::atoi(arguments[2]), rounds = meet ? 20000 : 1;
  qcore::Barrier barrier;
  barrier.set(threads);
  std::vector<int> reached(threads, 0);
  std::vector<std::thread> pool;
  for (int me = 0; me < threads; ++me)
    pool.emplace_back([&, me] {
      for (int round = 0; round < rounds; ++round) {
        if (!meet && me == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
        if (meet && round % 997 == me) std::this_thread::sleep_for(std::chrono::microseconds(300));
        reached[me] = round + 1;
        barrier.wait();
        for (const int each : reached)
          if (each != round + 1) std::abort();
        barrier.wait();
      }
    });
  for (std::thread& each : pool) each.join();
  if (meet)
    std::puts("met");
  else
    std::printf("%f\n", double(std::clock()) / CLOCKS_PER_SEC);
}
