// Operations that never have a grid for each channel: kernels of channels are not compiled for them.
#pragma once

#include <type_traits>

namespace synq {

struct OfOneGrid {};

template <typename Operation>
constexpr bool kHasOneGrid = std::is_base_of_v<OfOneGrid, Operation>;

}  // namespace synq
