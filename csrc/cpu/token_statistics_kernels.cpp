// The token statistics, compiled once per instruction set (SMOOTHLOSS_ISA). The passes run in T; the scalars of a row,
// and the classes that its slots name, in double.
#include "cpu/token_statistics_kernels.h"

#include "common/statistics_terms.h"
#include "cpu/dispatch.h"
#include "cpu/listed_classes.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {
namespace {

constexpr double kNothing = -static_cast<double>(__builtin_inff());

// ---- forward

// What one pass over a row finds out. The largest logit is that of the row as it came in.
template <class T>
struct RowSums {
    SoftmaxState<double> rest;
    SoftmaxState<double> listed;
    T largest;
    int64_t block_of_largest;
};

template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE RowSums<T> row_sums(const Storage* row, const RowEntries<T>& slots, const TransformTerms<T>& terms,
                                        const StatisticsScratch& scratch) {
    RowSums<T> sums{empty_softmax_state<double>(), empty_softmax_state<double>(), static_cast<T>(kNothing), 0};
    TransformTerms<T> plain{1, 0, 0};
    T buffer[kDenseBuffer];
    int64_t num_listed = 0;
    if (slots.slots) sort_by_block(slots, scratch);
    for (int64_t begin = 0; begin < slots.classes; begin += kBlock) {
        int count = static_cast<int>(slots.classes - begin < kBlock ? slots.classes - begin : kBlock);
        T largest = block_max<T>(row + begin, count);
        if (largest > sums.largest) {
            sums.largest = largest;
            sums.block_of_largest = begin;
        }
        const int32_t* block = scratch.first + begin / kBlock;
        // The transform is increasing, so the largest input is the largest z.
        T max = transform<TRANSFORM, T>(broadcast<T>(largest), terms).z[0];
        T before = static_cast<T>(sums.rest.max);
        if (slots.slots && block[0] < block[1]) {
            // The listed classes are taken out of a copy: what is nothing has been taken out already.
            bool takes_largest = false;
            transformed_block<TRANSFORM, T>(row + begin, count, buffer, terms);
            for (int32_t k = block[0]; k < block[1]; ++k) {
                T* z = buffer + (scratch.index[k] - begin);
                if (*z == static_cast<T>(kNothing)) continue;
                takes_largest |= *z == max;
                scratch.z[num_listed++] = static_cast<double>(*z);
                *z = static_cast<T>(kNothing);
            }
            if (takes_largest) max = block_max<T>(buffer, count);
            max = max > before ? max : before;
            sums.rest = merge(
                sums.rest,
                block_state<Transform::none, true, Spread::none, T>(buffer, count, max, T(0), nullptr, plain).softmax);
        } else {
            max = max > before ? max : before;
            sums.rest = merge(
                sums.rest,
                block_state<TRANSFORM, true, Spread::none, T>(row + begin, count, max, T(0), nullptr, terms).softmax);
        }
    }
    TransformTerms<double> plain_double{1, 0, 0};
    sums.listed =
        row_state<Transform::none, true, Spread::none, double>(scratch.z, num_listed, nullptr, plain_double).softmax;
    return sums;
}

template <class T>
SMOOTHLOSS_HD bool any(typename Lanes<T>::Mask mask) {
    uint64_t words[sizeof(mask) / 8], all = 0;
    __builtin_memcpy(words, &mask, sizeof(mask));
    for (uint64_t word : words) all |= word;
    return all != 0;
}

// The first class from `begin` on whose logit is `value`, or is NaN if that is; -1 if there is none.
template <class T, class Storage>
SMOOTHLOSS_NOINLINE int64_t first_equal(const Storage* row, int64_t begin, int64_t classes, T value) {
    constexpr int width = Lanes<T>::width;
    bool wants_nan = value != value;
    int64_t i = begin;
    for (; i + 4 * width <= classes; i += 4 * width) {
        typename Lanes<T>::Mask found{};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Vector<T> x = load(row + i + j * width);
            found |= wants_nan ? x != x : x == broadcast<T>(value);
        }
        if (any<T>(found)) break;
    }
    for (; i < classes; ++i) {
        double x = read(row + i);
        if (wants_nan ? x != x : x == static_cast<double>(value)) return i;
    }
    return -1;
}

// As torch has it: the first NaN, or the first of the largest.
template <class T, class Storage>
SMOOTHLOSS_HD int64_t first_largest(const Storage* row, int64_t classes, const RowSums<T>& sums, double sum) {
    if (sum != sum) {
        int64_t place = first_equal<T>(row, 0, classes, static_cast<T>(__builtin_nanf("")));
        if (place >= 0) return place;
    }
    return first_equal<T>(row, sums.block_of_largest, classes, sums.largest);
}

template <Transform TRANSFORM, class T, class Storage>
void forward_rows(const TokenStatisticsArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
    TransformTerms<T> terms = transform_terms<T>(a.options);
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        RowEntries<T> slots = row_entries<T>(a.targets, a.logits.classes, n);
        RowSums<T> sums = row_sums<TRANSFORM, T>(row, slots, terms, scratch);
        SoftmaxState<double> all = merge(sums.rest, sums.listed);
        RowSoftmax<double> softmax = finish(all);
        for (int64_t s = 0; s < slots.slots; ++s) {
            double log_prob = 0;
            if (slots.filled(s)) {
                log_prob = (transform_one<TRANSFORM, T>(read(row + slots.indices[s]), terms) - softmax.center) -
                           softmax.log_sum;
            }
            put<T>(a.log_prob, n * slots.slots + s, log_prob);
        }
        put<T>(a.log_rest, n, log_rest(sums.rest, sums.listed, softmax));
        put<T>(a.entropy, n, softmax.entropy);
        put<T>(a.logsumexp, n, softmax.lse());
        a.argmax[n] = first_largest(row, slots.classes, sums, all.sum);
        put<T>(a.saved, n * kSavedStatistics, sums.listed.max);
        put<T>(a.saved, n * kSavedStatistics + 1, sums.listed.sum);
        put<T>(a.saved, n * kSavedStatistics + 2, softmax.entropy);
        put<T>(a.saved, n * kSavedStatistics + 3, sums.rest.max);
        put<T>(a.saved, n * kSavedStatistics + 4, sums.rest.sum);
    }
}

// ---- backward

// Lists the distinct classes that the slots name, with their logits, read before they may be overwritten, and the sums
// of what comes back for their slots. Returns how many there are.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE int64_t list_classes(const Storage* row, const RowEntries<T>& slots, const T* grads,
                                         const TransformTerms<T>& terms, const StatisticsScratch& scratch) {
    int64_t distinct = 0;
    for (int64_t s = 0; s < slots.slots; ++s) {
        if (!slots.filled(s)) continue;
        int32_t index = slots.indices[s], slot = scratch.slot_of[index];
        if (slot < 0) {
            slot = static_cast<int32_t>(distinct++);
            scratch.slot_of[index] = slot;
            scratch.index[slot] = index;
            scratch.z[slot] = transform_one<TRANSFORM, T>(read(row + index), terms);
            scratch.gradient[slot] = 0;
        }
        if (grads) scratch.gradient[slot] += static_cast<double>(grads[s]);
    }
    for (int64_t i = 0; i < distinct; ++i) scratch.slot_of[scratch.index[i]] = -1;
    return distinct;
}

template <class T>
SMOOTHLOSS_HD double sum_of_filled(const RowEntries<T>& slots, const T* grads, bool& is_used) {
    Sum sum;
    for (int64_t s = 0; grads && s < slots.slots; ++s) {
        if (!slots.filled(s)) continue;
        is_used |= grads[s] != 0;
        sum.add(s, static_cast<double>(grads[s]));
    }
    return sum.value();
}

template <class T>
SMOOTHLOSS_HD double get_if_given(const void* values, int64_t n) {
    return values ? get<T>(values, n) : 0;
}

// What `listed_gradient` says, for all classes of the list, times dz / dx = logit_scale (1 - (z / softcap)^2).
template <class OutStorage>
SMOOTHLOSS_NOINLINE void write_listed(OutStorage* out, int64_t distinct, const RowGradients<double>& grads,
                                      const RowSoftmax<double>& softmax, double sum, const RowOptions& options,
                                      const StatisticsScratch& scratch) {
    constexpr int width = Lanes<double>::width;
    double inverse_softcap = options.softcap != 0 ? 1 / options.softcap : 0;
    double common = grads.logsumexp - grads.listed - grads.rest;
    for (int64_t i = 0; i < distinct; i += width) {
        Vector<double> z = load(scratch.z + i), own = load(scratch.gradient + i);
        Vector<double> distance = z - softmax.center;
        Vector<double> p = vector_exp<double>(distance) / sum;
        Vector<double> log_p = distance - softmax.log_sum;
        Vector<double> value = own + p * (common - grads.entropy * (log_p + softmax.entropy));
        value = (p == 0.0 ? own : value) * options.logit_scale;  // 0 log 0 = 0
        Vector<double> t = z * inverse_softcap;
        if (options.softcap != 0) value *= 1.0 - t * t;
        for (int j = 0; j < width && i + j < distinct; ++j) write(out + scratch.index[i + j], value[j]);
    }
}

template <Transform TRANSFORM, class T, class Storage, class OutStorage>
void backward_rows(const TokenStatisticsBackwardArguments& a, int64_t begin, int64_t end,
                   const StatisticsScratch& scratch) {
    TransformTerms<T> transforms = transform_terms<T>(a.options);
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        OutStorage* out = static_cast<OutStorage*>(a.out.data) + n * a.out.stride;
        RowEntries<T> slots = row_entries<T>(a.targets, a.logits.classes, n);
        const T* own = a.grad_log_prob ? static_cast<const T*>(a.grad_log_prob) + n * slots.slots : nullptr;
        bool is_used = false;
        double listed = sum_of_filled(slots, own, is_used);
        RowGradients<double> grads{listed, get_if_given<T>(a.grad_log_rest, n), get_if_given<T>(a.grad_entropy, n),
                                   get_if_given<T>(a.grad_logsumexp, n)};
        if (!is_used && grads.rest == 0 && grads.entropy == 0 && grads.logsumexp == 0) {
            fill<T>(out, slots.classes, T(0));
            continue;
        }
        int64_t saved = n * kSavedStatistics;
        SoftmaxState<double> rest{get<T>(a.saved, saved + 3), get<T>(a.saved, saved + 4), 0};
        if (rest.sum == 0) grads.rest = 0;  // log 0, a constant
        int64_t distinct = list_classes<TRANSFORM, T>(row, slots, own, transforms, scratch);
        // The sum is made again, as the rounded one would lose a small rest beside a large listed class.
        TransformTerms<double> plain{1, 0, 0};
        SoftmaxState<double> all = merge(
            rest, row_state<Transform::none, false, Spread::none, double>(scratch.z, distinct, nullptr, plain).softmax);
        RowSoftmax<double> softmax{center_of(all.max), log(all.sum), get<T>(a.saved, saved + 2)};
        GradientTerms<T> terms = rounded<T>(rest_terms(grads, rest, softmax, all.sum, a.options.logit_scale));
        if (terms.gamma != 0) {
            write_gradient<TRANSFORM, true, T>(row, out, slots.classes, terms, transforms);
        } else {
            write_gradient<TRANSFORM, false, T>(row, out, slots.classes, terms, transforms);
        }
        write_listed(out, distinct, grads, softmax, all.sum, a.options, scratch);
    }
}

void forward(const TokenStatisticsArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        with_transform(a.options, [&](auto transform) {
            forward_rows<decltype(transform)::value, typename I::T, typename I::Storage>(a, begin, end, scratch);
        });
    });
}

void backward(const TokenStatisticsBackwardArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        Outputs<typename I::T>::with_output(a.out.type, [&](auto output) {
            with_transform(a.options, [&](auto transform) {
                backward_rows<decltype(transform)::value, typename I::T, typename I::Storage,
                              typename decltype(output)::OutStorage>(a, begin, end, scratch);
            });
        });
    });
}

}  // namespace

extern const StatisticsKernels statistics_kernels = {forward, backward};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
