// synq_fast::distillation_loss, the same with its gradients, and the backward pass that combines these.
#include "distillation_loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "cpu/distillation_loss.h"
#include "ops/device.h"
#include "ops/parallel.h"
#include "ops/tensors.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// kl, ce, difficulty, gradients of (kl, ce) in the student's logits (2, B, C), gradient of kl in the teacher's
// (1, B, C); gradients that were not asked for have no row: (0, B, C), and are undefined where none could be.
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// A class costs about as much as this many elements of a copy: four exponentials.
constexpr int64_t kWork = 8;

const cpu::DistillationKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(distillation_kernels);
}

struct Logits {
  Tensor student;  // contiguous (batch, classes)
  Tensor teacher;
  Tensor labels;
  int64_t batch;
  int64_t classes;

  Logits(const char* op, const Tensor& given_student, const Tensor& given_teacher, const Tensor& given_labels) {
    check_dtype(op, "student_logits", given_student);
    check_dtype(op, "teacher_logits", given_teacher);
    require(given_student.dim() == 2 && given_student.size(1) > 1, op, "student_logits");
    require(given_teacher.sizes() == given_student.sizes() && given_teacher.device() == given_student.device(), op,
            "teacher_logits");
    batch = given_student.size(0);
    classes = given_student.size(1);
    require_type(given_labels.scalar_type() == at::kLong, op, "labels");
    require(given_labels.dim() == 1 && given_labels.size(0) == batch && given_labels.device() == given_student.device(),
            op, "labels");
    student = given_student.contiguous();
    teacher = given_teacher.contiguous();
    labels = given_labels.contiguous();
  }
};

struct Settings {
  double temperature;
  double alpha;
  double threshold;
};

Tensor empty_gradients(int64_t count, const Logits& logits) {
  return at::empty({count, logits.batch, logits.classes}, logits.student.options().dtype(at::kFloat));
}

template <typename Work>
void point_at_gradients(Work& work, Tensor& of_student, Tensor& of_teacher, const Logits& logits) {
  if (of_student.defined() && of_student.size(0) > 0) {
    work.kl_gradient = of_student.mutable_data_ptr<float>();
    work.ce_gradient = work.kl_gradient + logits.batch * logits.classes;
  }
  if (of_teacher.defined() && of_teacher.size(0) > 0) work.teacher_gradient = of_teacher.mutable_data_ptr<float>();
}

void compute_on_cpu(const char* op, const Logits& logits, const Settings& settings, Results& results) {
  auto& [kl, ce, difficulty, of_student, of_teacher] = results;
  const int64_t batch = logits.batch;
  const int64_t* labels = logits.labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch; ++i) require(labels[i] >= 0 && labels[i] < logits.classes, op, "labels");
  c10::SmallVector<double, 256> losses(2 * batch);
  const double count = static_cast<double>(std::max<int64_t>(batch, 1));
  cpu::DistillationJob job{};
  job.student = logits.student.const_data_ptr();
  job.teacher = logits.teacher.const_data_ptr();
  job.labels = labels;
  job.kl = losses.data();
  job.ce = losses.data() + batch;
  job.difficulty = difficulty.mutable_data_ptr<float>();
  job.classes = logits.classes;
  job.inverse_temperature = static_cast<float>(1 / settings.temperature);
  job.threshold = static_cast<float>(settings.threshold);
  job.kl_scale = static_cast<float>(settings.alpha * settings.temperature / count);
  job.ce_scale = static_cast<float>(1 / count);
  job.student_dtype = check_dtype(op, "student_logits", logits.student);
  job.teacher_dtype = check_dtype(op, "teacher_logits", logits.teacher);
  point_at_gradients(job, of_student, of_teacher, logits);
  for_each_part(batch, kWork * logits.classes, [&](int64_t begin, int64_t end) {
    c10::SmallVector<float, 3072> workspace(3 * logits.classes);
    kernels().rows(job, begin, end, workspace.data());
  });

  // In the order of the rows, whichever thread computed them.
  double kl_sum = 0;
  double ce_sum = 0;
  for (int64_t i = 0; i < batch; ++i) {
    kl_sum += job.kl[i];
    ce_sum += job.ce[i];
  }
  const double factor = settings.alpha * settings.temperature * settings.temperature / count;
  *kl.mutable_data_ptr<float>() = static_cast<float>(kl_sum * factor);
  *ce.mutable_data_ptr<float>() = static_cast<float>(ce_sum / count);
}

template <Device device>
void compute_on_gpu(const char* op, Logits& logits, const Settings& settings, Results& results) {
  auto& [kl, ce, difficulty, of_student, of_teacher] = results;
  if (logits.student.scalar_type() != logits.teacher.scalar_type()) {
    logits.student = logits.student.to(at::kFloat);
    logits.teacher = logits.teacher.to(at::kFloat);
  }
  const Tensor losses = at::empty({2, logits.batch}, kl.options().dtype(at::kDouble));
  DistillationLossParams params{};
  params.student = logits.student.const_data_ptr();
  params.teacher = logits.teacher.const_data_ptr();
  params.labels = logits.labels.const_data_ptr<int64_t>();
  params.kl = kl.template mutable_data_ptr<float>();
  params.ce = ce.template mutable_data_ptr<float>();
  params.difficulty = difficulty.template mutable_data_ptr<float>();
  point_at_gradients(params, of_student, of_teacher, logits);
  params.row_losses = losses.mutable_data_ptr<double>();
  params.batch = logits.batch;
  params.classes = logits.classes;
  params.temperature = static_cast<float>(settings.temperature);
  params.alpha = static_cast<float>(settings.alpha);
  params.threshold = static_cast<float>(settings.threshold);
  params.dtype = check_dtype(op, "student_logits", logits.student);
  launch(distillation_loss_cuda, params);
}

template <Device device>
Results compute(const char* op, const Tensor& student_logits, const Tensor& teacher_logits, const Tensor& labels,
                const Settings& settings, int64_t student_gradients, int64_t teacher_gradients) {
  const Guard<device> guard(student_logits);
  Logits logits(op, student_logits, teacher_logits, labels);
  require(settings.temperature > 0 && std::isfinite(settings.temperature), op, "temperature");
  require(settings.alpha >= 0 && std::isfinite(settings.alpha), op, "alpha");
  require(std::isfinite(settings.threshold), op, "difficulty_threshold");
  const auto floats = logits.student.options().dtype(at::kFloat);
  const auto scalar = [&] { return logits.batch == 0 ? at::zeros({}, floats) : at::empty({}, floats); };
  Results results{scalar(), scalar(), at::empty({logits.batch}, floats), {}, {}};
  if (student_gradients >= 0) std::get<3>(results) = empty_gradients(student_gradients, logits);
  if (teacher_gradients >= 0) std::get<4>(results) = empty_gradients(teacher_gradients, logits);
  if (logits.batch == 0) return results;
  if constexpr (device == Device::kCPU) {
    compute_on_cpu(op, logits, settings, results);
  } else {
    compute_on_gpu<device>(op, logits, settings, results);
  }
  return results;
}

template <Device device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& student_logits, const Tensor& teacher_logits,
                                           const Tensor& labels, double temperature, double alpha, double threshold) {
  const Settings settings{temperature, alpha, threshold};
  Results results = compute<device>("distillation_loss", student_logits, teacher_logits, labels, settings, -1, -1);
  return {std::get<0>(results), std::get<1>(results), std::get<2>(results)};
}

template <Device device>
Results with_gradient(const Tensor& student_logits, const Tensor& teacher_logits, const Tensor& labels,
                      double temperature, double alpha, double threshold, bool student_gradient,
                      bool teacher_gradient) {
  const Settings settings{temperature, alpha, threshold};
  return compute<device>("distillation_loss_with_gradient", student_logits, teacher_logits, labels, settings,
                         student_gradient ? 2 : 0, teacher_gradient ? 1 : 0);
}

// A factor of the combined gradient: one float32 value, or undefined for a loss that was not used.
Tensor check_scale(const char* op, const char* name, const Optional& scale, const Tensor& logits) {
  if (!scale || !scale->defined()) return {};
  require(scale->numel() == 1 && scale->device() == logits.device(), op, name);
  return scale->to(at::kFloat).contiguous();
}

template <Device device>
Tensor backward(const Optional& kl, const Optional& ce, const Tensor& given_gradients, const Tensor& logits) {
  const char* op = "distillation_loss_backward";
  const Guard<device> guard(logits);
  const DType dtype = check_dtype(op, "logits", logits);
  require_type(given_gradients.scalar_type() == at::kFloat, op, "gradients");
  require(logits.dim() == 2 && given_gradients.dim() == 3 && given_gradients.size(0) >= 1 &&
              given_gradients.sizes().slice(1) == logits.sizes(),
          op, "gradients");
  const Tensor kl_scale = check_scale(op, "kl", kl, logits);
  const Tensor ce_scale = check_scale(op, "ce", ce, logits);
  require(kl_scale.defined() || ce_scale.defined(), op, "kl");
  require(!ce_scale.defined() || given_gradients.size(0) == 2, op, "ce");
  const Tensor gradients = given_gradients.contiguous();
  const float* first = gradients.const_data_ptr<float>();
  const float* of_kl = kl_scale.defined() ? first : nullptr;
  const float* of_ce = ce_scale.defined() ? first + logits.numel() : nullptr;
  Tensor result = at::empty(logits.sizes(), logits.options());
  if (logits.numel() == 0) return result;
  if constexpr (device == Device::kCPU) {
    cpu::DistillationGradientJob job{};
    job.kl = of_kl;
    job.ce = of_ce;
    if (of_kl != nullptr) job.kl_scale = *kl_scale.const_data_ptr<float>();
    if (of_ce != nullptr) job.ce_scale = *ce_scale.const_data_ptr<float>();
    job.result = result.mutable_data_ptr();
    job.dtype = dtype;
    for_each_part(logits.numel(), 1, [&](int64_t begin, int64_t end) { kernels().combine(job, begin, end); });
  } else {
    DistillationGradientParams params{};
    if (of_kl != nullptr) params.kl_scale = kl_scale.const_data_ptr<float>();
    if (of_ce != nullptr) params.ce_scale = ce_scale.const_data_ptr<float>();
    params.kl_gradient = of_kl;
    params.ce_gradient = of_ce;
    params.result = result.mutable_data_ptr();
    params.elements = logits.numel();
    params.dtype = dtype;
    launch(distillation_loss_backward_cuda, params);
  }
  return result;
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("distillation_loss", &forward<device>);
  library.impl("distillation_loss_with_gradient", &with_gradient<device>);
  library.impl("distillation_loss_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
