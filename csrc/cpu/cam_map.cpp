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

static_assert(kAxisPadding >= kLanes - 1);

// Rows are padded to whole vectors; past each array there is room for one more.
struct Scratch {
  float* resized;  // (positions, stride): the coarse map, resized along rows
  float* steps;    // (stride,): from one resized row to the next
  float* pulled;   // (positions, stride): the gradient of `resized`
  float* other;    // (pixels, stride): a copy of the other map where it is not whole vectors of float
  float* ties;     // (2, positions, positions): where the pixels at the minimum and at the maximum come from
  int64_t stride;
};

bool copies_other(const MapJob& job) {
  return job.other != nullptr && (job.dtype != DType::kFloat32 || job.columns.pixels % kLanes != 0);
}

int64_t count_positions(const MapJob& job) { return job.rows.positions * job.columns.positions; }

int64_t count_pixels(const MapJob& job) { return job.rows.pixels * job.columns.pixels; }

int64_t scratch_size(const MapJob& job) {
  const int64_t rows = 2 * job.rows.positions + 1 + (copies_other(job) ? job.rows.pixels : 0);
  return padded(job.columns.pixels) * rows + 2 * count_positions(job) + kLanes;
}

Scratch make_scratch(const MapJob& job, float* memory) {
  Scratch scratch{};
  scratch.stride = padded(job.columns.pixels);
  const int64_t size = scratch.stride * job.rows.positions;
  scratch.resized = memory;
  scratch.steps = memory + size;
  scratch.pulled = scratch.steps + scratch.stride;
  scratch.other = scratch.pulled + size;
  scratch.ties = scratch.other + (copies_other(job) ? scratch.stride * job.rows.pixels : 0);
  return scratch;
}

// Calls run(position, first pixel, end) for the pixels between each position and the next.
template <typename Run>
SYNQ_INLINE void for_each_interval(const Axis& axis, Run run) {
  for (int64_t position = 0; position < axis.positions; ++position) {
    const int64_t first = axis.starts[position];
    const int64_t end = axis.starts[position + 1];
    if (first < end) run(position, first, end);
  }
}

// The neighbour on the right or below: the last position is its own.
int64_t next_position(const Axis& axis, int64_t position) {
  return position + 1 < axis.positions ? position + 1 : position;
}

// The position that this pixel lies at or after.
int64_t position_of(const Axis& axis, int64_t pixel) {
  int64_t position = 0;
  while (axis.starts[position + 1] <= pixel) ++position;
  return position;
}

void resize_rows(const MapJob& job, const float* coarse, const Scratch& scratch) {
  const Axis& columns = job.columns;
  for (int64_t row = 0; row < job.rows.positions; ++row) {
    const float* values = coarse + row * columns.positions;
    float* resized = scratch.resized + row * scratch.stride;
    for_each_interval(columns, [&](int64_t position, int64_t first, int64_t end) {
      const float left = values[position];
      const float step = values[next_position(columns, position)] - left;
      // What is written past the end is overwritten next.
      for (int64_t i = first; i < end; i += kLanes) store(left + read(columns.weights + i, Wide{}) * step, resized + i);
    });
    for (int64_t i = columns.pixels; i < scratch.stride; ++i) resized[i] = resized[columns.pixels - 1];
  }
}

SYNQ_INLINE void include(const Wide& value, Wide& low, Wide& peak, WideMask& nan) {
  low = select(value < low, value, low);
  peak = select(value > peak, value, peak);
  nan = nan | (value != value);
}

void clear(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0.0f;
}

// The extrema of the resized map. Between two coarse rows they are at the first or the last pixel row.
Stretch find_stretch(const MapJob& job, const Scratch& scratch) {
  Wide low = all_lanes<Wide>(__builtin_inff());
  Wide peak = all_lanes<Wide>(-__builtin_inff());
  WideMask nan{};
  for_each_interval(job.rows, [&](int64_t row, int64_t first, int64_t end) {
    const float* upper = scratch.resized + row * scratch.stride;
    const float* lower = scratch.resized + next_position(job.rows, row) * scratch.stride;
    const float near = job.rows.weights[first];
    const float far = job.rows.weights[end - 1];
    for (int64_t i = 0; i < scratch.stride; i += kLanes) {
      Wide top, bottom;
      load(upper + i, top);
      load(lower + i, bottom);
      const Wide difference = bottom - top;
      include(top + near * difference, low, peak, nan);
      include(top + far * difference, low, peak, nan);
    }
  });
  float lows[kLanes];
  float peaks[kLanes];
  store(low, lows);
  store(peak, peaks);
  float least = lows[0];
  float greatest = peaks[0];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    least = lows[lane] < least ? lows[lane] : least;
    greatest = peaks[lane] > greatest ? peaks[lane] : greatest;
  }
  if (any(nan)) least = greatest = __builtin_nanf("");
  return make_stretch(least, greatest, job.eps);
}

// Multiplies the resized rows by the stretch's power of two; the padding becomes 0 in the stretched map.
void lift_rows(const MapJob& job, const Scratch& scratch, const Stretch& stretch) {
  for (int64_t row = 0; row < job.rows.positions; ++row) {
    float* resized = scratch.resized + row * scratch.stride;
    if (stretch.lift != 1.0f) {
      for (int64_t i = 0; i < job.columns.pixels; ++i) resized[i] *= stretch.lift;
    }
    for (int64_t i = job.columns.pixels; i < scratch.stride; ++i) resized[i] = stretch.low;
  }
}

void map(const MapJob& job, int64_t image, float* memory) {
  const Scratch scratch = make_scratch(job, memory);
  const int64_t width = job.columns.pixels;
  float* result = job.map + image * count_pixels(job);
  resize_rows(job, job.coarse + image * count_positions(job), scratch);
  const Stretch stretch = find_stretch(job, scratch);
  if (stretch.flat) return clear(result, count_pixels(job));
  lift_rows(job, scratch, stretch);
  for_each_interval(job.rows, [&](int64_t row, int64_t first, int64_t end) {
    const float* upper = scratch.resized + row * scratch.stride;
    const float* lower = scratch.resized + next_position(job.rows, row) * scratch.stride;
    const float* steps = scratch.steps;
    write_floats(scratch.steps, scratch.stride,
                 [=](int64_t i, auto type) { return read(lower + i, type) - read(upper + i, type); });
    for (int64_t y = first; y < end; ++y) {
      const float weight = job.rows.weights[y];
      write_floats(result + y * width, width, [=](int64_t i, auto type) {
        return (read(upper + i, type) + weight * read(steps + i, type) - stretch.low) * stretch.scale;
      });
    }
  });
}

// The other map in float, with rows `stride` apart.
const float* read_other(const MapJob& job, int64_t image, const Scratch& scratch) {
  const int64_t size = count_pixels(job);
  if (!copies_other(job)) return static_cast<const float*>(job.other) + image * size;
  for (int64_t y = 0; y < job.rows.pixels; ++y) {
    float* row = scratch.other + y * scratch.stride;
    with_type(job.dtype, [&](auto type) {
      using T = decltype(type);
      const T* source = static_cast<const T*>(job.other) + image * size + y * job.columns.pixels;
      if constexpr (std::is_same_v<T, float>) {
        for (int64_t i = 0; i < job.columns.pixels; ++i) row[i] = source[i];
      } else {
        load(source, row, job.columns.pixels);
      }
    });
    for (int64_t i = job.columns.pixels; i < scratch.stride; ++i) row[i] = 0.0f;
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

// Adds 1 for a pixel below a coarse row to the coarse positions it comes from, by their weights.
void add_tie(const MapJob& job, int64_t row, int64_t y, int64_t x, float* ties) {
  const float down = job.rows.weights[y];
  const float right = job.columns.weights[x];
  float* upper = ties + row * job.columns.positions + position_of(job.columns, x);
  upper[0] += (1.0f - down) * (1.0f - right);
  if (right != 0.0f) upper[1] += (1.0f - down) * right;
  if (down == 0.0f) return;
  float* lower = upper + job.columns.positions;
  lower[0] += down * (1.0f - right);
  if (right != 0.0f) lower[1] += down * right;
}

// Among the pixels below a coarse row, in the lanes from column x on.
void find_ties(const MapJob& job, const Scratch& scratch, int64_t row, int64_t x, float low, float peak, Sums& sums) {
  const float* upper = scratch.resized + row * scratch.stride;
  const float* lower = scratch.resized + next_position(job.rows, row) * scratch.stride;
  for (int64_t y = job.rows.starts[row]; y < job.rows.starts[row + 1]; ++y) {
    for (int64_t i = x; i < x + kLanes && i < job.columns.pixels; ++i) {
      const float value = interpolate(upper[i], lower[i], job.rows.weights[y]);
      if (value == low) {
        add_tie(job, row, y, i, scratch.ties);
        sums.low_ties += 1.0;
      }
      if (value == peak) {
        add_tie(job, row, y, i, scratch.ties + count_positions(job));
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
  const float least = stretch.low == 0.0f ? __builtin_nanf("") : stretch.low;
  const Wide low = all_lanes<Wide>(least);
  const Wide peak = all_lanes<Wide>(stretch.peak);
  for_each_interval(job.rows, [&](int64_t row, int64_t first, int64_t end) {
    const float* upper = scratch.resized + row * scratch.stride;
    const float* lower = scratch.resized + next_position(job.rows, row) * scratch.stride;
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
      for (int64_t y = first; y < end; ++y) {
        const float weight = job.rows.weights[y];
        const Wide value = top + weight * difference;
        const Wide n = (value - stretch.low) * stretch.scale;
        Wide d;
        const float* pixels = other + y * scratch.stride + i;
        load(pixels, d);
        // Columns of vectors are nothing that the processor's own prefetching follows.
        __builtin_prefetch(pixels + (end - first) * scratch.stride);
        if (kLoss) d = n - d;
        sum += d;
        weighted += weight * d;
        all_dn += d * n;
        if (kLoss) all_squared += d * d;
      }
      all_d += sum;
      if (!with_gradient) continue;
      float* near = scratch.pulled + row * scratch.stride + i;
      float* far = scratch.pulled + next_position(job.rows, row) * scratch.stride + i;
      Wide pulled;
      load(near, pulled);
      store(pulled + (sum - weighted), near);
      load(far, pulled);
      store(pulled + weighted, far);
      // An extremum that is met anywhere between two coarse rows is met at the first or the last pixel.
      const Wide start = top + job.rows.weights[first] * difference;
      const Wide stop = top + job.rows.weights[end - 1] * difference;
      const WideMask tie = (start == low) | (start == peak) | (stop == low) | (stop == peak);
      if (any(tie & first_lanes(job.columns.pixels - i))) find_ties(job, scratch, row, i, least, stretch.peak, sums);
    }
    sums.d += sum_lanes_double(all_d);
    sums.dn += sum_lanes_double(all_dn);
    sums.squared += sum_lanes_double(all_squared);
  });
  return sums;
}

// With n = (v - min) / D and D = max - min + eps, the gradient d of n is that of v, divided by D; the minimum gets
// sum(d (n - 1)) / D and the maximum -sum(d n) / D, shared equally among the pixels that have it.
void finish_slope(const MapJob& job, const Scratch& scratch, const Stretch& stretch, const Sums& sums, double factor,
                  const float* coarse, float* slope) {
  const double scale = factor * stretch.scale * stretch.lift;
  const double low_share = sums.low_ties > 0 ? (sums.dn - sums.d) / sums.low_ties : 0.0;
  const double peak_share = sums.peak_ties > 0 ? -sums.dn / sums.peak_ties : 0.0;
  const float* low_ties = scratch.ties;
  const float* peak_ties = scratch.ties + count_positions(job);
  for (int64_t row = 0; row < job.rows.positions; ++row) {
    const float* pulled = scratch.pulled + row * scratch.stride;
    double carried = 0.0;  // from the interval on the left
    for (int64_t column = 0; column < job.columns.positions; ++column) {
      Wide sums_by_lane{};
      Wide weighted_by_lane{};
      const int64_t end = job.columns.starts[column + 1];
      for (int64_t x = job.columns.starts[column]; x < end; x += kLanes) {
        const Wide pixels = select(first_lanes(end - x), read(pulled + x, Wide{}), Wide{});
        sums_by_lane += pixels;
        weighted_by_lane += read(job.columns.weights + x, Wide{}) * pixels;
      }
      const double sum = sum_lanes(sums_by_lane);
      const double weighted = sum_lanes(weighted_by_lane);
      const int64_t i = row * job.columns.positions + column;
      const double total = carried + (sum - weighted) + low_share * low_ties[i] + peak_share * peak_ties[i];
      slope[i] = coarse[i] <= 0.0f ? 0.0f : static_cast<float>(scale * total);
      carried = weighted;
    }
  }
}

template <bool kLoss>
double run(const MapJob& job, int64_t image, float* memory) {
  const Scratch scratch = make_scratch(job, memory);
  const int64_t positions = count_positions(job);
  const float* coarse = job.coarse + image * positions;
  float* slope = job.slope == nullptr ? nullptr : job.slope + image * positions;
  const float* other = read_other(job, image, scratch);
  resize_rows(job, coarse, scratch);
  Stretch stretch = find_stretch(job, scratch);
  if (stretch.flat) {
    if (slope != nullptr) clear(slope, positions);
    if (!kLoss) return 0.0;
    // The map is 0 everywhere.
    clear(scratch.resized, job.rows.positions * scratch.stride);
    stretch.low = 0.0f;
  } else {
    lift_rows(job, scratch, stretch);
  }
  const bool with_gradient = slope != nullptr && !stretch.flat;
  if (with_gradient) {
    clear(scratch.pulled, job.rows.positions * scratch.stride);
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
