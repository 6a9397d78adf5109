// Distillation losses on logits and their gradients: one block per row, then one block that sums the rows' losses in a
// fixed order. With t' = (t - max t) / T, s' likewise, Zt = sum exp(t') and Zq = sum exp(s'):
//   KL = sum exp(t') (t' - s') / Zt - log(Zt / Zq).
#include "../distillation_loss.h"

#include "block_rows.cuh"

namespace synq {
namespace {

constexpr int kTermPack = 4;

struct Scales {
  float inverse_temperature;
  float kl;  // of the gradients of the divergence
  float ce;  // of the gradient of the cross-entropy
};

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks)
    logits_kernel(const DistillationLossParams params, const Scales scales) {
  const int64_t row = blockIdx.x;
  const int64_t classes = params.classes;
  const T* student = static_cast<const T*>(params.student) + row * classes;
  const T* teacher = static_cast<const T*>(params.teacher) + row * classes;
  const int64_t begin = static_cast<int64_t>(threadIdx.x) * kCount;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kCount;

  float most[2] = {-INFINITY, -INFINITY};
  for (int64_t first = begin; first < classes; first += step) {
    const Pack<T, kCount> s = load_pack<kCount>(student + first);
    const Pack<T, kCount> t = load_pack<kCount>(teacher + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      most[0] = fmaxf(most[0], to_float(s.values[i]));
      most[1] = fmaxf(most[1], to_float(t.values[i]));
    }
  }
  maximum_block(most);
  const float student_max = most[0];
  const float teacher_max = most[1];

  // sum exp(s'), sum exp(s - max s), sum exp(t'), sum exp(t - max t), sum exp(t') (t' - s')
  float sums[5] = {};
  for (int64_t first = begin; first < classes; first += step) {
    const Pack<T, kCount> s = load_pack<kCount>(student + first);
    const Pack<T, kCount> t = load_pack<kCount>(teacher + first);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float below_s = to_float(s.values[i]) - student_max;
      const float below_t = to_float(t.values[i]) - teacher_max;
      const float p = expf(below_t * scales.inverse_temperature);
      sums[0] += expf(below_s * scales.inverse_temperature);
      sums[1] += expf(below_s);
      sums[2] += p;
      sums[3] += expf(below_t);
      // An absent class adds nothing, however unlikely the student finds it.
      sums[4] += p == 0.0f ? 0.0f : p * ((below_t - below_s) * scales.inverse_temperature);
    }
  }
  sum_block(sums);
  const float mean = sums[4] / sums[2];

  const int64_t label = params.labels[row];
  const bool known = label >= 0 && label < classes;
  const float own_teacher = known ? to_float(teacher[label]) - teacher_max : NAN;
  const float own_student = known ? to_float(student[label]) - student_max : NAN;
  const float difficulty = 1.0f - expf(own_teacher) / sums[3];
  const bool easy = difficulty < params.threshold;
  if (threadIdx.x == 0) {
    params.difficulty[row] = difficulty;
    params.row_losses[row] = static_cast<double>(mean) - log(static_cast<double>(sums[2]) / sums[0]);
    const double cross_entropy = log(static_cast<double>(sums[1])) - own_student;
    params.row_losses[params.batch + row] = easy || !known ? cross_entropy : 0.0;
  }
  if (params.kl_gradient == nullptr && params.teacher_gradient == nullptr) return;

  const float teacher_factor = scales.kl / sums[2];
  const float student_factor = scales.kl / sums[0];
  const float label_factor = scales.ce / sums[1];
  for (int64_t first = begin; first < classes; first += step) {
    const Pack<T, kCount> s = load_pack<kCount>(student + first);
    const Pack<T, kCount> t = load_pack<kCount>(teacher + first);
    Pack<float, kCount> of_kl;
    Pack<float, kCount> of_ce;
    Pack<float, kCount> of_teacher;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float below_s = to_float(s.values[i]) - student_max;
      const float below_t = to_float(t.values[i]) - teacher_max;
      const float e = expf(below_t * scales.inverse_temperature);
      const float p = e * teacher_factor;
      const float ratio = e == 0.0f ? 0.0f : (below_t - below_s) * scales.inverse_temperature;
      of_kl.values[i] = expf(below_s * scales.inverse_temperature) * student_factor - p;
      of_teacher.values[i] = p * (ratio - mean);
      const float own = expf(below_s) * label_factor - (first + i == label ? scales.ce : 0.0f);
      of_ce.values[i] = easy ? own : 0.0f;
    }
    const int64_t place = row * classes + first;
    if (params.kl_gradient != nullptr) {
      store_pack<kCount>(params.kl_gradient + place, of_kl);
      store_pack<kCount>(params.ce_gradient + place, of_ce);
    }
    if (params.teacher_gradient != nullptr) store_pack<kCount>(params.teacher_gradient + place, of_teacher);
  }
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(const double* losses, float* kl, float* ce, int64_t batch, double kl_factor, double ce_factor) {
  __shared__ double shared[2][kThreads];
  double sums[2] = {};
  for (int64_t row = threadIdx.x; row < batch; row += kThreads) {
    sums[0] += losses[row];
    sums[1] += losses[batch + row];
  }
  shared[0][threadIdx.x] = sums[0];
  shared[1][threadIdx.x] = sums[1];
  for (int width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < width) {
      shared[0][threadIdx.x] += shared[0][threadIdx.x + width];
      shared[1][threadIdx.x] += shared[1][threadIdx.x + width];
    }
  }
  if (threadIdx.x == 0) {
    *kl = static_cast<float>(shared[0][0] * kl_factor);
    *ce = static_cast<float>(shared[1][0] * ce_factor);
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads, kMinimumBlocks) combine_kernel(const DistillationGradientParams params) {
  const float kl_scale = params.kl_scale == nullptr ? 0.0f : *params.kl_scale;
  const float ce_scale = params.ce_scale == nullptr ? 0.0f : *params.ce_scale;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kCount;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kCount;
  for (; first < params.elements; first += step) {
    float sum[kCount] = {};
    if (params.kl_scale != nullptr) {
      const Pack<float, kCount> term = load_pack<kCount>(params.kl_gradient + first);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum[i] = kl_scale * term.values[i];
    }
    if (params.ce_scale != nullptr) {
      const Pack<float, kCount> term = load_pack<kCount>(params.ce_gradient + first);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum[i] += ce_scale * term.values[i];
    }
    Pack<T, kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) result.values[i] = from_float<T>(sum[i]);
    store_pack<kCount>(static_cast<T*>(params.result) + first, result);
  }
}

}  // namespace

int distillation_loss_cuda(const DistillationLossParams& params, void* stream) {
  const double batch = static_cast<double>(params.batch);
  const double temperature = params.temperature;
  const Scales scales{static_cast<float>(1 / temperature), static_cast<float>(params.alpha * temperature / batch),
                      static_cast<float>(1 / batch)};
  const int error = with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kCount = pack_size<T>();
    const size_t wide = sizeof(float) * kCount;
    const bool packed = params.classes % kCount == 0 && is_aligned(params.student, kPackBytes) &&
                        is_aligned(params.teacher, kPackBytes) && is_aligned(params.kl_gradient, wide) &&
                        is_aligned(params.ce_gradient, wide) && is_aligned(params.teacher_gradient, wide);
    if (packed) {
      return launch(logits_kernel<T, kCount>, params.batch, threads_for_row(params.classes / kCount), 0, stream, params,
                    scales);
    }
    return launch(logits_kernel<T, 1>, params.batch, threads_for_row(params.classes), 0, stream, params, scales);
  });
  if (error != cudaSuccess) return error;
  return launch(total_kernel, 1, kThreads, 0, stream, static_cast<const double*>(params.row_losses), params.kl,
                params.ce, params.batch, params.alpha * temperature * temperature / batch, 1 / batch);
}

int distillation_loss_backward_cuda(const DistillationGradientParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const bool packed = params.elements % kTermPack == 0 && is_aligned(params.kl_gradient, kPackBytes) &&
                        is_aligned(params.ce_gradient, kPackBytes) && is_aligned(params.result, sizeof(T) * kTermPack);
    const int64_t items = packed ? params.elements / kTermPack : params.elements;
    const int64_t blocks = ceil_divide(items, kThreads);
    if (packed) return launch_striding(combine_kernel<T, kTermPack>, blocks, kThreads, 0, stream, params);
    return launch_striding(combine_kernel<T, 1>, blocks, kThreads, 0, stream, params);
  });
}

}  // namespace synq
