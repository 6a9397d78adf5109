// How a tensor lies in memory: one description for the glue and the kernels. kernels/_layout.py is its Python twin.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define SYNQ_INLINE_EVERYWHERE __host__ __device__ __forceinline__
#else
#define SYNQ_INLINE_EVERYWHERE inline
#endif

namespace synq {

// Memory is read as (outer, channels, inner), inner fastest. Any axis of any dense tensor fits: the channels of a
// channels_last image have inner = 1, one range for the whole tensor is outer = channels = 1, and a run of channels
// with one range is a channel of that many times the inner size. Sizes are in elements.
struct Layout {
  int64_t outer;
  int64_t channels;
  int64_t inner;

  int64_t elements() const { return outer * channels * inner; }
  int64_t length() const { return outer * inner; }  // of a channel
  int64_t columns() const { return channels * inner; }

  // The place in memory of a channel's element.
  SYNQ_INLINE_EVERYWHERE int64_t offset(int64_t channel, int64_t element) const {
    const int64_t o = outer == 1 ? 0 : element / inner;
    return (o * channels + channel) * inner + (element - o * inner);
  }
};

// Images are read as (samples, channels, positions), or as (samples, positions, channels) where channels are innermost.
struct ImageLayout {
  int64_t samples;
  int64_t channels;
  int64_t positions;
  bool innermost;

  int64_t groups() const { return samples * channels; }
  int64_t elements() const { return groups() * positions; }
};

// Images are read as planes of rows with `step` values for each pixel: contiguous images have a plane per channel and
// step 1, channels_last ones a plane per image and as many values a pixel as channels.
struct PlaneLayout {
  int64_t planes;
  int64_t height;
  int64_t width;
  int64_t step;
};

// Where the matrices of heads lie, (batch, heads, rows, columns), whose columns are neighbours. In elements.
struct HeadStrides {
  int64_t batch;
  int64_t head;
  int64_t row;

  // The place of the first column; `matrix` counts all heads of all batches, `heads` those of one.
  SYNQ_INLINE_EVERYWHERE int64_t offset(int64_t matrix, int64_t heads, int64_t index) const {
    const int64_t outer = matrix / heads;
    return outer * batch + (matrix - outer * heads) * head + index * row;
  }
};

// Of `elements` in dense memory, around an axis of this size and stride, in so many equal runs of its channels.
inline Layout layout_around(int64_t elements, int64_t size, int64_t stride, int64_t channels) {
  if (elements == 0) return {0, channels, 1};
  if (channels == 1) return {1, 1, elements};
  // In dense memory everything faster than the axis fills exactly one of its strides.
  const int64_t inner = size / channels * stride;
  return {elements / (channels * inner), channels, inner};
}

}  // namespace synq
