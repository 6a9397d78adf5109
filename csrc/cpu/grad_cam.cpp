// Weights, coarse maps and the gradient of activations, for one instruction set.
// Nothing here may instantiate shared inline code (the standard library, torch): see fake_quantize.cpp.
#include "cpu/grad_cam.h"

#include "cpu/row_sums.h"

namespace synq::cpu {
namespace {

constexpr int64_t kAhead = 2;       // groups of rows
constexpr int64_t kLongest = 8192;  // bytes of such a group

template <typename V>
SYNQ_INLINE V no_less(const V& value, float least) {
  const V limit = all_lanes<V>(least);
  return select(value < limit, limit, value);
}

// The least weight of one activation: HiResCAM has none.
float least_weight(CamKind kind, float clamp) { return kind == CamKind::kLayerCam ? clamp : -__builtin_inff(); }

// What one position adds to the weight of Grad-CAM++, for a float or a vector; `total` is the sum of the channel's
// activations. Numerator and denominator of alpha are divided by g^2, which would underflow.
template <typename V>
SYNQ_INLINE V plus_plus_term(const V& gradient, const V& total, float factor, float least) {
  const V zero{};
  const V sum = total * gradient + 2.0f;
  const V size = select(sum < zero, zero - sum, sum);
  const auto vanishes = (size < all_lanes<V>(least)) | (size == zero);
  const V slope = select(gradient < zero, zero, gradient) * factor;
  return select(vanishes, slope * gradient * gradient, slope) / select(vanishes, all_lanes<V>(1.0f), sum);
}

template <int kRows, typename T>
void mean_weights(const T* gradients, int64_t count, float clamp, float (&weights)[kRows]) {
  total_rows(
      gradients, gradients, count, weights, [](int, const auto& g, const auto&) { return g; },
      [=](const Quad& sums) { return no_less(sums / static_cast<float>(count), clamp); });
}

template <int kRows, typename T>
void plus_plus_weights(const T* activations, const T* gradients, int64_t count, float factor, float least,
                       float (&weights)[kRows]) {
  float totals[kRows];
  const auto as_it_is = [](const Quad& sums) { return sums; };
  total_rows(activations, activations, count, totals, [](int, const auto& a, const auto&) { return a; }, as_it_is);
  total_rows(
      gradients, gradients, count, weights,
      [&](int row, const auto& g, const auto&) {
        return plus_plus_term(g, all_lanes<std::decay_t<decltype(g)>>(totals[row]), factor, least);
      },
      as_it_is);
}

// coarse += the sum over rows of weight times activation.
template <int kRows, typename T>
void add_weighted_rows(const T* activations, const float (&weights)[kRows], int64_t count, float* coarse) {
  float buffer[kRows][kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    const Rows a = read_rows(activations + start, count, size, buffer);
    add_rows<kRows>(coarse + start, size,
                    [&](int row, int64_t i, auto type) { return weights[row] * a.get(row, i, type); });
  }
}

template <int kRows, typename T>
void add_products(const T* activations, const T* gradients, float least, int64_t count, float* coarse) {
  float a_buffer[kRows][kBlock];
  float g_buffer[kRows][kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = count - start < kBlock ? count - start : kBlock;
    const Rows a = read_rows(activations + start, count, size, a_buffer);
    const Rows g = read_rows(gradients + start, count, size, g_buffer);
    add_rows<kRows>(coarse + start, size, [&](int row, int64_t i, auto type) {
      return no_less(g.get(row, i, type), least) * a.get(row, i, type);
    });
  }
}

// Short rows of a group are read side by side, which the processor's own prefetching does not follow. Long ones it
// does, and they would push each other out of the cache. Past the end of the memory a prefetch does nothing.
template <typename T>
SYNQ_INLINE void prefetch_rows(const T* rows, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  if (count > kLongest / static_cast<int64_t>(sizeof(T))) return;
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(rows + i);
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
    prefetch_rows(a + kAhead * kRows * positions, kRows * positions);
    prefetch_rows(g + kAhead * kRows * positions, kRows * positions);
    if (by_element(job.kind)) return add_products<kRows>(a, g, least, positions, coarse);
    float weights[kRows];
    if (job.kind == CamKind::kGradCam) {
      mean_weights(g, positions, job.clamp, weights);
    } else {
      plus_plus_weights(a, g, positions, job.factor[image], job.clamp, weights);
    }
    __builtin_memcpy(job.weights + image * job.channels + channel, weights, sizeof weights);
    add_weighted_rows(a, weights, positions, coarse);
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
      const Rows g = read_rows(gradients + position * job.channels, job.channels, count, buffer);
      add_rows<kRows>(weights, count, [&](int row, int64_t i, auto type) { return g.get(row, i, type); });
    });
    const float positions = static_cast<float>(job.positions);
    for (int64_t i = 0; i < count; ++i) weights[i] = at_least(weights[i] / positions, job.clamp);
    return;
  }
  float totals[kBlock] = {};
  float a_buffer[kBlock];
  float g_buffer[kBlock];
  for (int64_t position = 0; position < job.positions; ++position) {
    const float* a = as_floats(activations + position * job.channels, count, a_buffer);
    for (int64_t i = 0; i < count; ++i) totals[i] += a[i];
  }
  for (int64_t position = 0; position < job.positions; ++position) {
    const float* g = as_floats(gradients + position * job.channels, count, g_buffer);
    for (int64_t i = 0; i < count; ++i) weights[i] += plus_plus_term(g[i], totals[i], factor, job.clamp);
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
