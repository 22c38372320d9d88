// Importance weights on a GPU, in one launch. Returns an error of the CUDA runtime, or 0; nothing waits for the device.
#pragma once

#include "common/weights.h"

namespace smoothloss {
namespace cuda {

int importance_weights(const WeightArguments& arguments, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
