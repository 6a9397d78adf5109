// The resized, stretched map of one image, its gradient and the loss, for one instruction set.
// Nothing here may instantiate shared inline code (the standard library, torch): see fake_quantize.cpp.
//
// Resizing goes along rows first, into `height` rows of `map_width` that stay in cache; a pixel is then an
// interpolation between two of those rows.
#include "cpu/cam_map.h"

#include "cpu/elements.h"
#include "cpu/wide.h"

namespace synq::cpu {
namespace {

// Rows are padded to whole vectors.
struct Scratch {
  float* resized;  // (height, stride): the coarse map, resized along rows
  float* pulled;   // (height, stride): the gradient of `resized`
  float* other;    // (map_height, stride): a copy of the other map where it is not whole vectors of float
  float* ties;     // (2, height, width): where the pixels at the minimum and at the maximum come from
  int64_t stride;
};

bool copies_other(const MapJob& job) { return job.dtype != DType::kFloat32 || job.map_width % kLanes != 0; }

int64_t scratch_size(const MapJob& job) {
  const int64_t stride = padded(job.map_width);
  return stride * (2 * job.height + (copies_other(job) ? job.map_height : 0)) + 2 * job.height * job.width;
}

Scratch make_scratch(const MapJob& job, float* memory) {
  Scratch scratch{};
  scratch.stride = padded(job.map_width);
  const int64_t size = scratch.stride * job.height;
  scratch.resized = memory;
  scratch.pulled = memory + size;
  scratch.ties = memory + 2 * size;
  scratch.other = scratch.ties + 2 * job.height * job.width;
  return scratch;
}

// Calls run(coarse row, first pixel row, end) for the pixel rows between the same two coarse rows.
template <typename Run>
SYNQ_INLINE void for_each_interval(const MapJob& job, Run run) {
  for (int64_t first = 0; first < job.map_height;) {
    const int32_t index = job.rows[first].index;
    int64_t end = first + 1;
    while (end < job.map_height && job.rows[end].index == index) ++end;
    run(index, first, end);
    first = end;
  }
}

int64_t next_row(const MapJob& job, int64_t row) { return row + 1 < job.height ? row + 1 : row; }

void resize_rows(const MapJob& job, const float* coarse, const Scratch& scratch) {
  for (int64_t row = 0; row < job.height; ++row) {
    const float* __restrict values = coarse + row * job.width;
    float* __restrict resized = scratch.resized + row * scratch.stride;
    for (int64_t i = 0; i < job.map_width; ++i) {
      const Tap tap = job.columns[i];
      const int64_t right = tap.index + 1 < job.width ? tap.index + 1 : tap.index;
      resized[i] = interpolate(values[tap.index], values[right], tap.weight);
    }
    for (int64_t i = job.map_width; i < scratch.stride; ++i) resized[i] = resized[job.map_width - 1];
  }
}

SYNQ_INLINE void include(const Wide& value, Wide& low, Wide& peak, WideMask& nan) {
  low = value < low ? value : low;
  peak = value > peak ? value : peak;
  nan |= value != value;
}

// The extrema of the resized map. Between two coarse rows they are at the first or the last pixel row.
Stretch find_stretch(const MapJob& job, const Scratch& scratch) {
  Wide low = Wide{} + __builtin_inff();
  Wide peak = Wide{} - __builtin_inff();
  WideMask nan{};
  for_each_interval(job, [&](int64_t row, int64_t first, int64_t end) {
    const float* upper = scratch.resized + row * scratch.stride;
    const float* lower = scratch.resized + next_row(job, row) * scratch.stride;
    const float near = job.rows[first].weight;
    const float far = job.rows[end - 1].weight;
    for (int64_t i = 0; i < scratch.stride; i += kLanes) {
      Wide top, bottom;
      load(upper + i, top);
      load(lower + i, bottom);
      const Wide difference = bottom - top;
      include(top + near * difference, low, peak, nan);
      include(top + far * difference, low, peak, nan);
    }
  });
  float least = low[0];
  float greatest = peak[0];
  bool any_nan = false;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    least = low[lane] < least ? low[lane] : least;
    greatest = peak[lane] > greatest ? peak[lane] : greatest;
    any_nan = any_nan || nan[lane] != 0;
  }
  if (any_nan) least = greatest = __builtin_nanf("");
  return make_stretch(least, greatest, job.eps);
}

// Multiplies the resized rows by the stretch's power of two; the padding becomes 0 in the stretched map.
void lift_rows(const MapJob& job, const Scratch& scratch, const Stretch& stretch) {
  for (int64_t row = 0; row < job.height; ++row) {
    float* resized = scratch.resized + row * scratch.stride;
    if (stretch.lift != 1.0f) {
      for (int64_t i = 0; i < job.map_width; ++i) resized[i] *= stretch.lift;
    }
    for (int64_t i = job.map_width; i < scratch.stride; ++i) resized[i] = stretch.low;
  }
}

void map(const MapJob& job, int64_t image, float* memory) {
  const Scratch scratch = make_scratch(job, memory);
  float* result = job.map + image * job.map_height * job.map_width;
  resize_rows(job, job.coarse + image * job.height * job.width, scratch);
  const Stretch stretch = find_stretch(job, scratch);
  if (stretch.flat) {
    for (int64_t i = 0; i < job.map_height * job.map_width; ++i) result[i] = 0.0f;
    return;
  }
  lift_rows(job, scratch, stretch);
  for (int64_t y = 0; y < job.map_height; ++y) {
    const Tap tap = job.rows[y];
    const float* __restrict upper = scratch.resized + tap.index * scratch.stride;
    const float* __restrict lower = scratch.resized + next_row(job, tap.index) * scratch.stride;
    float* __restrict row = result + y * job.map_width;
    for (int64_t i = 0; i < job.map_width; ++i) {
      row[i] = (interpolate(upper[i], lower[i], tap.weight) - stretch.low) * stretch.scale;
    }
  }
}

// The other map in float, with rows `stride` apart.
const float* read_other(const MapJob& job, int64_t image, const Scratch& scratch) {
  const int64_t size = job.map_height * job.map_width;
  if (!copies_other(job)) return static_cast<const float*>(job.other) + image * size;
  for (int64_t y = 0; y < job.map_height; ++y) {
    float* row = scratch.other + y * scratch.stride;
    with_type(job.dtype, [&](auto type) {
      using T = decltype(type);
      const T* source = static_cast<const T*>(job.other) + image * size + y * job.map_width;
      if constexpr (std::is_same_v<T, float>) {
        for (int64_t i = 0; i < job.map_width; ++i) row[i] = source[i];
      } else {
        load(source, row, job.map_width);
      }
    });
    for (int64_t i = job.map_width; i < scratch.stride; ++i) row[i] = 0.0f;
  }
  return scratch.other;
}

// Sums over the pixels of an image, with d the gradient of a pixel of the stretched map and n that pixel.
struct Sums {
  double d = 0.0;
  double dn = 0.0;
  double squared = 0.0;
  double low_ties = 0.0;
  double peak_ties = 0.0;
};

// Adds 1 for a pixel to the coarse positions it comes from, by their weights.
void add_tie(const MapJob& job, int64_t y, int64_t x, float* ties) {
  const Tap row = job.rows[y];
  const Tap column = job.columns[x];
  float* upper = ties + row.index * job.width + column.index;
  upper[0] += (1.0f - row.weight) * (1.0f - column.weight);
  if (column.weight != 0.0f) upper[1] += (1.0f - row.weight) * column.weight;
  if (row.weight == 0.0f) return;
  float* lower = upper + job.width;
  lower[0] += row.weight * (1.0f - column.weight);
  if (column.weight != 0.0f) lower[1] += row.weight * column.weight;
}

void find_ties(const MapJob& job, const Scratch& scratch, int64_t first, int64_t end, int64_t x, float low, float peak,
               Sums& sums) {
  const Tap tap = job.rows[first];
  const float* upper = scratch.resized + tap.index * scratch.stride;
  const float* lower = scratch.resized + next_row(job, tap.index) * scratch.stride;
  for (int64_t y = first; y < end; ++y) {
    for (int64_t i = x; i < x + kLanes && i < job.map_width; ++i) {
      const float value = interpolate(upper[i], lower[i], job.rows[y].weight);
      if (value == low) {
        add_tie(job, y, i, scratch.ties);
        sums.low_ties += 1.0;
      }
      if (value == peak) {
        add_tie(job, y, i, scratch.ties + job.height * job.width);
        sums.peak_ties += 1.0;
      }
    }
  }
}

// One pass over the pixels: the sums, the gradient of the resized rows, the pixels at the extrema.
template <bool kLoss>
Sums pass(const MapJob& job, const Scratch& scratch, const float* other, const Stretch& stretch, bool with_gradient) {
  Sums sums;
  // At a minimum of 0 the ReLU has cut off everything that the pixel comes from: no gradient gets through.
  const float low = stretch.low == 0.0f ? __builtin_nanf("") : stretch.low;
  for_each_interval(job, [&](int64_t row, int64_t first, int64_t end) {
    const float* upper = scratch.resized + row * scratch.stride;
    const float* lower = scratch.resized + next_row(job, row) * scratch.stride;
    Wide all_d{};
    Wide all_dn{};
    Wide all_squared{};
    for (int64_t i = 0; i < scratch.stride; i += kLanes) {
      Wide top, bottom;
      load(upper + i, top);
      load(lower + i, bottom);
      const Wide difference = bottom - top;
      Wide sum{};
      Wide weighted{};
      WideMask tie{};
      for (int64_t y = first; y < end; ++y) {
        const float weight = job.rows[y].weight;
        const Wide value = top + weight * difference;
        const Wide n = (value - stretch.low) * stretch.scale;
        Wide d;
        load(other + y * scratch.stride + i, d);
        if (kLoss) d = n - d;
        sum += d;
        weighted += weight * d;
        all_dn += d * n;
        if (kLoss) all_squared += d * d;
        tie |= (value == low) | (value == stretch.peak);
      }
      all_d += sum;
      if (!with_gradient) continue;
      float* near = scratch.pulled + row * scratch.stride + i;
      float* far = scratch.pulled + next_row(job, row) * scratch.stride + i;
      Wide pulled;
      load(near, pulled);
      store(pulled + (sum - weighted), near);
      load(far, pulled);
      store(pulled + weighted, far);
      bool any = false;
      for (int64_t lane = 0; lane < kLanes; ++lane) any = any || tie[lane] != 0;
      if (any) find_ties(job, scratch, first, end, i, low, stretch.peak, sums);
    }
    sums.d += sum_lanes_double(all_d);
    sums.dn += sum_lanes_double(all_dn);
    sums.squared += sum_lanes_double(all_squared);
  });
  return sums;
}

void clear(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0.0f;
}

// With n = (v - min) / D and D = max - min + eps, the gradient d of n is that of v, divided by D; the minimum gets
// sum(d (n - 1)) / D and the maximum -sum(d n) / D, shared equally among the pixels that have it.
void finish_slope(const MapJob& job, const Scratch& scratch, const Stretch& stretch, const Sums& sums, double factor,
                  const float* coarse, float* slope) {
  const double scale = factor * stretch.scale * stretch.lift;
  const double low_share = sums.low_ties > 0 ? (sums.dn - sums.d) / sums.low_ties : 0.0;
  const double peak_share = sums.peak_ties > 0 ? -sums.dn / sums.peak_ties : 0.0;
  const float* low_ties = scratch.ties;
  const float* peak_ties = scratch.ties + job.height * job.width;
  for (int64_t row = 0; row < job.height; ++row) {
    const float* pulled = scratch.pulled + row * scratch.stride;
    double carried = 0.0;  // from the interval on the left
    int64_t x = 0;
    for (int64_t column = 0; column < job.width; ++column) {
      double sum = 0.0;
      double weighted = 0.0;
      for (; x < job.map_width && job.columns[x].index == column; ++x) {
        sum += pulled[x];
        weighted += static_cast<double>(job.columns[x].weight) * pulled[x];
      }
      const int64_t i = row * job.width + column;
      const double total = carried + (sum - weighted) + low_share * low_ties[i] + peak_share * peak_ties[i];
      slope[i] = coarse[i] <= 0.0f ? 0.0f : static_cast<float>(scale * total);
      carried = weighted;
    }
  }
}

template <bool kLoss>
double run(const MapJob& job, int64_t image, float* memory) {
  const Scratch scratch = make_scratch(job, memory);
  const int64_t positions = job.height * job.width;
  const float* coarse = job.coarse + image * positions;
  float* slope = job.slope == nullptr ? nullptr : job.slope + image * positions;
  const float* other = read_other(job, image, scratch);
  resize_rows(job, coarse, scratch);
  Stretch stretch = find_stretch(job, scratch);
  if (stretch.flat) {
    if (slope != nullptr) clear(slope, positions);
    if (!kLoss) return 0.0;
    // The map is 0 everywhere.
    clear(scratch.resized, job.height * scratch.stride);
    stretch.low = 0.0f;
  } else {
    lift_rows(job, scratch, stretch);
  }
  const bool with_gradient = slope != nullptr && !stretch.flat;
  if (with_gradient) {
    clear(scratch.pulled, job.height * scratch.stride);
    clear(scratch.ties, 2 * positions);
  }
  const Sums sums = pass<kLoss>(job, scratch, other, stretch, with_gradient);
  if (with_gradient) {
    finish_slope(job, scratch, stretch, sums, kLoss ? 2.0 * job.factor : 1.0, coarse, slope);
  }
  return job.factor * sums.squared;
}

void backward(const MapJob& job, int64_t image, float* memory) { run<false>(job, image, memory); }

double loss(const MapJob& job, int64_t image, float* memory) { return run<true>(job, image, memory); }

}  // namespace

SYNQ_DEFINE_TABLE(CamMapKernels, cam_map_kernels) = {&scratch_size, &map, &backward, &loss};

}  // namespace synq::cpu
