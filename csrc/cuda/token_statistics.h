// Token statistics in CUDA C++, see common/statistics_terms.h; called as what cuda/sparse_cross_entropy.h declares.
#pragma once

#include "common/arguments.h"

namespace smoothloss {
namespace cuda {

int token_statistics_forward(const TokenStatisticsArguments& arguments, int device, void* stream);
int token_statistics_backward(const TokenStatisticsBackwardArguments& arguments, int device, void* stream);

}  // namespace cuda
}  // namespace smoothloss
