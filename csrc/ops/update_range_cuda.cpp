// The CUDA implementation behind synq_fast::update_range. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/range_arguments.h"

namespace synq {
namespace {

using at::Tensor;

void update_range_cuda_op(const Tensor& x, const Tensor& state_min, const Tensor& state_max, const Tensor& step,
                          double beta) {
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor values = x;
  UpdateRangeParams params = check_update_range(values, state_min, state_max, step, beta);
  Tensor workspace;
  if (const int64_t size = update_range_workspace_cuda(params)) {
    workspace = at::empty({size}, x.options().dtype(at::kFloat).memory_format(std::nullopt));
    params.workspace = workspace.mutable_data_ptr<float>();
  }
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(static_cast<cudaError_t>(update_range_cuda(params, stream)));
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) { m.impl("update_range", &update_range_cuda_op); }

}  // namespace synq
