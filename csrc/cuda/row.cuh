// A thread block on one row: loads, stores, reductions and the two passes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/arguments.h"
#include "common/row_terms.h"

namespace smoothloss {
namespace cuda {

using namespace portable;

template <class Storage>
struct Accumulator {
    using Type = float;
};
template <>
struct Accumulator<double> {
    using Type = double;
};

__device__ __forceinline__ float to_accumulator(float x) {
    return x;
}
__device__ __forceinline__ double to_accumulator(double x) {
    return x;
}
__device__ __forceinline__ float to_accumulator(__half x) {
    return __half2float(x);
}
__device__ __forceinline__ float to_accumulator(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <class Storage>
struct Rounded;
template <>
struct Rounded<float> {
    static __device__ __forceinline__ float from(float x) { return x; }
};
template <>
struct Rounded<double> {
    static __device__ __forceinline__ double from(double x) { return x; }
};
template <>
struct Rounded<__half> {
    static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <>
struct Rounded<__nv_bfloat16> {
    static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

// Products that are never contracted into a fused multiply-add: the same logit is the same number wherever it is used.
__device__ __forceinline__ float rounded_product(float a, float b) {
    return __fmul_rn(a, b);
}
__device__ __forceinline__ double rounded_product(double a, double b) {
    return __dmul_rn(a, b);
}

template <class T>
struct TransformTerms {
    T scale;
    T softcap;
};

template <class T>
struct Transformed {
    T z;
    T chain;  // dz / d(logit_scale x)
};

// GENERAL = false: no scale, no softcap, no entropy, no uniform mass.
template <bool GENERAL, class T>
__device__ __forceinline__ Transformed<T> transform(T x, const TransformTerms<T>& terms) {
    if (!GENERAL) return {x, T(1)};
    x = rounded_product(x, terms.scale);
    if (terms.softcap == 0) return {x, T(1)};
    T t = tanh(x / terms.softcap);
    return {rounded_product(t, terms.softcap), 1 - t * t};
}

template <class Storage, int COUNT>
struct alignas(sizeof(Storage) * COUNT) Pack {
    Storage values[COUNT];
};

template <int COUNT, class Storage>
__device__ __forceinline__ bool is_aligned(const Storage* p) {
    return reinterpret_cast<uintptr_t>(p) % (sizeof(Storage) * COUNT) == 0;
}

// ---- reductions over the block; every thread gets the result, the order is always the same

template <class T>
__device__ __forceinline__ SoftmaxState<T> warp_merge(SoftmaxState<T> state) {
    for (int offset = 16; offset > 0; offset /= 2) {
        SoftmaxState<T> other{
            __shfl_xor_sync(0xffffffffu, state.max, offset), __shfl_xor_sync(0xffffffffu, state.sum, offset),
            __shfl_xor_sync(0xffffffffu, state.dot, offset), __shfl_xor_sync(0xffffffffu, state.total, offset)};
        state = merge(state, other);
    }
    return state;
}

template <class T>
__device__ __forceinline__ SoftmaxState<T> block_merge(SoftmaxState<T> state) {
    __shared__ SoftmaxState<T> partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    state = warp_merge(state);
    if (lane == 0) partial[warp] = state;
    __syncthreads();
    if (warp == 0) {
        state = warp_merge(lane < warps ? partial[lane] : empty_softmax_state<T>());
        if (lane == 0) partial[0] = state;
    }
    __syncthreads();
    return partial[0];
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

template <class T>
__device__ __forceinline__ T block_sum(T value) {
    __shared__ T partial[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_sum(value);
    __syncthreads();  // of an earlier sum, everyone has read the result
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    if (warp == 0) {
        value = warp_sum(lane < warps ? partial[lane] : T(0));
        if (lane == 0) partial[0] = value;
    }
    __syncthreads();
    return partial[0];
}

// ---- pass 1

// Adds COUNT logits to the state of a thread: one rescaling for all of them, and only where the maximum grows.
template <bool GENERAL, int COUNT, class T>
__device__ __forceinline__ void accumulate(SoftmaxState<T>& state, const T (&z)[COUNT], bool has_entropy) {
    T max = state.max;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) max = z[j] > max ? z[j] : max;
    if (max > state.max) state = rebase(state, max);
    T center = center_of(max);
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        T distance = z[j] - center;
        T e = exp(distance);
        state.sum += e;
        if (GENERAL && has_entropy && e != 0) state.dot += e * distance;
        if (GENERAL) state.total += z[j];
    }
}

template <bool GENERAL, int COUNT, class Storage, class T>
__device__ __forceinline__ void accumulate_pack(SoftmaxState<T>& state, const Storage* p,
                                                const TransformTerms<T>& terms, bool has_entropy) {
    Pack<Storage, COUNT> pack = *reinterpret_cast<const Pack<Storage, COUNT>*>(p);
    T z[COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; ++j) z[j] = transform<GENERAL>(to_accumulator(pack.values[j]), terms).z;
    accumulate<GENERAL>(state, z, has_entropy);
}

template <bool GENERAL, class Storage, class T>
__device__ __forceinline__ SoftmaxState<T> softmax_state(const Storage* row, uint32_t classes,
                                                         const TransformTerms<T>& terms, bool has_entropy) {
    constexpr int count = 16 / sizeof(Storage);
    SoftmaxState<T> state = empty_softmax_state<T>();
    uint32_t begin = 0;
    if (is_aligned<count>(row)) {
        begin = classes / count * count;
        for (uint32_t i = threadIdx.x * count; i < begin; i += blockDim.x * count) {
            accumulate_pack<GENERAL, count>(state, row + i, terms, has_entropy);
        }
    }
    for (uint32_t i = begin + threadIdx.x; i < classes; i += blockDim.x) {
        accumulate_pack<GENERAL, 1>(state, row + i, terms, has_entropy);
    }
    return block_merge(state);
}

// ---- pass 2

template <bool GENERAL, class T>
__device__ __forceinline__ T gradient_of(T x, const GradientTerms<T>& terms, const TransformTerms<T>& options,
                                         T entries) {
    Transformed<T> logit = transform<GENERAL>(x, options);
    T distance = logit.z - terms.center;
    T e = exp(distance);
    if (!GENERAL) return gradient_value<false>(e, distance, terms) - entries;
    return logit.chain * (gradient_value<true>(e, e == 0 ? T(0) : distance, terms) - entries);
}

template <bool GENERAL, int COUNT, class Storage, class Out, class T>
__device__ __forceinline__ void write_pack(const Storage* p, Out* out, const GradientTerms<T>& terms,
                                           const TransformTerms<T>& options) {
    Pack<Storage, COUNT> in = *reinterpret_cast<const Pack<Storage, COUNT>*>(p);
    Pack<Out, COUNT> result;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) {
        result.values[j] = Rounded<Out>::from(gradient_of<GENERAL>(to_accumulator(in.values[j]), terms, options, T(0)));
    }
    *reinterpret_cast<Pack<Out, COUNT>*>(out) = result;
}

// The gradient without the entries. `out` may be `row`: each thread writes what it has just read.
template <bool GENERAL, class Storage, class Out, class T>
__device__ __forceinline__ void write_gradient(const Storage* row, Out* out, uint32_t classes,
                                               const GradientTerms<T>& terms, const TransformTerms<T>& options) {
    constexpr int count = 16 / (sizeof(Storage) > sizeof(Out) ? sizeof(Storage) : sizeof(Out));
    uint32_t begin = 0;
    if (is_aligned<count>(row) && is_aligned<count>(out)) {
        begin = classes / count * count;
        for (uint32_t i = threadIdx.x * count; i < begin; i += blockDim.x * count) {
            write_pack<GENERAL, count>(row + i, out + i, terms, options);
        }
    }
    for (uint32_t i = begin + threadIdx.x; i < classes; i += blockDim.x) {
        write_pack<GENERAL, 1>(row + i, out + i, terms, options);
    }
}

template <class Out, class T>
__device__ __forceinline__ void fill(Out* out, uint32_t classes, T value) {
    Out rounded = Rounded<Out>::from(value);
    for (uint32_t i = threadIdx.x; i < classes; i += blockDim.x) out[i] = rounded;
}

// ---- the entries of a row

// In dynamic shared memory: an entry's weight, its logit (read before it may be overwritten) and its index, -1 if
// empty.
template <class T>
struct SharedEntries {
    T* weights;
    T* logits;
    int32_t* indices;
    int slots;
};

template <class T>
__device__ __forceinline__ SharedEntries<T> shared_entries(int slots) {
    extern __shared__ __align__(16) unsigned char memory[];
    T* weights = reinterpret_cast<T*>(memory);
    return {weights, weights + slots, reinterpret_cast<int32_t*>(weights + 2 * slots), slots};
}

// Returns the sum of the weights, to every thread; all entries are in shared memory then.
template <class T, class Storage>
__device__ __forceinline__ T load_entries(const SharedEntries<T>& entries, const Targets& targets, const Storage* row,
                                          int64_t n, uint32_t classes) {
    const int32_t* indices = targets.indices + n * targets.slots;
    const T* weights = static_cast<const T*>(targets.weights) + n * targets.slots;
    T sum = 0;
    for (int s = threadIdx.x; s < entries.slots; s += blockDim.x) {
        int32_t index = indices[s];
        bool filled = static_cast<uint32_t>(index) < classes;  // a negative index is a very large one here
        entries.indices[s] = filled ? index : -1;
        entries.weights[s] = filled ? weights[s] : T(0);
        entries.logits[s] = filled ? to_accumulator(row[index]) : T(0);
        sum += entries.weights[s];
    }
    return block_sum(sum);
}

// Equal indices all store the same number: no atomics, and every run gives the same bits.
template <bool GENERAL, class Out, class T>
__device__ __forceinline__ void write_entries(Out* out, const SharedEntries<T>& entries, const GradientTerms<T>& terms,
                                              const TransformTerms<T>& options, bool has_softmax) {
    for (int s = threadIdx.x; s < entries.slots; s += blockDim.x) {
        int32_t index = entries.indices[s];
        if (index < 0) continue;
        T weight = 0;
        for (int k = 0; k < entries.slots; ++k) weight += entries.indices[k] == index ? entries.weights[k] : T(0);
        T entry = terms.entry_scale * weight;
        T value = has_softmax ? gradient_of<GENERAL>(entries.logits[s], terms, options, entry) : -terms.shift - entry;
        out[index] = Rounded<Out>::from(value);
    }
}

}  // namespace cuda
}  // namespace smoothloss
