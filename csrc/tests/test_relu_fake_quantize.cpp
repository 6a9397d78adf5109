// The CPU kernels of ReLU and fake quantization in one pass, on every instruction set that can run here.
#include "cpu/relu_fake_quantize.h"

#include "activation.h"
#include "quantizer_cases.h"

namespace {

using namespace synq;
using namespace synq::test;

// What precedes the quantizer in these tests. With an affine map there is one quantizer for all channels.
struct Before {
  bool mapped;
  bool residual;
  float upper;
  bool clip;
};

constexpr Before kBefore[] = {
    {false, false, kNan, false}, {false, false, 1.25f, true}, {true, false, kNan, true},
    {true, true, 1.25f, false},  {true, false, kNan, false},  {true, true, kNan, true},
};

template <typename T>
struct ReluInputs {
  const Inputs<T>& in;
  Buffer<float> weight;
  Buffer<float> bias;
  Buffer<T> residual;

  ReluInputs(const Case& c, const Inputs<T>& in)
      : in(in),
        weight(random_values<float>(c.shape.channels, 5), c.place),
        bias(random_values<float>(c.shape.channels, 6), c.place),
        residual(random_values<T>(c.count(), 7), c.place) {}

  cpu::ReluJob job(const Case& c, const Before& before, DType dtype, void* y, void* of_residual = nullptr) const {
    return {in.x.data(),
            in.gradient.data(),
            before.residual ? residual.data() : nullptr,
            y,
            of_residual,
            before.mapped ? weight.data() : nullptr,
            before.mapped ? bias.data() : nullptr,
            in.scale.data(),
            in.zero_point.data(),
            c.shape.channels,
            c.shape.channels,
            c.shape.inner,
            before.upper,
            c.bits,
            dtype,
            before.clip};
  }

  float mapped(const Case& c, const Before& before, int64_t i) const {
    const int64_t channel = i / c.shape.inner % c.shape.channels;
    const float x = to_float(in.x[i]);
    if (!before.mapped) return x;
    const float value = rounded(double(rounded(double(x) * weight[channel])) + bias[channel]);
    return before.residual ? rounded(double(value) + double(to_float(residual[i]))) : value;
  }
  // The gradient before the ReLU.
  float gradient(const Case& c, const Before& before, int64_t i) const {
    const float value = mapped(c, before, i);
    if (value <= 0.0f || value >= before.upper) return 0.0f;
    const Model& model = before.mapped ? c.models[0] : c.model_of(i);
    return before.clip && is_outside(model, value) ? 0.0f : to_float(in.gradient[i]);
  }
};

float relu_of(float value, float upper) {
  if (value < 0.0f) return 0.0f;
  return value > upper ? upper : value;
}

}  // namespace

TEST(values) {
  size_t turn = 0;
  for_each_case(SYNQ_TABLES(cpu::relu_fake_quantize_kernels),
                [&turn](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  using T = decltype(element_type(in));
                  const ReluInputs<T> inputs(c, in);
                  const Before& before = kBefore[turn++ % std::size(kBefore)];
                  WHERE(before.mapped ? "mapped" : "plain", "upper", before.upper);
                  const auto kernel = before.mapped ? kernels.affine_relu : kernels.relu;
                  check_elements<T>(
                      c,
                      [&](const Model& model, int64_t i) {
                        const float value = relu_of(inputs.mapped(c, before, i), before.upper);
                        return from_float<T>(value_of(before.mapped ? c.models[0] : model, value));
                      },
                      [&](T* y, int64_t begin, int64_t end) { kernel(inputs.job(c, before, dtype, y), begin, end); });
                });
}

TEST(gradients_of_x) {
  size_t turn = 0;
  for_each_case(SYNQ_TABLES(cpu::relu_fake_quantize_kernels), [&turn](const auto& kernels, const Case& c,
                                                                      const auto& in, DType dtype) {
    using T = decltype(element_type(in));
    const ReluInputs<T> inputs(c, in);
    Buffer<double> of_weight(c.shape.channels, c.place), of_bias(c.shape.channels, c.place);
    const Before& before = kBefore[turn++ % std::size(kBefore)];
    WHERE(before.mapped ? "mapped" : "plain", "upper", before.upper, "clip", before.clip);
    check_elements<T>(
        c,
        [&](const Model&, int64_t i) {
          const float gradient = inputs.gradient(c, before, i);
          if (!before.mapped) return from_float<T>(gradient);
          return from_float<T>(rounded(double(gradient) * inputs.weight[i / c.shape.inner % c.shape.channels]));
        },
        [&](T* y, int64_t begin, int64_t end) {
          const cpu::ReluJob job = inputs.job(c, before, dtype, y);
          if (!before.mapped) return kernels.relu_backward(job, begin, end);
          // With and without the sums.
          if (begin % 2 == 0) return kernels.affine_relu_backward(job, begin, end, nullptr, nullptr);
          kernels.affine_relu_backward(job, begin, end, of_weight.data(), of_bias.data());
        });
  });
}

TEST(gradients_of_the_residual) {
  size_t turn = 0;
  for_each_case(SYNQ_TABLES(cpu::relu_fake_quantize_kernels),
                [&turn](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  using T = decltype(element_type(in));
                  const ReluInputs<T> inputs(c, in);
                  Buffer<double> of_weight(c.shape.channels, c.place), of_bias(c.shape.channels, c.place);
                  Buffer<T> y(c.count(), c.place);
                  const Before before{true, true, turn % 2 == 0 ? kNan : 1.25f, turn++ % 3 == 0};
                  WHERE("upper", before.upper, "clip", before.clip);
                  check_elements<T>(
                      c, [&](const Model&, int64_t i) { return from_float<T>(inputs.gradient(c, before, i)); },
                      [&](T* of_residual, int64_t begin, int64_t end) {
                        const cpu::ReluJob job = inputs.job(c, before, dtype, y.data(), of_residual);
                        if (begin % 2 == 0) return kernels.affine_relu_backward(job, begin, end, nullptr, nullptr);
                        kernels.affine_relu_backward(job, begin, end, of_weight.data(), of_bias.data());
                      });
                });
}

// A map repeated along a row gives what the map itself gives.
TEST(repeated_map) {
  const Shape shape{301, 5, 1};
  const Case c{shape, 4, Place::kShifted, std::vector<Model>(5, make_model(-1.0f, 1.5f, 4))};
  constexpr int64_t kColumns = 20;
  for (const auto& set : SYNQ_TABLES(cpu::relu_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        using T = decltype(tag);
        const Inputs<T> in(c);
        const ReluInputs<T> inputs(c, in);
        Buffer<float> weight(kColumns, c.place), bias(kColumns, c.place);
        for (int64_t i = 0; i < kColumns; ++i) {
          weight[i] = inputs.weight[i % 5];
          bias[i] = inputs.bias[i % 5];
        }
        const auto repeated = [&](T* y) {
          cpu::ReluJob job = inputs.job(c, kBefore[3], dtype, y);
          job.weight = weight.data();
          job.bias = bias.data();
          job.channels = kColumns;
          return job;
        };
        check_splits(in_one_part<T>(c.count(), c.place,
                                    [&](T* y, int64_t begin, int64_t end) {
                                      set.table.affine_relu(inputs.job(c, kBefore[3], dtype, y), begin, end);
                                    }),
                     c.place,
                     [&](T* y, int64_t begin, int64_t end) { set.table.affine_relu(repeated(y), begin, end); });
        double expected[2][5] = {}, sums[2][5] = {};
        Buffer<T> y(c.count(), c.place);
        const Inputs<T> plain(c, 0);
        const ReluInputs<T> finite(c, plain);
        cpu::ReluJob job = finite.job(c, kBefore[3], dtype, y.data());
        set.table.affine_relu_backward(job, 7, c.count(), expected[0], expected[1]);
        job.weight = weight.data();
        job.bias = bias.data();
        job.channels = kColumns;
        set.table.affine_relu_backward(job, 7, c.count(), sums[0], sums[1]);
        for (int kind = 0; kind < 2; ++kind) {
          for (int i = 0; i < 5; ++i) CHECK(std::abs(sums[kind][i] - expected[kind][i]) < 1e-4);
        }
      });
    }
  }
}

TEST(sums_over_channels) {
  for (const auto& set : SYNQ_TABLES(cpu::relu_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      for (const Shape shape : {Shape{3, 5, 401}, Shape{301, 5, 1}, Shape{1, 1, 1999}, Shape{2, 515, 1}}) {
        const std::vector<Model> models(static_cast<size_t>(shape.channels), make_model(-1.0f, 1.5f, 4));
        const Case c{shape, 4, Place::kShifted, models};
        WHERE(set.isa, name_of(dtype), shape.outer, shape.channels, shape.inner);
        cpu::with_type(dtype, [&](auto tag) {
          using T = decltype(tag);
          const Inputs<T> in(c, 0);
          const ReluInputs<T> inputs(c, in);
          const Before before{true, true, 1.25f, false};
          const size_t channels = static_cast<size_t>(shape.channels);
          std::vector<double> weight(channels), bias(channels), sizes(channels);
          for (int64_t i = 0; i < c.count(); ++i) {
            const size_t channel = static_cast<size_t>(i / shape.inner) % channels;
            const double gradient = inputs.gradient(c, before, i);
            weight[channel] += rounded(gradient * to_float(in.x[i]));
            bias[channel] += gradient;
            sizes[channel] += std::abs(gradient) * (1.0 + std::abs(to_float(in.x[i])));
          }
          Buffer<T> y(c.count(), c.place);
          Buffer<double> of_weight(shape.channels, c.place), of_bias(shape.channels, c.place);
          for (const Split& split : splits(c.count())) {
            of_weight.fill(0.0);
            of_bias.fill(0.0);
            for (const auto& [begin, end] : split) {
              set.table.affine_relu_backward(inputs.job(c, before, dtype, y.data()), begin, end, of_weight.data(),
                                             of_bias.data());
            }
            for (size_t i = 0; i < channels; ++i) {
              // At most 32 terms are added up in float32.
              const double allowed = 32 * 0x1p-24 * sizes[i];
              CHECK(std::abs(of_weight[static_cast<int64_t>(i)] - weight[i]) <= allowed);
              CHECK(std::abs(of_bias[static_cast<int64_t>(i)] - bias[i]) <= allowed);
            }
          }
        });
      }
    }
  }
}

TEST(threads_on_disjoint_parts) {
  const Case c = plain_case(Place::kShifted);
  for (const auto& set : SYNQ_TABLES(cpu::relu_fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        const ReluInputs<decltype(tag)> inputs(c, in);
        check_threads<decltype(tag)>(c.count(), c.place, [&](auto* y, int64_t begin, int64_t end) {
          set.table.affine_relu(inputs.job(c, kBefore[3], dtype, y), begin, end);
        });
        check_threads<decltype(tag)>(c.count(), c.place, [&](auto* y, int64_t begin, int64_t end) {
          double of_weight[5] = {};
          double of_bias[5] = {};
          set.table.affine_relu_backward(inputs.job(c, kBefore[3], dtype, y), begin, end, of_weight, of_bias);
        });
      });
    }
  }
}
