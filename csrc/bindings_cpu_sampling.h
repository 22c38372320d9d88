// The part of _C that draws samples and weighs them.
#pragma once

#include <pybind11/pybind11.h>

namespace smoothloss {

void bind_sampling(pybind11::module_& m);

}  // namespace smoothloss
