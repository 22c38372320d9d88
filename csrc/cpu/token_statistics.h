// Token statistics on the CPU; see common/statistics_terms.h. The targets are what TargetIndices makes of them.
#pragma once

#include "common/arguments.h"
#include "cpu/sparse_cross_entropy.h"

namespace smoothloss {

void token_statistics_forward(const TokenStatisticsArguments& arguments, const Execution& execution);
void token_statistics_backward(const TokenStatisticsBackwardArguments& arguments, const Execution& execution);

}  // namespace smoothloss
