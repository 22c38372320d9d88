// What a row's entries and dense rows add to the passes over its logits: the mass of the target, the loss, and what the
// gradient loses at the classes that they name.
#pragma once

#include "cpu/row_passes.h"
#include "cpu/sparse_cross_entropy_kernels.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

template <class T>
struct RowEntries {
    const int32_t* indices;
    const T* weights;
    int64_t slots;
    int64_t classes;

    SMOOTHLOSS_HD bool filled(int64_t s) const { return indices[s] >= 0 && indices[s] < classes; }
};

// The weight of a label.
template <class T>
constexpr T kOne = 1;

// The indices are int32 here; where there are no weights there is one slot, or only the indices matter.
template <class T>
SMOOTHLOSS_HD RowEntries<T> row_entries(const Targets& targets, int64_t classes, int64_t n) {
    const T* weights = static_cast<const T*>(targets.weights);
    int64_t offset = n * targets.slots;
    return {static_cast<const int32_t*>(targets.indices) + offset, weights ? weights + offset : &kOne<T>, targets.slots,
            classes};
}

// The passes over a row of logits push the entries of the next one out of the cache, or let nobody fetch them in time:
// without this they cost as much as memory takes to answer, twice a row.
template <class T>
SMOOTHLOSS_HD void prefetch_entries(const Targets& targets, int64_t n, int64_t end) {
    if (n >= end) return;
    constexpr int64_t kLine = 64;
    if (!targets.weights) return;  // one label each: the next is there already
    const char* indices = static_cast<const char*>(targets.indices) + n * targets.slots * int64_t{sizeof(int32_t)};
    const char* weights = reinterpret_cast<const char*>(static_cast<const T*>(targets.weights) + n * targets.slots);
    for (int64_t i = 0; i < targets.slots * int64_t{sizeof(int32_t)}; i += kLine) __builtin_prefetch(indices + i);
    for (int64_t i = 0; i < targets.slots * int64_t{sizeof(T)}; i += kLine) __builtin_prefetch(weights + i);
}

template <class T>
SMOOTHLOSS_HD DenseMixture<T> row_mixture(const DenseTargets& dense, int64_t classes, int64_t n) {
    int64_t offset = n * dense.slots;
    return {static_cast<const T*>(dense.values),
            dense.rows + offset,
            static_cast<const T*>(dense.weights) + offset,
            dense.slots,
            dense.num_rows,
            classes};
}

// Four sums in turn, so that an addition does not wait for the one before.
struct Sum {
    double parts[4] = {0, 0, 0, 0};

    SMOOTHLOSS_HD void add(int64_t i, double value) { parts[i % 4] += value; }
    SMOOTHLOSS_HD double value() const { return (parts[0] + parts[1]) + (parts[2] + parts[3]); }
};

template <class T>
SMOOTHLOSS_HD RowTarget<double> row_target(const RowEntries<T>& entries, const DenseMixture<T>& mixture,
                                           const Targets& targets, const RowOptions& options, int64_t n) {
    Sum sum;
#pragma GCC unroll 4
    for (int64_t s = 0; s < entries.slots; ++s) {
        sum.add(s, entries.filled(s) ? static_cast<double>(entries.weights[s]) : 0);
    }
    const T* uniform = static_cast<const T*>(targets.uniform);
    return make_row_target<double>(mixture.mass() + sum.value(), uniform ? static_cast<double>(uniform[n]) : 0.0,
                                   options.label_smoothing);
}

// One logit through the very arithmetic that the passes use: a z from elsewhere could exceed the maximum of its row,
// and the loss fall below zero.
template <Transform TRANSFORM, class T>
SMOOTHLOSS_HD double transform_one(double x, const TransformTerms<T>& terms) {
    if (TRANSFORM == Transform::none) return x;
    return transform<TRANSFORM, T>(broadcast<T>(static_cast<T>(x)), terms).z[0];
}

template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_HD double row_loss(const Storage* row, const RowEntries<T>& entries, const DenseMixture<T>& mixture,
                              const RowTarget<double>& target, const RowSoftmax<double>& softmax,
                              const DenseState<double>& even, const RowOptions& options) {
    TransformTerms<T> terms = transform_terms<T>(options);
    Sum sum;
#pragma GCC unroll 4
    for (int64_t s = 0; s < entries.slots; ++s) {
        if (!entries.filled(s)) continue;
        double z = transform_one<TRANSFORM, T>(read(row + entries.indices[s]), terms);
        sum.add(s, entry_loss(target.keep * static_cast<double>(entries.weights[s]), z, softmax));
    }
    double loss = sum.value();
    if (mixture.slots) {
        DenseState<double> state = dense_state<TRANSFORM, T>(row, mixture, static_cast<T>(softmax.center), terms);
        loss += target.keep * dense_rows_loss(state, softmax);
    }
    if (target.uniform != 0) loss += target.uniform * dense_rows_loss(even, softmax);
    return loss + options_loss(softmax, options.z_loss, options.entropy);
}

template <class A, class B>
struct Same {
    static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
    static constexpr bool value = true;
};

// Entries are taken off what pass 2 has written: one addition each, repeats included. Not where that would round the
// gradient to 16 bits between p and the entry, which all but cancel, nor where the logit is needed for the chain rule.
template <Transform TRANSFORM, class T, class OutStorage>
constexpr bool entries_are_subtracted = Same<T, OutStorage>::value && TRANSFORM != Transform::softcap;

template <class T>
SMOOTHLOSS_NOINLINE void subtract_entries(T* out, const RowEntries<T>& entries, T entry_scale) {
    for (int64_t s = 0; s < entries.slots; ++s) {
        if (entries.filled(s)) out[entries.indices[s]] -= entry_scale * entries.weights[s];
    }
}

// Otherwise they are merged by index, in order, and their classes written again. Returns how many indices there are.
template <class T, class Storage>
SMOOTHLOSS_NOINLINE int64_t merge_entries(const Storage* row, const RowEntries<T>& entries,
                                          const DenseMixture<T>& mixture, const Scratch& scratch) {
    T* weights = static_cast<T*>(scratch.weight);
    T* logits = static_cast<T*>(scratch.logit);
    // All at once, where the loop below would wait for a few at a time.
    for (int64_t s = 0; s < entries.slots; ++s) {
        if (!entries.filled(s)) continue;
        if (row) __builtin_prefetch(row + entries.indices[s]);
        __builtin_prefetch(scratch.slot_of + entries.indices[s], 1);
    }
    int64_t distinct = 0;
    for (int64_t s = 0; s < entries.slots; ++s) {
        if (!entries.filled(s)) continue;
        int32_t index = entries.indices[s];
        int32_t slot = scratch.slot_of[index];
        if (slot < 0) {
            slot = static_cast<int32_t>(distinct++);
            scratch.slot_of[index] = slot;
            scratch.index[slot] = index;
            weights[slot] = static_cast<T>(mixture.at(index));
            logits[slot] = row ? static_cast<T>(read(row + index)) : T(0);
        }
        weights[slot] += entries.weights[s];
    }
    for (int64_t i = 0; i < distinct; ++i) scratch.slot_of[scratch.index[i]] = -1;
    return distinct;
}

template <class T>
SMOOTHLOSS_HD const T* prior_of(const Targets& targets) {
    return static_cast<const T*>(targets.prior);
}

// What is taken off of the classes that the merged entries from `first` on name.
template <class T>
SMOOTHLOSS_HD Vector<T> removed_at(int64_t first, int64_t distinct, const T* prior, const GradientTerms<T>& terms,
                                   const Scratch& scratch) {
    Vector<T> removed = load(static_cast<const T*>(scratch.weight) + first) * terms.entry_scale;
    for (int j = 0; prior && j < Lanes<T>::width && first + j < distinct; ++j) {
        removed[j] += prior[scratch.index[first + j]] * terms.prior_scale;
    }
    return removed;
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class OutStorage>
SMOOTHLOSS_NOINLINE void write_entries(OutStorage* out, int64_t distinct, const T* prior, const GradientTerms<T>& terms,
                                       const TransformTerms<T>& options, const Scratch& scratch) {
    constexpr int width = Lanes<T>::width;
    for (int64_t i = 0; i < distinct; i += width) {
        Vector<T> removed = removed_at(i, distinct, prior, terms, scratch);
        Vector<T> x = load(static_cast<const T*>(scratch.logit) + i);
        Vector<T> value = gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, removed, terms, options);
        OutStorage rounded_values[width];
        store(rounded_values, value);
        for (int j = 0; j < width && i + j < distinct; ++j) out[scratch.index[i + j]] = rounded_values[j];
    }
}

template <class T>
SMOOTHLOSS_HD GradientTerms<T> rounded(const GradientTerms<double>& terms) {
    return {static_cast<T>(terms.center),     static_cast<T>(terms.p_scale), static_cast<T>(terms.gamma),
            static_cast<T>(terms.offset),     static_cast<T>(terms.shift),   static_cast<T>(terms.entry_scale),
            static_cast<T>(terms.prior_scale)};
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_HD void dense_gradient(const Storage* row, OutStorage* out, const DenseMixture<T>& mixture, const T* prior,
                                  const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    if (mixture.slots) {
        write_dense_gradient<TRANSFORM, T>(row, out, mixture, prior, terms, options);
    } else if (prior) {
        write_prior_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, prior, mixture.classes, terms, options);
    } else {
        write_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture.classes, terms, options);
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_HD void row_gradient(const Storage* row, OutStorage* out, const RowEntries<T>& entries,
                                const DenseMixture<T>& mixture, const T* prior, const GradientTerms<double>& wide,
                                const RowOptions& options, const Scratch& scratch) {
    GradientTerms<T> terms = rounded<T>(wide);
    TransformTerms<T> transforms = transform_terms<T>(options);
    if constexpr (entries_are_subtracted<TRANSFORM, T, OutStorage>) {
        dense_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture, prior, terms, transforms);
        subtract_entries<T>(out, entries, terms.entry_scale);
    } else {
        int64_t distinct = merge_entries<T>(row, entries, mixture, scratch);
        dense_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture, prior, terms, transforms);
        write_entries<TRANSFORM, HAS_ENTROPY, T>(out, distinct, prior, terms, transforms, scratch);
    }
}

// The gradient of a row whose p has no weight and whose logits must have no influence.
template <class T, class OutStorage>
SMOOTHLOSS_HD void row_gradient_without_softmax(OutStorage* out, const RowEntries<T>& entries, const T* prior,
                                                const GradientTerms<T>& terms, const Scratch& scratch) {
    int64_t distinct = merge_entries<T, OutStorage>(nullptr, entries, DenseMixture<T>{}, scratch);
    fill<T>(out, entries.classes, -terms.shift);
    for (int64_t v = 0; prior && v < entries.classes; ++v) {
        write(out + v, static_cast<double>(-terms.prior_scale * prior[v]));
    }
    for (int64_t i = 0; i < distinct; ++i) {
        T removed = removed_at(i, distinct, prior, terms, scratch)[0];
        write(out + scratch.index[i], static_cast<double>(-terms.shift - removed));
    }
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
