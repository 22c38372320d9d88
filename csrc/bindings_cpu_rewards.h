// The part of _C that scores sentences.
#pragma once

#include <pybind11/pybind11.h>

namespace smoothloss {

void bind_rewards(pybind11::module_& m);

}  // namespace smoothloss
