// Targets of token- and sequence-level smoothing, built on the CPU in one pass.
#pragma once

#include "common/arguments.h"

namespace smoothloss {

// Whether there is a negative candidate that is not the ignored one, at a position that is not ignored.
bool has_wrong_candidate(const SmoothedTargetArguments& arguments);
void smoothed_target(const SmoothedTargetArguments& arguments, int threads);

}  // namespace smoothloss
