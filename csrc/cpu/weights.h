// Importance weights on the CPU.
#pragma once

#include "common/weights.h"

namespace smoothloss {

void importance_weights(const WeightArguments& arguments);

}  // namespace smoothloss
