// What a row kernel is called with: raw pointers and sizes, the same for CPU and CUDA. No torch header anywhere.
#pragma once

#include <cstdint>

namespace smoothloss {

enum class DataType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// float64 is accumulated in float64, everything else in float32.
inline bool accumulates_in_double(DataType type) {
    return type == DataType::float64;
}

struct RowOptions {
    double label_smoothing;
    double entropy;
    double z_loss;
    double logit_scale;
    double softcap;  // 0: none
};

struct Logits {
    const void* data;  // (rows, classes), last stride 1
    DataType type;
    int64_t rows;
    int64_t classes;
    int64_t stride;  // of a row, in elements
};

struct Targets {
    const int32_t* indices;  // (rows, slots); outside 0 .. classes - 1: an empty slot
    const void* weights;     // (rows, slots), accumulator type; null where only the indices matter
    const void* uniform;     // (rows,), accumulator type, or null
    int64_t slots;
};

struct Output {
    void* data;  // (rows, classes), last stride 1; may be the storage of the logits
    DataType type;
    int64_t stride;
};

// Pointers to results of shape (rows,) are of the accumulator type, but for the lse, which is float64 always: its
// rounding would be a relative error of every probability in the row.
struct ForwardArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    void* loss;
    double* lse;
    void* entropy;  // null unless options.entropy is used
    void* mass;
};

struct BackwardArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    const void* grad;  // (rows,) or one element
    bool grad_is_scalar;
    const double* lse;
    const void* entropy;  // null unless options.entropy is used
    const void* mass;     // null: the mass of the targets, and rows without any are ignored
    Output out;
};

struct ForwardBackwardArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    void* loss;
    void* mass;
    Output out;
};

struct SelectArguments {
    Logits logits;
    Targets targets;  // only the indices
    double* lse;
    void* selected;  // (rows, slots)
};

}  // namespace smoothloss
