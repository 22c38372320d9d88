// What each instruction set offers: kernels over the rows begin .. end - 1, to be shared out among threads.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace smoothloss {

// Working memory of one thread. slot_of is -1 everywhere between two rows.
struct Scratch {
    int32_t* slot_of;  // (classes,) where a class stands in the three lists below
    int32_t* index;    // (slots,) the distinct indices of a row, in order of appearance
    void* weight;      // (slots,) the sum of the weights of each, in the accumulator type
    void* logit;       // (slots,) the input logit of each, read before it may be overwritten; the same type
};

struct RowKernels {
    void (*forward)(const ForwardArguments&, int64_t begin, int64_t end);
    void (*backward)(const BackwardArguments&, int64_t begin, int64_t end, const Scratch&);
    void (*forward_backward)(const ForwardBackwardArguments&, int64_t begin, int64_t end, const Scratch&);
};

namespace baseline {
extern const RowKernels row_kernels;
}
namespace avx2 {
extern const RowKernels row_kernels;
}
namespace avx512 {
extern const RowKernels row_kernels;
}
namespace avx512bf16 {
extern const RowKernels row_kernels;
}

}  // namespace smoothloss
