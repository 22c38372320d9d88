// The Jensen-Shannon divergence, compiled once per instruction set (SMOOTHLOSS_ISA). The passes run in T; the scalars
// of a row, and the classes that its slots name, in double.
#include "common/divergence_terms.h"
#include "cpu/dispatch.h"
#include "cpu/listed_classes.h"
#include "cpu/token_statistics_kernels.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {
namespace {

// ---- the classes that slots name

// Packs the logits of the filled slots, their classes, and the teacher's log-probabilities. Returns how many there are.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE int64_t pack_listed(const Storage* row, const RowEntries<T>& slots, const TransformTerms<T>& terms,
                                        const StatisticsScratch& scratch) {
    int64_t count = 0;
    for (int64_t s = 0; s < slots.slots; ++s) {
        if (!slots.filled(s)) continue;
        scratch.index[count] = slots.indices[s];
        scratch.z[count] = transform_one<TRANSFORM, T>(read(row + slots.indices[s]), terms);
        scratch.gradient[count++] = static_cast<double>(slots.weights[s]);
    }
    return count;
}

struct ListedVectors {
    Vector<double> p;
    Vector<double> from_student;  // log p - log m
    Vector<double> from_teacher;  // log a - log m
};

// As `listed_terms` has it.
SMOOTHLOSS_HD ListedVectors listed_vectors(Vector<double> z, Vector<double> log_a, const RowSoftmax<double>& softmax,
                                           double beta) {
    Vector<double> lowest = broadcast<double>(-kLargestDistance), highest = broadcast<double>(kLargestDistance);
    Vector<double> log_p = (z - softmax.center) - softmax.log_sum;
    Vector<double> d = log_p - log_a;
    d = d > lowest ? d : lowest;  // of two that are -inf too; a NaN stays in p
    d = d < highest ? d : highest;
    Vector<double> log_m = vector_log<double>(beta + (1 - beta) * vector_exp<double>(d));
    return {vector_exp<double>(log_p), d - log_m, -log_m};
}

SMOOTHLOSS_NOINLINE Divergences listed_divergences(int64_t count, const RowSoftmax<double>& softmax, double beta,
                                                   const StatisticsScratch& scratch) {
    constexpr int width = Lanes<double>::width;
    Vector<double> student{}, teacher{};
    for (int64_t i = 0; i < count; i += width) {
        Vector<double> log_a = load(scratch.gradient + i);
        ListedVectors terms = listed_vectors(load(scratch.z + i), log_a, softmax, beta);
        Lanes<double>::Mask valid = lanes_below<double>(static_cast<int>(count - i < width ? count - i : width));
        student += valid ? terms.p * terms.from_student : Vector<double>{};
        teacher += valid ? vector_exp<double>(log_a) * terms.from_teacher : Vector<double>{};
    }
    return {sum_of_lanes<double>(student), sum_of_lanes<double>(teacher)};
}

// ---- the others

template <class T>
struct UnlistedSums {
    Vector<T> student;  // of sum p (log p - log m)
    Vector<T> log_m;    // of log m - log r
};

template <class T>
struct UnlistedVectors {
    Vector<T> e;  // p sum
    UnlistedClass<Vector<T>> logs;
};

// `e` is the exponential of z - center.
template <class T>
SMOOTHLOSS_HD UnlistedVectors<T> unlisted_vectors(Vector<T> z, Vector<T> e, const UnlistedTerms<T>& terms) {
    auto log_of = [](Vector<T> x) SMOOTHLOSS_INLINE_LAMBDA { return vector_log<T>(x); };
    Vector<T> d = clamp_exponent<T>(z - terms.center) + terms.offset;  // clamped where e is 0
    return {e, unlisted_class(d, e * terms.scale, broadcast<T>(terms.beta), broadcast<T>(terms.rest), log_of)};
}

template <class T>
SMOOTHLOSS_HD void accumulate(UnlistedSums<T>& sums, Vector<T> z, Vector<T> e, const UnlistedTerms<T>& terms) {
    UnlistedVectors<T> own = unlisted_vectors<T>(z, e, terms);
    sums.log_m += own.logs.from_share;
    sums.student += own.e * own.logs.from_student;
}

// Writes the exponentials of a block and returns their sum. A whole vector more than the block.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE double block_exponentials(const Storage* row, int count, T center, T* e,
                                              const TransformTerms<T>& transforms) {
    constexpr int width = Lanes<T>::width;
    Vector<T> sums[4] = {};
    int i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
        prefetch(row + i + kBlock, 4 * width);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Vector<T> z = transform<TRANSFORM, T>(load(row + i + j * width), transforms).z;
            Vector<T> own = vector_exp<T>(z - center);
            store(e + i + j * width, own);
            sums[j] += own;
        }
    }
    for (; i < count; i += width) {
        int rest = count - i < width ? count - i : width;
        Vector<T> z = transform<TRANSFORM, T>(load_some<T>(row + i, rest), transforms).z;
        Vector<T> own = lanes_below<T>(rest) ? vector_exp<T>(z - center) : Vector<T>{};
        store(e + i, own);
        sums[0] += own;
    }
    return sum_of_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The softmax of a row. Each block's exponentials, relative to the largest logit up to there, stay in `e`.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE SoftmaxState<double> row_exponentials(const Storage* row, int64_t classes, T* e, double* center,
                                                          const TransformTerms<T>& transforms) {
    SoftmaxState<double> state = empty_softmax_state<double>();
    for (int64_t begin = 0; begin < classes; begin += kBlock) {
        int count = static_cast<int>(classes - begin < kBlock ? classes - begin : kBlock);
        // The transform is increasing, so the largest input is the largest z.
        T max = transform<TRANSFORM, T>(broadcast<T>(block_max<T>(row + begin, count)), transforms).z[0];
        max = max > static_cast<T>(state.max) ? max : static_cast<T>(state.max);
        T own = center_of(max);
        center[begin / kBlock] = static_cast<double>(own);
        double sum = block_exponentials<TRANSFORM, T>(row + begin, count, own, e + begin, transforms);
        state = merge(state, SoftmaxState<double>{static_cast<double>(max), sum, 0});
    }
    return state;
}

// `factor` brings the exponentials to the row's center.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE Divergences block_divergences(const Storage* row, const T* e, int count, T factor,
                                                  const UnlistedTerms<T>& terms, const TransformTerms<T>& transforms) {
    constexpr int width = Lanes<T>::width;
    UnlistedSums<T> sums[2] = {};
    int i = 0;
    for (; i + 2 * width <= count; i += 2 * width) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            Vector<T> z = transform<TRANSFORM, T>(load(row + i + j * width), transforms).z;
            accumulate<T>(sums[j], z, load(e + i + j * width) * factor, terms);
        }
    }
    for (; i < count; i += width) {
        int rest = count - i < width ? count - i : width;
        UnlistedSums<T> own{};
        Vector<T> z = transform<TRANSFORM, T>(load_some<T>(row + i, rest), transforms).z;
        accumulate<T>(own, z, load(e + i) * factor, terms);
        typename Lanes<T>::Mask valid = lanes_below<T>(rest);
        sums[0].log_m += valid ? own.log_m : Vector<T>{};
        sums[0].student += valid ? own.student : Vector<T>{};
    }
    return {sum_of_lanes<T>(sums[0].student + sums[1].student), sum_of_lanes<T>(sums[0].log_m + sums[1].log_m)};
}

// Relative to 1 / sum, and to -r.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE Divergences unlisted_divergences(const Storage* row, const RowEntries<T>& slots, T* e,
                                                     const UnlistedTerms<T>& terms, const TransformTerms<T>& transforms,
                                                     const StatisticsScratch& scratch) {
    Divergences sums{0, 0};
    // What a class that is taken out adds all the same.
    double nothing = static_cast<double>(vector_log<T>(broadcast<T>(terms.beta))[0]);
    sort_by_block(slots, scratch);
    for (int64_t begin = 0; begin < slots.classes; begin += kBlock) {
        int count = static_cast<int>(slots.classes - begin < kBlock ? slots.classes - begin : kBlock);
        const int32_t* block = scratch.first + begin / kBlock;
        for (int32_t k = block[0]; k < block[1]; ++k) e[scratch.index[k]] = 0;
        T factor = static_cast<T>(exp(scratch.center[begin / kBlock] - static_cast<double>(terms.center)));
        Divergences own = block_divergences<TRANSFORM, T>(row + begin, e + begin, count, factor, terms, transforms);
        sums.student += own.student;
        sums.teacher += own.teacher - (block[1] - block[0]) * nothing;
    }
    return sums;
}

template <Transform TRANSFORM, class T, class Storage>
void forward_rows(const JensenShannonArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
    TransformTerms<T> transforms = transform_terms<T>(a.options);
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        RowEntries<T> slots = row_entries<T>(a.targets, a.logits.classes, n);
        int64_t saved = n * kSavedJensenShannon;
        int64_t listed = pack_listed<TRANSFORM, T>(row, slots, transforms, scratch);
        if (listed == 0) {  // no teacher
            put<T>(a.loss, n, 0);
            for (int64_t i = 0; i < kSavedJensenShannon; ++i) put<T>(a.saved, saved + i, 0);
            continue;
        }
        T* e = static_cast<T*>(scratch.e);
        SoftmaxState<double> state = row_exponentials<TRANSFORM, T>(row, slots.classes, e, scratch.center, transforms);
        RowSoftmax<double> softmax{center_of(state.max), log(state.sum), 0};
        Divergences known = listed_divergences(listed, softmax, a.beta, scratch);
        double log_share = log_share_of(get<T>(a.targets.uniform, n));
        UnlistedTerms<T> terms = unlisted_terms<T>(softmax.center, state.sum, log_share, a.beta);
        Divergences others = unlisted_divergences<TRANSFORM, T>(row, slots, e, terms, transforms, scratch);
        double student = known.student + others.student / state.sum;
        double teacher = known.teacher - exp(log_share) * others.teacher;
        put<T>(a.loss, n, a.beta * teacher + (1 - a.beta) * student);
        put<T>(a.saved, saved, softmax.center);
        put<T>(a.saved, saved + 1, state.sum);
        put<T>(a.saved, saved + 2, student);
    }
}

// ---- backward

template <class OutStorage>
SMOOTHLOSS_NOINLINE void write_listed(OutStorage* out, int64_t count, const RowSoftmax<double>& softmax, double student,
                                      double factor, double beta, const RowOptions& options,
                                      const StatisticsScratch& scratch) {
    constexpr int width = Lanes<double>::width;
    double inverse_softcap = options.softcap != 0 ? 1 / options.softcap : 0;
    for (int64_t i = 0; i < count; i += width) {
        Vector<double> z = load(scratch.z + i);
        ListedVectors terms = listed_vectors(z, load(scratch.gradient + i), softmax, beta);
        Vector<double> value = factor * terms.p * (terms.from_student - student);
        Vector<double> t = z * inverse_softcap;
        if (options.softcap != 0) value *= 1.0 - t * t;
        for (int j = 0; j < width && i + j < count; ++j) write(out + scratch.index[i + j], value[j]);
    }
}

template <Transform TRANSFORM, class T>
SMOOTHLOSS_HD Vector<T> unlisted_gradient(Vector<T> x, const UnlistedTerms<T>& terms, T student, T factor,
                                          const TransformTerms<T>& transforms) {
    Transformed<T> transformed = transform<TRANSFORM, T>(x, transforms);
    Vector<T> e = vector_exp<T>(transformed.z - terms.center);
    UnlistedVectors<T> own = unlisted_vectors<T>(transformed.z, e, terms);
    Vector<T> value = own.e * factor * (own.logs.from_student - student);
    return TRANSFORM == Transform::softcap ? value * transformed.chain : value;
}

// `out` may be `row`. The terms are copies: what is stored to `out` cannot change them.
template <Transform TRANSFORM, class T, class Storage, class OutStorage>
SMOOTHLOSS_NOINLINE void write_unlisted(const Storage* row, OutStorage* out, int64_t classes, UnlistedTerms<T> terms,
                                        T student, T factor, TransformTerms<T> transforms) {
    constexpr int width = Lanes<T>::width;
    auto gradient = [&](Vector<T> x) SMOOTHLOSS_INLINE_LAMBDA {
        return unlisted_gradient<TRANSFORM, T>(x, terms, student, factor, transforms);
    };
    int64_t i = 0;
    for (; i + 2 * width <= classes; i += 2 * width)
        store_two<T>(out + i, gradient(load(row + i)), gradient(load(row + i + width)));
    for (; i + width <= classes; i += width) store(out + i, gradient(load(row + i)));
    if (i == classes) return;
    int rest = static_cast<int>(classes - i);
    store_some<T>(out + i, gradient(load_some<T>(row + i, rest)), rest);
}

template <Transform TRANSFORM, class T, class Storage, class OutStorage>
void backward_rows(const JensenShannonBackwardArguments& a, int64_t begin, int64_t end,
                   const StatisticsScratch& scratch) {
    TransformTerms<T> transforms = transform_terms<T>(a.options);
    for (int64_t n = begin; n < end; ++n) {
        const Storage* row = static_cast<const Storage*>(a.logits.data) + n * a.logits.stride;
        OutStorage* out = static_cast<OutStorage*>(a.out.data) + n * a.out.stride;
        RowEntries<T> slots = row_entries<T>(a.targets, a.logits.classes, n);
        int64_t listed = pack_listed<TRANSFORM, T>(row, slots, transforms, scratch);
        double grad = get<T>(a.grad, n);
        if (listed == 0 || grad == 0) {
            fill<T>(out, slots.classes, T(0));
            continue;
        }
        int64_t saved = n * kSavedJensenShannon;
        double sum = get<T>(a.saved, saved + 1), student = get<T>(a.saved, saved + 2);
        RowSoftmax<double> softmax{get<T>(a.saved, saved), log(sum), 0};
        double log_share = log_share_of(get<T>(a.targets.uniform, n));
        UnlistedTerms<T> terms = unlisted_terms<T>(softmax.center, sum, log_share, a.beta);
        double factor = grad * (1 - a.beta) * a.options.logit_scale;
        write_unlisted<TRANSFORM, T>(row, out, slots.classes, terms, static_cast<T>(student),
                                     static_cast<T>(factor / sum), transforms);
        write_listed(out, listed, softmax, student, factor, a.beta, a.options, scratch);
    }
}

void forward(const JensenShannonArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
    with_input(a.logits.type, [&](auto input) {
        using I = decltype(input);
        with_transform(a.options, [&](auto transform) {
            forward_rows<decltype(transform)::value, typename I::T, typename I::Storage>(a, begin, end, scratch);
        });
    });
}

void backward(const JensenShannonBackwardArguments& a, int64_t begin, int64_t end, const StatisticsScratch& scratch) {
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

extern const JensenShannonKernels jensen_shannon_kernels = {forward, backward};

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
