// affine.h, which CPU and CUDA kernels share, against the formulas in double.
#include "affine.h"

#include "check.h"
#include "kernels.h"
#include "quantizer_model.h"

namespace {

using namespace synq;
using namespace synq::test;

constexpr float kRanges[][2] = {
    {-1.0f, 1.0f},     {0.0f, 6.0f},      {-0.37f, 2.91f},   {-3.0f, -1.0f},  {2.0f, 2.0f},          {0.0f, 0.0f},
    {1e-9f, 2e-9f},    {-1e-41f, 1e-41f}, {1e4f, 1.0001e4f}, {-3e38f, 3e38f}, {-1e30f, 1e30f},       {-kInfinity, 1.0f},
    {0.0f, kInfinity}, {kNan, 1.0f},      {0.0f, kNan},      {-7.5f, 7.5f},   {-65504.0f, 65504.0f}, {-1e-8f, 0.0f},
};

std::vector<float> interesting_values(Affine affine, int bits) {
  std::vector<float> values = random_values<float>(2000, static_cast<unsigned>(bits), 10, 4.0f);
  values.insert(values.end(), {3.4028235e38f, -3.4028235e38f, 1e-45f, -1e-45f});
  // Around every boundary between two codes, and beyond both ends of the grid.
  for (int i = -(1 << (bits - 1)) - 3; i <= (1 << (bits - 1)) + 3; i += bits > 8 ? 97 : 1) {
    const float boundary = (static_cast<float>(i) + 0.5f + affine.zero_point) / affine.scale;
    values.insert(values.end(), {boundary, std::nextafter(boundary, -kInfinity), std::nextafter(boundary, kInfinity)});
  }
  return values;
}

}  // namespace

TEST(rounding_is_half_to_even_up_to_two_to_the_22) {
  for (int i = -(1 << 20); i <= 1 << 20; ++i) {
    const float tie = static_cast<float>(i) * 0.5f;
    for (const float value : {tie, std::nextafter(tie, -kInfinity), std::nextafter(tie, kInfinity)}) {
      if (round_small(value) != std::nearbyint(value)) CHECK_EQUAL(round_small(value), std::nearbyint(value));
    }
  }
  for (float value = 4194304.0f; value > 4190000.0f; value -= 0.5f) {
    if (round_small(value) != std::nearbyint(value)) CHECK_EQUAL(round_small(value), std::nearbyint(value));
    if (round_small(-value) != std::nearbyint(-value)) CHECK_EQUAL(round_small(-value), std::nearbyint(-value));
  }
  CHECK_EQUAL(round_small(kNan), kNan);
}

TEST(clamping_keeps_nan) {
  CHECK_EQUAL(clamp(kNan, -1.0f, 1.0f), kNan);
  CHECK_EQUAL(clamp(kInfinity, -1.0f, 1.0f), 1.0f);
  CHECK_EQUAL(clamp(-kInfinity, -1.0f, 1.0f), -1.0f);
  CHECK_EQUAL(clamp(0.25f, -1.0f, 1.0f), 0.25f);
}

TEST(grids) {
  CHECK_EQUAL(lowest_code(2), -2.0f);
  CHECK_EQUAL(highest_code(2), 1.0f);
  CHECK_EQUAL(lowest_code(8), -128.0f);
  CHECK_EQUAL(highest_code(8), 127.0f);
  CHECK_EQUAL(lowest_code(16), -32768.0f);
  CHECK_EQUAL(highest_code(16), 32767.0f);
}

TEST(scale_and_zero_point_equal_the_formulas) {
  for (int bits = 2; bits <= 16; ++bits) {
    for (const auto& range : kRanges) {
      WHERE("bits", bits, "range", range[0], range[1]);
      const Affine affine = make_affine(range[0], range[1], bits);
      const Model model = make_model(range[0], range[1], bits);
      CHECK_EQUAL(affine.scale, model.scale);
      CHECK_EQUAL(affine.zero_point, model.zero_point);
    }
  }
}

TEST(values_codes_and_gradients_equal_the_formulas) {
  for (const int bits : {2, 3, 4, 8, 12, 16}) {
    const float low = lowest_code(bits);
    const float high = highest_code(bits);
    for (const auto& range : kRanges) {
      const Affine affine = make_affine(range[0], range[1], bits);
      const Model model = make_model(range[0], range[1], bits);
      for (const float x : interesting_values(affine, bits)) {
        WHERE("bits", bits, "range", range[0], range[1], "x", x);
        const float code = quantize(x, affine, low, high);
        CHECK_EQUAL(code + 0.0f, rounded(code_of(model, x)) + 0.0f);  // the sign of zero is free
        CHECK_EQUAL(fake_quantize(x, affine, low, high), value_of(model, x));
        CHECK_EQUAL(clipped_gradient(3.0f, x, affine, low, high), is_outside(model, x) ? 0.0f : 3.0f);
        CHECK_EQUAL(clipped_gradient(kNan, x, affine, low, high), is_outside(model, x) ? 0.0f : kNan);
      }
    }
  }
}

TEST(ties_go_to_the_even_code) {
  const Affine unit{1.0f, 0.0f};
  CHECK_EQUAL(quantize(2.5f, unit, -8.0f, 7.0f), 2.0f);
  CHECK_EQUAL(quantize(3.5f, unit, -8.0f, 7.0f), 4.0f);
  CHECK_EQUAL(quantize(-2.5f, unit, -8.0f, 7.0f), -2.0f);
  CHECK_EQUAL(quantize(7.5f, unit, -8.0f, 7.0f), 7.0f);
  // 7.5 rounds to 8 and is outside; -8.5 rounds to -8 and is inside.
  CHECK_EQUAL(clipped_gradient(1.0f, 7.5f, unit, -8.0f, 7.0f), 0.0f);
  CHECK_EQUAL(clipped_gradient(1.0f, -8.5f, unit, -8.0f, 7.0f), 1.0f);
  CHECK_EQUAL(clipped_gradient(1.0f, std::nextafter(-8.5f, -kInfinity), unit, -8.0f, 7.0f), 0.0f);
}
