// The CUDA implementation behind synq_fast::search_range. Nothing here waits for the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "ops/range_arguments.h"

namespace synq {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> search_range_cuda_op(const Tensor& x, int64_t bits, int64_t candidates, double norm) {
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor values = x;
  SearchRangeParams params = check_search_range(values, bits, candidates, norm);
  const auto floats = x.options().dtype(at::kFloat).memory_format(std::nullopt);
  Tensor range_min = at::empty({}, floats);
  Tensor range_max = at::empty({}, floats);
  const Tensor workspace = at::empty({search_range_workspace_cuda(params)}, floats.dtype(at::kDouble));
  params.range_min = range_min.mutable_data_ptr<float>();
  params.range_max = range_max.mutable_data_ptr<float>();
  params.workspace = workspace.mutable_data_ptr<double>();
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(static_cast<cudaError_t>(search_range_cuda(params, stream)));
  return {range_min, range_max};
}

}  // namespace

TORCH_LIBRARY_IMPL(synq_fast, CUDA, m) { m.impl("search_range", &search_range_cuda_op); }

}  // namespace synq
