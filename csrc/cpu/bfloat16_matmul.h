// Products with bfloat16 operands and a float32 result, which CPU libraries round to bfloat16.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace smoothloss {

// out = a b^T + bias: the logits of the linear op, whose rounding would be the largest error of its gradients.
struct MatmulArguments {
    const uint16_t* a;  // (rows, inner), rows `a_stride` apart
    const uint16_t* b;  // (columns, inner), rows `b_stride` apart
    const float* bias;  // (columns,), or null
    float* out;         // (rows, columns), rows `out_stride` apart
    int64_t rows;
    int64_t columns;
    int64_t inner;
    int64_t a_stride;
    int64_t b_stride;
    int64_t out_stride;
};

// out[band] = a[:, band] b[order[band]] for consecutive bands of the inner dimension: sums over the rows or the classes
// of a gradient, several at a time.
struct BandedMatmulArguments {
    const uint16_t* a;     // (rows, inner), rows `a_stride` apart
    const uint16_t* b;     // (any, columns), rows `b_stride` apart
    const int64_t* order;  // (inner,) rows of b; null: as they come
    const int64_t* ends;   // (bands,) where each band ends, ascending; the last is `inner`
    void* out;             // (bands, rows, columns) without gaps
    bool is_narrow;        // whether out is bfloat16, rounded once, and not float32
    int64_t rows;
    int64_t columns;
    int64_t inner;
    int64_t bands;
    int64_t a_stride;
    int64_t b_stride;
};

// The instruction sets of this build and this machine that multiply bfloat16, the fastest first: amx, avx512bf16.
const std::vector<std::string>& bfloat16_matmul_isas();

// With the given instruction set, or with the fastest. Both throw std::invalid_argument where there is none.
void bfloat16_matmul(const MatmulArguments& arguments, int threads, const std::string& isa = "");
void bfloat16_banded_matmul(const BandedMatmulArguments& arguments, int threads, const std::string& isa = "");

}  // namespace smoothloss
