// The arithmetic of one row, shared by the CPU and the CUDA kernels.
//
//   loss = sum_s w_s (lse - z_{i_s}) + u (lse - mean z) + z_loss lse^2 - gamma H(p)
//   dloss/dz_v = (m + 2 z_loss lse) p_v - u/V - q_v + gamma p_v (log p_v + H)
//
// where a prior spreads u, prior_v takes the place of 1/V,
// with label smoothing folded into the target: w <- (1 - eps) w, u <- (1 - eps) u + eps m. See backends/reference.py.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define SMOOTHLOSS_HD __host__ __device__ __forceinline__
#else
#define SMOOTHLOSS_HD inline __attribute__((always_inline))
#endif

// For what is called once a row: one copy of it instead of one per caller.
#define SMOOTHLOSS_NOINLINE __attribute__((noinline))

// A lambda in a loop that must become part of it.
#define SMOOTHLOSS_INLINE_LAMBDA __attribute__((always_inline))

// CPU kernels are compiled once per instruction set: each copy needs names of its own, lest the linker merge them.
#ifndef SMOOTHLOSS_ISA
#define SMOOTHLOSS_ISA portable
#endif

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

template <class T>
struct RowTarget {
    T keep;     // 1 - eps, the factor of every weight
    T uniform;  // u after label smoothing
    T mass;     // m, which label smoothing conserves
};

template <class T>
SMOOTHLOSS_HD RowTarget<T> make_row_target(T weight_sum, T uniform, T label_smoothing) {
    T mass = weight_sum + uniform;
    T keep = 1 - label_smoothing;
    return {keep, keep * uniform + label_smoothing * mass, mass};
}

// e^x. On a GPU in one instruction instead of seven, to 2^-22; results below 2^-126 are 0.
SMOOTHLOSS_HD float exponential(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
#else
    return ::expf(x);
#endif
}
SMOOTHLOSS_HD double exponential(double x) {
    return ::exp(x);
}

// What an online softmax knows of the logits seen so far. `dot` serves the entropy.
template <class T>
struct SoftmaxState {
    T max;  // max z
    T sum;  // sum exp(z - max)
    T dot;  // sum exp(z - max) (z - max)
};

template <class T>
SMOOTHLOSS_HD SoftmaxState<T> empty_softmax_state() {
    return {-static_cast<T>(INFINITY), 0, 0};
}

// The point that exponents are taken relative to: 0 as long as only -inf was seen, where -inf - -inf would be NaN.
template <class T>
SMOOTHLOSS_HD T center_of(T max) {
    return max == -static_cast<T>(INFINITY) ? T(0) : max;
}

// The same state, expressed relative to a maximum that is at least as large.
template <class T>
SMOOTHLOSS_HD SoftmaxState<T> rebase(SoftmaxState<T> state, T max) {
    if (state.sum == 0 || state.max == max) return {max, state.sum, state.dot};
    T shift = center_of(state.max) - center_of(max);
    T factor = exponential(shift);
    // exp(shift) = 0 times shift = -inf would be NaN.
    T dot = factor == 0 ? T(0) : factor * (state.dot + shift * state.sum);
    return {max, factor * state.sum, dot};
}

template <class T>
SMOOTHLOSS_HD SoftmaxState<T> merge(SoftmaxState<T> a, SoftmaxState<T> b) {
    T max = a.max > b.max ? a.max : b.max;
    a = rebase(a, max);
    b = rebase(b, max);
    return {max, a.sum + b.sum, a.dot + b.dot};
}

// lse = center + log_sum, kept apart because their sum rounds.
template <class T>
struct RowSoftmax {
    T center;
    T log_sum;
    T entropy;

    SMOOTHLOSS_HD T lse() const { return center + log_sum; }
};

template <class T>
SMOOTHLOSS_HD RowSoftmax<T> finish(SoftmaxState<T> state) {
    T log_sum = log(state.sum);
    return {center_of(state.max), log_sum, log_sum - state.dot / state.sum};
}

// w (lse - z) without the cancellation of m lse - w z; a weight of zero has no influence, whatever the logit.
template <class T>
SMOOTHLOSS_HD T entry_loss(T weight, T z, const RowSoftmax<T>& softmax) {
    return weight == 0 ? T(0) : weight * ((softmax.center - z) + softmax.log_sum);
}

// What the options add to the loss of a row.
template <class T>
SMOOTHLOSS_HD T options_loss(const RowSoftmax<T>& softmax, T z_loss, T entropy_weight) {
    T lse = softmax.lse(), loss = 0;
    if (z_loss != 0) loss += z_loss * lse * lse;
    if (entropy_weight != 0) loss -= entropy_weight * softmax.entropy;
    return loss;
}

// Input-logit gradient of a class that no entry names, times the chain rule's factor of the softcap:
//   exp(z - center) (p_scale + gamma (z - center + offset)) - shift
template <class T>
struct GradientTerms {
    T center;
    T p_scale;
    T gamma;
    T offset;
    T shift;
    T entry_scale;  // an entry of weight w, or a dense probability w, subtracts entry_scale w
    T prior_scale;  // a class of prior w subtracts prior_scale w; 0 without a prior
};

template <class T>
struct GradientInputs {
    T grad;  // dL / dloss_n
    T mass;  // the coefficient of p
    T logit_scale;
    T z_loss;
    T entropy_weight;
    T classes;
    bool has_prior;
};

// `sum` = exp(log_sum), which is better known than through the rounded logarithm.
template <class T>
SMOOTHLOSS_HD GradientTerms<T> make_gradient_terms(const GradientInputs<T>& in, const RowTarget<T>& target,
                                                   const RowSoftmax<T>& softmax, T sum) {
    T scale = in.grad * in.logit_scale;
    T p_scale = scale / sum;
    T lse_term = in.z_loss != 0 ? 2 * in.z_loss * softmax.lse() : T(0);
    return {softmax.center,
            p_scale * (in.mass + lse_term),
            p_scale * in.entropy_weight,
            softmax.entropy - softmax.log_sum,
            in.has_prior ? T(0) : scale * target.uniform / in.classes,
            scale * target.keep,
            in.has_prior ? scale * target.uniform : T(0)};
}

// `Value` is T or a vector of T: exponential = exp(distance), distance = z - center (clamped where the former is 0).
template <bool HAS_ENTROPY, class Value, class T>
SMOOTHLOSS_HD Value gradient_value(Value exponential, Value distance, const GradientTerms<T>& terms) {
    if (HAS_ENTROPY) return exponential * (terms.p_scale + terms.gamma * (distance + terms.offset)) - terms.shift;
    return exponential * terms.p_scale - terms.shift;
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
