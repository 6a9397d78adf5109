// What the running processor can execute.
#pragma once

#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace synq::cpu {

// The instruction sets that were compiled and that this processor has, slowest first.
std::vector<std::string> supported_isas();

// The name of isa().
std::string isa_name();

}  // namespace synq::cpu
