// Fake quantization with the tensor's own range, per tensor or per channel.
//
// A channel that fits in shared memory is read once: one block finds its range and quantizes it. Otherwise each block
// reduces a part of a channel to one partial range, a second kernel reduces the partials, and the elementwise kernel
// follows. Partials have fixed places and minimum and maximum are exact, so every run gives the same bits.
#include "../affine.h"
#include "../fake_quantize.h"
#include "affine_map.cuh"
#include "channel_parts.cuh"
#include "range.cuh"

namespace synq {
namespace {

constexpr int64_t kRowBytes = 40 * 1024;  // with the reduction's arrays, within the 48 KiB every device has

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads)
    row_kernel(const T* x, T* y, float* range_min, float* range_max, Layout layout, int bits, bool symmetric) {
  extern __shared__ __align__(kPackBytes) unsigned char row_bytes[];
  T* row = reinterpret_cast<T*>(row_bytes);
  const int length = static_cast<int>(layout.outer * layout.inner);
  const int step = static_cast<int>(blockDim.x) * kCount;
  const float low = lowest_code(bits);
  const float high = highest_code(bits);
  for (int64_t channel = blockIdx.x; channel < layout.channels; channel += gridDim.x) {
    Range range = empty_range();
    for (int first = static_cast<int>(threadIdx.x) * kCount; first < length; first += step) {
      const Pack<T, kCount> pack = load_pack<kCount>(x + layout.offset(channel, first));
      store_shared_pack<kCount>(row + first, pack);
#pragma unroll
      for (int i = 0; i < kCount; ++i) range = include(range, to_float(pack.values[i]));
    }
    range = merge_block<1>(range);
    if (symmetric) range = symmetric_range(range);
    if (threadIdx.x == 0) store_range(range_min, range_max, channel, range);
    const Affine affine = make_affine(range.low, range.high, bits);
    // Each thread reads back only what it stored itself.
    for (int first = static_cast<int>(threadIdx.x) * kCount; first < length; first += step) {
      Pack<T, kCount> pack = load_pack<kCount>(row + first);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        pack.values[i] = from_float<T>(fake_quantize(to_float(pack.values[i]), affine, low, high));
      }
      store_pack<kCount>(y + layout.offset(channel, first), pack);
    }
  }
}

// Memory as an (outer, columns) matrix, columns = channels * inner: neighbouring threads read neighbouring columns.
// Block (split, group of columns) reduces the rows of one split; partials are (columns, splits).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    column_partials_kernel(const T* x, float* low, float* high, int64_t outer, int64_t columns, int64_t splits) {
  constexpr int kRows = kThreads / kColumns;
  const int64_t groups = (columns + kColumns - 1) / kColumns;
  for (int64_t item = blockIdx.x; item < groups * splits; item += gridDim.x) {
    const int64_t split = item / groups;
    const int64_t column = (item - split * groups) * kColumns + threadIdx.x % kColumns;
    Range range = empty_range();
    if (column < columns) {
#pragma unroll 4
      for (int64_t row = split * kRows + threadIdx.x / kColumns; row < outer; row += splits * kRows) {
        range = include(range, to_float(x[row * columns + column]));
      }
    }
    range = merge_block<kColumns>(range);
    if (threadIdx.x < kColumns && column < columns) {
      low[column * splits + split] = range.low;
      high[column * splits + split] = range.high;
    }
  }
}

// Each channel's range from its `count` consecutive partials.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const float* low, const float* high, float* range_min, float* range_max, int64_t channels,
                  int64_t count, bool symmetric) {
  for (int64_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    Range range = merge_partials(low + channel * count, high + channel * count, count);
    if (symmetric) range = symmetric_range(range);
    if (threadIdx.x == 0) store_range(range_min, range_max, channel, range);
  }
}

enum class Strategy { kRow, kChannels, kColumns };

struct Plan {
  Strategy strategy;
  int64_t splits;
  int64_t partials;  // per bound
};

template <typename T>
Plan make_plan(const Layout& layout) {
  const bool narrow = is_narrow(layout);
  if (!narrow && layout.length() * static_cast<int64_t>(sizeof(T)) <= kRowBytes) return {Strategy::kRow, 1, 0};
  if (narrow) {
    const int64_t splits = column_splits(layout);
    return {Strategy::kColumns, splits, layout.columns() * splits};
  }
  const int64_t splits = channel_splits(layout, pack_size<T>());
  return {Strategy::kChannels, splits, splits > 1 ? layout.channels * splits : 0};
}

template <typename T>
int launch_row(const FakeQuantizeParams& params, const Layout& layout, void* stream) {
  constexpr int kCount = pack_size<T>();
  const T* x = static_cast<const T*>(params.x);
  T* y = static_cast<T*>(params.y);
  const int64_t length = layout.length();
  const size_t bytes = static_cast<size_t>(length) * sizeof(T);
  const bool packed = layout.inner % kCount == 0 && is_aligned(x, kPackBytes) && is_aligned(y, kPackBytes);
  if (packed) {
    return launch_striding(row_kernel<T, kCount>, layout.channels, threads_for(length / kCount), bytes, stream, x, y,
                           params.out_min, params.out_max, layout, params.bits, params.symmetric);
  }
  return launch_striding(row_kernel<T, 1>, layout.channels, threads_for(length), bytes, stream, x, y, params.out_min,
                         params.out_max, layout, params.bits, params.symmetric);
}

template <typename T>
int launch_dynamic(const FakeQuantizeParams& params, void* stream) {
  const Layout layout = layout_of(params);
  const Plan plan = make_plan<T>(layout);
  if (plan.strategy == Strategy::kRow) return launch_row<T>(params, layout, stream);

  const T* x = static_cast<const T*>(params.x);
  float* low = plan.partials > 0 ? params.workspace : params.out_min;
  float* high = plan.partials > 0 ? params.workspace + plan.partials : params.out_max;
  int error;
  if (plan.strategy == Strategy::kColumns) {
    const int64_t columns = layout.columns();
    error = launch_striding(column_partials_kernel<T>, ceil_divide(columns, kColumns) * plan.splits, kThreads, 0,
                            stream, x, low, high, layout.outer, columns, plan.splits);
  } else {
    // Where there are no partials, this kernel's ranges are the result.
    error =
        launch_channel_partials<T>(x, low, high, layout, plan.splits, params.symmetric && plan.partials == 0, stream);
  }
  if (error == cudaSuccess && plan.partials > 0) {
    const int64_t count = plan.partials / layout.channels;
    error = launch_striding(finish_kernel, layout.channels, threads_for(count), 0, stream,
                            static_cast<const float*>(low), static_cast<const float*>(high), params.out_min,
                            params.out_max, layout.channels, count, params.symmetric);
  }
  if (error != cudaSuccess) return error;
  FakeQuantizeParams given = params;
  given.range_min = params.out_min;
  given.range_max = params.out_max;
  return fake_quantize_cuda(given, stream);
}

}  // namespace

int64_t fake_quantize_dynamic_workspace_cuda(const FakeQuantizeParams& params) {
  const Layout layout = layout_of(params);
  const int64_t size =
      params.dtype == DType::kFloat32 ? make_plan<float>(layout).partials : make_plan<__half>(layout).partials;
  return 2 * size;
}

int fake_quantize_dynamic_cuda(const FakeQuantizeParams& params, void* stream) {
  return with_element_type(params.dtype,
                           [&](auto tag) { return launch_dynamic<typename decltype(tag)::Type>(params, stream); });
}

}  // namespace synq
