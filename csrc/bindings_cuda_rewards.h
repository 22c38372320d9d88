// The part of _C_cuda that scores sentences.
#pragma once

#include <pybind11/pybind11.h>

namespace smoothloss {

void bind_cuda_rewards(pybind11::module_& m);

}  // namespace smoothloss
