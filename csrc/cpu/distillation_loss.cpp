// Distillation losses for one instruction set; the table at the end is named after it.
// As in every kernel source, nothing here may instantiate shared inline code (the standard library, torch).
//
// With t' = (t - max t) / T, s' likewise, Zt = sum exp(t') and Zq = sum exp(s'):
//   KL = sum exp(t') (t' - s') / Zt - log(Zt / Zq),
// so one sweep over the teacher's row and one over the student's give every sum, and the gradients follow from the
// exponentials kept from these sweeps.
#include "cpu/distillation_loss.h"

#include <math.h>
#include <string.h>

#include "cpu/elements.h"
#include "cpu/exp.h"
#include "cpu/rows.h"

namespace synq::cpu {
namespace {

constexpr float kLeast = -INFINITY;

// NaN is passed over: it meets the sums later.
inline float maximum_of(const float* x, int64_t count) {
  Vector most = Vector{} + kLeast;
  for_each_vector(0, count, [&](int64_t i, auto lanes) {
    const Vector value = lanes.load(x + i, kLeast);
    most = value > most ? value : most;
  });
  float result = most[0];
  for (int i = 1; i < kLanes; ++i) result = most[i] > result ? most[i] : result;
  return result;
}

inline float exp_of(float value) { return exp(Vector{} + value)[0]; }

struct Row {
  const float* student;
  const float* teacher;
  float* teacher_exp;  // exp(t')
  float* student_exp;  // exp(s'); where the divergence's gradient goes, or null
  float* plain_exp;    // exp(s - max s); where the cross-entropy's gradient goes, or null
  int64_t classes;
  float inverse_temperature;
  float student_max;
  float teacher_max;
};

struct TeacherSums {
  double tempered = 0;
  double plain = 0;
};

TeacherSums sweep_teacher(const Row& row) {
  TeacherSums sums;
  for_each_stretch(row.classes, [&](int64_t begin, int64_t end) {
    Vector tempered = {};
    Vector plain = {};
    for_each_vector(begin, end, [&](int64_t i, auto lanes) {
      const Vector below = lanes.load(row.teacher + i, kLeast) - row.teacher_max;
      const Vector e = exp(below * row.inverse_temperature);
      lanes.store(row.teacher_exp + i, e);
      tempered += e;
      plain += exp(below);
    });
    sums.tempered += sum_of(tempered);
    sums.plain += sum_of(plain);
  });
  return sums;
}

// t' - s'
template <typename Lanes>
inline Vector difference(const Row& row, int64_t i, Lanes lanes) {
  const Vector teacher = (lanes.load(row.teacher + i, kLeast) - row.teacher_max) * row.inverse_temperature;
  return teacher - (lanes.load(row.student + i, kLeast) - row.student_max) * row.inverse_temperature;
}

struct StudentSums {
  double tempered = 0;
  double plain = 0;     // of easy samples alone
  double weighted = 0;  // sum exp(t') (t' - s')
};

template <bool kEasy>
StudentSums sweep_student(const Row& row) {
  StudentSums sums;
  for_each_stretch(row.classes, [&](int64_t begin, int64_t end) {
    Vector tempered = {};
    Vector plain = {};
    Vector weighted = {};
    for_each_vector(begin, end, [&](int64_t i, auto lanes) {
      const Vector below = lanes.load(row.student + i, kLeast) - row.student_max;
      const Vector e = exp(below * row.inverse_temperature);
      tempered += e;
      if (row.student_exp != nullptr) lanes.store(row.student_exp + i, e);
      const Vector p = lanes.load(row.teacher_exp + i, 0.0f);
      // An absent class adds nothing, however unlikely the student finds it.
      weighted += p == 0.0f ? Vector{} : p * difference(row, i, lanes);
      if constexpr (kEasy) {
        const Vector own = exp(below);
        plain += own;
        if (row.plain_exp != nullptr) lanes.store(row.plain_exp + i, own);
      }
    });
    sums.tempered += sum_of(tempered);
    sums.weighted += sum_of(weighted);
    if constexpr (kEasy) sums.plain += sum_of(plain);
  });
  return sums;
}

void write_teacher_gradient(const Row& row, float* result, double teacher_sum, double weighted, float scale) {
  const float factor = static_cast<float>(static_cast<double>(scale) / teacher_sum);
  const float mean = static_cast<float>(weighted / teacher_sum);
  for_each_vector(0, row.classes, [&](int64_t i, auto lanes) {
    const Vector p = lanes.load(row.teacher_exp + i, 0.0f);
    const Vector ratio = p == 0.0f ? Vector{} : difference(row, i, lanes);
    lanes.store(result + i, p * factor * (ratio - mean));
  });
}

void write_student_gradient(const Row& row, double teacher_sum, double student_sum, float scale) {
  const float teacher_factor = static_cast<float>(static_cast<double>(scale) / teacher_sum);
  const float student_factor = static_cast<float>(static_cast<double>(scale) / student_sum);
  for_each_vector(0, row.classes, [&](int64_t i, auto lanes) {
    const Vector p = lanes.load(row.teacher_exp + i, 0.0f) * teacher_factor;
    lanes.store(row.student_exp + i, lanes.load(row.student_exp + i, 0.0f) * student_factor - p);
  });
}

void write_label_gradient(const Row& row, int64_t label, double plain_sum, float scale) {
  const float factor = static_cast<float>(static_cast<double>(scale) / plain_sum);
  for_each_vector(0, row.classes, [&](int64_t i, auto lanes) {
    lanes.store(row.plain_exp + i, lanes.load(row.plain_exp + i, 0.0f) * factor);
  });
  row.plain_exp[label] -= scale;
}

// The row itself, or its values widened into `buffer`.
const float* row_of(const void* logits, DType dtype, int64_t row, int64_t classes, float* buffer) {
  const float* result = buffer;
  with_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* source = static_cast<const T*>(logits) + row * classes;
    if constexpr (std::is_same_v<T, float>) {
      result = source;
    } else {
      load(source, buffer, classes);
    }
  });
  return result;
}

void one_row(const DistillationJob& job, int64_t index, float* workspace) {
  const int64_t classes = job.classes;
  const int64_t label = job.labels[index];
  Row row{};
  row.student = row_of(job.student, job.student_dtype, index, classes, workspace);
  row.teacher = row_of(job.teacher, job.teacher_dtype, index, classes, workspace + classes);
  row.teacher_exp = workspace + 2 * classes;
  row.classes = classes;
  row.inverse_temperature = job.inverse_temperature;
  row.student_max = maximum_of(row.student, classes);
  row.teacher_max = maximum_of(row.teacher, classes);
  if (job.kl_gradient != nullptr) {
    row.student_exp = job.kl_gradient + index * classes;
    row.plain_exp = job.ce_gradient + index * classes;
  }

  const TeacherSums teacher = sweep_teacher(row);
  const double own = static_cast<double>(exp_of(row.teacher[label] - row.teacher_max));
  const float difficulty = 1.0f - static_cast<float>(own / teacher.plain);
  const bool easy = difficulty < job.threshold;
  const StudentSums student = easy ? sweep_student<true>(row) : sweep_student<false>(row);

  job.difficulty[index] = difficulty;
  job.kl[index] = student.weighted / teacher.tempered - log(teacher.tempered / student.tempered);
  const float label_logit = row.student[label] - row.student_max;
  job.ce[index] = easy ? log(student.plain) - static_cast<double>(label_logit) : 0.0;
  if (job.teacher_gradient != nullptr) {
    write_teacher_gradient(row, job.teacher_gradient + index * classes, teacher.tempered, student.weighted,
                           job.kl_scale);
  }
  if (job.kl_gradient == nullptr) return;
  write_student_gradient(row, teacher.tempered, student.tempered, job.kl_scale);
  if (easy) {
    write_label_gradient(row, label, student.plain, job.ce_scale);
  } else {
    memset(row.plain_exp, 0, sizeof(float) * static_cast<size_t>(classes));
  }
}

void rows(const DistillationJob& job, int64_t begin, int64_t end, float* workspace) {
  for (int64_t index = begin; index < end; ++index) one_row(job, index, workspace);
}

void combine_floats(const DistillationGradientJob& job, int64_t begin, int64_t count, float* __restrict result) {
  if (job.kl == nullptr || job.ce == nullptr) {
    const float* only = (job.kl == nullptr ? job.ce : job.kl) + begin;
    const float scale = job.kl == nullptr ? job.ce_scale : job.kl_scale;
    for (int64_t i = 0; i < count; ++i) result[i] = scale * only[i];
    return;
  }
  const float* kl = job.kl + begin;
  const float* ce = job.ce + begin;
  for (int64_t i = 0; i < count; ++i) result[i] = job.kl_scale * kl[i] + job.ce_scale * ce[i];
}

void combine(const DistillationGradientJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto tag) {
    using T = decltype(tag);
    T* result = static_cast<T*>(job.result);
    if constexpr (std::is_same_v<T, float>) {
      combine_floats(job, begin, end - begin, result + begin);
    } else {
      for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t size = end - i < kBlock ? end - i : kBlock;
        float buffer[kBlock];
        combine_floats(job, i, size, buffer);
        store(buffer, result + i, size);
      }
    }
  });
}

}  // namespace

SYNQ_DEFINE_TABLE(DistillationKernels, distillation_kernels) = {rows, combine};

}  // namespace synq::cpu
