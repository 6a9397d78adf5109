// Defects that the tests and sanitizers must report; expect_failure.cmake runs each and looks for the report.
#include <limits.h>
#include <stdlib.h>

#include <thread>

#include "check.h"
#include "memory.h"

namespace {

using namespace synq::test;

volatile int one = 1;  // unknown to the optimizer

}  // namespace

TEST(wrong_value) { CHECK_EQUAL(2.0f, static_cast<float>(one)); }

TEST(write_past_a_buffer) {
  Buffer<float> y(5, Place::kShifted);
  y[4 + one] = 0.0f;
}

TEST(write_before_a_buffer) {
  Buffer<float> y(5, Place::kEnd);
  y[-4 * one] = 0.0f;
}

TEST(read_past_a_page) {
  Buffer<float> x(5, Place::kEnd);
  CHECK_EQUAL(x[4 + one], 0.0f);
}

TEST(heap_overflow) {
  void* y = malloc(5);
  memset(y, 0, static_cast<size_t>(5 + one));
  free(y);
}

TEST(signed_overflow) { CHECK_EQUAL(INT_MAX + one, INT_MIN); }

TEST(conversion_overflow) { CHECK_EQUAL(static_cast<int>(1e10f * static_cast<float>(one)), INT_MIN); }

TEST(race) {
  int shared = 0;
  std::thread other([&] { shared += one; });
  shared += one;
  other.join();
  CHECK(shared > 0);
}
