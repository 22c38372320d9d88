// Sparse soft-target cross-entropy on the CPU: rows shared out among `threads` OpenMP threads.
// Every row is computed by one thread in one order, so results do not depend on the number of threads.
#pragma once

#include <string>

#include "common/arguments.h"

namespace smoothloss {

// `isa` names an instruction set, empty for the best of this machine; see cpu/isa.h.
struct Execution {
    int threads;
    std::string isa;
};

void sparse_cross_entropy_forward(const ForwardArguments& arguments, const Execution& execution);
void sparse_cross_entropy_backward(const BackwardArguments& arguments, const Execution& execution);
void sparse_cross_entropy_forward_backward(const ForwardBackwardArguments& arguments, const Execution& execution);
void logsumexp_and_select_forward(const SelectArguments& arguments, const Execution& execution);
void mean(const MeanArguments& arguments);

}  // namespace smoothloss
