// The two passes over a row: the statistics of its softmax, and its gradient.
#pragma once

#include "common/arguments.h"
#include "common/dense_terms.h"
#include "cpu/vector_math.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

enum class Transform { none, scale, softcap };

// z = logit_scale x, then z = softcap tanh(z / softcap).
template <class T>
struct TransformTerms {
    T scale;
    T softcap;
    T inverse_softcap;
};

template <class T>
SMOOTHLOSS_HD TransformTerms<T> transform_terms(const RowOptions& options) {
    return {static_cast<T>(options.logit_scale), static_cast<T>(options.softcap),
            static_cast<T>(options.softcap != 0 ? 1 / options.softcap : 0)};
}

template <Transform VALUE>
struct TransformTag {
    static constexpr Transform value = VALUE;
};

// Calls function(tag) with the transform that the options ask for.
template <class Function>
SMOOTHLOSS_HD void with_transform(const RowOptions& options, Function function) {
    if (options.softcap != 0) return function(TransformTag<Transform::softcap>());
    if (options.logit_scale != 1) return function(TransformTag<Transform::scale>());
    function(TransformTag<Transform::none>());
}

template <class T>
struct Transformed {
    Vector<T> z;
    Vector<T> chain;  // dz / d(logit_scale x) = 1 - (z / softcap)^2; used with a softcap only
};

template <Transform TRANSFORM, class T>
SMOOTHLOSS_HD Transformed<T> transform(Vector<T> x, const TransformTerms<T>& terms) {
    if (TRANSFORM == Transform::none) return {x, x};
    x = as_rounded<T>(x * terms.scale);
    if (TRANSFORM == Transform::scale) return {x, x};
    Vector<T> t = vector_tanh<T>(x * terms.inverse_softcap);
    return {as_rounded<T>(t * terms.softcap), T(1) - t * t};
}

// Pass 1 goes block by block: the maximum of a block that stays in L1, then its sums relative to the largest logit so
// far. Sums are kept per lane within a block and in double across blocks.
constexpr int64_t kBlock = 2048;

// The scan for the maximum has nothing to compute while memory answers: the sums of the block before ask for it. Not
// measured with AVX-512.
template <class Storage>
SMOOTHLOSS_HD void prefetch(const Storage* p, int count) {
    constexpr bool pays = SMOOTHLOSS_VECTOR_BYTES < 64;
    constexpr int line = 64 / static_cast<int>(sizeof(Storage));
#pragma GCC unroll 16
    for (int i = 0; pays && i < count; i += line) __builtin_prefetch(p + i);
}

template <class T, class Storage>
SMOOTHLOSS_HD T block_max(const Storage* row, int count) {
    constexpr int width = Lanes<T>::width;
    Vector<T> lowest = broadcast<T>(-static_cast<T>(__builtin_inff()));
    Vector<T> max[4] = {lowest, lowest, lowest, lowest};
    int i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) max[j] = larger<T>(load(row + i + j * width), max[j]);
    }
    for (; i + width <= count; i += width) max[0] = larger<T>(load(row + i), max[0]);
    if (i < count) {
        Vector<T> rest = load_some<T>(row + i, count - i);
        max[1] = larger<T>(lanes_below<T>(count - i) ? rest : lowest, max[1]);
    }
    return max_of_lanes<T>(larger<T>(larger<T>(max[0], max[1]), larger<T>(max[2], max[3])));
}

template <class T>
struct LaneSums {
    Vector<T> sum;
    Vector<T> dot;
    Vector<T> even;  // of share (center - z)
    Vector<T> mass;  // of shares that differ from class to class
};

// How mass is spread that no entry names: there is none, evenly, or by a prior.
enum class Spread { none, even, prior };

// `share` of this class, or these, in a unit of such mass.
template <bool HAS_ENTROPY, Spread SPREAD, class T, class Share>
SMOOTHLOSS_HD void accumulate(LaneSums<T>& sums, Vector<T> z, Vector<T> center, Share share) {
    Vector<T> distance = z - center;
    Vector<T> e = vector_exp<T>(distance);
    sums.sum += e;
    if (HAS_ENTROPY) sums.dot += e * clamp_exponent<T>(distance);
    if constexpr (SPREAD == Spread::even) sums.even -= distance * share;  // each small, so that no sum overflows
    if constexpr (SPREAD == Spread::prior) {
        Vector<T> term = distance * share;
        sums.even -= share != T(0) ? term : Vector<T>{};  // not even a logit of -inf has influence
        sums.mass += share;
    }
}

// `even` is 1 / classes, `prior` that of the block's classes.
template <Transform TRANSFORM, bool HAS_ENTROPY, Spread SPREAD, class T, class Storage>
SMOOTHLOSS_HD RowState<double> block_state(const Storage* row, int count, T max, T even, const T* prior,
                                           const TransformTerms<T>& terms) {
    constexpr int width = Lanes<T>::width;
    Vector<T> center = broadcast<T>(center_of(max));
    LaneSums<T> sums[4] = {};
    auto share = [&](int at) SMOOTHLOSS_INLINE_LAMBDA {
        if constexpr (SPREAD == Spread::prior) {
            return load(prior + at);
        } else {
            return even;
        }
    };
    int i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
        prefetch(row + i + kBlock, 4 * width);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Vector<T> z = transform<TRANSFORM, T>(load(row + i + j * width), terms).z;
            accumulate<HAS_ENTROPY, SPREAD, T>(sums[j], z, center, share(i + j * width));
        }
    }
    for (; i + width <= count; i += width) {
        Vector<T> z = transform<TRANSFORM, T>(load(row + i), terms).z;
        accumulate<HAS_ENTROPY, SPREAD, T>(sums[0], z, center, share(i));
    }
    if (i < count) {
        typename Lanes<T>::Mask valid = lanes_below<T>(count - i);
        Vector<T> z = transform<TRANSFORM, T>(load_some<T>(row + i, count - i), terms).z;
        LaneSums<T> rest{};
        if constexpr (SPREAD == Spread::prior) {
            accumulate<HAS_ENTROPY, SPREAD, T>(rest, z, center, load_some<T>(prior + i, count - i));
        } else {
            accumulate<HAS_ENTROPY, SPREAD, T>(rest, z, center, even);
        }
        sums[1].sum += valid ? rest.sum : Vector<T>{};
        sums[1].dot += valid ? rest.dot : Vector<T>{};
        sums[1].even += valid ? rest.even : Vector<T>{};
        sums[1].mass += rest.mass;  // nothing lies beyond the row
    }
    RowState<double> state{{max, 0, 0}, {0, SPREAD == Spread::even ? count * static_cast<double>(even) : 0}};
    state.softmax.sum = sum_of_lanes<T>((sums[0].sum + sums[1].sum) + (sums[2].sum + sums[3].sum));
    if (HAS_ENTROPY) state.softmax.dot = sum_of_lanes<T>((sums[0].dot + sums[1].dot) + (sums[2].dot + sums[3].dot));
    if (SPREAD != Spread::none)
        state.dense.distance = sum_of_lanes<T>((sums[0].even + sums[1].even) + (sums[2].even + sums[3].even));
    if (SPREAD == Spread::prior)
        state.dense.mass = sum_of_lanes<T>((sums[0].mass + sums[1].mass) + (sums[2].mass + sums[3].mass));
    return state;
}

// The softmax of a row, and the loss of a unit of mass that is spread over all classes.
template <Transform TRANSFORM, bool HAS_ENTROPY, Spread SPREAD, class T, class Storage>
SMOOTHLOSS_NOINLINE RowState<double> row_state(const Storage* row, int64_t classes, const T* prior,
                                               const TransformTerms<T>& terms) {
    RowState<double> state = empty_row_state<double>();
    T even = static_cast<T>(1.0 / static_cast<double>(classes));
    for (int64_t begin = 0; begin < classes; begin += kBlock) {
        int count = static_cast<int>(classes - begin < kBlock ? classes - begin : kBlock);
        // The transform is increasing, so the largest input is the largest z.
        T max = transform<TRANSFORM, T>(broadcast<T>(block_max<T>(row + begin, count)), terms).z[0];
        max = max > static_cast<T>(state.softmax.max) ? max : static_cast<T>(state.softmax.max);
        const T* of_block = SPREAD == Spread::prior ? prior + begin : nullptr;
        state = merge(state,
                      block_state<TRANSFORM, HAS_ENTROPY, SPREAD, T>(row + begin, count, max, even, of_block, terms));
    }
    return state;
}

// The dense rows that one row of logits mixes: q = sum_j weights[j] values[rows[j]].
template <class T>
struct DenseMixture {
    const T* values;  // (num_rows, classes)
    const int32_t* rows;
    const T* weights;
    int64_t slots;
    int64_t num_rows;
    int64_t classes;

    SMOOTHLOSS_HD bool filled(int64_t j) const { return rows[j] >= 0 && rows[j] < num_rows; }

    SMOOTHLOSS_HD double mass() const {
        double sum = 0;
        for (int64_t j = 0; j < slots; ++j) sum += filled(j) ? static_cast<double>(weights[j]) : 0.0;
        return sum;
    }

    SMOOTHLOSS_HD double at(int32_t index) const {
        double q = 0;
        for (int64_t j = 0; j < slots; ++j) {
            if (filled(j))
                q += static_cast<double>(weights[j]) * static_cast<double>(values[rows[j] * classes + index]);
        }
        return q;
    }

    // q of `count` classes from `begin` on. The buffer holds whole vectors: what lies beyond `count` is 0.
    SMOOTHLOSS_NOINLINE void block(int64_t begin, int count, T* q) const {
        constexpr int width = Lanes<T>::width;
        int whole = count / width * width;
        bool written = false;
        for (int64_t j = 0; j < slots; ++j) {
            if (!filled(j) || weights[j] == 0) continue;
            const T* source = values + rows[j] * classes + begin;
            if (!written) {
                for (int i = 0; i < whole; i += width) store(q + i, load(source + i) * weights[j]);
                if (whole < count) store(q + whole, load_some<T>(source + whole, count - whole) * weights[j]);
            } else {
                for (int i = 0; i < whole; i += width) store(q + i, load(q + i) + load(source + i) * weights[j]);
                for (int i = whole; i < count; ++i) q[i] += source[i] * weights[j];
            }
            written = true;
        }
        if (written) return;
        for (int i = 0; i < count; i += width) store(q + i, Vector<T>{});
    }
};

constexpr int64_t kDenseBuffer = kBlock + 16;  // a whole vector more than a block

// sum_v q_v (center - z_v) and sum_v q_v. What has no probability has no influence, not even a logit of -inf.
template <Transform TRANSFORM, class T, class Storage>
SMOOTHLOSS_NOINLINE DenseState<double> dense_state(const Storage* row, const DenseMixture<T>& mixture, T center,
                                                   const TransformTerms<T>& terms) {
    constexpr int width = Lanes<T>::width;
    T q[kDenseBuffer];
    DenseState<double> sums{0, 0};
    for (int64_t begin = 0; begin < mixture.classes; begin += kBlock) {
        int count = static_cast<int>(mixture.classes - begin < kBlock ? mixture.classes - begin : kBlock);
        mixture.block(begin, count, q);
        Vector<T> distance[4] = {}, mass[4] = {};  // several short sums: less rounding, no waiting
#pragma GCC unroll 4
        for (int i = 0; i < count; i += width) {
            Vector<T> x = i + width <= count ? load(row + begin + i) : load_some<T>(row + begin + i, count - i);
            Vector<T> share = load(q + i);
            Vector<T> term = share * (center - transform<TRANSFORM, T>(x, terms).z);
            distance[i / width % 4] += share != T(0) ? term : Vector<T>{};
            mass[i / width % 4] += share;
        }
        for (int j = 0; j < 4; ++j) {
            sums.distance += sum_of_lanes<T>(distance[j]);
            sums.mass += sum_of_lanes<T>(mass[j]);
        }
    }
    return sums;
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T>
SMOOTHLOSS_HD Vector<T> gradient_vector(Vector<T> x, Vector<T> removed, const GradientTerms<T>& terms,
                                        const TransformTerms<T>& options) {
    Transformed<T> transformed = transform<TRANSFORM, T>(x, options);
    Vector<T> distance = transformed.z - terms.center;
    Vector<T> e = vector_exp<T>(distance);
    Vector<T> clamped = HAS_ENTROPY ? clamp_exponent<T>(distance) : distance;
    Vector<T> value = gradient_value<HAS_ENTROPY>(e, clamped, terms) - removed;
    return TRANSFORM == Transform::softcap ? value * transformed.chain : value;
}

// Pass 2 over `count` classes, without the entries. `out` may be `row`; `q`, times `factor`, is what is taken off each
// class by itself, or null. The terms are copies: what is stored to `out` cannot change them.
template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_DENSE, class T, class Storage, class OutStorage>
SMOOTHLOSS_HD void write_gradient_block(const Storage* row, OutStorage* out, const T* q, T factor, int64_t count,
                                        GradientTerms<T> terms, TransformTerms<T> options) {
    constexpr int width = Lanes<T>::width;
    auto gradient = [&](Vector<T> x, int64_t i) SMOOTHLOSS_INLINE_LAMBDA {
        Vector<T> removed = HAS_DENSE ? load(q + i) * factor : Vector<T>{};
        return gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, removed, terms, options);
    };
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
#pragma GCC unroll 2
        for (int j = 0; j < 4; j += 2) {
            int64_t a = i + j * width, b = a + width;
            store_two<T>(out + a, gradient(load(row + a), a), gradient(load(row + b), b));
        }
    }
    for (; i + width <= count; i += width) store(out + i, gradient(load(row + i), i));
    if (i < count) {
        int rest = static_cast<int>(count - i);
        Vector<T> removed = HAS_DENSE ? load_some<T>(q + i, rest) * factor : Vector<T>{};
        Vector<T> x = load_some<T>(row + i, rest);
        store_some<T>(out + i, gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, removed, terms, options), rest);
    }
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_NOINLINE void write_gradient(const Storage* row, OutStorage* out, int64_t classes,
                                        const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    write_gradient_block<TRANSFORM, HAS_ENTROPY, false, T>(row, out, nullptr, T(0), classes, terms, options);
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_NOINLINE void write_prior_gradient(const Storage* row, OutStorage* out, const T* prior, int64_t classes,
                                              const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    write_gradient_block<TRANSFORM, HAS_ENTROPY, true, T>(row, out, prior, terms.prior_scale, classes, terms, options);
}

// With a prior (or null) and the entropy's terms always, which do nothing where its weight is 0: fewer kernels to
// compile.
template <Transform TRANSFORM, class T, class Storage, class OutStorage>
SMOOTHLOSS_NOINLINE void write_dense_gradient(const Storage* row, OutStorage* out, const DenseMixture<T>& mixture,
                                              const T* prior, const GradientTerms<T>& terms,
                                              const TransformTerms<T>& options) {
    T q[kDenseBuffer];
    for (int64_t begin = 0; begin < mixture.classes; begin += kBlock) {
        int count = static_cast<int>(mixture.classes - begin < kBlock ? mixture.classes - begin : kBlock);
        mixture.block(begin, count, q);
        T factor = terms.entry_scale;
        if (prior) {
            for (int i = 0; i < count; ++i) q[i] = q[i] * terms.entry_scale + prior[begin + i] * terms.prior_scale;
            factor = 1;
        }
        write_gradient_block<TRANSFORM, true, true, T>(row + begin, out + begin, q, factor, count, terms, options);
    }
}

template <class T, class OutStorage>
SMOOTHLOSS_NOINLINE void fill(OutStorage* out, int64_t classes, T value) {
    constexpr int width = Lanes<T>::width;
    int64_t i = 0;
    for (; i + width <= classes; i += width) store(out + i, broadcast<T>(value));
    for (; i < classes; ++i) write(out + i, value);
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
