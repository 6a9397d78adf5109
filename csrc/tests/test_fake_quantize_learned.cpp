// The CPU kernel of the gradients of a learned grid, on every instruction set that can run here.
#include "cpu/fake_quantize_learned.h"

#include "learned_grid.h"
#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

bool is_kept(const Chance& chance, int64_t i) {
  const int64_t place = chance.offset + i;
  return keeps(chance, draw(chance, place / 4).values[place % 4]);
}

// d y / d scale is distance / scale^2; see LearnedTerms.
double distance_of(const Model& model, float x) {
  const double position = rounded(double(rounded(double(model.scale) * x)) - model.zero_point);
  return is_outside(model, x) ? -rounded(code_of(model, x) + model.zero_point) : rounded(position - code_of(model, x));
}

}  // namespace

TEST(gradients_of_x) {
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_learned_kernels),
                [](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  using T = decltype(element_type(in));
                  Buffer<double> of_scale(c.shape.channels, c.place), of_zero(c.shape.channels, c.place);
                  check_elements<T>(
                      c,
                      [&](const Model& model, int64_t i) {
                        return is_outside(model, to_float(in.x[i])) ? from_float<T>(0.0f) : in.gradient[i];
                      },
                      [&](T* y, int64_t begin, int64_t end) {
                        kernels.backward(make_job(c, in, dtype, y), begin, end, of_scale.data(), of_zero.data());
                      });
                });
}

TEST(dropped) {
  const Chance chance{0x123456789abcdef0u, 1u << 23, 1001};
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_learned_kernels), [&](const auto& kernels, const Case& c, const auto& in,
                                                                     DType dtype) {
    using T = decltype(element_type(in));
    check_elements<T>(
        c,
        [&](const Model& model, int64_t i) {
          const float x = to_float(in.x[i]);
          return is_kept(chance, i) ? from_float<T>(value_of(model, x)) : in.x[i];
        },
        [&](T* y, int64_t begin, int64_t end) { kernels.dropped(make_job(c, in, dtype, y), chance, begin, end); });
    Buffer<double> of_scale(c.shape.channels, c.place), of_zero(c.shape.channels, c.place);
    check_elements<T>(
        c,
        [&](const Model& model, int64_t i) {
          const bool blocked = is_kept(chance, i) && is_outside(model, to_float(in.x[i]));
          return blocked ? from_float<T>(0.0f) : in.gradient[i];
        },
        [&](T* y, int64_t begin, int64_t end) {
          kernels.dropped_backward(make_job(c, in, dtype, y), chance, begin, end, of_scale.data(), of_zero.data());
        });
  });
}

TEST(sums_over_channels) {
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_learned_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Shape shape : {Shape{3, 5, 401}, Shape{301, 5, 1}, Shape{1, 1, 1999}, Shape{2, 515, 1}}) {
        const std::vector<Model> models(static_cast<size_t>(shape.channels), make_model(-1.0f, 1.5f, 4));
        const Case c{shape, 4, Place::kShifted, models};
        WHERE(set.isa, name_of(dtype), shape.outer, shape.channels, shape.inner);
        cpu::with_type(dtype, [&](auto tag) {
          using T = decltype(tag);
          const Inputs<T> in(c, 0);
          const size_t channels = static_cast<size_t>(shape.channels);
          std::vector<double> scale(channels), zero(channels);
          const Chance chance{3, 1u << 22, 2};
          std::vector<double> dropped_scale(channels), dropped_zero(channels);
          for (int64_t i = 0; i < c.count(); ++i) {
            const size_t channel = static_cast<size_t>(i / shape.inner) % channels;
            const double gradient = to_float(in.gradient[i]);
            const double of_scale = rounded(gradient * distance_of(c.model_of(i), to_float(in.x[i])));
            const double of_zero = is_outside(c.model_of(i), to_float(in.x[i])) ? gradient : 0.0;
            scale[channel] += of_scale;
            zero[channel] += of_zero;
            if (!is_kept(chance, i)) continue;
            dropped_scale[channel] += of_scale;
            dropped_zero[channel] += of_zero;
          }
          Buffer<T> y(c.count(), c.place);
          Buffer<double> of_scale(shape.channels, c.place), of_zero(shape.channels, c.place);
          for (const Split& split : splits(c.count())) {
            of_scale.fill(0.0);
            of_zero.fill(0.0);
            for (const auto& [begin, end] : split) {
              set.table.backward(make_job(c, in, dtype, y.data()), begin, end, of_scale.data(), of_zero.data());
            }
            for (size_t i = 0; i < channels; ++i) {
              CHECK(std::abs(of_scale[static_cast<int64_t>(i)] - scale[i]) < 1e-9);
              CHECK(std::abs(of_zero[static_cast<int64_t>(i)] - zero[i]) < 1e-9);
            }
            of_scale.fill(0.0);
            of_zero.fill(0.0);
            for (const auto& [begin, end] : split) {
              set.table.dropped_backward(make_job(c, in, dtype, y.data()), chance, begin, end, of_scale.data(),
                                         of_zero.data());
            }
            for (size_t i = 0; i < channels; ++i) {
              CHECK(std::abs(of_scale[static_cast<int64_t>(i)] - dropped_scale[i]) < 1e-9);
              CHECK(std::abs(of_zero[static_cast<int64_t>(i)] - dropped_zero[i]) < 1e-9);
            }
          }
        });
      }
    }
  }
}

TEST(threads_with_sums_of_their_own) {
  const Case c = plain_case(Place::kShifted);
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_learned_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        check_threads<decltype(tag)>(c.count(), c.place, [&](auto* y, int64_t begin, int64_t end) {
          double of_scale[5] = {};
          double of_zero[5] = {};
          set.table.backward(make_job(c, in, dtype, y), begin, end, of_scale, of_zero);
        });
      });
    }
  }
}
