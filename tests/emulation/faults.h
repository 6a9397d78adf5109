// What a GPU would fault on, or a kernel must not do: the first fault ends the launch with an error.
//
// The functions that the compiler's undefined-behaviour checks call are defined here, so that no runtime is needed and
// a check ends the emulated thread before the access is made.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "coroutine.h"

namespace emulation {

struct Faults {
  bool any = false;
  bool in_thread = false;  // an emulated thread runs
  Resumption* scheduler = nullptr;
};

inline Faults& faults() {
  static Faults instance;
  return instance;
}

// Does not return: an emulated thread never goes on, and the host's code has no error to return.
[[noreturn]] inline void fault(const char* what, const char* file = "", unsigned line = 0) {
  fprintf(stderr, "fault in the emulated kernel: %s %s:%u\n", what, file, line);
  if (!faults().in_thread) abort();
  faults().any = true;
  faults().in_thread = false;
  resume(*faults().scheduler);
}

// Begins the compiler's description of every check.
struct Place {
  const char* file;
  uint32_t line;
  uint32_t column;
};

}  // namespace emulation

#define SYNQ_CHECK(name, what, ...)                                                         \
  extern "C" __attribute__((visibility("hidden"), used)) inline void __ubsan_handle_##name( \
      const emulation::Place* at, ##__VA_ARGS__) {                                          \
    emulation::fault(what, at->file, at->line);                                             \
  }
SYNQ_CHECK(type_mismatch_v1, "a misaligned or null address", void*)
SYNQ_CHECK(pointer_overflow, "a pointer that wraps around", void*, void*)
SYNQ_CHECK(out_of_bounds, "an index beyond its array", void*)
SYNQ_CHECK(shift_out_of_bounds, "a shift by too many bits", void*, void*)
SYNQ_CHECK(add_overflow, "an integer sum that overflows", void*, void*)
SYNQ_CHECK(sub_overflow, "an integer difference that overflows", void*, void*)
SYNQ_CHECK(mul_overflow, "an integer product that overflows", void*, void*)
SYNQ_CHECK(negate_overflow, "an integer negation that overflows", void*)
SYNQ_CHECK(divrem_overflow, "an integer quotient that overflows", void*, void*)
#undef SYNQ_CHECK
