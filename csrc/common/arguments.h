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

// Distributions over all classes, of which row n of the logits mixes q_n = sum_j weights[n, j] values[rows[n, j]].
struct DenseTargets {
    const void* values;   // (num_rows, classes), accumulator type
    const int32_t* rows;  // (rows, slots); outside 0 .. num_rows - 1: an empty slot
    const void* weights;  // (rows, slots), accumulator type
    int64_t num_rows;
    int64_t slots;  // 0: there are none
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
    DenseTargets dense;
    RowOptions options;
    void* loss;
    double* lse;
    void* entropy;  // null unless options.entropy is used
    void* mass;
};

struct BackwardArguments {
    Logits logits;
    Targets targets;
    DenseTargets dense;
    RowOptions options;
    const void* grad;  // (rows,) or one element
    bool grad_is_scalar;
    const void* scale;  // one element that multiplies grad, or null
    const double* lse;
    const void* entropy;  // null unless options.entropy is used
    const void* mass;     // null: the mass of the targets, and rows without any are ignored
    Output out;
};

struct ForwardBackwardArguments {
    Logits logits;
    Targets targets;
    DenseTargets dense;
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

// For each of batch x length positions: the candidates' tokens, equal ones merged into the first, each followed by its
// row of the table. See smoothed_target in backends/reference.py.
struct SmoothedTargetArguments {
    const void* candidates;  // (num_candidates, batch, length)
    bool candidates_are_int64;
    int64_t num_candidates;
    int64_t batch;
    int64_t length;
    const float* weights;          // (num_candidates, batch), or null: all 1
    const int32_t* table_indices;  // (num_tokens, num_neighbours), or null: no table
    const float* table_weights;    // (num_tokens, num_neighbours)
    const float* table_tail;       // (num_tokens,), or null
    int64_t num_tokens;
    int64_t num_neighbours;  // 0 without a table
    double token_alpha;
    int64_t ignore_index;
    int32_t* out_indices;  // (batch * length, num_candidates * (num_neighbours + 1))
    float* out_weights;    // the same
    float* out_uniform;    // (batch * length,), or null where there is no tail
};

// loss = sum of `losses` / count, scale = 1 / max(count, 1), count the number of masses that are not 0.
struct MeanArguments {
    const void* losses;  // (rows,) of the accumulator type
    const void* mass;    // (rows,)
    DataType type;       // float32 or float64
    int64_t rows;
    void* loss;   // one element
    void* scale;  // one element
};

// out = values * factor, rounded once.
struct ScaledCopyArguments {
    const void* values;  // (count,) of the accumulator type
    DataType type;       // float32 or float64
    int64_t count;
    const void* factor;  // one element of the same type
    void* out;           // (count,)
    DataType out_type;
};

}  // namespace smoothloss
