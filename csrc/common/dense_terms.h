// The part of a row's loss that a dense target q has, sum_v q_v (lse - z_v), summed along with the softmax. Mass that
// lies evenly on all classes is a dense target too.
//
// Relative to the largest logit so far, every term is at least 0: nothing cancels.
#pragma once

#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

template <class T>
struct DenseState {
    T distance;  // sum q (center - z)
    T mass;      // sum q
};

// What has no probability has no influence, not even a logit of -inf.
template <class T>
SMOOTHLOSS_HD void accumulate(DenseState<T>& state, T q, T z, T center) {
    if (q == 0) return;
    state.distance += q * (center - z);
    state.mass += q;
}

// The same state relative to another center.
template <class T>
SMOOTHLOSS_HD DenseState<T> rebase(DenseState<T> state, T from, T to) {
    // An empty state stays empty, however far the other center is.
    return {state.mass == 0 ? state.distance : state.distance + (to - from) * state.mass, state.mass};
}

// sum_v q_v (lse - z_v), the state being relative to the softmax's center.
template <class T>
SMOOTHLOSS_HD T dense_rows_loss(const DenseState<T>& state, const RowSoftmax<T>& softmax) {
    return state.distance + softmax.log_sum * state.mass;
}

// All that the first pass over a row finds out.
template <class T>
struct RowState {
    SoftmaxState<T> softmax;
    DenseState<T> dense;
};

template <class T>
SMOOTHLOSS_HD RowState<T> empty_row_state() {
    return {empty_softmax_state<T>(), {0, 0}};
}

template <class T>
SMOOTHLOSS_HD RowState<T> rebase(const RowState<T>& state, T max) {
    DenseState<T> dense = rebase(state.dense, center_of(state.softmax.max), center_of(max));
    return {rebase(state.softmax, max), dense};
}

template <class T>
SMOOTHLOSS_HD RowState<T> merge(RowState<T> a, RowState<T> b) {
    T max = a.softmax.max > b.softmax.max ? a.softmax.max : b.softmax.max;
    a = rebase(a, max);
    b = rebase(b, max);
    return {{max, a.softmax.sum + b.softmax.sum, a.softmax.dot + b.softmax.dot},
            {a.dense.distance + b.dense.distance, a.dense.mass + b.dense.mass}};
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
