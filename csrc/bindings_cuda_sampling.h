// The part of _C_cuda that draws samples and weighs them.
#pragma once

#include <pybind11/pybind11.h>

namespace smoothloss {

void bind_cuda_sampling(pybind11::module_& m);

}  // namespace smoothloss
