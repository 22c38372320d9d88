// out = a b^T with bfloat16 operands and a float32 result, which CPU libraries round to bfloat16: the logits of the
// linear op, whose rounding would be the largest error of its gradients.
#pragma once

#include <cstdint>

namespace smoothloss {

struct MatmulArguments {
    const uint16_t* a;  // (rows, inner), rows `a_stride` apart
    const uint16_t* b;  // (columns, inner), rows `b_stride` apart
    float* out;         // (rows, columns), rows `out_stride` apart
    int64_t rows;
    int64_t columns;
    int64_t inner;
    int64_t a_stride;
    int64_t b_stride;
    int64_t out_stride;
};

// Whether this build and this machine have the instructions (AVX512_BF16).
bool has_bfloat16_matmul();

// To be called only where they are there.
void bfloat16_matmul(const MatmulArguments& arguments, int threads);

}  // namespace smoothloss
