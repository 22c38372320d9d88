// What a row kernel is called with: raw pointers and sizes, the same for CPU and CUDA. No torch header anywhere.
#pragma once

#include <cstdint>
#include <type_traits>

namespace smoothloss {

enum class DataType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// float64 is accumulated in float64, everything else in float32.
inline bool accumulates_in_double(DataType type) {
    return type == DataType::float64;
}

// In the order of smoothloss/row_options.py; nothing but doubles, so that a new one is a line here.
struct RowOptions {
    double label_smoothing;
    double entropy;
    double z_loss;
    double logit_scale;
    double softcap;  // 0: none
};
constexpr int kOptions = sizeof(RowOptions) / sizeof(double);
static_assert(std::is_trivially_copyable<RowOptions>::value && sizeof(RowOptions) == kOptions * sizeof(double),
              "the options are an array of doubles");

// What is wrong with options, or null.
inline const char* fault_of(const RowOptions& o) {
    if (!(o.logit_scale > 0)) return "logit_scale: expected a positive number";
    if (!(o.softcap >= 0)) return "softcap: expected 0 (none) or a positive number";
    return nullptr;
}

struct Logits {
    const void* data;  // (rows, classes), last stride 1
    DataType type;
    int64_t rows;
    int64_t classes;
    int64_t stride;  // of a row, in elements
};

// What becomes of the losses of the rows.
enum class Reduction : int { none = 0, sum = 1, mean = 2 };

struct Targets {
    const void* indices;  // (rows, slots); outside 0 .. classes - 1, or the ignored one: an empty slot
    bool are_int64;
    const void* weights;  // (rows, slots), accumulator type; null: 1
    const void* uniform;  // (rows,), accumulator type, or null
    const void* prior;    // (classes,), accumulator type: what that mass is spread by; null: evenly
    int64_t slots;
    bool are_labels;       // a negative index is an error, but for `ignore_index`
    int64_t ignore_index;  // of labels
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

// What the forward knows of a row and the backward wants: lse = center + log(sum). Apart, because their rounded sum
// would lose log(sum) where all logits share a large offset.
constexpr int64_t kStatistics = 3;  // center = max z, sum = sum exp(z - center), entropy (0 unless it is used)

// Pointers to results are of the accumulator type.
struct ForwardArguments {
    Logits logits;
    Targets targets;
    DenseTargets dense;
    RowOptions options;
    void* loss;        // (rows,)
    void* mass;        // (rows,)
    void* statistics;  // (rows, kStatistics)
};

struct BackwardArguments {
    Logits logits;
    Targets targets;
    DenseTargets dense;
    RowOptions options;
    const void* grad;  // (rows,) or one element
    bool grad_is_scalar;
    const void* scale;       // one element that multiplies grad, or null
    const void* statistics;  // (rows, kStatistics)
    const void* mass;        // null: the mass of the targets, and rows without any are ignored
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

// What the token statistics keep of a row for their backward: center = max z and sum exp(z - center) of the classes
// that slots name, the entropy, and center and sum of the rest.
constexpr int64_t kSavedStatistics = 5;

// See token_statistics in backends/reference.py. Of the options logit_scale and softcap count.
struct TokenStatisticsArguments {
    Logits logits;
    Targets targets;  // only the indices
    RowOptions options;
    void* log_prob;   // (rows, slots)
    void* log_rest;   // (rows,)
    void* entropy;    // (rows,)
    void* logsumexp;  // (rows,)
    int64_t* argmax;  // (rows,)
    void* saved;      // (rows, kSavedStatistics)
};

// Gradients are null where nothing depends on what they are of.
struct TokenStatisticsBackwardArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    const void* saved;
    const void* grad_log_prob;   // (rows, slots)
    const void* grad_log_rest;   // (rows,)
    const void* grad_entropy;    // (rows,)
    const void* grad_logsumexp;  // (rows,)
    Output out;
};

// What the Jensen-Shannon divergence keeps of a row: center = max z, sum exp(z - center) and KL(p || m).
constexpr int64_t kSavedJensenShannon = 3;

// See jensen_shannon in backends/reference.py. The targets are logarithms: weights those of the teacher's probabilities
// of the classes that slots name, each of them once, and uniform that of what every other class has.
struct JensenShannonArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    double beta;
    void* loss;   // (rows,)
    void* saved;  // (rows, kSavedJensenShannon)
};

struct JensenShannonBackwardArguments {
    Logits logits;
    Targets targets;
    RowOptions options;
    double beta;
    const void* saved;
    const void* grad;  // (rows,)
    Output out;
};

// For each of batch x length positions its candidates, the ground truth and one of each sample: their tokens, equal
// ones merged into the first, each followed by its row of the table. See smoothed_target in backends/reference.py.
struct SmoothedTargetArguments {
    const void* target;   // (batch, length)
    const void* samples;  // (num_candidates - 1, batch, length), or null where there are none
    bool are_int64;
    int64_t num_candidates;
    int64_t batch;
    int64_t length;
    const float* target_weights;   // (batch,), or null: 1
    const void* sample_weights;    // (num_candidates - 1, batch), or null: 1 / (num_candidates - 1)
    bool are_double;               // the samples' weights; float32 otherwise
    double alpha;                  // factor of the samples' weights; 1 - alpha that of the ground truth's
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

// Mean: loss = sum of `losses` / count, scale = 1 / max(count, 1), count the number of masses that are not 0. Sum:
// scale 1.
struct ReduceArguments {
    const void* losses;  // (rows,) of the accumulator type
    const void* mass;    // (rows,)
    DataType type;       // float32 or float64
    Reduction reduction;
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
