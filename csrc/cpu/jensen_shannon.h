// The Jensen-Shannon divergence from a teacher whose rest is spread evenly, on the CPU; see common/divergence_terms.h.
// The targets are what TargetIndices makes of them.
#pragma once

#include "common/arguments.h"
#include "cpu/sparse_cross_entropy.h"

namespace smoothloss {

void jensen_shannon_forward(const JensenShannonArguments& arguments, const Execution& execution);
void jensen_shannon_backward(const JensenShannonBackwardArguments& arguments, const Execution& execution);

}  // namespace smoothloss
