// The sparse part of a row's target: its mass, its loss, and its share in the gradient.
#pragma once

#include "cuda/row.cuh"

namespace smoothloss {
namespace cuda {

// Of the 48 KiB of shared memory that every device grants a block; the rest is for what the reductions need.
constexpr int64_t kEntryBytes = 40 * 1024;

template <class T>
constexpr int64_t shared_entry_bytes = 2 * sizeof(T) + sizeof(int32_t);

// Rows with more entries are written tile by tile.
template <class T>
constexpr int64_t max_shared_entries = kEntryBytes / shared_entry_bytes<T>;

// The entries of a row in global memory.
template <class T>
struct Entries {
    const int32_t* indices;
    const T* weights;
    int slots;
    uint32_t classes;

    // A negative index is a very large one here.
    __device__ __forceinline__ bool filled(int s) const { return static_cast<uint32_t>(indices[s]) < classes; }

    // Of all the entries with this index, in their order.
    __device__ __forceinline__ T weight_of(int32_t index) const {
        T sum = 0;
        for (int s = 0; s < slots; ++s) sum += indices[s] == index ? weights[s] : T(0);
        return sum;
    }
};

// A row and its target, as all kernels see it.
template <class T>
struct RowProblem {
    int64_t n;
    uint32_t classes;
    RowContext<T> row;
    Entries<T> entries;
    RowTarget<T> target;
};

// Every warp adds up all weights itself, which saves the barriers of a reduction over the block.
template <Mode MODE, class T>
__device__ __forceinline__ T weight_sum(const Entries<T>& entries, const Mixture<T>& mixture) {
    T sum = 0;
#pragma unroll 1
    for (int s = lane_id(); s < entries.slots; s += 32) sum += entries.filled(s) ? entries.weights[s] : T(0);
    if (MODE == Mode::dense) {
#pragma unroll 1
        for (int j = lane_id(); j < mixture.slots; j += 32) {
            sum += static_cast<uint32_t>(mixture.rows[j]) < mixture.num_rows ? mixture.weights[j] : T(0);
        }
    }
    return warp_sum(sum);
}

template <Mode MODE, class T, class Arguments>
__device__ __forceinline__ RowProblem<T> row_problem(const Arguments& a, int64_t n) {
    const Targets& targets = a.targets;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    Entries<T> entries{targets.indices + n * targets.slots, static_cast<const T*>(targets.weights) + n * targets.slots,
                       static_cast<int>(targets.slots), classes};
    Mixture<T> mixture = mixture_of<MODE, T>(a.dense, n, classes);
    T sum = weight_sum<MODE>(entries, mixture);
    T uniform = targets.uniform ? static_cast<const T*>(targets.uniform)[n] : T(0);
    RowTarget<T> target = make_row_target<T>(sum, uniform, static_cast<T>(a.options.label_smoothing));
    return {n, classes, {transform_terms<T>(a.options), a.options.entropy != 0, mixture}, entries, target};
}

// ---- the loss

// By one warp; `logit(s)` is the untransformed logit of a filled entry.
template <Mode MODE, class T, class Logit>
__device__ __forceinline__ T warp_loss(const RowProblem<T>& problem, const RowSoftmax<T>& softmax,
                                       const DenseState<T>& dense, const RowOptions& options, Logit logit) {
    T loss = 0;
#pragma unroll 1
    for (int s = lane_id(); s < problem.entries.slots; s += 32) {
        if (!problem.entries.filled(s)) continue;
        T z = transform<MODE>(logit(s), problem.row.transform).z;
        loss += entry_loss(problem.target.keep * problem.entries.weights[s], z, softmax);
    }
    loss = warp_sum(loss);
    if (MODE == Mode::dense) loss += problem.target.keep * dense_rows_loss(dense, softmax);
    return loss + dense_loss(problem.target, softmax, static_cast<T>(options.z_loss), static_cast<T>(options.entropy));
}

// ---- the gradient of few entries: kept in shared memory while the row is overwritten

// An entry's weight, its logit and its index, -1 if empty.
template <class T>
struct SharedEntries {
    T* weights;
    T* logits;
    int32_t* indices;
    int slots;
};

template <class T>
__device__ __forceinline__ SharedEntries<T> shared_entries(unsigned char* memory, int slots) {
    T* weights = reinterpret_cast<T*>(memory);
    return {weights, weights + slots, reinterpret_cast<int32_t*>(weights + 2 * slots), slots};
}

// A barrier must follow, and precede what overwrites the logits.
template <class T, class Storage>
__device__ __forceinline__ void load_entries(const SharedEntries<T>& shared, const Entries<T>& entries,
                                             const Storage* logits) {
#pragma unroll 1
    for (int s = threadIdx.x; s < shared.slots; s += blockDim.x) {
        bool filled = entries.filled(s);
        int32_t index = entries.indices[s];
        shared.indices[s] = filled ? index : -1;
        shared.weights[s] = filled ? entries.weights[s] : T(0);
        shared.logits[s] = filled ? to_accumulator(logits[index]) : T(0);
    }
}

template <Mode MODE, class T>
__device__ __forceinline__ T dense_at(const Mixture<T>& mixture, uint32_t index) {
    T q[1] = {0};
    if (MODE == Mode::dense) mixture.load(index, q);
    return q[0];
}

// Equal indices all store the same number: no atomics, and every run gives the same bits.
template <Mode MODE, class Out, class T>
__device__ __forceinline__ void write_entries(Out* out, const RowLayout& layout, const SharedEntries<T>& entries,
                                              const GradientTerms<T>& terms, const RowContext<T>& row,
                                              bool has_softmax) {
#pragma unroll 1
    for (int s = threadIdx.x; s < entries.slots; s += blockDim.x) {
        int32_t index = entries.indices[s];
        if (index < 0 || !layout.owns(index)) continue;
        T weight = dense_at<MODE>(row.mixture, index);
        for (int k = 0; k < entries.slots; ++k) weight += entries.indices[k] == index ? entries.weights[k] : T(0);
        T entry = terms.entry_scale * weight;
        T value =
            has_softmax ? gradient_of<MODE>(entries.logits[s], terms, row.transform, entry) : -terms.shift - entry;
        out[index] = Rounded<Out>::from(value);
    }
}

// ---- the gradient of many entries: tile by tile, each with the entries' weights gathered before it is overwritten

template <class T>
constexpr uint32_t kTileClasses = kEntryBytes / sizeof(T);

// The whole gradient of a row. Needs kEntryBytes of shared memory. No barrier at the end of a tile: a thread empties
// the places that it has read itself.
template <Mode MODE, class Storage, class Out, class T>
__device__ __forceinline__ void write_gradient_by_tiles(const Storage* logits, Out* out, const RowProblem<T>& problem,
                                                        const GradientTerms<T>& terms, bool has_softmax, T* tile) {
    const Entries<T>& entries = problem.entries;
#pragma unroll 1
    for (uint32_t begin = 0; begin < problem.classes; begin += kTileClasses<T>) {
        uint32_t rest = problem.classes - begin;
        uint32_t size = rest < kTileClasses<T> ? rest : kTileClasses<T>;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x)
            tile[i] = dense_at<MODE>(problem.row.mixture, begin + i);
        __syncthreads();
#pragma unroll 1
        for (int s = threadIdx.x; s < entries.slots; s += blockDim.x) {
            int32_t index = entries.indices[s];
            uint32_t place = static_cast<uint32_t>(index) - begin;
            if (place < size) tile[place] = dense_at<MODE>(problem.row.mixture, index) + entries.weight_of(index);
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            T entry = terms.entry_scale * tile[i];
            T value = has_softmax
                          ? gradient_of<MODE>(to_accumulator(logits[begin + i]), terms, problem.row.transform, entry)
                          : -terms.shift - entry;
            out[begin + i] = Rounded<Out>::from(value);
        }
    }
}

// ---- results

template <class T>
__device__ __forceinline__ void put(void* results, int64_t n, T value) {
    if (results) static_cast<T*>(results)[n] = value;
}

template <class T>
__device__ __forceinline__ T get(const void* values, int64_t n) {
    return static_cast<const T*>(values)[n];
}

template <class Storage>
__device__ __forceinline__ const Storage* logits_of(const Logits& logits, int64_t n) {
    return static_cast<const Storage*>(logits.data) + n * logits.stride;
}

template <class Out>
__device__ __forceinline__ Out* out_of(const Output& out, int64_t n) {
    return static_cast<Out*>(out.data) + n * out.stride;
}

template <class T>
__device__ __forceinline__ GradientInputs<T> gradient_inputs(const RowOptions& options, T grad, T mass,
                                                             uint32_t classes) {
    return {grad,
            mass,
            static_cast<T>(options.logit_scale),
            static_cast<T>(options.z_loss),
            static_cast<T>(options.entropy),
            static_cast<T>(classes)};
}

}  // namespace cuda
}  // namespace smoothloss
