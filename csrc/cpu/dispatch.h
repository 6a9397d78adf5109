// Chooses the kernels for the running processor.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace synq::cpu {

// The instruction sets that were compiled and that this processor has, slowest first.
std::vector<std::string> supported_isas();

// The fastest supported set, or the one named by the environment variable SYNQ_FAST_CPU_ISA when first asked for.
// Throws std::invalid_argument when that name is unknown or unsupported.
const Kernels& kernels();

}  // namespace synq::cpu
