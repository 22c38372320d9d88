// What the kernels' source needs to be compiled for, and run on, the host: the threads of a block are fibers of one
// host thread, so that every barrier and every shuffle is a switch, and the blocks of a cluster are host threads.
//
// Shared memory is thread_local: one for each block. Not emulated: the memory model beyond barriers, and speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ thread_local
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

namespace emulation {

struct Index {
    unsigned x, y, z;
};

constexpr unsigned kWarp = 32;

void synchronize_block();
void arrive_at_cluster();
void wait_for_cluster();
unsigned cluster_rank();
unsigned cluster_blocks();
void* in_block_of_cluster(void* shared, unsigned rank);

// Hands `value` to the lanes of this thread's warp and returns what lane `source` handed out. All 32 must come.
void exchange(void* value, size_t size, unsigned source);
// Bit l: what lane l of this thread's warp says. All 32 must come.
unsigned ballot(bool predicate);
unsigned lane();

}  // namespace emulation

inline thread_local emulation::Index threadIdx, blockIdx, blockDim;

inline void __syncthreads() {
    emulation::synchronize_block();
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
    emulation::exchange(&value, sizeof(T), static_cast<unsigned>(source));
    return value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int offset) {
    emulation::exchange(&value, sizeof(T), emulation::lane() ^ static_cast<unsigned>(offset));
    return value;
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
    return emulation::ballot(predicate);
}

// The threads of a block are fibers of one host thread: between two barriers nobody interrupts.
template <class T>
T atomicCAS(T* address, T expected, T value) {
    T before = *address;
    if (before == expected) *address = value;
    return before;
}
template <class T>
T atomicMin(T* address, T value) {
    T before = *address;
    if (value < before) *address = value;
    return before;
}
template <class T>
T atomicOr(T* address, T value) {
    T before = *address;
    *address |= value;
    return before;
}
inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}

inline void __cluster_barrier_arrive() {
    emulation::arrive_at_cluster();
}
inline void __cluster_barrier_wait() {
    emulation::wait_for_cluster();
}
inline unsigned __clusterRelativeBlockRank() {
    return emulation::cluster_rank();
}
inline unsigned __clusterSizeInBlocks() {
    return emulation::cluster_blocks();
}
inline void* __cluster_map_shared_rank(void* shared, unsigned rank) {
    return emulation::in_block_of_cluster(shared, rank);
}

inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
