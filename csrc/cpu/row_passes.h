// The two passes over a row: the statistics of its softmax, and its gradient.
#pragma once

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
    Vector<T> total;
};

template <bool HAS_ENTROPY, bool HAS_TOTAL, class T>
SMOOTHLOSS_HD void accumulate(LaneSums<T>& sums, Vector<T> z, Vector<T> center) {
    Vector<T> distance = z - center;
    Vector<T> e = vector_exp<T>(distance);
    sums.sum += e;
    if (HAS_ENTROPY) sums.dot += e * clamp_exponent<T>(distance);
    if (HAS_TOTAL) sums.total += z;
}

template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_TOTAL, class T, class Storage>
SMOOTHLOSS_HD SoftmaxState<double> block_sums(const Storage* row, int count, T max, const TransformTerms<T>& terms) {
    constexpr int width = Lanes<T>::width;
    Vector<T> center = broadcast<T>(center_of(max));
    LaneSums<T> sums[4] = {};
    int i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Vector<T> z = transform<TRANSFORM, T>(load(row + i + j * width), terms).z;
            accumulate<HAS_ENTROPY, HAS_TOTAL, T>(sums[j], z, center);
        }
    }
    for (; i + width <= count; i += width) {
        Vector<T> z = transform<TRANSFORM, T>(load(row + i), terms).z;
        accumulate<HAS_ENTROPY, HAS_TOTAL, T>(sums[0], z, center);
    }
    if (i < count) {
        typename Lanes<T>::Mask valid = lanes_below<T>(count - i);
        Vector<T> z = transform<TRANSFORM, T>(load_some<T>(row + i, count - i), terms).z;
        LaneSums<T> rest{};
        accumulate<HAS_ENTROPY, HAS_TOTAL, T>(rest, z, center);
        sums[1].sum += valid ? rest.sum : Vector<T>{};
        sums[1].dot += valid ? rest.dot : Vector<T>{};
        sums[1].total += valid ? rest.total : Vector<T>{};
    }
    SoftmaxState<double> state{max, 0, 0, 0};
    state.sum = sum_of_lanes<T>((sums[0].sum + sums[1].sum) + (sums[2].sum + sums[3].sum));
    if (HAS_ENTROPY) state.dot = sum_of_lanes<T>((sums[0].dot + sums[1].dot) + (sums[2].dot + sums[3].dot));
    if (HAS_TOTAL) state.total = sum_of_lanes<T>((sums[0].total + sums[1].total) + (sums[2].total + sums[3].total));
    return state;
}

template <Transform TRANSFORM, bool HAS_ENTROPY, bool HAS_TOTAL, class T, class Storage>
SMOOTHLOSS_NOINLINE SoftmaxState<double> softmax_state(const Storage* row, int64_t classes,
                                                       const TransformTerms<T>& terms) {
    SoftmaxState<double> state = empty_softmax_state<double>();
    for (int64_t begin = 0; begin < classes; begin += kBlock) {
        int count = static_cast<int>(classes - begin < kBlock ? classes - begin : kBlock);
        // The transform is increasing, so the largest input is the largest z.
        T max = transform<TRANSFORM, T>(broadcast<T>(block_max<T>(row + begin, count)), terms).z[0];
        max = max > static_cast<T>(state.max) ? max : static_cast<T>(state.max);
        SoftmaxState<double> block = block_sums<TRANSFORM, HAS_ENTROPY, HAS_TOTAL, T>(row + begin, count, max, terms);
        state = merge(state, block);
    }
    return state;
}

template <Transform TRANSFORM, bool HAS_ENTROPY, class T>
SMOOTHLOSS_HD Vector<T> gradient_vector(Vector<T> x, const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    Transformed<T> transformed = transform<TRANSFORM, T>(x, options);
    Vector<T> distance = transformed.z - terms.center;
    Vector<T> e = vector_exp<T>(distance);
    Vector<T> clamped = HAS_ENTROPY ? clamp_exponent<T>(distance) : distance;
    Vector<T> value = gradient_value<HAS_ENTROPY>(e, clamped, terms);
    return TRANSFORM == Transform::softcap ? value * transformed.chain : value;
}

// Pass 2, without the entries. `out` may be `row`.
template <Transform TRANSFORM, bool HAS_ENTROPY, class T, class Storage, class OutStorage>
SMOOTHLOSS_NOINLINE void write_gradient(const Storage* row, OutStorage* out, int64_t classes,
                                        const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    constexpr int width = Lanes<T>::width;
    int64_t i = 0;
    for (; i + 4 * width <= classes; i += 4 * width) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Vector<T> x = load(row + i + j * width);
            store(out + i + j * width, gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, terms, options));
        }
    }
    for (; i + width <= classes; i += width) {
        store(out + i, gradient_vector<TRANSFORM, HAS_ENTROPY, T>(load(row + i), terms, options));
    }
    if (i < classes) {
        int count = static_cast<int>(classes - i);
        Vector<T> x = load_some<T>(row + i, count);
        store_some<T>(out + i, gradient_vector<TRANSFORM, HAS_ENTROPY, T>(x, terms, options), count);
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
