// The order in which blocks and threads take their turns: random, and the same for the same seed.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace emulation {

inline uint64_t& seed() {
  static uint64_t state = 1;
  return state;
}

// SplitMix64.
inline uint64_t random_bits() {
  uint64_t z = seed() += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

inline void shuffle(std::vector<unsigned>& order) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
}

inline std::vector<unsigned> random_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  shuffle(order);
  return order;
}

}  // namespace emulation
