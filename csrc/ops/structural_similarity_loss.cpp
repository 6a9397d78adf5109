// synq_fast::structural_similarity_loss and its gradient.
#include "structural_similarity_loss.h"

#include <ATen/ops/zeros.h>
#include <c10/util/SmallVector.h>

#include <tuple>

#include "ops/device.h"
#include "ops/heads.h"
#include "ops/parallel.h"

namespace synq {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

const cpu::StructuralSimilarityKernels& kernels() {
  using namespace cpu;
  return SYNQ_SELECT(structural_similarity_kernels);
}

// What both directions are given, checked, and for as long as kernels need the pointers.
struct Arguments {
  Heads teacher;
  Heads student;
  Tensor weight;
  StructuralSimilarityParams params{};

  Arguments(const char* op, const Tensor& given_teacher, const Tensor& given_student, const Optional& given_weight)
      : teacher(op, "teacher", given_teacher), student(op, "student", given_student) {
    require(given_teacher.sizes() == given_student.sizes() && given_teacher.device() == given_student.device(), op,
            "teacher");
    require_type(given_teacher.scalar_type() == given_student.scalar_type(), op, "teacher");
    require(given_student.size(2) > 0, op, "student");
    params.teacher = teacher.x.const_data_ptr();
    params.student = student.x.const_data_ptr();
    params.batch = given_student.size(0);
    params.heads = given_student.size(1);
    params.positions = given_student.size(2);
    params.channels = given_student.size(3);
    params.teacher_strides = teacher.strides();
    params.student_strides = student.strides();
    params.dtype = check_dtype(op, "student", given_student);
    if (given_weight && given_weight->defined()) set_weight(op, *given_weight);
  }

  void set_weight(const char* op, const Tensor& given) {
    const auto wanted = student.x.sizes().slice(0, 3);
    require(given.dim() <= 3 && given.device() == student.x.device(), op, "weight");
    for (int64_t i = 1; i <= given.dim(); ++i) {
      require(given.size(-i) == 1 || given.size(-i) == wanted[3 - i], op, "weight");
    }
    require_type(at::isFloatingType(given.scalar_type()), op, "weight");
    weight = given.to(at::kFloat).expand(wanted);
    params.weight = weight.const_data_ptr<float>();
    params.weight_strides = {weight.stride(0), weight.stride(1), weight.stride(2)};
  }
};

// The sums of all tiles are added up in order, so threads do not show.
float compute(const StructuralSimilarityParams& params) {
  const int64_t tiles = (params.channels + cpu::kChannelTile - 1) / cpu::kChannelTile;
  const int64_t items = params.matrices() * tiles;
  c10::SmallVector<double, 256> sums(items);
  for_each_part(items, 2 * params.positions * cpu::kChannelTile,
                [&](int64_t begin, int64_t end) { kernels().statistics(params, begin, end, sums.data() + begin); });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return static_cast<float>(1.0 - total / static_cast<double>(params.similarities()));
}

template <Device device>
std::tuple<Tensor, Tensor> forward(const Tensor& teacher, const Tensor& student, const Optional& weight) {
  const Guard<device> guard(student);
  Arguments given("structural_similarity_loss", teacher, student, weight);
  StructuralSimilarityParams& params = given.params;
  const auto floats = floats_like(student);
  Tensor statistics = at::empty({params.batch, params.heads, 4, params.channels}, floats);
  if (params.similarities() == 0) return {at::zeros({}, floats), statistics};
  Tensor value = at::empty({}, floats);
  params.statistics = statistics.mutable_data_ptr<float>();
  if constexpr (device == Device::kCPU) {
    *value.mutable_data_ptr<float>() = compute(params);
  } else {
    params.value = value.mutable_data_ptr<float>();
    const int64_t size = structural_similarity_workspace_cuda(params);
    const Tensor workspace = at::empty({size}, floats.dtype(at::kDouble));
    params.workspace = workspace.mutable_data_ptr<double>();
    launch(structural_similarity_loss_cuda, params);
  }
  return {value, statistics};
}

template <Device device>
Tensor backward(const Tensor& gradient, const Tensor& teacher, const Tensor& student, const Optional& weight,
                const Tensor& given_statistics) {
  const char* op = "structural_similarity_loss_backward";
  const Guard<device> guard(student);
  Arguments given(op, teacher, student, weight);
  StructuralSimilarityParams& params = given.params;
  require(gradient.numel() == 1 && gradient.device() == student.device(), op, "grad");
  require_type(given_statistics.scalar_type() == at::kFloat, op, "statistics");
  require(given_statistics.dim() == 4 && given_statistics.size(0) == params.batch &&
              given_statistics.size(1) == params.heads && given_statistics.size(2) == 4 &&
              given_statistics.size(3) == params.channels && given_statistics.device() == student.device(),
          op, "statistics");
  const HeadsResult target(student);
  if (student.numel() == 0) return target.result;
  Tensor statistics = given_statistics.contiguous();
  const Tensor incoming = gradient.to(at::kFloat);
  params.statistics = statistics.mutable_data_ptr<float>();
  params.gradient = incoming.const_data_ptr<float>();
  params.result = target.written.mutable_data_ptr();
  params.result_strides = target.strides();
  if constexpr (device == Device::kCPU) {
    for_each_part(params.matrices() * params.positions, params.channels,
                  [&](int64_t begin, int64_t end) { kernels().backward(params, begin, end); });
  } else {
    launch(structural_similarity_loss_backward_cuda, params);
  }
  return target.finished();
}

template <Device device>
void register_ops(torch::Library& library) {
  library.impl("structural_similarity_loss", &forward<device>);
  library.impl("structural_similarity_loss_backward", &backward<device>);
}

SYNQ_REGISTER(register_ops)

}  // namespace
}  // namespace synq
