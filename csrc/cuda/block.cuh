// Reductions over a thread block. The order is always the same, and every thread gets the same bits.
#pragma once

#include "common/dense_terms.h"
#include "cuda/types.cuh"

namespace smoothloss {
namespace cuda {

using namespace portable;

// What a kernel is compiled for, each mode includes those before it. Plain: no options, uniform mass or dense rows, and
// entries that fit into shared memory. General: all but a softcap, dense rows and a prior.
enum class Mode { plain, general, softcap, dense };

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_id() {
    return static_cast<int>(threadIdx.x % 32);
}

__device__ __forceinline__ int warp_id() {
    return static_cast<int>(threadIdx.x / 32);
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
    return value;
}

__device__ __forceinline__ float larger(float a, float b) {
    return fmaxf(a, b);
}
__device__ __forceinline__ double larger(double a, double b) {
    return fmax(a, b);
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
    for (int offset = 16; offset > 0; offset /= 2) value = larger(value, __shfl_xor_sync(kAllLanes, value, offset));
    return value;
}

// Expresses a state relative to a maximum that is at least as large.
template <Mode MODE, class T>
__device__ __forceinline__ void raise_max(RowState<T>& state, T max) {
    if (MODE != Mode::plain) {
        state = rebase(state, max);
    } else {
        state.softmax = rebase(state.softmax, max);
    }
}

// The states of all lanes, merged. Only what the mode uses is exchanged.
template <Mode MODE, class T>
__device__ __forceinline__ RowState<T> warp_merge(RowState<T> state) {
    raise_max<MODE>(state, warp_max(state.softmax.max));
    state.softmax.sum = warp_sum(state.softmax.sum);
    if (MODE != Mode::plain) {
        state.softmax.dot = warp_sum(state.softmax.dot);
        state.dense.distance = warp_sum(state.dense.distance);
        state.dense.mass = warp_sum(state.dense.mass);
    }
    return state;
}

// One barrier: every warp merges the results of all warps itself. Once a kernel.
template <Mode MODE, class T>
__device__ __forceinline__ RowState<T> block_merge(RowState<T> state) {
    __shared__ RowState<T> of_warps[32];
    state = warp_merge<MODE>(state);
    if (lane_id() == 0) of_warps[warp_id()] = state;
    __syncthreads();
    bool exists = lane_id() < static_cast<int>(blockDim.x / 32);
    return warp_merge<MODE>(exists ? of_warps[lane_id()] : empty_row_state<T>());
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
}

}  // namespace cuda
}  // namespace smoothloss
