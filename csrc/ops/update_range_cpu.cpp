// The CPU implementation behind synq_fast::update_range.
#include <torch/library.h>

#include "moving_average.h"
#include "ops/find_ranges.h"
#include "ops/range_arguments.h"

namespace synq {
namespace {

using at::Tensor;

void update_range_cpu(const Tensor& x, const Tensor& state_min, const Tensor& state_max, const Tensor& step,
                      double beta) {
  Tensor values = x;
  const UpdateRangeParams params = check_update_range(values, state_min, state_max, step, beta);
  cpu::DynamicJob job{};
  job.x = params.x;
  job.channels = 1;
  job.inner = params.elements;
  job.dtype = params.dtype;
  float low;
  float high;
  find_ranges(job, params.elements, &low, &high);
  *params.state_min = move_average(*params.state_min, low, params.beta, params.gain);
  *params.state_max = move_average(*params.state_max, high, params.beta, params.gain);
  ++*params.step;
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CPU, m) { m.impl("update_range", &update_range_cpu); }

}  // namespace synq
