// One thread block per row, which it reads once. The threads run in T, the scalars of a row in double.
#include "common/statistics_terms.h"
#include "cuda/launch.cuh"
#include "cuda/token_statistics.h"

namespace smoothloss {
namespace cuda {
namespace {

// ---- which classes the slots name: a bit each, in shared memory, for as many classes at a time as it holds

constexpr uint32_t kWindow = 8 * static_cast<uint32_t>(kEntryBytes);

// The place of a class is such that the bits of a pack are those of a place that is a multiple of its length.
struct Marks {
    uint32_t* words;
    uint32_t first;  // the place of the first bit
    uint32_t shift;  // place = class + shift

    __device__ __forceinline__ uint32_t bit_of(uint32_t index) const { return index + shift - first; }

    __device__ __forceinline__ bool has(uint32_t index) const {
        uint32_t bit = bit_of(index);
        return (words[bit / 32] >> (bit % 32)) & 1;
    }

    template <int COUNT>
    __device__ __forceinline__ uint32_t of_pack(uint32_t index) const {
        uint32_t bit = bit_of(index);
        return (words[bit / 32] >> (bit % 32)) & ((1u << COUNT) - 1);
    }
};

// By all threads, with barriers.
template <class T>
__device__ __forceinline__ void mark_classes(const Marks& marks, const Entries<T>& slots, uint32_t size) {
    __syncthreads();  // nobody reads the marks of another window any more
#pragma unroll 1
    for (uint32_t word = threadIdx.x; word < (size + 31) / 32; word += blockDim.x) marks.words[word] = 0;
    __syncthreads();
#pragma unroll 1
    for (int s = threadIdx.x; s < slots.slots; s += blockDim.x) {
        int32_t index = slots.index(s);
        uint32_t bit = marks.bit_of(static_cast<uint32_t>(index));
        if (index >= 0 && bit < size) atomicOr(marks.words + bit / 32, 1u << (bit % 32));
    }
    __syncthreads();
}

// ---- the pass over the row

constexpr uint32_t kNone = 0xffffffffu;

// What a thread, a warp or a block knows of its classes.
template <class T>
struct Sums {
    SoftmaxState<T> rest;
    SoftmaxState<T> listed;
    T largest;       // of the logits as they came in
    uint32_t place;  // of the first of the largest
};

template <class T>
__device__ __forceinline__ Sums<T> empty_sums() {
    return {empty_softmax_state<T>(), empty_softmax_state<T>(), -static_cast<T>(INFINITY), kNone};
}

// A logit that is not above the state's maximum.
template <class T>
__device__ __forceinline__ void add(SoftmaxState<T>& state, T z) {
    T distance = z - center_of(state.max);
    T e = exponential(distance);
    state.sum += e;
    state.dot += e != 0 ? e * distance : T(0);
}

template <class T>
__device__ __forceinline__ void add_any(SoftmaxState<T>& state, T z) {
    if (z > state.max) state = rebase(state, z);
    add(state, z);
}

template <Mode MODE, class T>
__device__ __forceinline__ void add_edge(Sums<T>& sums, T x, uint32_t index, bool is_listed,
                                         const TransformTerms<T>& terms) {
    if (x > sums.largest || (x == sums.largest && index < sums.place)) {
        sums.largest = x;
        sums.place = index;
    }
    T z = transform<MODE>(x, terms).z;
    if (is_listed) {
        add_any(sums.listed, z);
    } else {
        add_any(sums.rest, z);
    }
}

// Adds the logits of PACKS packs, `pack` and those that follow by blockDim.x, that are below the layout's end.
template <Mode MODE, int PACKS, int COUNT, class Storage, class T>
__device__ __forceinline__ void add_packs(Sums<T>& sums, const Pack<Storage, COUNT>* raw, uint32_t pack,
                                          const RowLayout& layout, const TransformTerms<T>& terms, bool has_slots,
                                          const Marks& marks) {
    T z[PACKS][COUNT];
    T top = -static_cast<T>(INFINITY);
    uint32_t listed = 0;
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        uint32_t at = pack + i * blockDim.x;
        if (at >= layout.end_pack) continue;
        if (has_slots) listed |= marks.of_pack<COUNT>(layout.class_of_pack(at)) << (i * COUNT);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            T x = to_accumulator(raw[i].values[j]);
            top = larger(top, x);
            z[i][j] = transform<MODE>(x, terms).z;
        }
    }
    // The edges of the row came first, those behind these packs too.
    if (top > sums.largest || (top == sums.largest && layout.class_of_pack(pack) < sums.place)) {
        uint32_t place = kNone;
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            uint32_t at = pack + i * blockDim.x;
            if (at >= layout.end_pack) continue;
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                bool is_first = place == kNone && to_accumulator(raw[i].values[j]) == top;
                if (is_first) place = layout.class_of_pack(at) + j;
            }
        }
        if (top > sums.largest || place < sums.place) sums.place = place;
        sums.largest = top;
    }
    // The transform is increasing: the largest logit is the largest z.
    T max = transform<MODE>(top, terms).z;
    if (listed != 0) {
        max = -static_cast<T>(INFINITY);
#pragma unroll
        for (int i = 0; i < PACKS; ++i) {
            if (pack + i * blockDim.x >= layout.end_pack) continue;
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                if ((listed >> (i * COUNT + j)) & 1) {
                    add_any(sums.listed, z[i][j]);
                    z[i][j] = -static_cast<T>(INFINITY);
                }
                max = larger(max, z[i][j]);
            }
        }
    }
    if (max > sums.rest.max) sums.rest = rebase(sums.rest, max);
    // Their own sums first: every addition to the large ones rounds.
    SoftmaxState<T> own{sums.rest.max, 0, 0};
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (pack + i * blockDim.x >= layout.end_pack) continue;
#pragma unroll
        for (int j = 0; j < COUNT; ++j) add(own, z[i][j]);
    }
    sums.rest.sum += own.sum;
    sums.rest.dot += own.dot;
}

template <Mode MODE, int COUNT, class Storage, class T>
__device__ __forceinline__ void add_window(Sums<T>& sums, const Storage* logits, const RowLayout& layout,
                                           const TransformTerms<T>& terms, bool has_slots, const Marks& marks,
                                           uint32_t size) {
    constexpr int flight = packs_in_flight<MODE, COUNT>, group = packs_at_once<MODE, COUNT>;
    const auto* packs = reinterpret_cast<const Pack<Storage, COUNT>*>(logits + layout.head);
#pragma unroll 1
    for (uint32_t edge = threadIdx.x; edge < layout.edges; edge += blockDim.x) {
        uint32_t index = layout.class_of_edge(edge);
        if (marks.bit_of(index) >= size) continue;  // of another window
        add_edge<MODE>(sums, to_accumulator(logits[index]), index, has_slots && marks.has(index), terms);
    }
#pragma unroll 1
    for (uint32_t k = layout.first_pack + threadIdx.x; k < layout.end_pack; k += flight * blockDim.x) {
        Pack<Storage, COUNT> raw[flight];
        load_packs(raw, packs, k, layout.end_pack);
#pragma unroll
        for (int i = 0; i < flight; i += group) {
            add_packs<MODE, group>(sums, raw + i, k + i * blockDim.x, layout, terms, has_slots, marks);
        }
    }
}

// Of this thread's classes.
template <Mode MODE, int COUNT, class Storage, class T>
__device__ __forceinline__ Sums<T> thread_sums(const Storage* logits, RowLayout layout, const TransformTerms<T>& terms,
                                               const Entries<T>& slots) {
    Sums<T> sums = empty_sums<T>();
    uint32_t shift = COUNT - layout.head, places = layout.classes + shift, all_packs = layout.packs;
    bool has_slots = slots.slots > 0;
#pragma unroll 1
    for (uint32_t first = 0; first < places; first += kWindow) {
        uint32_t size = places - first < kWindow ? places - first : kWindow;
        Marks marks{shared_memory<uint32_t>(), first, shift};
        if (has_slots) mark_classes(marks, slots, size);
        // Pack k begins at the place (k + 1) COUNT.
        layout.first_pack = first == 0 ? 0 : first / COUNT - 1;
        layout.end_pack = (first + size) / COUNT - 1;
        if (layout.end_pack > all_packs) layout.end_pack = all_packs;
        add_window<MODE, COUNT>(sums, logits, layout, terms, has_slots, marks, size);
    }
    return sums;
}

// ---- merging

template <class T>
__device__ __forceinline__ SoftmaxState<T> warp_merge(SoftmaxState<T> state) {
    state = rebase(state, warp_max(state.max));
    return {state.max, warp_sum(state.sum), warp_sum(state.dot)};
}

template <class T>
__device__ __forceinline__ Sums<T> warp_merge(Sums<T> sums) {
    sums.rest = warp_merge(sums.rest);
    sums.listed = warp_merge(sums.listed);
    T largest = warp_max(sums.largest);
    uint32_t place = sums.largest == largest ? sums.place : kNone;
    for (int offset = 16; offset > 0; offset /= 2) {
        uint32_t other = __shfl_xor_sync(kAllLanes, place, offset);
        if (other < place) place = other;
    }
    return {sums.rest, sums.listed, largest, place};
}

// Once a kernel.
template <class T>
__device__ __forceinline__ Sums<T> block_merge(Sums<T> sums) {
    __shared__ Sums<T> of_warps[32];
    sums = warp_merge(sums);
    if (lane_id() == 0) of_warps[warp_id()] = sums;
    __syncthreads();
    bool exists = lane_id() < static_cast<int>(blockDim.x / 32);
    return warp_merge(exists ? of_warps[lane_id()] : empty_sums<T>());
}

// The first NaN of a row, or kNone: by all threads, for rows whose sums say that there may be one.
template <class Storage>
__device__ __forceinline__ uint32_t first_nan(const Storage* logits, uint32_t classes) {
    __shared__ uint32_t of_block;
    if (threadIdx.x == 0) of_block = kNone;
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < classes; i += blockDim.x) {
        auto x = to_accumulator(logits[i]);
        if (x != x) {
            atomicMin(&of_block, i);
            break;
        }
    }
    __syncthreads();
    return of_block;
}

// ---- results

template <class T>
__device__ __forceinline__ SoftmaxState<double> widened(const SoftmaxState<T>& state) {
    return {state.max, state.sum, state.dot};
}

// By one thread. Returns the softmax of the row.
template <class T>
__device__ __forceinline__ RowSoftmax<double> put_results(const TokenStatisticsArguments& a, int64_t n,
                                                          const Sums<T>& sums, uint32_t place) {
    SoftmaxState<double> rest = widened(sums.rest), listed = widened(sums.listed);
    RowSoftmax<double> softmax = finish(merge(rest, listed));
    put(a.log_rest, n, T(log_rest(rest, listed, softmax)));
    put(a.entropy, n, T(softmax.entropy));
    put(a.logsumexp, n, T(softmax.lse()));
    a.argmax[n] = place == kNone ? 0 : place;
    int64_t saved = n * kSavedStatistics;
    put(a.saved, saved, sums.listed.max);
    put(a.saved, saved + 1, sums.listed.sum);
    put(a.saved, saved + 2, T(softmax.entropy));
    put(a.saved, saved + 3, sums.rest.max);
    put(a.saved, saved + 4, sums.rest.sum);
    return softmax;
}

template <Mode MODE, class Storage>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>) statistics_kernel(TokenStatisticsArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Storage>;
    __shared__ RowSoftmax<double> softmax;
    int64_t n = blockIdx.x;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    const Storage* logits = logits_of<Storage>(a.logits, n);
    Entries<T> slots = entries_of<T>(a.targets, n, classes);
    TransformTerms<T> terms = transform_terms<T>(a.options);
    RowLayout layout = layout_of<count>(logits, classes);
    Sums<T> sums = block_merge(thread_sums<MODE, count>(logits, layout, terms, slots));
    T sum = sums.rest.sum + sums.listed.sum;
    uint32_t place = sums.place;
    if (sum != sum) {  // in all threads or in none
        uint32_t nan = first_nan(logits, classes);
        if (nan != kNone) place = nan;
    }
    if (threadIdx.x == 0) softmax = put_results(a, n, sums, place);
    __syncthreads();
#pragma unroll 1
    for (int s = threadIdx.x; s < slots.slots; s += blockDim.x) {
        int32_t index = slots.index(s);
        double log_prob = 0;
        if (index >= 0) {
            double z = transform<MODE>(to_accumulator(logits[index]), terms).z;
            log_prob = (z - softmax.center) - softmax.log_sum;
        }
        put(a.log_prob, n * a.targets.slots + s, T(log_prob));
    }
}

// Of the marks of a window.
size_t mark_bytes(const TokenStatisticsArguments& a) {
    if (a.targets.slots == 0) return 0;
    int64_t places = a.logits.classes + 16;  // more than a pack
    int64_t window = kWindow;
    return static_cast<size_t>(((places < window ? places : window) + 31) / 32 * 4);
}

}  // namespace

int token_statistics_forward(const TokenStatisticsArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    Geometry geometry{a.logits.rows, threads_of_block(a.logits), mark_bytes(a), 0};
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        error = a.options.softcap != 0 ? launch(statistics_kernel<Mode::softcap, Storage>, a, geometry, stream)
                                       : launch(statistics_kernel<Mode::general, Storage>, a, geometry, stream);
    });
    return error;
}

}  // namespace cuda
}  // namespace smoothloss
