// The two passes of a thread block over its part of a row: the statistics of the softmax, and the gradient.
#pragma once

#include "common/row_layout.h"
#include "cuda/block.cuh"

namespace smoothloss {
namespace cuda {

template <class T>
struct TransformTerms {
    T scale;
    T softcap;
    T inverse_softcap;
};

template <class T>
__device__ __forceinline__ TransformTerms<T> transform_terms(const RowOptions& options) {
    T inverse = static_cast<T>(options.softcap != 0 ? 1 / options.softcap : 0);
    return {static_cast<T>(options.logit_scale), static_cast<T>(options.softcap), inverse};
}

// The first mode that knows the transform.
inline Mode mode_of_transform(const RowOptions& options) {
    if (options.softcap != 0) return Mode::softcap;
    return options.logit_scale != 1 ? Mode::general : Mode::plain;
}

template <class T>
struct Transformed {
    T z;
    T chain;  // dz / d(logit_scale x)
};

template <Mode MODE, class T>
__device__ __forceinline__ Transformed<T> transform(T x, const TransformTerms<T>& terms) {
    if (MODE == Mode::plain) return {x, T(1)};
    x = rounded_product(x, terms.scale);
    if (MODE == Mode::general || terms.softcap == 0) return {x, T(1)};
    T t = tanh(rounded_product(x, terms.inverse_softcap));
    return {rounded_product(t, terms.softcap), 1 - t * t};
}

// The dense rows that one row of logits mixes: q = sum_j weights[j] values[rows[j]].
template <class T>
struct Mixture {
    const T* values;  // (num_rows, classes)
    const int32_t* rows;
    const T* weights;
    int slots;
    uint32_t num_rows;
    uint32_t classes;

    // q of the COUNT classes from `first` on.
    template <int COUNT>
    __device__ __forceinline__ void load(uint32_t first, T (&q)[COUNT]) const {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) q[i] = 0;
#pragma unroll 1
        for (int j = 0; j < slots; ++j) {
            T weight = weights[j];
            if (static_cast<uint32_t>(rows[j]) >= num_rows || weight == 0) continue;
            add(values + static_cast<int64_t>(rows[j]) * classes + first, weight, q);
        }
    }

    // Rows of the values start wherever the number of classes puts them.
    template <int COUNT>
    static __device__ __forceinline__ void add(const T* p, T weight, T (&q)[COUNT]) {
        constexpr int width = COUNT * sizeof(T) > 16 ? 16 / static_cast<int>(sizeof(T)) : COUNT;
        if (misalignment<width>(p) == 0) {
#pragma unroll
            for (int i = 0; i < COUNT; i += width) {
                Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(p + i);
#pragma unroll
                for (int k = 0; k < width; ++k) q[i + k] += weight * pack.values[k];
            }
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) q[i] += weight * p[i];
        }
    }
};

template <Mode MODE, class T>
__device__ __forceinline__ Mixture<T> mixture_of(const DenseTargets& dense, int64_t n, uint32_t classes) {
    if (MODE != Mode::dense) return {nullptr, nullptr, nullptr, 0, 0, classes};
    return {static_cast<const T*>(dense.values),
            dense.rows + n * dense.slots,
            static_cast<const T*>(dense.weights) + n * dense.slots,
            static_cast<int>(dense.slots),
            static_cast<uint32_t>(dense.num_rows),
            classes};
}

// All about a row that both passes need.
template <class T>
struct RowContext {
    TransformTerms<T> transform;
    bool has_entropy;
    Mixture<T> mixture;
    T keep;          // the factor of the mixture
    T even;          // each class's share of the mass that lies evenly on all
    const T* prior;  // (classes,), or null
    T spread;        // the mass that the prior spreads
};

// What each of the COUNT classes from `first` on has of the prior, times `scale`; added to q.
template <int COUNT, class T>
__device__ __forceinline__ void add_prior(const T* prior, uint32_t first, T scale, T (&q)[COUNT]) {
    if (prior) Mixture<T>::add(prior + first, scale, q);
}

// The packs that a thread has in flight at a time: 64 bytes, or 8 logits where each takes long anyway.
template <Mode MODE, int COUNT>
constexpr int packs_in_flight = MODE == Mode::plain || MODE == Mode::general ? 4 : (COUNT < 8 ? 8 / COUNT : 1);

// In the second pass, where the results take registers too.
template <Mode MODE, int COUNT>
constexpr int packs_in_second_flight = MODE == Mode::general && COUNT == 8 ? 3 : packs_in_flight<MODE, COUNT>;

// The packs that are added to a softmax together: 16 logits, in as many registers.
template <Mode MODE, int COUNT>
constexpr int packs_at_once = packs_in_flight<MODE, COUNT> * COUNT > 16 ? 16 / COUNT : packs_in_flight<MODE, COUNT>;

// This thread's next packs: `pack` and those that follow by blockDim.x, as far as they are below `end`.
template <int PACKS, int COUNT, class Storage>
__device__ __forceinline__ void load_packs(Pack<Storage, COUNT> (&raw)[PACKS], const Pack<Storage, COUNT>* packs,
                                           uint32_t pack, uint32_t end) {
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (pack + i * blockDim.x < end) raw[i] = packs[pack + i * blockDim.x];
    }
}

template <int PACKS, int COUNT, class Storage>
__device__ __forceinline__ void keep_packs(const Pack<Storage, COUNT> (&raw)[PACKS], Pack<Storage, COUNT>* kept,
                                           uint32_t pack, uint32_t end) {
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (pack + i * blockDim.x < end) kept[pack + i * blockDim.x] = raw[i];
    }
}

// ---- pass 1

// Adds COUNT logits, none of them above the state's maximum.
template <Mode MODE, int COUNT, class T>
__device__ __forceinline__ void accumulate(RowState<T>& state, const T (&z)[COUNT], uint32_t first,
                                           const RowContext<T>& row) {
    T center = center_of(state.softmax.max);
    T q[COUNT];
    if (MODE == Mode::dense) {
        row.mixture.load(first, q);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) q[j] = row.keep * q[j] + row.even;
        add_prior(row.prior, first, row.spread, q);
    }
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        T distance = z[j] - center;
        T e = exponential(distance);
        state.softmax.sum += e;
        if (MODE != Mode::plain) {
            if (row.has_entropy && e != 0) state.softmax.dot += e * distance;
            accumulate(state.dense, MODE == Mode::dense ? q[j] : row.even, z[j], center);
        }
    }
}

// Adds those of PACKS packs, `pack` and those that follow by blockDim.x, that are below `end`: one rescaling for all of
// them, and only where the maximum grows.
template <Mode MODE, int PACKS, int COUNT, class Storage, class T>
__device__ __forceinline__ void accumulate_packs(RowState<T>& state, const Pack<Storage, COUNT>* raw, uint32_t pack,
                                                 const RowLayout& layout, const RowContext<T>& row) {
    T z[PACKS][COUNT];
    T max = state.softmax.max;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (pack + i * blockDim.x >= layout.end_pack) continue;
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            z[i][j] = transform<MODE>(to_accumulator(raw[i].values[j]), row.transform).z;
            max = larger(max, z[i][j]);
        }
    }
    if (max > state.softmax.max) raise_max<MODE>(state, max);
    // Their own sum first: every addition to the large one rounds, and these errors are those of all the row's
    // gradient.
    T sum = state.softmax.sum;
    state.softmax.sum = 0;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        uint32_t at = pack + i * blockDim.x;
        if (at < layout.end_pack) accumulate<MODE>(state, z[i], layout.class_of_pack(at), row);
    }
    state.softmax.sum += sum;
}

// Of this thread's classes. `kept`, if KEEP, gets the packs of the block, for the second pass.
template <Mode MODE, bool KEEP, int COUNT, class Storage, class T>
__device__ __forceinline__ RowState<T> thread_state(const Storage* logits, const RowLayout& layout,
                                                    const RowContext<T>& row,
                                                    typename Given<Pack<Storage, COUNT>*>::As kept) {
    constexpr int flight = packs_in_flight<MODE, COUNT>, group = packs_at_once<MODE, COUNT>;
    const auto* packs = reinterpret_cast<const Pack<Storage, COUNT>*>(logits + layout.head);
    RowState<T> state = empty_row_state<T>();
#pragma unroll 1
    for (uint32_t edge = threadIdx.x; edge < layout.edges; edge += blockDim.x) {
        uint32_t index = layout.class_of_edge(edge);
        T z[1] = {transform<MODE>(to_accumulator(logits[index]), row.transform).z};
        if (z[0] > state.softmax.max) raise_max<MODE>(state, z[0]);
        accumulate<MODE>(state, z, index, row);
    }
#pragma unroll 1
    for (uint32_t k = layout.first_pack + threadIdx.x; k < layout.end_pack; k += flight * blockDim.x) {
        Pack<Storage, COUNT> raw[flight];
        load_packs(raw, packs, k, layout.end_pack);
        if (KEEP) keep_packs(raw, kept, k - layout.first_pack, layout.end_pack - layout.first_pack);
#pragma unroll
        for (int i = 0; i < flight; i += group) {
            accumulate_packs<MODE, group>(state, raw + i, k + i * blockDim.x, layout, row);
        }
    }
    return state;
}

// ---- pass 2

// `entries`: what the target wants of this class, times terms.entry_scale.
template <Mode MODE, class T>
__device__ __forceinline__ T gradient_of(T x, const GradientTerms<T>& terms, const TransformTerms<T>& options,
                                         T entries) {
    Transformed<T> logit = transform<MODE>(x, options);
    T distance = logit.z - terms.center;
    T e = exponential(distance);
    if (MODE == Mode::plain) return gradient_value<false>(e, distance, terms) - entries;
    return logit.chain * (gradient_value<true>(e, e == 0 ? T(0) : distance, terms) - entries);
}

template <Mode MODE, class Out, int COUNT, class Storage, class T>
__device__ __forceinline__ Pack<Out, COUNT> gradient_of_pack(const Pack<Storage, COUNT>& raw, uint32_t first,
                                                             const GradientTerms<T>& terms, const RowContext<T>& row) {
    T q[COUNT];
    if (MODE == Mode::dense) {
        row.mixture.load(first, q);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) q[j] *= terms.entry_scale;
        add_prior(row.prior, first, terms.prior_scale, q);
    }
    Pack<Out, COUNT> result;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        T dense = MODE == Mode::dense ? q[j] : T(0);
        T x = to_accumulator(raw.values[j]);
        result.values[j] = Rounded<Out>::from(gradient_of<MODE>(x, terms, row.transform, dense));
    }
    return result;
}

// The gradient without the entries, from the logits or from packs that were kept. `out` may be `logits`: each thread
// writes what it has just read.
template <Mode MODE, bool KEPT, int COUNT, class Storage, class Out, class T>
__device__ __forceinline__ void write_gradient(const Storage* logits, Out* out, const RowLayout& layout,
                                               const GradientTerms<T>& terms, const RowContext<T>& row,
                                               typename Given<const Pack<Storage, COUNT>*>::As kept) {
    constexpr int flight = packs_in_second_flight<MODE, COUNT>;
    const auto* packs =
        KEPT ? kept - layout.first_pack : reinterpret_cast<const Pack<Storage, COUNT>*>(logits + layout.head);
    auto* results = reinterpret_cast<Pack<Out, COUNT>*>(out + layout.head);
#pragma unroll 1
    for (uint32_t edge = threadIdx.x; edge < layout.edges; edge += blockDim.x) {
        uint32_t index = layout.class_of_edge(edge);
        Pack<Storage, 1> raw{{logits[index]}};
        out[index] = gradient_of_pack<MODE, Out>(raw, index, terms, row).values[0];
    }
#pragma unroll 1
    for (uint32_t k = layout.first_pack + threadIdx.x; k < layout.end_pack; k += flight * blockDim.x) {
        Pack<Storage, COUNT> raw[flight];
        load_packs(raw, packs, k, layout.end_pack);
#pragma unroll
        for (int i = 0; i < flight; ++i) {
            uint32_t pack = k + i * blockDim.x;
            if (pack < layout.end_pack) {
                results[pack] = gradient_of_pack<MODE, Out>(raw[i], layout.class_of_pack(pack), terms, row);
            }
        }
    }
}

template <int COUNT, class Out, class T>
__device__ __forceinline__ void fill(Out* out, const RowLayout& layout, T value) {
    Out rounded = Rounded<Out>::from(value);
    Pack<Out, COUNT> pack;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) pack.values[j] = rounded;
    auto* packs = reinterpret_cast<Pack<Out, COUNT>*>(out + layout.head);
#pragma unroll 1
    for (uint32_t e = threadIdx.x; e < layout.edges; e += blockDim.x) out[layout.class_of_edge(e)] = rounded;
#pragma unroll 1
    for (uint32_t k = layout.first_pack + threadIdx.x; k < layout.end_pack; k += blockDim.x) packs[k] = pack;
}

// ---- layouts

// For reading alone.
template <int COUNT, class Storage>
__device__ __forceinline__ RowLayout layout_of(const Storage* logits, uint32_t classes) {
    return row_layout(classes, COUNT, misalignment<COUNT>(logits));
}

// For reading and writing: without packs where the two rows are not aligned alike.
template <int COUNT, class Storage, class Out>
__device__ __forceinline__ RowLayout layout_of(const Storage* logits, const Out* out, uint32_t classes) {
    uint32_t offset = misalignment<COUNT>(logits);
    return offset == misalignment<COUNT>(out) ? row_layout(classes, COUNT, offset) : scalar_layout(classes, COUNT);
}

}  // namespace cuda
}  // namespace smoothloss
