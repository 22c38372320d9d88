// Importance weights, softmax(scores / tau - log_prob) over the samples of an input or over all of a batch: what a
// kernel is called with, and one element, shared by CPU and CUDA. The definition is
// smoothloss/sampling/_weights_reference.py.
#pragma once

#include "common/arguments.h"
#include "common/row_terms.h"

namespace smoothloss {

// (samples, inputs), float32 or float64, of any layout.
struct SampleNumbers {
    const void* data;
    bool are_double;
    int64_t sample_stride, input_stride;
};

struct WeightArguments {
    SampleNumbers scores, log_prob;
    int64_t samples, inputs;
    double tau;
    double clip;  // inf: none
    bool of_batch;
    bool in_double;  // the arithmetic, and `out`; so it is where one of the inputs is
    void* out;       // (samples, inputs)
};

namespace SMOOTHLOSS_ISA {

template <class T>
SMOOTHLOSS_HD T number_at(const SampleNumbers& n, int64_t sample, int64_t input) {
    int64_t at = sample * n.sample_stride + input * n.input_stride;
    return n.are_double ? static_cast<T>(static_cast<const double*>(n.data)[at])
                        : static_cast<T>(static_cast<const float*>(n.data)[at]);
}

// NaN where one of them is.
template <class T>
SMOOTHLOSS_HD T larger_or_nan(T a, T b) {
    return b > a || b != b ? b : a;
}

// An infinite number is 0 below itself.
template <class T>
SMOOTHLOSS_HD T below(T value, T largest) {
    return value == largest ? T(0) : value - largest;
}

template <class T>
SMOOTHLOSS_HD T clipped_score(const WeightArguments& a, int64_t sample, int64_t input) {
    T score = number_at<T>(a.scores, sample, input), bound = static_cast<T>(a.clip);
    return score > bound ? bound : score;
}

// `largest`: of the scores. What no sample of q is, and has no reward either, has no weight.
template <class T>
SMOOTHLOSS_HD T log_weight(const WeightArguments& a, int64_t sample, int64_t input, T largest) {
    T reward = below(clipped_score<T>(a, sample, input), largest) / static_cast<T>(a.tau);
    return reward == -static_cast<T>(INFINITY) ? reward : reward - number_at<T>(a.log_prob, sample, input);
}

// What the sum of the exponentials is divided by: the weights of the batch have the mean 1 / samples.
SMOOTHLOSS_HD double weight_scale(const WeightArguments& a, double sum) {
    return (a.of_batch ? static_cast<double>(a.inputs) : 1.0) / sum;
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
