// The row kernels, compiled once per instruction set (SMOOTHLOSS_ISA). The passes run in T, the scalars of a row in
// double.
#include "cpu/sparse_cross_entropy_kernels.h"

#include "cpu/row_passes.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {
namespace {

template <class T>
struct RowEntries {
    const int32_t* indices;
    const T* weights;
    int64_t slots;
    int64_t classes;

    SMOOTHLOSS_HD bool filled(int64_t s) const { return indices[s] >= 0 && indices[s] < classes; }
};

template <class T>
SMOOTHLOSS_HD RowEntries<T> row_entries(const Targets& targets, int64_t classes, int64_t n) {
    const T* weights = static_cast<const T*>(targets.weights);
    int64_t offset = n * targets.slots;
    return {targets.indices + offset, weights ? weights + offset : nullptr, targets.slots, classes};
}

// The passes over a row of logits push the entries of the next one out of the cache, or let nobody fetch them in time:
// without this they cost as much as memory takes to answer, twice a row.
template <class T>
SMOOTHLOSS_HD void prefetch_entries(const Targets& targets, int64_t n, int64_t end) {
    if (n >= end) return;
    constexpr int64_t kLine = 64;
    const char* indices = reinterpret_cast<const char*>(targets.indices + n * targets.slots);
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

template <class T>
SMOOTHLOSS_HD TransformTerms<T> transform_terms(const RowOptions& options) {
    return {static_cast<T>(options.logit_scale), static_cast<T>(options.softcap),
            static_cast<T>(options.softcap != 0 ? 1 / options.softcap : 0)};
}

// One logit through the very arithmetic that the passes use: a z from elsewhere could exceed the maximum of its row,
// and the loss fall below zero.
template <Transform TRANSFORM, class T>
SMOOTHLOSS_HD double transform_one(double x, const TransformTerms<T>& terms) {
    if (TRANSFORM == Transform::none) return x;
    return transform<TRANSFORM, T>(broadcast<T>(static_cast<T>(x)), terms).z[0];
}

template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_TOTAL, class T, class Storage>
SMOOTHLOSS_HD RowSoftmax<double> row_softmax(const Storage* row, int64_t classes, const RowOptions& options) {
    SoftmaxState<double> state =
        softmax_state<TRANSFORM, HAS_ENTROPY, HAS_TOTAL, T>(row, classes, transform_terms<T>(options));
    return finish<double>(state, static_cast<double>(classes));
}

template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_HD double row_loss(const Storage* row, const RowEntries<T>& entries, const DenseMixture<T>& mixture,
                              const RowTarget<double>& target, const RowSoftmax<double>& softmax,
                              const RowOptions& options) {
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
    return loss + dense_loss(target, softmax, options.z_loss, options.entropy);
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

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class OutStorage>
SMOOTHLOSS_NOINLINE void write_entries(OutStorage* out, int64_t distinct, const GradientTerms<T>& terms,
                                       const TransformTerms<T>& options, const Scratch& scratch) {
    constexpr int width = Lanes<T>::width;
    for (int64_t i = 0; i < distinct; i += width) {
        Vector<T> removed = load(static_cast<const T*>(scratch.weight) + i) * terms.entry_scale;
        Vector<T> x = load(static_cast<const T*>(scratch.logit) + i);
        Vector<T> value = gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, removed, terms, options);
        for (int j = 0; j < width && i + j < distinct; ++j) {
            write(out + scratch.index[i + j], static_cast<double>(value[j]));
        }
    }
}

template <class T>
SMOOTHLOSS_HD GradientTerms<T> rounded(const GradientTerms<double>& terms) {
    return {static_cast<T>(terms.center), static_cast<T>(terms.p_scale), static_cast<T>(terms.gamma),
            static_cast<T>(terms.offset), static_cast<T>(terms.shift),   static_cast<T>(terms.entry_scale)};
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_HD void dense_gradient(const Storage* row, OutStorage* out, const DenseMixture<T>& mixture,
                                  const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    if (mixture.slots) {
        write_dense_gradient<TRANSFORM, T>(row, out, mixture, terms, options);
    } else {
        write_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture.classes, terms, options);
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_HD void row_gradient(const Storage* row, OutStorage* out, const RowEntries<T>& entries,
                                const DenseMixture<T>& mixture, const GradientTerms<double>& wide,
                                const RowOptions& options, const Scratch& scratch) {
    GradientTerms<T> terms = rounded<T>(wide);
    TransformTerms<T> transforms = transform_terms<T>(options);
    if constexpr (entries_are_subtracted<TRANSFORM, T, OutStorage>) {
        dense_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture, terms, transforms);
        subtract_entries<T>(out, entries, terms.entry_scale);
    } else {
        int64_t distinct = merge_entries<T>(row, entries, mixture, scratch);
        dense_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, mixture, terms, transforms);
        write_entries<TRANSFORM, HAS_ENTROPY, T>(out, distinct, terms, transforms, scratch);
    }
}

// The gradient of a row whose p has no weight and whose logits must have no influence.
template <class T, class OutStorage>
SMOOTHLOSS_HD void row_gradient_without_softmax(OutStorage* out, const RowEntries<T>& entries, T shift, T entry_scale,
                                                const Scratch& scratch) {
    int64_t distinct = merge_entries<T, OutStorage>(nullptr, entries, DenseMixture<T>{}, scratch);
    fill<T>(out, entries.classes, -shift);
    const T* weights = static_cast<const T*>(scratch.weight);
    for (int64_t i = 0; i < distinct; ++i) {
        write(out + scratch.index[i], static_cast<double>(-shift - entry_scale * weights[i]));
    }
}

template <class T>
SMOOTHLOSS_HD void put(void* results, int64_t n, double value) {
    if (results) static_cast<T*>(results)[n] = static_cast<T>(value);
}

template <class T>
SMOOTHLOSS_HD double get(const void* values, int64_t n) {
    return static_cast<double>(static_cast<const T*>(values)[n]);
}

template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_TOTAL, class T, class Storage>
void forward_rows(const ForwardArguments& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        RowEntries<T> entries = row_entries<T>(a.targets, a.logits.classes, n);
        prefetch_entries<T>(a.targets, n + 1, end);
        DenseMixture<T> mixture = row_mixture<T>(a.dense, a.logits.classes, n);
        RowTarget<double> target = row_target(entries, mixture, a.targets, a.options, n);
        RowSoftmax<double> softmax{};
        double loss = 0;
        if (target.mass != 0) {
            softmax = row_softmax<TRANSFORM, HAS_ENTROPY, HAS_TOTAL, T>(row, a.logits.classes, a.options);
            loss = row_loss<TRANSFORM>(row, entries, mixture, target, softmax, a.options);
        }
        put<T>(a.loss, n, loss);
        a.lse[n] = softmax.lse();
        put<T>(a.entropy, n, softmax.entropy);
        put<T>(a.mass, n, target.mass);
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
void backward_rows(const BackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    const RowOptions& o = a.options;
    double scale = a.scale ? get<T>(a.scale, 0) : 1;
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        OutStorage* out = static_cast<OutStorage*>(a.out.data) + n * a.out.stride;
        RowEntries<T> entries = row_entries<T>(a.targets, a.logits.classes, n);
        prefetch_entries<T>(a.targets, n + 1, end);
        DenseMixture<T> mixture = row_mixture<T>(a.dense, entries.classes, n);
        RowTarget<double> target = row_target(entries, mixture, a.targets, o, n);
        double mass = a.mass ? get<T>(a.mass, n) : target.mass;
        if (!a.mass && mass == 0) {
            fill<T>(out, entries.classes, T(0));
            continue;
        }
        double grad = scale * get<T>(a.grad, a.grad_is_scalar ? 0 : n);
        // The center is subtracted in T, so it must be a T; the rest of the lse is the log_sum.
        double center = static_cast<T>(a.lse[n]);
        RowSoftmax<double> softmax{center, a.lse[n] - center, HAS_ENTROPY ? get<T>(a.entropy, n) : 0, 0};
        GradientInputs<double> inputs{grad,     mass,      o.logit_scale,
                                      o.z_loss, o.entropy, static_cast<double>(entries.classes)};
        GradientTerms<double> terms = make_gradient_terms(inputs, target, softmax);
        if (mass == 0) {
            row_gradient_without_softmax<T>(out, entries, static_cast<T>(terms.shift),
                                            static_cast<T>(terms.entry_scale), scratch);
        } else {
            row_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, entries, mixture, terms, o, scratch);
        }
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_TOTAL, class T, class Storage, class OutStorage>
void forward_backward_rows(const ForwardBackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    const RowOptions& o = a.options;
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        OutStorage* out = static_cast<OutStorage*>(a.out.data) + n * a.out.stride;
        RowEntries<T> entries = row_entries<T>(a.targets, a.logits.classes, n);
        prefetch_entries<T>(a.targets, n + 1, end);
        DenseMixture<T> mixture = row_mixture<T>(a.dense, a.logits.classes, n);
        RowTarget<double> target = row_target(entries, mixture, a.targets, o, n);
        put<T>(a.mass, n, target.mass);
        if (target.mass == 0) {
            put<T>(a.loss, n, 0);
            fill<T>(out, entries.classes, T(0));
            continue;
        }
        RowSoftmax<double> softmax = row_softmax<TRANSFORM, HAS_ENTROPY, HAS_TOTAL, T>(row, entries.classes, o);
        put<T>(a.loss, n, row_loss<TRANSFORM>(row, entries, mixture, target, softmax, o));
        GradientInputs<double> inputs{1,        target.mass, o.logit_scale,
                                      o.z_loss, o.entropy,   static_cast<double>(entries.classes)};
        row_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, entries, mixture,
                                                make_gradient_terms(inputs, target, softmax), o, scratch);
    }
}

template <class T, class Storage>
void select_rows(const SelectArguments& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        RowOptions plain{0, 0, 0, 1, 0};
        a.lse[n] = row_softmax<Transform::none, false, false, T>(row, a.logits.classes, plain).lse();
        RowEntries<T> entries = row_entries<T>(a.targets, a.logits.classes, n);
        for (int64_t s = 0; s < entries.slots; ++s) {
            put<T>(a.selected, n * entries.slots + s, entries.filled(s) ? read(row + entries.indices[s]) : 0);
        }
    }
}

// ---- from run-time options and types to template arguments

template <Transform VALUE>
struct TransformTag {
    static constexpr Transform value = VALUE;
};

template <bool VALUE>
struct Flag {
    static constexpr bool value = VALUE;
};

template <class Accumulator, class StorageType>
struct InputTag {
    using T = Accumulator;
    using Storage = StorageType;
};

template <class OutStorageType>
struct OutputTag {
    using OutStorage = OutStorageType;
};

template <class Function>
SMOOTHLOSS_HD void with_transform(const RowOptions& options, Function function) {
    if (options.softcap != 0) return function(TransformTag<Transform::softcap>());
    if (options.logit_scale != 1) return function(TransformTag<Transform::scale>());
    function(TransformTag<Transform::none>());
}

template <class Function>
SMOOTHLOSS_HD void with_flag(bool value, Function function) {
    if (value) return function(Flag<true>());
    function(Flag<false>());
}

template <class Function>
SMOOTHLOSS_HD void with_input(DataType type, Function function) {
    if (type == DataType::float64) return function(InputTag<double, double>());
    if (type == DataType::bfloat16) return function(InputTag<float, BFloat16>());
    function(InputTag<float, float>());
}

// float64 goes to float64, the others to float32 or bfloat16: the callers check it.
template <class T>
struct Outputs {
    template <class Function>
    static SMOOTHLOSS_HD void with_output(DataType type, Function function) {
        if (type == DataType::bfloat16) return function(OutputTag<BFloat16>());
        function(OutputTag<float>());
    }
};

template <>
struct Outputs<double> {
    template <class Function>
    static SMOOTHLOSS_HD void with_output(DataType, Function function) {
        function(OutputTag<double>());
    }
};

SMOOTHLOSS_HD bool needs_total(const Targets& targets, const RowOptions& options) {
    return targets.uniform || options.label_smoothing != 0;
}

void forward(const ForwardArguments& a, int64_t begin, int64_t end) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        with_transform(a.options, [&](auto transform) {
            with_flag(a.options.entropy != 0, [&](auto entropy) {
                with_flag(needs_total(a.targets, a.options), [&](auto total) {
                    forward_rows<decltype(transform)::value, decltype(entropy)::value, decltype(total)::value,
                                 typename I::T, typename I::Storage>(a, begin, end);
                });
            });
        });
    });
}

void backward(const BackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        Outputs<typename I::T>::with_output(a.out.type, [&](auto output) {
            with_transform(a.options, [&](auto transform) {
                with_flag(a.options.entropy != 0, [&](auto entropy) {
                    backward_rows<decltype(transform)::value, decltype(entropy)::value, typename I::T,
                                  typename I::Storage, typename decltype(output)::OutStorage>(a, begin, end, scratch);
                });
            });
        });
    });
}

void forward_backward(const ForwardBackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        Outputs<typename I::T>::with_output(a.out.type, [&](auto output) {
            with_transform(a.options, [&](auto transform) {
                with_flag(a.options.entropy != 0, [&](auto entropy) {
                    with_flag(needs_total(a.targets, a.options), [&](auto total) {
                        forward_backward_rows<decltype(transform)::value, decltype(entropy)::value,
                                              decltype(total)::value, typename I::T, typename I::Storage,
                                              typename decltype(output)::OutStorage>(a, begin, end, scratch);
                    });
                });
            });
        });
    });
}

void select(const SelectArguments& a, int64_t begin, int64_t end) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        select_rows<typename I::T, typename I::Storage>(a, begin, end);
    });
}

}  // namespace

extern const RowKernels row_kernels = {forward, backward, forward_backward, select};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
