// Targets of token- and sequence-level smoothing, built on the CPU in one pass.
#pragma once

#include "common/arguments.h"

namespace smoothloss {

void smoothed_target(const SmoothedTargetArguments& arguments, int threads);

}  // namespace smoothloss
