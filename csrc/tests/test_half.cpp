// Every float16 and bfloat16 there is, both ways, on every instruction set.
#include <cmath>

#include "check.h"
#include "isa/half.h"
#include "kernels.h"
#include "memory.h"

namespace {

using namespace synq;
using namespace synq::test;
using cpu::BFloat16;
using cpu::Float16;

constexpr int64_t kPatterns = 65536;

struct Format {
  const char* name;
  int mantissa_bits;
  int bias;
  void (*cpu::HalfKernels::*widen)(const uint16_t*, float*, int64_t);
  void (*cpu::HalfKernels::*narrow)(const float*, uint16_t*, int64_t);
};

const Format kFormats[] = {
    {"float16", 10, 15, &cpu::HalfKernels::widen_float16, &cpu::HalfKernels::narrow_float16},
    {"bfloat16", 7, 127, &cpu::HalfKernels::widen_bfloat16, &cpu::HalfKernels::narrow_bfloat16},
};

// The value of a bit pattern by the definition of the format.
double value_of(const Format& format, uint16_t bits) {
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const int exponent = (bits & 0x7fff) >> format.mantissa_bits;
  const int top = (0x7fff >> format.mantissa_bits);
  double value;
  if (exponent == top) {
    value = mantissa == 0 ? kInfinity : kNan;
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - format.bias - format.mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1 << format.mantissa_bits), exponent - format.bias - format.mantissa_bits);
  }
  return bits & 0x8000 ? -value : value;
}

// The pattern of the nearest value, the even one of two that are equally near.
uint16_t pattern_of(const Format& format, double value) {
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> format.mantissa_bits << format.mantissa_bits);
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  uint16_t nearest = infinity;
  if (magnitude < std::ldexp(1.0, format.bias + 1)) {
    const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -10000, 1 - format.bias);
    const double steps = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
    // Rounding up into the next exponent carries into the exponent's bits by itself.
    nearest = static_cast<uint16_t>((exponent + format.bias - 1) * (1 << format.mantissa_bits) + steps);
  }
  return sign | nearest;
}

bool is_nan(const Format& format, uint16_t bits) { return std::isnan(value_of(format, bits)); }

uint16_t bits_of_pattern(int64_t i) { return static_cast<uint16_t>(i); }

// Block by block, and element by element, which is how the ends of a row are converted.
template <typename From, typename To>
void convert_both_ways(void (*convert)(const From*, To*, int64_t), const Buffer<From>& x, Buffer<To>& blockwise,
                       Buffer<To>& single) {
  convert(x.data(), blockwise.data(), x.count());
  for (int64_t i = 0; i < x.count(); ++i) convert(x.data() + i, single.data() + i, 1);
}

void check_narrowed(const Format& format, const Buffer<float>& x, const Buffer<uint16_t>& given) {
  for (int64_t i = 0; i < x.count(); ++i) {
    if (std::isnan(x[i]) ? is_nan(format, given[i]) : given[i] == pattern_of(format, x[i])) continue;
    WHERE("narrowing", text(x[i]));
    CHECK_EQUAL(given[i], std::isnan(x[i]) ? uint16_t{0x7fff} : pattern_of(format, x[i]));
  }
}

}  // namespace

TEST(the_model_knows_the_formats) {
  CHECK_EQUAL(value_of(kFormats[0], 0x3c00), 1.0);
  CHECK_EQUAL(value_of(kFormats[0], 0xfbff), -65504.0);
  CHECK_EQUAL(value_of(kFormats[0], 0x0001), 0x1p-24);
  CHECK_EQUAL(value_of(kFormats[1], 0x3f80), 1.0);
  CHECK_EQUAL(value_of(kFormats[1], 0x0001), 0x1p-133);
  CHECK_EQUAL(pattern_of(kFormats[0], 65519.0), 0x7bff);
  CHECK_EQUAL(pattern_of(kFormats[0], 65520.0), 0x7c00);
  CHECK_EQUAL(pattern_of(kFormats[1], 3.4028235e38), 0x7f80);
}

TEST(every_pattern_widens_exactly_and_returns) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::half_kernels)) {
    for (const Format& format : kFormats) {
      WHERE(isa, format.name);
      Buffer<uint16_t> x(kPatterns);
      for (int64_t i = 0; i < kPatterns; ++i) x[i] = bits_of_pattern(i);
      Buffer<float> blockwise(kPatterns), single(kPatterns);
      convert_both_ways(kernels.*format.widen, x, blockwise, single);
      std::vector<float> expected;
      for (int64_t i = 0; i < kPatterns; ++i) expected.push_back(static_cast<float>(value_of(format, x[i])));
      CHECK_ALL_EQUAL(blockwise.data(), expected.data(), kPatterns);
      CHECK_ALL_EQUAL(single.data(), expected.data(), kPatterns);

      Buffer<uint16_t> back(kPatterns), back_single(kPatterns);
      convert_both_ways(kernels.*format.narrow, blockwise, back, back_single);
      for (int64_t i = 0; i < kPatterns; ++i) {
        if (is_nan(format, x[i])) {
          if (!is_nan(format, back[i]) || !is_nan(format, back_single[i])) CHECK_EQUAL(back[i], x[i]);
        } else if (back[i] != x[i] || back_single[i] != x[i]) {
          CHECK_EQUAL(back[i], x[i]);
          CHECK_EQUAL(back_single[i], x[i]);
        }
      }
    }
  }
}

// Rounding is monotonic, so the midpoints between neighbours and the floats beside them decide every float.
TEST(every_boundary_narrows_to_the_nearest_even) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::half_kernels)) {
    for (const Format& format : kFormats) {
      WHERE(isa, format.name);
      std::vector<float> values{kNan, -kNan, 3.4028235e38f, -3.4028235e38f, 65520.0f, 65519.996f, 1e-45f, -1e-45f};
      for (const uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7fa00000u}) {
        values.push_back(cpu::float_of(bits));
      }
      for (int64_t i = 0; i + 1 < kPatterns; ++i) {
        const double here = value_of(format, bits_of_pattern(i));
        const double next = value_of(format, bits_of_pattern(i + 1));
        if (std::isnan(here) || std::isnan(next)) continue;
        const float middle = static_cast<float>(std::isinf(next) ? here : here + (next - here) / 2);
        values.insert(values.end(), {middle, std::nextafter(middle, -kInfinity), std::nextafter(middle, kInfinity)});
      }
      const Buffer<float> x(values, Place::kEnd);
      Buffer<uint16_t> blockwise(x.count()), single(x.count());
      convert_both_ways(kernels.*format.narrow, x, blockwise, single);
      check_narrowed(format, x, blockwise);
      check_narrowed(format, x, single);
    }
  }
}

TEST(conversions_stay_inside_their_memory) {
  for (const auto& [isa, kernels] : SYNQ_TABLES(cpu::half_kernels)) {
    for (const Format& format : kFormats) {
      for (const Place place : kPlaces) {
        for (int64_t count = 0; count <= 40; ++count) {
          WHERE(isa, format.name, name_of(place), "count", count);
          Buffer<uint16_t> x(count, place);
          for (int64_t i = 0; i < count; ++i) x[i] = static_cast<uint16_t>(0x3c00 + i);
          Buffer<float> wide(count, place);
          Buffer<uint16_t> back(count, place);
          (kernels.*format.widen)(x.data(), wide.data(), count);
          (kernels.*format.narrow)(wide.data(), back.data(), count);
          CHECK_ALL_EQUAL(back.data(), x.data(), count);
        }
      }
    }
  }
}
