// cpu/draws.h compiled for each instruction set, for the tests.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "philox.h"

namespace synq::cpu {

struct DrawsKernels {
  // Of the elements [begin, end), wherever they are.
  void (*flags)(const Chance& chance, int64_t begin, int64_t end, int32_t* target);
};

SYNQ_DECLARE_TABLES(DrawsKernels, draws_kernels);

}  // namespace synq::cpu
