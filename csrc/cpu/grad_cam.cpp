// Weights, coarse maps and the gradient of activations, for one instruction set.
// Nothing here may instantiate shared inline code (the standard library, torch): see fake_quantize.cpp.
#include "cpu/grad_cam.h"

#include "cpu/elements.h"
#include "cpu/wide.h"

namespace synq::cpu {
namespace {

constexpr int kGroup = 8;  // rows that are added up side by side

// The values as float: the memory itself, or a converted copy in `buffer`.
template <typename T>
SYNQ_INLINE const float* as_floats(const T* x, int64_t count, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    load(x, buffer, count);
    return buffer;
  }
}

// Adds term(i, a value of the vector's type) over all elements to the lanes of `sum`. The last vector overlaps the one
// before it where the elements do not fill it.
template <typename Term>
SYNQ_INLINE void add_terms(int64_t count, Wide& sum, Term term) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += term(i, Wide{});
  if (i == count) return;
  if (count >= kLanes) {
    sum += last_lanes(count - i) ? term(count - kLanes, Wide{}) : Wide{};
  } else {
    for (int64_t lane = 0; i < count; ++i, ++lane) sum[lane] += term(i, 0.0f);
  }
}

SYNQ_INLINE Wide read(const float* x, const Wide&) {
  Wide value;
  load(x, value);
  return value;
}
SYNQ_INLINE float read(const float* x, float) { return *x; }

template <typename V>
SYNQ_INLINE V no_less(const V& value, float least) {
  return value < V{} + least ? V{} + least : value;
}

// The least weight of one activation: HiResCAM has none.
float least_weight(CamKind kind, float clamp) { return kind == CamKind::kLayerCam ? clamp : -__builtin_inff(); }

// Grad-CAM++, for a float or a vector: what one position adds to sum(A g^3), and to the weight.
template <typename V>
SYNQ_INLINE V third_power(const V& activation, const V& gradient) {
  return activation * (gradient * gradient) * gradient;
}

template <typename V>
SYNQ_INLINE V plus_plus_term(const V& gradient, const V& third, float factor, float eps) {
  const V zero{};
  const V squared = gradient * gradient;
  const V sum = squared * 2.0f + third + eps;
  const V denominator = sum == zero ? zero + 1.0f : sum;
  const V slope = gradient * factor;
  return squared / denominator * (slope < zero ? zero : slope);
}

template <typename T>
float plus_plus_weight(const T* activations, const T* gradients, int64_t count, float factor, float eps) {
  float a_buffer[kBlock];
  float g_buffer[kBlock];
  Wide third{};
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    const float* a = as_floats(activations + start, size, a_buffer);
    const float* g = as_floats(gradients + start, size, g_buffer);
    add_terms(size, third, [&](int64_t i, auto type) { return third_power(read(a + i, type), read(g + i, type)); });
  }
  const float total = sum_lanes(third);
  Wide weight{};
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    const float* g = as_floats(gradients + start, size, g_buffer);
    add_terms(size, weight, [&](int64_t i, auto type) {
      return plus_plus_term(read(g + i, type), decltype(type){} + total, factor, eps);
    });
  }
  return sum_lanes(weight);
}

template <typename T>
float mean_weight(const T* gradients, int64_t count, float clamp) {
  float buffer[kBlock];
  Wide sum{};
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    const float* g = as_floats(gradients + start, size, buffer);
    add_terms(size, sum, [&](int64_t i, auto type) { return read(g + i, type); });
  }
  return at_least(sum_lanes(sum) / static_cast<float>(count), clamp);
}

template <int kRows, typename V, typename Term>
SYNQ_INLINE V sum_rows(int64_t i, const V& type, Term term) {
  if constexpr (kRows == kGroup) {
    return ((term(0, i, type) + term(1, i, type)) + (term(2, i, type) + term(3, i, type))) +
           ((term(4, i, type) + term(5, i, type)) + (term(6, i, type) + term(7, i, type)));
  } else {
    return term(0, i, type);
  }
}

// total[i] += the sum over rows of term(row, i, a value of the vector's type), as a tree.
template <int kRows, typename Term>
SYNQ_INLINE void add_rows(float* total, int64_t count, Term term) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(read(total + i, Wide{}) + sum_rows<kRows>(i, Wide{}, term), total + i);
  }
  if (i == count) return;
  if (count >= kLanes) {
    const int64_t last = count - kLanes;
    const Wide before = read(total + last, Wide{});
    store(last_lanes(count - i) ? before + sum_rows<kRows>(last, Wide{}, term) : before, total + last);
  } else {
    for (; i < count; ++i) total[i] += sum_rows<kRows>(i, 0.0f, term);
  }
}

// Runs body(first row, a constant: how many rows) over all rows, in groups as far as they go.
template <typename Body>
SYNQ_INLINE void for_each_group(int64_t rows, Body body) {
  int64_t row = 0;
  for (; row + kGroup <= rows; row += kGroup) body(row, std::integral_constant<int, kGroup>());
  for (; row < rows; ++row) body(row, std::integral_constant<int, 1>());
}

template <int kRows, typename T>
SYNQ_INLINE void read_rows(const T* x, int64_t stride, int64_t count, float (&buffer)[kRows][kBlock],
                           const float* (&rows)[kRows]) {
  for (int row = 0; row < kRows; ++row) rows[row] = as_floats(x + row * stride, count, buffer[row]);
}

// Memory as (channels, positions).
template <typename T>
void coarse_of_rows(const CoarseJob& job, const T* activations, const T* gradients, int64_t image, float* coarse) {
  const int64_t positions = job.positions;
  const float least = least_weight(job.kind, job.clamp);
  for_each_group(job.channels, [&](int64_t channel, auto group) {
    constexpr int kRows = decltype(group)::value;
    const T* a = activations + channel * positions;
    const T* g = gradients + channel * positions;
    float weights[kRows] = {};
    if (!by_element(job.kind)) {
      for (int row = 0; row < kRows; ++row) {
        weights[row] = job.kind == CamKind::kGradCam ? mean_weight(g + row * positions, positions, job.clamp)
                                                     : plus_plus_weight(a + row * positions, g + row * positions,
                                                                        positions, job.factor[image], job.eps);
        job.weights[image * job.channels + channel + row] = weights[row];
      }
    }
    for (int64_t start = 0; start < positions; start += kBlock) {
      const int64_t size = positions - start < kBlock ? positions - start : kBlock;
      float a_buffer[kRows][kBlock];
      const float* a_rows[kRows];
      read_rows(a + start, positions, size, a_buffer, a_rows);
      if (by_element(job.kind)) {
        float g_buffer[kRows][kBlock];
        const float* g_rows[kRows];
        read_rows(g + start, positions, size, g_buffer, g_rows);
        add_rows<kRows>(coarse + start, size, [&](int row, int64_t i, auto type) {
          return no_less(read(g_rows[row] + i, type), least) * read(a_rows[row] + i, type);
        });
      } else {
        add_rows<kRows>(coarse + start, size,
                        [&](int row, int64_t i, auto type) { return weights[row] * read(a_rows[row] + i, type); });
      }
    }
  });
}

// Memory as (positions, channels), of which `count` channels from `first` on: their weights.
template <typename T>
void column_weights(const CoarseJob& job, const T* activations, const T* gradients, int64_t count, float factor,
                    float* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = 0.0f;
  if (job.kind == CamKind::kGradCam) {
    for_each_group(job.positions, [&](int64_t position, auto group) {
      constexpr int kRows = decltype(group)::value;
      float buffer[kRows][kBlock];
      const float* rows[kRows];
      read_rows(gradients + position * job.channels, job.channels, count, buffer, rows);
      add_rows<kRows>(weights, count, [&](int row, int64_t i, auto type) { return read(rows[row] + i, type); });
    });
    const float positions = static_cast<float>(job.positions);
    for (int64_t i = 0; i < count; ++i) weights[i] = at_least(weights[i] / positions, job.clamp);
    return;
  }
  float third[kBlock] = {};
  float a_buffer[kBlock];
  float g_buffer[kBlock];
  for (int64_t position = 0; position < job.positions; ++position) {
    const float* a = as_floats(activations + position * job.channels, count, a_buffer);
    const float* g = as_floats(gradients + position * job.channels, count, g_buffer);
    for (int64_t i = 0; i < count; ++i) third[i] += third_power(a[i], g[i]);
  }
  for (int64_t position = 0; position < job.positions; ++position) {
    const float* g = as_floats(gradients + position * job.channels, count, g_buffer);
    for (int64_t i = 0; i < count; ++i) weights[i] += plus_plus_term(g[i], third[i], factor, job.eps);
  }
}

template <typename T>
void coarse_of_columns(const CoarseJob& job, const T* activations, const T* gradients, int64_t image, float* coarse) {
  const float least = least_weight(job.kind, job.clamp);
  float a_buffer[kBlock];
  float g_buffer[kBlock];
  for (int64_t first = 0; first < job.channels; first += kBlock) {
    const int64_t count = job.channels - first < kBlock ? job.channels - first : kBlock;
    float* weights = nullptr;
    if (!by_element(job.kind)) {
      weights = job.weights + image * job.channels + first;
      const float factor = job.kind == CamKind::kGradCamPlusPlus ? job.factor[image] : 1.0f;
      column_weights(job, activations + first, gradients + first, count, factor, weights);
    }
    for (int64_t position = 0; position < job.positions; ++position) {
      const float* a = as_floats(activations + position * job.channels + first, count, a_buffer);
      Wide sum{};
      if (by_element(job.kind)) {
        const float* g = as_floats(gradients + position * job.channels + first, count, g_buffer);
        add_terms(count, sum,
                  [&](int64_t i, auto type) { return no_less(read(g + i, type), least) * read(a + i, type); });
      } else {
        add_terms(count, sum, [&](int64_t i, auto type) { return read(weights + i, type) * read(a + i, type); });
      }
      coarse[position] += sum_lanes(sum);
    }
  }
}

void coarse(const CoarseJob& job, int64_t image) {
  float* result = job.coarse + image * job.positions;
  for (int64_t i = 0; i < job.positions; ++i) result[i] = 0.0f;
  with_type(job.dtype, [&](auto type) {
    using T = decltype(type);
    const T* activations = static_cast<const T*>(job.activations) + image * job.activation_stride;
    const T* gradients = static_cast<const T*>(job.gradients) + image * job.gradient_stride;
    if (job.channels_last) {
      coarse_of_columns(job, activations, gradients, image, result);
    } else {
      coarse_of_rows(job, activations, gradients, image, result);
    }
  });
  for (int64_t i = 0; i < job.positions; ++i) result[i] = at_least(result[i], 0.0f);
}

template <typename Value>
SYNQ_INLINE void write_floats(float* row, int64_t count, Value value) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(value(i, Wide{}), row + i);
  if (i == count) return;
  if (count >= kLanes) {
    store(value(count - kLanes, Wide{}), row + count - kLanes);
  } else {
    for (; i < count; ++i) row[i] = value(i, 0.0f);
  }
}

// Writes row[i...] = value(i, a value of the vector's type) in any element type.
template <typename T, typename Value>
SYNQ_INLINE void write_row(T* row, int64_t count, Value value) {
  if constexpr (std::is_same_v<T, float>) {
    write_floats(row, count, value);
  } else {
    float buffer[kBlock];
    for (int64_t start = 0; start < count; start += kBlock) {
      const int64_t size = count - start < kBlock ? count - start : kBlock;
      write_floats(buffer, size, [&](int64_t i, auto type) { return value(start + i, type); });
      store(buffer, row + start, size);
    }
  }
}

template <typename T>
void spread_typed(const SpreadJob& job, int64_t begin, int64_t end) {
  const int64_t length = job.channels_last ? job.channels : job.positions;
  const int64_t rows = job.channels_last ? job.positions : job.channels;
  const float least = least_weight(job.kind, job.clamp);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / rows;
    T* __restrict result = static_cast<T*>(job.result) + row * length;
    const float* __restrict slope = job.slope + image * job.positions;
    if (by_element(job.kind)) {
      const T* __restrict gradients = static_cast<const T*>(job.weights) + row * length;
      for (int64_t start = 0; start < length; start += kBlock) {
        const int64_t size = length - start < kBlock ? length - start : kBlock;
        float buffer[kBlock];
        const float* g = as_floats(gradients + start, size, buffer);
        if (job.channels_last) {
          const float s = slope[row - image * rows];
          write_row(result + start, size, [=](int64_t i, auto type) { return no_less(read(g + i, type), least) * s; });
        } else {
          const float* s = slope + start;
          write_row(result + start, size,
                    [=](int64_t i, auto type) { return no_less(read(g + i, type), least) * read(s + i, type); });
        }
      }
    } else if (job.channels_last) {
      const float* __restrict weights = static_cast<const float*>(job.weights) + image * job.channels;
      const float s = slope[row - image * rows];
      write_row(result, length, [=](int64_t i, auto type) { return read(weights + i, type) * s; });
    } else {
      const float weight = static_cast<const float*>(job.weights)[row];
      write_row(result, length, [=](int64_t i, auto type) { return weight * read(slope + i, type); });
    }
  }
}

void spread(const SpreadJob& job, int64_t begin, int64_t end) {
  with_type(job.dtype, [&](auto type) { spread_typed<decltype(type)>(job, begin, end); });
}

}  // namespace

SYNQ_DEFINE_TABLE(GradCamKernels, grad_cam_kernels) = {&coarse, &spread};

}  // namespace synq::cpu
