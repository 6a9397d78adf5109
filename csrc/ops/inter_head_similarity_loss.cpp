// synq_fast::inter_head_similarity_loss and its gradient.
#include "inter_head_similarity_loss.h"

#include <ATen/ops/zeros.h>

#include <vector>

#include "ops/device.h"
#include "ops/heads.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;

const cpu::InterHeadSimilarityKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(inter_head_similarity_kernels);
}

InterHeadSimilarityParams make_params(const char* op, const Heads& logits) {
  InterHeadSimilarityParams params{};
  params.logits = logits.x.const_data_ptr();
  params.batch = logits.x.size(0);
  params.heads = logits.x.size(1);
  params.queries = logits.x.size(2);
  params.keys = logits.x.size(3);
  require(params.heads > 0 && params.heads <= kMaximumHeads && params.keys > 0, op, "logits");
  params.strides = logits.strides();
  params.dtype = check_dtype(op, "logits", logits.x);
  return params;
}

// A query's elements, each of which meets every head.
int64_t weight_of(const InterHeadSimilarityParams& params) {
  return params.heads * params.keys * (1 + params.heads / 8);
}

// The terms of all queries are added up in order, so threads do not show.
float compute(const InterHeadSimilarityParams& params) {
  std::vector<double> terms(params.items());
  for_each_part(params.items(), weight_of(params), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(kernels().scratch(params));
    kernels().forward(params, begin, end, terms.data() + begin, scratch.data());
  });
  double total = 0.0;
  for (const double term : terms) total += term;
  return static_cast<float>(total / params.pairs());
}

template <Device device>
Tensor forward(const Tensor& given) {
  const char* op = "inter_head_similarity_loss";
  const Guard<device> guard(given);
  const Heads logits(op, "logits", given);
  InterHeadSimilarityParams params = make_params(op, logits);
  const auto floats = floats_like(given);
  if (given.numel() == 0) return at::zeros({}, floats);
  Tensor value = at::empty({}, floats);
  if constexpr (device == Device::kCPU) {
    *value.mutable_data_ptr<float>() = compute(params);
  } else {
    const Tensor workspace = at::empty({params.items()}, floats.dtype(at::kDouble));
    params.value = value.mutable_data_ptr<float>();
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(inter_head_similarity_loss_cuda, params);
  }
  return value;
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& given) {
  const char* op = "inter_head_similarity_loss_backward";
  const Guard<device> guard(given);
  const Heads logits(op, "logits", given);
  InterHeadSimilarityParams params = make_params(op, logits);
  require(gradient.numel() == 1 && gradient.device() == given.device(), op, "grad");
  const HeadsResult target(given);
  if (given.numel() == 0) return target.result;
  const Tensor incoming = gradient.to(at::kFloat);
  params.gradient = incoming.const_data_ptr<float>();
  params.result = target.written.mutable_data_ptr();
  params.result_strides = target.strides();
  if constexpr (device == Device::kCPU) {
    for_each_part(params.items(), 2 * weight_of(params), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(kernels().scratch(params));
      kernels().backward(params, begin, end, scratch.data());
    });
  } else {
    launch(inter_head_similarity_loss_backward_cuda, params);
  }
  return target.finished();
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("inter_head_similarity_loss", &forward<device>);
  library.impl("inter_head_similarity_loss_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
