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
    const void* indices;
    const T* weights;  // null: 1
    int slots;
    uint32_t classes;
    bool are_int64;
    int32_t ignored;  // -1, or the class number that is ignored

    // -1 if there is no such class.
    __device__ __forceinline__ int32_t index(int s) const {
        int64_t index = are_int64 ? static_cast<const int64_t*>(indices)[s] : static_cast<const int32_t*>(indices)[s];
        bool exists = index >= 0 && index < static_cast<int64_t>(classes) && index != ignored;
        return exists ? static_cast<int32_t>(index) : -1;
    }

    __device__ __forceinline__ bool filled(int s) const { return index(s) >= 0; }

    __device__ __forceinline__ T weight(int s) const { return weights ? weights[s] : T(1); }

    // Of all the entries with this index, in their order.
    __device__ __forceinline__ T weight_of(int32_t wanted) const {
        T sum = 0;
        for (int s = 0; s < slots; ++s) sum += index(s) == wanted ? weight(s) : T(0);
        return sum;
    }
};

template <class T>
__device__ __forceinline__ Entries<T> entries_of(const Targets& targets, int64_t n, uint32_t classes) {
    int64_t first = n * targets.slots;
    const auto* wide = static_cast<const int64_t*>(targets.indices) + first;
    const auto* narrow = static_cast<const int32_t*>(targets.indices) + first;
    const auto* weights = static_cast<const T*>(targets.weights);
    // What is no class need not be ignored.
    bool is_class = targets.are_labels && targets.ignore_index >= 0 && targets.ignore_index < classes;
    int32_t ignored = is_class ? static_cast<int32_t>(targets.ignore_index) : -1;
    return {targets.are_int64 ? static_cast<const void*>(wide) : static_cast<const void*>(narrow),
            weights ? weights + first : nullptr,
            static_cast<int>(targets.slots),
            classes,
            targets.are_int64,
            ignored};
}

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
    for (int s = lane_id(); s < entries.slots; s += 32) sum += entries.filled(s) ? entries.weight(s) : T(0);
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
    Entries<T> entries = entries_of<T>(targets, n, classes);
    Mixture<T> mixture = mixture_of<MODE, T>(a.dense, n, classes);
    T sum = weight_sum<MODE>(entries, mixture);
    T uniform = targets.uniform ? static_cast<const T*>(targets.uniform)[n] : T(0);
    RowTarget<T> target = make_row_target<T>(sum, uniform, static_cast<T>(a.options.label_smoothing));
    const T* prior = MODE == Mode::dense ? static_cast<const T*>(targets.prior) : nullptr;
    RowContext<T> row{transform_terms<T>(a.options),
                      a.options.entropy != 0,
                      mixture,
                      target.keep,
                      prior ? T(0) : target.uniform / static_cast<T>(classes),
                      prior,
                      target.uniform};
    return {n, classes, row, entries, target};
}

// ---- the loss

// A slot of the target, with the untransformed logit of its class if there is one.
template <class T>
struct Entry {
    bool filled;
    T weight;
    T logit;
};

template <class T, class Storage>
__device__ __forceinline__ Entry<T> entry_at(const Entries<T>& entries, const Storage* logits, int s) {
    int32_t index = entries.index(s);
    if (index < 0) return {false, 0, 0};
    return {true, entries.weight(s), to_accumulator(logits[index])};
}

// By one warp; `entry_of(s)` is the slot s.
template <Mode MODE, class T, class EntryOf>
__device__ __forceinline__ T warp_loss(const RowProblem<T>& problem, const RowSoftmax<T>& softmax,
                                       const DenseState<T>& dense, const RowOptions& options, EntryOf entry_of) {
    T loss = 0;
#pragma unroll 1
    for (int s = lane_id(); s < problem.entries.slots; s += 32) {
        Entry<T> entry = entry_of(s);
        if (!entry.filled) continue;
        T z = transform<MODE>(entry.logit, problem.row.transform).z;
        loss += entry_loss(problem.target.keep * entry.weight, z, softmax);
    }
    loss = warp_sum(loss);
    if (MODE != Mode::plain) loss += dense_rows_loss(dense, softmax);
    return loss + options_loss(softmax, static_cast<T>(options.z_loss), static_cast<T>(options.entropy));
}

// ---- the gradient of few entries: kept in shared memory while the row is overwritten

// An entry's weight, its logit and its index, -1 if empty.
template <class T>
struct SharedEntries {
    T* weights;
    T* logits;
    int32_t* indices;
    int slots;

    __device__ __forceinline__ Entry<T> operator[](int s) const { return {indices[s] >= 0, weights[s], logits[s]}; }
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
        Entry<T> entry = entry_at(entries, logits, s);
        shared.indices[s] = entries.index(s);
        shared.weights[s] = entry.weight;
        shared.logits[s] = entry.logit;
    }
}

template <Mode MODE, class T>
__device__ __forceinline__ T dense_at(const Mixture<T>& mixture, uint32_t index) {
    T q[1] = {0};
    if (MODE == Mode::dense) mixture.load(index, q);
    return q[0];
}

// What the prior takes off a class.
template <Mode MODE, class T>
__device__ __forceinline__ T prior_at(const RowContext<T>& row, const GradientTerms<T>& terms, uint32_t index) {
    return MODE == Mode::dense && row.prior ? terms.prior_scale * row.prior[index] : T(0);
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
        T entry = terms.entry_scale * weight + prior_at<MODE>(row, terms, index);
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
            int32_t index = entries.index(s);
            if (index < 0) continue;
            uint32_t place = static_cast<uint32_t>(index) - begin;
            if (place < size) tile[place] = dense_at<MODE>(problem.row.mixture, index) + entries.weight_of(index);
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            T entry = terms.entry_scale * tile[i] + prior_at<MODE>(problem.row, terms, begin + i);
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
    static_cast<T*>(results)[n] = value;
}

// Of a row that is ignored: a sum of 1, whose logarithm is 0.
template <class T>
__device__ __forceinline__ void put_statistics(void* statistics, int64_t n, const SoftmaxState<T>& state, T entropy) {
    put(statistics, n * kStatistics, center_of(state.max));
    put(statistics, n * kStatistics + 1, state.sum);
    put(statistics, n * kStatistics + 2, entropy);
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
                                                             const RowProblem<T>& problem) {
    return {grad,
            mass,
            static_cast<T>(options.logit_scale),
            static_cast<T>(options.z_loss),
            static_cast<T>(options.entropy),
            static_cast<T>(problem.classes),
            problem.row.prior != nullptr};
}

}  // namespace cuda
}  // namespace smoothloss
