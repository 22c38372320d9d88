// The Jensen-Shannon divergence from a teacher whose rest is spread evenly in CUDA C++, see common/divergence_terms.h;
// called as what cuda/sparse_cross_entropy.h declares.
#pragma once

#include "common/arguments.h"

namespace smoothloss {
namespace cuda {

int jensen_shannon_forward(const JensenShannonArguments& arguments, int device, void* stream);
int jensen_shannon_backward(const JensenShannonBackwardArguments& arguments, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
