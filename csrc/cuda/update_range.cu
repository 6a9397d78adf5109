// The running range: a tensor's extrema folded into a moving average, in place.
//
// Blocks reduce parts of x to partial ranges; one block reduces these and updates the state. A small x is its own list
// of partial ranges, and one launch does all.
#include "../update_range.h"

#include "../moving_average.h"
#include "range.cuh"

namespace synq {
namespace {

constexpr int64_t kSmall = 16 * kThreads;

template <typename T>
__global__ void __launch_bounds__(kThreads) update_kernel(const T* low, const T* high, int64_t count, float* state_min,
                                                          float* state_max, int64_t* step, float beta, float gain) {
  const Range range = merge_partials(low, high, count);
  if (threadIdx.x == 0) {
    *state_min = move_average(*state_min, range.low, beta, gain);
    *state_max = move_average(*state_max, range.high, beta, gain);
    *step += 1;
  }
}

template <typename T>
int launch_update(const UpdateRangeParams& params, const T* low, const T* high, int64_t count, void* stream) {
  return launch(update_kernel<T>, 1, kThreads, 0, stream, low, high, count, params.state_min, params.state_max,
                params.step, params.beta, params.gain);
}

}  // namespace

int64_t update_range_workspace_cuda(const UpdateRangeParams& params) {
  return params.elements <= kSmall ? 0 : 2 * range_splits(params.elements, params.dtype);
}

int update_range_cuda(const UpdateRangeParams& params, void* stream) {
  return with_element_type(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* x = static_cast<const T*>(params.x);
    if (params.elements <= kSmall) return launch_update(params, x, x, params.elements, stream);
    const int64_t splits = range_splits(params.elements, params.dtype);
    float* low = params.workspace;
    float* high = low + splits;
    const int error = launch_channel_partials(x, low, high, Layout{1, 1, params.elements}, splits, false, stream);
    if (error != cudaSuccess) return error;
    return launch_update<float>(params, low, high, splits, stream);
  });
}

}  // namespace synq
