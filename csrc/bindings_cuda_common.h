// What the binding files of _C_cuda share.
#pragma once

#include "bindings_common.h"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {

inline void check(int error, const char* what) {
    if (error != 0) throw std::runtime_error(std::string(what) + ": " + cuda::error_string(error));
}

}  // namespace smoothloss
