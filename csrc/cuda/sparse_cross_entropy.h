// Sparse soft-target cross-entropy in CUDA C++. All pointers are device pointers; nothing is allocated or synchronised.
//
// Launchers return a cudaError_t as int, so that callers need no CUDA header.
#pragma once

#include "common/arguments.h"

namespace smoothloss {
namespace cuda {

int sparse_cross_entropy_forward(const ForwardArguments& arguments, int device, void* stream);
int sparse_cross_entropy_backward(const BackwardArguments& arguments, int device, void* stream);
int sparse_cross_entropy_forward_backward(const ForwardBackwardArguments& arguments, int device, void* stream);
int smoothed_target(const SmoothedTargetArguments& arguments, int device, void* stream);
int reduce(const ReduceArguments& arguments, int device, void* stream);
int scaled_copy(const ScaledCopyArguments& arguments, int device, void* stream);

// Whether there is code for this device that its driver can run.
int status(int device);
const char* error_string(int error);

}  // namespace cuda
}  // namespace smoothloss
