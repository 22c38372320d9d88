// The instruction sets that the CPU kernels are compiled for.
#pragma once

#include <string>
#include <vector>

#include "cpu/draw_kernels.h"
#include "cpu/sparse_cross_entropy_kernels.h"
#include "cpu/token_statistics_kernels.h"

namespace smoothloss {

// Names of the instruction sets that this build has and this machine can run, the best first; the last is "baseline".
std::vector<std::string> available_isas();

// The kernels of an instruction set, or of the best one for an empty name.
// Throws std::invalid_argument for a name that is not among available_isas().
const RowKernels& row_kernels_for(const std::string& isa);
const DrawKernels& draw_kernels_for(const std::string& isa);
const StatisticsKernels& statistics_kernels_for(const std::string& isa);
const JensenShannonKernels& jensen_shannon_kernels_for(const std::string& isa);

}  // namespace smoothloss
