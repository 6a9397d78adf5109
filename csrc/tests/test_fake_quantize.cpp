// The CPU kernels of fake quantization over a given range, on every instruction set that can run here.
#include "cpu/fake_quantize.h"

#include "quantizer_cases.h"

using namespace synq;
using namespace synq::test;

TEST(values) {
  for_each_case(
      SYNQ_TABLES(cpu::fake_quantize_kernels), [](const auto& kernels, const Case& c, const auto& in, DType dtype) {
        using T = decltype(element_type(in));
        check_elements<T>(
            c, [&](const Model& model, int64_t i) { return from_float<T>(value_of(model, to_float(in.x[i]))); },
            [&](T* y, int64_t begin, int64_t end) { kernels.fake_quantize(make_job(c, in, dtype, y), begin, end); });
      });
}

TEST(gradients) {
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_kernels),
                [](const auto& kernels, const Case& c, const auto& in, DType dtype) {
                  using T = decltype(element_type(in));
                  check_elements<T>(
                      c,
                      [&](const Model& model, int64_t i) {
                        return is_outside(model, to_float(in.x[i])) ? from_float<T>(0.0f) : in.gradient[i];
                      },
                      [&](T* y, int64_t begin, int64_t end) {
                        kernels.fake_quantize_backward(make_job(c, in, dtype, y), begin, end);
                      });
                });
}

TEST(codes) {
  for_each_case(SYNQ_TABLES(cpu::fake_quantize_kernels), [](const auto& kernels, const Case& c, const auto& in,
                                                            DType dtype) {
    const auto check = [&](auto tag) {
      using Code = decltype(tag);
      check_elements<Code>(
          c,
          [&](const Model& model, int64_t i) {
            const double code = code_of(model, to_float(in.x[i]));
            return static_cast<Code>(std::isnan(code) ? 0.0 : code);
          },
          [&](Code* y, int64_t begin, int64_t end) { kernels.quantize_codes(make_job(c, in, dtype, y), begin, end); });
    };
    c.bits <= 8 ? check(int8_t{}) : check(int16_t{});
  });
}

TEST(threads_on_disjoint_parts) {
  const Case c = plain_case(Place::kShifted);
  for (const auto& set : SYNQ_TABLES(cpu::fake_quantize_kernels)) {
    for (const DType dtype : kDTypes) {
      WHERE(set.isa, name_of(dtype));
      cpu::with_type(dtype, [&](auto tag) {
        const Inputs<decltype(tag)> in(c);
        for (const auto kernel : {set.table.fake_quantize, set.table.fake_quantize_backward}) {
          check_threads<decltype(tag)>(c.count(), c.place, [&](auto* y, int64_t begin, int64_t end) {
            kernel(make_job(c, in, dtype, y), begin, end);
          });
        }
      });
    }
  }
}
