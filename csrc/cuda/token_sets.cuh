// Sets of tokens that draws choose from: those of a batch, or of the references of each sentence.
#pragma once

#include <algorithm>

#include "common/edits.h"
#include "cuda/launch.cuh"

namespace smoothloss {
namespace cuda {

constexpr int32_t kEmpty = INT32_MAX;

// The sets of a batch, one of all its tokens or one of the references of each sentence.
struct SetArguments {
    DrawArguments draw;
    int64_t sets, elements, capacity;  // capacity: a power of two
    int64_t* tokens;                   // (sets, elements): the tokens of each set, in the order of first appearance
    int64_t* sizes;                    // (sets)
    int32_t* slots;                    // (sets, capacity): open hash tables of elements: the first of each token
    int32_t* ranks;                    // (sets, elements): of the elements that are the first of their token
    int32_t* target_ranks;             // (batch, width): of the target's tokens in their sentence's set, -1: none
};

inline SetArguments set_arguments(const DrawArguments& a, int64_t* scratch) {
    bool of_batch = a.pool == PoolKind::batch;
    int64_t sets = of_batch ? 1 : a.batch, elements = of_batch ? a.batch * a.width : a.references_width;
    int64_t capacity = 1;
    while (capacity <= 2 * elements) capacity *= 2;
    int64_t* sizes = scratch + sets * elements;
    int32_t* slots = reinterpret_cast<int32_t*>(sizes + sets);
    int32_t* ranks = slots + sets * capacity;
    return {a, sets, elements, capacity, scratch, sizes, slots, ranks, ranks + sets * elements};
}

inline bool has_sets(const DrawArguments& a) {
    return a.pool == PoolKind::batch || a.pool == PoolKind::references;
}

// One set, where it is: an open hash table of elements, and the tokens in the order of first appearance.
struct SetMemory {
    int64_t capacity;  // a power of two
    int64_t* tokens;   // (elements)
    int32_t* slots;    // (capacity): the first element of each token
    int32_t* ranks;    // (elements): of the elements that are the first of their token
};

// One block builds a set. The order in which its threads arrive changes where tokens stand in the table, never which
// element is the first of its token.
struct SetOfBlock {
    const DrawArguments& draw;
    int64_t set, elements;
    SetMemory memory;

    __device__ __forceinline__ int64_t token(int64_t element) const {
        return draw.pool == PoolKind::batch ? read_token(draw.target, element)
                                            : read_token(draw.references, set * elements + element);
    }

    __device__ __forceinline__ bool counts(int64_t element) const {
        if (is_excluded(draw, token(element))) return false;
        return draw.pool != PoolKind::batch || element % draw.width < length_of(draw, element / draw.width);
    }

    __device__ __forceinline__ int64_t first_slot(int64_t own) const {
        return static_cast<int64_t>((static_cast<uint64_t>(own) * 0x9E3779B97F4A7C15u >> 32) &
                                    static_cast<uint64_t>(memory.capacity - 1));
    }

    __device__ __forceinline__ void insert(int32_t element) const {
        int64_t own = token(element), at = first_slot(own);
        while (true) {
            int32_t before = atomicCAS(memory.slots + at, kEmpty, element);
            if (before == kEmpty) return;
            if (token(before) == own) {
                atomicMin(memory.slots + at, element);
                return;
            }
            at = (at + 1) & (memory.capacity - 1);
        }
    }

    // The first element of this token, or kEmpty.
    __device__ __forceinline__ int32_t find(int64_t own) const {
        int64_t at = first_slot(own);
        const int32_t* slots = memory.slots;
        while (slots[at] != kEmpty && token(slots[at]) != own) at = (at + 1) & (memory.capacity - 1);
        return slots[at];
    }

    // Where a token stands in the set, or -1.
    __device__ __forceinline__ int32_t rank_of(int64_t own) const {
        int32_t first = find(own);
        return first == kEmpty ? -1 : memory.ranks[first];
    }
};

// How many threads of the block before this one say yes, and how many in all.
struct Count {
    int32_t before, total;
};

__device__ __forceinline__ Count count_of_block(bool yes, int32_t* of_warps) {
    unsigned votes = __ballot_sync(kAllLanes, yes);
    if (lane_id() == 0) of_warps[warp_id()] = __popc(votes);
    __syncthreads();
    Count count{__popc(votes & ((1u << lane_id()) - 1)), 0};
    for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) {
        if (w < warp_id()) count.before += of_warps[w];
        count.total += of_warps[w];
    }
    __syncthreads();  // before anybody writes to of_warps again
    return count;
}

// Returns the number of its tokens. All threads of the block come, and may use it at once.
__device__ __forceinline__ int32_t build_set(const SetOfBlock& set) {
    __shared__ int32_t of_warps[32];
    int64_t own = threadIdx.x, step = blockDim.x;
    for (int64_t i = own; i < set.memory.capacity; i += step) set.memory.slots[i] = kEmpty;
    __syncthreads();
    for (int64_t i = own; i < set.elements; i += step) {
        if (set.counts(i)) set.insert(static_cast<int32_t>(i));
    }
    __syncthreads();
    int32_t size = 0;
    for (int64_t begin = 0; begin < set.elements; begin += step) {
        int64_t i = begin + own;
        bool is_first = i < set.elements && set.counts(i) && set.find(set.token(i)) == i;
        Count count = count_of_block(is_first, of_warps);
        if (is_first) {
            set.memory.ranks[i] = size + count.before;
            set.memory.tokens[size + count.before] = set.token(i);
        }
        size += count.total;
    }
    __syncthreads();
    return size;
}

static __global__ void __launch_bounds__(1024) token_sets_kernel(SetArguments a) {
    int64_t number = static_cast<int64_t>(blockIdx.x), own = threadIdx.x, step = blockDim.x;
    SetMemory memory{a.capacity, a.tokens + number * a.elements, a.slots + number * a.capacity,
                     a.ranks + number * a.elements};
    SetOfBlock set{a.draw, number, a.elements, memory};
    int32_t size = build_set(set);
    if (own == 0) a.sizes[number] = size;
    const DrawArguments& d = a.draw;
    int64_t begin = d.pool == PoolKind::batch ? 0 : number * d.width;
    int64_t end = d.pool == PoolKind::batch ? d.batch * d.width : begin + d.width;
    for (int64_t i = begin + own; i < end; i += step) a.target_ranks[i] = set.rank_of(read_token(d.target, i));
}

inline unsigned threads_for(int64_t elements, unsigned most) {
    return elements <= 256 ? 256u : most;
}

inline int build_sets(const SetArguments& a, void* stream) {
    const DrawArguments& d = a.draw;
    if (!has_sets(d) || d.samples * d.batch == 0) return cudaSuccess;
    int64_t most = d.pool == PoolKind::batch ? a.elements : std::max(a.elements, d.width);
    return launch(token_sets_kernel, a, {a.sets, threads_for(most, 1024), 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
