// Sparse soft-target cross-entropy on the CPU: rows shared out among `threads` threads.
// Every row is computed by one thread in one order, so results do not depend on the number of threads.
//
// The targets are what TargetIndices makes of them.
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
void reduce(const ReduceArguments& arguments);

// How many of `rows` numbers of the accumulator type of `type` are 0.
int64_t count_zeros(DataType type, const void* values, int64_t rows);

}  // namespace smoothloss
