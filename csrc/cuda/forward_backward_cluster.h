// Loss and gradient with each row held in the shared memory of a thread-block cluster (sm_90 and newer): it is read
// from global memory once, however large it is.
#pragma once

#include "common/arguments.h"

namespace smoothloss {
namespace cuda {

#ifdef SMOOTHLOSS_HAS_CLUSTERS
// False, and nothing is done, where the plain kernel is to be used; else *error is the launch's cudaError_t.
bool forward_backward_in_clusters(const ForwardBackwardArguments& arguments, int device, void* stream, int* error);
#else
inline bool forward_backward_in_clusters(const ForwardBackwardArguments&, int, void*, int*) {
    return false;
}
#endif

}  // namespace cuda
}  // namespace smoothloss
