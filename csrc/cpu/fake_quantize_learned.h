// CPU kernels of a learned grid: its gradients, and both passes with a chance; the plain forward pass is the
// fake_quantize kernel.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/fake_quantize.h"
#include "philox.h"

namespace synq::cpu {

struct FakeQuantizeLearnedKernels {
  // Writes the gradient of x for the flat indices [begin, end) and adds LearnedTerms to the sums of their channels.
  void (*backward)(const Job& job, int64_t begin, int64_t end, double* of_scale, double* of_zero);
  // The same where elements are left as they are by chance.
  void (*dropped)(const Job& job, const Chance& chance, int64_t begin, int64_t end);
  void (*dropped_backward)(const Job& job, const Chance& chance, int64_t begin, int64_t end, double* of_scale,
                           double* of_zero);
};

SYNQ_DECLARE_TABLES(FakeQuantizeLearnedKernels, fake_quantize_learned_kernels);

}  // namespace synq::cpu
