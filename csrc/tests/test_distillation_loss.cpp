// The CPU kernels of the distillation losses, on every instruction set that can run here.
#include "cpu/distillation_loss.h"

#include <cmath>

#include "kernels.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr int64_t kClasses[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 511, 512, 513, 1027};
constexpr int64_t kRows = 5;
constexpr float kTemperature = 20.0f;
constexpr float kKlScale = 4.0f;
constexpr float kCeScale = 0.25f;

std::vector<double> softmax(const float* logits, int64_t classes, double temperature) {
  double largest = logits[0];
  for (int64_t i = 0; i < classes; ++i) largest = std::max(largest, double(logits[i]));
  std::vector<double> result;
  double sum = 0.0;
  for (int64_t i = 0; i < classes; ++i) {
    result.push_back(std::exp((double(logits[i]) - largest) / temperature));
    sum += result.back();
  }
  for (double& value : result) value /= sum;
  return result;
}

// Everything that the kernel writes, in guarded memory.
struct Outputs {
  Buffer<double> kl, ce;
  Buffer<float> difficulty, kl_gradient, ce_gradient, teacher_gradient;

  Outputs(int64_t classes, Place place)
      : kl(kRows, place),
        ce(kRows, place),
        difficulty(kRows, place),
        kl_gradient(kRows * classes, place),
        ce_gradient(kRows * classes, place),
        teacher_gradient(kRows * classes, place) {}
};

template <typename S, typename T>
struct Inputs {
  Buffer<S> student;
  Buffer<T> teacher;
  Buffer<int64_t> labels;

  Inputs(int64_t classes, Place place)
      : student(random_values<S>(kRows * classes, 1, 0, 3.0f), place),
        teacher(random_values<T>(kRows * classes, 2, 0, 3.0f), place),
        labels(kRows, place) {
    for (int64_t i = 0; i < kRows; ++i) labels[i] = (7 * i + 3) % classes;
  }

  // `gradients`: 0 none, 1 of the student, 2 of the teacher too.
  cpu::DistillationJob job(int64_t classes, DType student_type, DType teacher_type, int gradients, Outputs& out) const {
    cpu::DistillationJob job{};
    job.student = student.data();
    job.teacher = teacher.data();
    job.labels = labels.data();
    job.kl = out.kl.data();
    job.ce = out.ce.data();
    job.difficulty = out.difficulty.data();
    job.kl_gradient = gradients > 0 ? out.kl_gradient.data() : nullptr;
    job.ce_gradient = gradients > 0 ? out.ce_gradient.data() : nullptr;
    job.teacher_gradient = gradients > 1 ? out.teacher_gradient.data() : nullptr;
    job.classes = classes;
    job.inverse_temperature = 1.0f / kTemperature;
    job.threshold = 0.9f;
    job.kl_scale = kKlScale;
    job.ce_scale = kCeScale;
    job.student_dtype = student_type;
    job.teacher_dtype = teacher_type;
    return job;
  }
};

bool close(double given, double expected, double scale) { return std::fabs(given - expected) <= 1e-5 * scale; }

template <typename S, typename T>
void check_row(const Inputs<S, T>& in, int64_t classes, int64_t row, const Outputs& out, int gradients) {
  std::vector<float> student, teacher;
  for (int64_t i = row * classes; i < (row + 1) * classes; ++i) {
    student.push_back(to_float(in.student[i]));
    teacher.push_back(to_float(in.teacher[i]));
  }
  const auto p = softmax(teacher.data(), classes, kTemperature), q = softmax(student.data(), classes, kTemperature);
  const auto plain_p = softmax(teacher.data(), classes, 1.0), plain_q = softmax(student.data(), classes, 1.0);
  const size_t label = static_cast<size_t>(in.labels[row]);
  double kl = 0.0;
  for (size_t i = 0; i < p.size(); ++i) kl += p[i] * std::log(p[i] / q[i]);
  const bool easy = 1.0 - plain_p[label] < 0.9;
  CHECK(close(out.kl[row], kl, 1.0));
  CHECK(close(out.ce[row], easy ? -std::log(plain_q[label]) : 0.0, 10.0));
  CHECK(close(out.difficulty[row], 1.0 - plain_p[label], 1.0));
  for (int64_t i = 0; i < classes; ++i) {
    const size_t k = static_cast<size_t>(i);
    WHERE("row", row, "class", i);
    if (gradients > 0) {
      CHECK(close(out.kl_gradient[row * classes + i], kKlScale * (q[k] - p[k]), kKlScale));
      const double own = easy ? kCeScale * (plain_q[k] - (k == label ? 1.0 : 0.0)) : 0.0;
      CHECK(close(out.ce_gradient[row * classes + i], own, kCeScale));
    }
    if (gradients > 1) {
      CHECK(close(out.teacher_gradient[row * classes + i], kKlScale * p[k] * (std::log(p[k] / q[k]) - kl), kKlScale));
    }
  }
}

}  // namespace

TEST(rows) {
  const DType types[][2] = {
      {DType::kFloat32, DType::kFloat32}, {DType::kFloat16, DType::kFloat32}, {DType::kBFloat16, DType::kFloat16}};
  int turn = 0;
  for (const int64_t classes : kClasses) {
    for (const Place place : kPlaces) {
      for (int gradients = 0; gradients <= 2; ++gradients) {
        const auto& [student_type, teacher_type] = types[turn++ % 3];
        const DType teacher_dtype = teacher_type, student_dtype = student_type;
        cpu::with_type(student_type, [&](auto s) {
          cpu::with_type(teacher_dtype, [&](auto t) {
            const Inputs<decltype(s), decltype(t)> in(classes, place);
            for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::distillation_kernels)) {
              WHERE(isa, name_of(student_dtype), name_of(teacher_dtype), "classes", classes, name_of(place),
                    "gradients", gradients);
              Outputs out(classes, place);
              Buffer<float> workspace(3 * classes, place);
              const auto job = in.job(classes, student_dtype, teacher_dtype, gradients, out);
              for (int64_t row = kRows - 1; row >= 0; --row) {
                workspace.clear();
                kernels.rows(job, row, row + 1, workspace.data());
                CHECK(out.kl.is_untouched(0, row));
                CHECK(out.kl_gradient.is_untouched(0, row * classes));
              }
              for (int64_t row = 0; row < kRows; ++row) check_row(in, classes, row, out, gradients);
              // All rows in one call.
              Outputs whole(classes, place);
              kernels.rows(in.job(classes, student_dtype, teacher_dtype, gradients, whole), 0, kRows, workspace.data());
              CHECK_ALL_EQUAL(whole.kl.data(), out.kl.data(), kRows);
              CHECK_ALL_EQUAL(whole.ce_gradient.data(), out.ce_gradient.data(), kRows * classes);
              kernels.rows(job, 2, 2, workspace.data());
            }
          });
        });
      }
    }
  }
}

TEST(special_logits_stay_inside_their_memory) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::distillation_kernels)) {
    for (const int64_t classes : kClasses) {
      WHERE(isa, "classes", classes);
      Inputs<float, float> in(classes, Place::kEnd);
      const auto special = random_values<float>(kRows * classes, 9, 2);
      std::copy(special.begin(), special.end(), in.student.data());
      std::copy(special.rbegin(), special.rend(), in.teacher.data());
      Outputs out(classes, Place::kEnd);
      Buffer<float> workspace(3 * classes);
      kernels.rows(in.job(classes, DType::kFloat32, DType::kFloat32, 2, out), 0, kRows, workspace.data());
    }
  }
}

TEST(combined_gradients) {
  for (const int64_t count : {1, 15, 17, 511, 513, 1300}) {
    for (const Place place : kPlaces) {
      const Buffer<float> kl(random_values<float>(count, 1, 8), place), ce(random_values<float>(count, 2, 8), place);
      for (const DType dtype : kDTypes) {
        for (int terms = 1; terms <= 3; ++terms) {
          cpu::with_type(dtype, [&](auto tag) {
            using T = decltype(tag);
            std::vector<T> expected;
            for (int64_t i = 0; i < count; ++i) {
              const float a = 0.75f * kl[i], b = -1.25f * ce[i];
              expected.push_back(from_float<T>(terms == 1 ? a : terms == 2 ? b : a + b));
            }
            for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::distillation_kernels)) {
              WHERE(isa, name_of(dtype), "count", count, "terms", terms, name_of(place));
              const auto combine = kernels.combine;
              check_splits(expected, place, [&](T* y, int64_t begin, int64_t end) {
                combine({terms & 1 ? kl.data() : nullptr, terms & 2 ? ce.data() : nullptr, y, 0.75f, -1.25f, dtype},
                        begin, end);
              });
            }
          });
        }
      }
    }
  }
}

TEST(threads_on_disjoint_rows) {
  for (const auto& set : SYNQ_TABLES(cpu::distillation_kernels)) {
    WHERE(set.isa);
    const int64_t classes = 33;
    const Inputs<float, float> in(classes, Place::kShifted);
    Outputs alone(classes, Place::kShifted), together(classes, Place::kShifted);
    const auto run = [&](Outputs& out, int64_t begin, int64_t end) {
      std::vector<float> workspace(3 * classes);
      set.table.rows(in.job(classes, DType::kFloat32, DType::kFloat32, 2, out), begin, end, workspace.data());
    };
    run(alone, 0, kRows);
    in_threads({{0, 1}, {1, 3}, {3, kRows}}, [&](int64_t begin, int64_t end) { run(together, begin, end); });
    CHECK_ALL_EQUAL(together.kl.data(), alone.kl.data(), kRows);
    CHECK_ALL_EQUAL(together.kl_gradient.data(), alone.kl_gradient.data(), kRows * classes);
    CHECK_ALL_EQUAL(together.teacher_gradient.data(), alone.teacher_gradient.data(), kRows * classes);
  }
}
