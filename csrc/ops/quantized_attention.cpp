// synq_fast::quantized_attention and its gradients.
#include "quantized_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"
#include "probability_grid.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kMostRows = int64_t{1} << 24;
constexpr auto kContiguous = at::MemoryFormat::Contiguous;
constexpr const char* kNames[] = {"q", "k", "v"};
constexpr const char* kScales[] = {"q_scale", "k_scale", "v_scale", "p_scale"};
constexpr const char* kZeroPoints[] = {"q_zero_point", "k_zero_point", "v_zero_point"};

const cpu::QuantizedAttentionKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(quantized_attention_kernels);
}

// Itself where the elements of its rows follow each other.
Tensor with_rows(const Tensor& x) { return x.size(3) == 1 || x.stride(3) == 1 ? x : x.contiguous(); }

HeadRows rows_of(const Tensor& x, void* data) { return {data, x.stride(0), x.stride(1), x.stride(2)}; }

// Kernels write nothing where they are promised to read.
HeadRows given_rows(const Tensor& x) { return rows_of(x, const_cast<void*>(x.const_data_ptr())); }

// A result laid out as at::empty_like does it, and memory with rows to write it to.
struct Result {
  Tensor wanted;
  Tensor written;

  explicit Result(const Tensor& like) : wanted(at::empty_like(like)) {
    const bool rows = wanted.size(3) == 1 || wanted.stride(3) == 1;
    written = rows ? wanted : at::empty_like(wanted, wanted.options().memory_format(kContiguous));
  }

  HeadRows rows() { return rows_of(written, written.mutable_data_ptr()); }
  Tensor finished() const { return wanted.is_same(written) ? wanted : wanted.copy_(written); }
};

// What both directions are given, checked, and for as long as kernels need the pointers.
struct Arguments {
  Tensor x[3];
  Tensor scale[4];
  Tensor zero_point[3];
  Tensor bias;
  Tensor mask;
  QuantizedAttentionParams params{};

  Arguments(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor (&scales)[4],
            const Tensor (&zero_points)[3], const Optional& given_bias, const Optional& given_mask,
            at::IntArrayRef bits, double alpha, bool log2) {
    const Tensor* given[] = {&q, &k, &v};
    params.dtype = check_dtype(op, "q", q);
    for (int i = 0; i < 3; ++i) {
      require_type(given[i]->scalar_type() == q.scalar_type(), op, kNames[i]);
      require(given[i]->device() == q.device() && given[i]->dim() == 4, op, kNames[i]);
      x[i] = with_rows(*given[i]);
      params.x[i] = given_rows(x[i]);
    }
    params.batch = q.size(0);
    params.heads = q.size(1);
    params.rows = q.size(2);
    params.columns = k.size(2);
    params.width = q.size(3);
    require(params.heads > 0 && params.width > 0, op, "q");
    require(params.columns > 0, op, "k");
    // Places within a head are int32 on some devices.
    require(std::max({params.rows, params.columns, params.width}) <= kMostRows, op, "q");
    const int64_t sizes[] = {params.batch, params.heads, params.columns, params.width};
    require(k.sizes() == at::IntArrayRef(sizes), op, "k");
    require(v.sizes() == k.sizes(), op, "v");
    require(bits.size() == kOperands, op, "bits");
    require(std::isfinite(alpha), op, "alpha");
    params.alpha = static_cast<float>(alpha);
    params.log2 = log2;
    for (int i = 0; i < kOperands; ++i) {
      require(bits[i] >= 2 && bits[i] <= 16, op, "bits");
      params.bits[i] = static_cast<int32_t>(bits[i]);
      scale[i] = check_grid(op, kScales[i], scales[i]);
      params.scale[i] = scale[i].const_data_ptr<float>();
      params.per_head[i] = scale[i].numel() > 1;
      if (q.is_cpu()) {
        for (int64_t head = 0; head < scale[i].numel(); ++head) require(!(params.scale[i][head] <= 0), op, kScales[i]);
      }
      if (i == kProbabilities) break;
      zero_point[i] = check_grid(op, kZeroPoints[i], zero_points[i]);
      require(zero_point[i].numel() == scale[i].numel(), op, kZeroPoints[i]);
      params.zero_point[i] = zero_point[i].const_data_ptr<float>();
    }
    if (given_bias && given_bias->defined()) {
      bias = check_summands(op, "bias", *given_bias);
      require(bias.size(0) == params.heads, op, "bias");
      params.bias = bias.const_data_ptr<float>();
    }
    params.masks = 1;
    if (given_mask && given_mask->defined()) {
      mask = check_summands(op, "mask", *given_mask);
      params.masks = mask.size(0);
      require(params.masks > 0 && params.batch % params.masks == 0, op, "mask");
      params.mask = mask.const_data_ptr<float>();
    }
  }

  Tensor check_grid(const char* op, const char* name, const Tensor& value) const {
    require_type(value.scalar_type() == at::kFloat, op, name);
    require(value.device() == x[0].device(), op, name);
    require(value.numel() == 1 || (value.dim() == 1 && value.size(0) == params.heads), op, name);
    return value.contiguous();
  }

  Tensor check_summands(const char* op, const char* name, const Tensor& value) const {
    require_type(value.scalar_type() == at::kFloat, op, name);
    require(value.device() == x[0].device() && value.dim() == 3, op, name);
    require(value.size(1) == params.rows && value.size(2) == params.columns, op, name);
    return value.contiguous();
  }

  // Multiplications of a product of a head.
  int64_t work() const { return params.rows * params.columns * params.width; }
};

// Work of this many multiplications is worth a thread.
int64_t weight_of(const Arguments& given) { return given.work() / 16 + 1; }

template <Device device>
Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_scale, const Tensor& q_zero_point,
               const Tensor& k_scale, const Tensor& k_zero_point, const Tensor& v_scale, const Tensor& v_zero_point,
               const Tensor& p_scale, const Optional& bias, const Optional& mask, at::IntArrayRef bits, double alpha,
               bool log2, at::ArrayRef<double> gradient_scales) {
  const Guard<device> guard(q);
  Arguments given("quantized_attention", q, k, v, {q_scale, k_scale, v_scale, p_scale},
                  {q_zero_point, k_zero_point, v_zero_point}, bias, mask, bits, alpha, log2);
  require(gradient_scales.size() == kOperands, "quantized_attention", "gradient_scales");
  Result y(q);
  if (q.numel() == 0) return y.wanted;
  QuantizedAttentionParams& params = given.params;
  params.y = y.rows();
  if constexpr (device == Device::kCPU) {
    for_each_part(params.batch * params.heads, weight_of(given), [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> workspace(new float[kernels().workspace(params, false)]);
      for (int64_t i = begin; i < end; ++i) {
        kernels().forward(params, i / params.heads, i % params.heads, workspace.get());
      }
    });
  } else {
    launch(quantized_attention_cuda, params);
  }
  return y.finished();
}

// Writes the gradients of grids from the sums of every part and head, and adds up those of the bias.
void finish(const QuantizedAttentionParams& params, const std::vector<double>& sums,
            const std::vector<float>& of_bias) {
  const int64_t parts = image_parts(params).count;
  for (int i = 0; i < kAttentionSums; ++i) {
    const int operand = i % kOperands;
    const bool is_scale = i < kOperands;
    const int64_t heads = params.per_head[operand] ? params.heads : 1;
    for (int64_t head = 0; head < heads; ++head) {
      double sum = 0.0;
      for (int64_t j = head; j < parts * params.heads; j += heads) sum += sums[j * kAttentionSums + i];
      const float scale = params.scale[operand][head];
      const double factor = params.gradient_scale[operand];
      if (is_scale) {
        const bool log2 = params.log2 != 0 && operand == kProbabilities;
        params.grad_scale[operand][head] = probability_grad_scale(log2, sum, scale, factor);
      } else {
        params.grad_zero_point[operand][head] = learned_grad_zero_point(sum, scale, factor);
      }
    }
  }
  if (params.grad_bias == nullptr) return;
  const int64_t size = params.heads * params.rows * params.columns;
  for (int64_t i = 0; i < size; ++i) {
    float sum = 0.0f;
    for (int64_t part = 0; part < parts; ++part) sum += of_bias[part * size + i];
    params.grad_bias[i] = sum;
  }
}

void backward_on_cpu(const QuantizedAttentionParams& params, int64_t weight) {
  const ImageParts parts = image_parts(params);
  const int64_t matrix = params.rows * params.columns;
  std::vector<double> sums(parts.count * params.heads * kAttentionSums);
  std::vector<float> of_bias(params.grad_bias == nullptr ? 0 : parts.count * params.heads * matrix);
  for_each_part(parts.count * params.heads, 2 * parts.size * weight, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> workspace(new float[kernels().workspace(params, true)]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / params.heads * parts.size;
      float* bias = of_bias.empty() ? nullptr : of_bias.data() + i * matrix;
      for (int64_t image = first; image < std::min(first + parts.size, params.batch); ++image) {
        kernels().backward(params, image, i % params.heads, workspace.get(), &sums[i * kAttentionSums], bias);
      }
    }
  });
  finish(params, sums, of_bias);
}

template <Device device>
Eleven backward(const Tensor& gradient, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_scale,
                const Tensor& q_zero_point, const Tensor& k_scale, const Tensor& k_zero_point, const Tensor& v_scale,
                const Tensor& v_zero_point, const Tensor& p_scale, const Optional& bias, const Optional& mask,
                at::IntArrayRef bits, double alpha, bool log2, at::ArrayRef<double> gradient_scales, bool of_bias) {
  const char* op = "quantized_attention_backward";
  const Guard<device> guard(q);
  Arguments given(op, q, k, v, {q_scale, k_scale, v_scale, p_scale}, {q_zero_point, k_zero_point, v_zero_point}, bias,
                  mask, bits, alpha, log2);
  require(gradient.sizes() == q.sizes(), op, "grad");
  require(gradient_scales.size() == kOperands, op, "gradient_scales");
  require(!of_bias || given.bias.defined(), op, "bias");
  QuantizedAttentionParams& params = given.params;
  const Tensor incoming = with_rows(gradient.to(q.scalar_type()));
  Result of_q(q), of_k(k), of_v(v);
  const bool empty = q.numel() == 0;
  const auto like = [&](const Tensor& value) {
    return empty ? at::zeros_like(value, kContiguous) : at::empty(value.sizes(), value.options());
  };
  const auto none = [&] { return at::empty({0}, q_scale.options()); };
  Tensor scales[4], zero_points[3];
  for (int i = 0; i < kOperands; ++i) {
    scales[i] = like(given.scale[i]);
    params.grad_scale[i] = scales[i].mutable_data_ptr<float>();
    params.gradient_scale[i] = gradient_scales[i];
    if (i == kProbabilities) break;
    zero_points[i] = like(given.zero_point[i]);
    params.grad_zero_point[i] = zero_points[i].mutable_data_ptr<float>();
  }
  const Tensor bias_gradient = of_bias ? like(given.bias) : none();
  if (of_bias) params.grad_bias = bias_gradient.mutable_data_ptr<float>();
  if (!empty) {
    params.gradient = given_rows(incoming);
    params.of_x[kQueries] = of_q.rows();
    params.of_x[kKeys] = of_k.rows();
    params.of_x[kValues] = of_v.rows();
    if constexpr (device == Device::kCPU) {
      backward_on_cpu(params, weight_of(given));
    } else {
      const Tensor workspace = at::empty({quantized_attention_workspace_cuda(params)}, given.scale[0].options());
      params.workspace = workspace.mutable_data_ptr<float>();
      launch(quantized_attention_backward_cuda, params);
    }
  } else {
    of_k.written.zero_();
    of_v.written.zero_();
  }
  return {of_q.finished(), of_k.finished(), of_v.finished(), scales[0], zero_points[0], scales[1],
          zero_points[1],  scales[2],       zero_points[2],  scales[3], bias_gradient};
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("quantized_attention", &forward<device>);
  library.impl("quantized_attention_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
