// Launch interface of mixing two tensors by chance.
#pragma once

#include <stdint.h>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "philox.h"

namespace synq {

// Everything lies alike and is dense.
struct RandomMixParams {
  const void* a;         // (elements,), dtype; forward only
  const void* b;         // forward only
  void* y;               // forward only
  const void* gradient;  // backward only
  void* grad_a;          // backward only; null: not wanted
  void* grad_b;          // backward only; null: not wanted
  const int64_t* seed;   // (1,)
  int64_t elements;
  int64_t offset;  // see philox.h
  uint32_t threshold;
  DType dtype;
};

// Launchers like those of fake_quantize.h. elements is positive.
int random_mix_cuda(const RandomMixParams& params, void* stream);
int random_mix_backward_cuda(const RandomMixParams& params, void* stream);

namespace cpu {

// For the elements [begin, end).
struct RandomMixKernels {
  void (*forward)(const RandomMixParams& params, int64_t begin, int64_t end);
  void (*backward)(const RandomMixParams& params, int64_t begin, int64_t end);
};

SYNQ_DECLARE_TABLES(RandomMixKernels, random_mix_kernels);

}  // namespace cpu
}  // namespace synq
