// Exercises csrc/ops/lru_cache.h; built and run by test_lru_cache.py.
#include "ops/lru_cache.h"

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#define EXPECT(condition)                               \
  if (!(condition)) {                                   \
    std::printf("line %d: " #condition "\n", __LINE__); \
    return 1;                                           \
  }

int main() {
  std::atomic<int> made{0};
  synq::LruCache<int, int> cache(3);
  const auto get = [&](int key) {
    return cache.get(key, [&] {
      ++made;
      return 10 * key;
    });
  };
  for (int key : {1, 2, 3, 1}) EXPECT(get(key) == 10 * key);
  EXPECT(made == 3);
  EXPECT(get(4) == 40);  // 2 goes: 1 was used since
  EXPECT(get(1) == 10 && get(3) == 30);
  EXPECT(made == 4);
  EXPECT(get(2) == 20);
  EXPECT(made == 5);

  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20000; ++i) wrong += get((i * (t + 1)) % 7) != 10 * ((i * (t + 1)) % 7);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(wrong == 0);
  std::printf("passed\n");
}
