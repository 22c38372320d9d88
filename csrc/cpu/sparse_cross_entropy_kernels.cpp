// The row kernels, compiled once per instruction set (SMOOTHLOSS_ISA). The passes run in T, the scalars of a row in
// double.
#include "cpu/sparse_cross_entropy_kernels.h"

#include "cpu/dispatch.h"
#include "cpu/row_entries.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {
namespace {

// Of a row that is ignored: a sum of 1, whose logarithm is 0.
template <class T>
SMOOTHLOSS_HD void put_statistics(void* statistics, int64_t n, const RowState<double>& state, double entropy) {
    put<T>(statistics, n * kStatistics, center_of(state.softmax.max));
    put<T>(statistics, n * kStatistics + 1, state.softmax.sum);
    put<T>(statistics, n * kStatistics + 2, entropy);
}

template <Transform TRANSFORM, bool HAS_ENTROPY, Spread SPREAD, class T, class Storage>
void forward_rows(const ForwardArguments& a, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        RowEntries<T> entries = row_entries<T>(a.targets, a.logits.classes, n);
        prefetch_entries<T>(a.targets, n + 1, end);
        DenseMixture<T> mixture = row_mixture<T>(a.dense, a.logits.classes, n);
        RowTarget<double> target = row_target(entries, mixture, a.targets, a.options, n);
        RowState<double> state{{0, 1, 0}, {0, 0}};
        RowSoftmax<double> softmax{};
        double loss = 0;
        if (target.mass != 0) {
            state = row_state<TRANSFORM, HAS_ENTROPY, SPREAD, T>(row, a.logits.classes, prior_of<T>(a.targets),
                                                                 transform_terms<T>(a.options));
            softmax = finish(state.softmax);
            loss = row_loss<TRANSFORM>(row, entries, mixture, target, softmax, state.dense, a.options);
        }
        put<T>(a.loss, n, loss);
        put<T>(a.mass, n, target.mass);
        put_statistics<T>(a.statistics, n, state, HAS_ENTROPY ? softmax.entropy : 0);
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
void backward_rows(const BackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    const RowOptions& o = a.options;
    const T* prior = prior_of<T>(a.targets);
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
        double sum = get<T>(a.statistics, n * kStatistics + 1);
        RowSoftmax<double> softmax{get<T>(a.statistics, n * kStatistics), log(sum),
                                   get<T>(a.statistics, n * kStatistics + 2)};
        GradientInputs<double> inputs{
            grad, mass, o.logit_scale, o.z_loss, o.entropy, static_cast<double>(entries.classes), prior != nullptr};
        GradientTerms<double> terms = make_gradient_terms(inputs, target, softmax, sum);
        if (mass == 0) {
            row_gradient_without_softmax<T>(out, entries, prior, rounded<T>(terms), scratch);
        } else {
            row_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, entries, mixture, prior, terms, o, scratch);
        }
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, Spread SPREAD, class T, class Storage, class OutStorage>
void forward_backward_rows(const ForwardBackwardArguments& a, int64_t begin, int64_t end, const Scratch& scratch) {
    const RowOptions& o = a.options;
    const T* prior = prior_of<T>(a.targets);
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
        RowState<double> state =
            row_state<TRANSFORM, HAS_ENTROPY, SPREAD, T>(row, entries.classes, prior, transform_terms<T>(o));
        RowSoftmax<double> softmax = finish(state.softmax);
        put<T>(a.loss, n, row_loss<TRANSFORM>(row, entries, mixture, target, softmax, state.dense, o));
        GradientInputs<double> inputs{
            1, target.mass, o.logit_scale, o.z_loss, o.entropy, static_cast<double>(entries.classes), prior != nullptr};
        row_gradient<TRANSFORM, HAS_ENTROPY, T>(row, out, entries, mixture, prior,
                                                make_gradient_terms(inputs, target, softmax, state.softmax.sum), o,
                                                scratch);
    }
}

template <Spread VALUE>
struct SpreadTag {
    static constexpr Spread value = VALUE;
};

template <class Function>
SMOOTHLOSS_HD void with_spread(const Targets& targets, const RowOptions& options, Function function) {
    if (!targets.uniform && options.label_smoothing == 0) return function(SpreadTag<Spread::none>());
    if (targets.prior) return function(SpreadTag<Spread::prior>());
    function(SpreadTag<Spread::even>());
}

void forward(const ForwardArguments& a, int64_t begin, int64_t end) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        with_transform(a.options, [&](auto transform) {
            with_flag(a.options.entropy != 0, [&](auto entropy) {
                with_spread(a.targets, a.options, [&](auto spread) {
                    forward_rows<decltype(transform)::value, decltype(entropy)::value, decltype(spread)::value,
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
                    with_spread(a.targets, a.options, [&](auto spread) {
                        forward_backward_rows<decltype(transform)::value, decltype(entropy)::value,
                                              decltype(spread)::value, typename I::T, typename I::Storage,
                                              typename decltype(output)::OutStorage>(a, begin, end, scratch);
                    });
                });
            });
        });
    });
}

}  // namespace

extern const RowKernels row_kernels = {forward, backward, forward_backward};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
