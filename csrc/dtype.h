// Element types that the kernels read and write.
#pragma once

#include <stdint.h>

namespace synq {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

}  // namespace synq
