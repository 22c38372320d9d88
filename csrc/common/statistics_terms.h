// The arithmetic of one row's token statistics, shared by the CPU and the CUDA kernels.
//
// A row's classes fall into those that slots name, the listed ones, and the rest. Both are summed over themselves, each
// relative to its own largest logit, and the whole is put together from them: nothing is subtracted, so that neither
// the rest's mass nor its gradient is lost however small it is.
#pragma once

#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

// log sum p over the rest: log1p where that is next to nothing, lest its digits be lost beside 1.
template <class T>
SMOOTHLOSS_HD T log_rest(const SoftmaxState<T>& rest, const SoftmaxState<T>& listed, const RowSoftmax<T>& softmax) {
    if (rest.sum == 0) return -static_cast<T>(INFINITY);
    T ratio = T(exp(center_of(listed.max) - center_of(rest.max))) * (listed.sum / rest.sum);
    if (ratio < 1) return -T(log1p(ratio));
    return (center_of(rest.max) - softmax.center) + (T(log(rest.sum)) - softmax.log_sum);
}

// What comes back for a row; 0 for what is not used.
template <class T>
struct RowGradients {
    T listed;  // sum over the filled slots
    T rest;
    T entropy;
    T logsumexp;
};

// Gradient of a class of the rest: exp(z - rest.center) (p_scale + gamma (z - rest.center + offset)), the form of
// GradientTerms. For p_v = exp(z - center) / sum the exponential of a small rest would be lost.
template <class T>
SMOOTHLOSS_HD GradientTerms<T> rest_terms(const RowGradients<T>& grads, const SoftmaxState<T>& rest,
                                          const RowSoftmax<T>& softmax, T sum, T logit_scale) {
    T center = center_of(rest.max), distance = center - softmax.center;
    if (rest.sum == 0) return {center, 0, 0, 0, 0, 0, 0};
    T factor = T(exp(distance)) / sum;  // p_v = factor exp(z - rest.center)
    T p_scale = factor * (grads.logsumexp - grads.listed - grads.rest) + grads.rest / rest.sum;
    // Where it is nothing, its offset may be infinite.
    T gamma = -grads.entropy * factor;
    T offset = gamma == 0 ? T(0) : distance - softmax.log_sum + softmax.entropy;
    return {center, logit_scale * p_scale, logit_scale * gamma, offset, 0, 0, 0};
}

// Of a listed class, whose slots get `own` together.
template <class T>
SMOOTHLOSS_HD T listed_gradient(const RowGradients<T>& grads, T own, T z, const RowSoftmax<T>& softmax, T sum) {
    T distance = z - softmax.center;
    T p = T(exp(distance)) / sum;
    if (p == 0) return own;  // 0 log 0 = 0
    T log_p = distance - softmax.log_sum;
    return own + p * (grads.logsumexp - grads.listed - grads.rest - grads.entropy * (log_p + softmax.entropy));
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
