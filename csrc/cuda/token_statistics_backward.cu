// One thread block per row: the gradient of the rest in one pass, and then, over it, that of the classes that slots
// name. The scalars of a row, and these classes, are computed in double.
#include "common/statistics_terms.h"
#include "cuda/launch.cuh"
#include "cuda/token_statistics.h"

namespace smoothloss {
namespace cuda {
namespace {

// What a row's gradient is made of.
template <class T>
struct RowPlan {
    bool is_used;
    RowGradients<double> grads;
    RowSoftmax<double> softmax;
    double sum;
    GradientTerms<T> rest;
};

template <class T>
__device__ __forceinline__ double get_if_given(const void* values, int64_t n) {
    return values ? static_cast<double>(get<T>(values, n)) : 0;
}

template <class T>
__device__ __forceinline__ GradientTerms<T> rounded(const GradientTerms<double>& terms) {
    return {T(terms.center), T(terms.p_scale),     T(terms.gamma),      T(terms.offset),
            T(terms.shift),  T(terms.entry_scale), T(terms.prior_scale)};
}

// The slots of a row, whose weights are what comes back for them: null where nothing does.
template <class T>
__device__ __forceinline__ Entries<T> slots_of(const TokenStatisticsBackwardArguments& a, int64_t n, uint32_t classes) {
    Entries<T> slots = entries_of<T>(a.targets, n, classes);
    if (a.grad_log_prob) slots.weights = static_cast<const T*>(a.grad_log_prob) + n * a.targets.slots;
    return slots;
}

// By one warp.
template <class T>
__device__ __forceinline__ RowPlan<T> row_plan(const TokenStatisticsBackwardArguments& a, int64_t n,
                                               const Entries<T>& slots) {
    double listed = 0, used = 0;
    int count = slots.weights ? slots.slots : 0;
#pragma unroll 1
    for (int s = lane_id(); s < count; s += 32) {
        if (!slots.filled(s)) continue;
        listed += static_cast<double>(slots.weight(s));
        used += slots.weight(s) != 0;
    }
    RowGradients<double> grads{warp_sum(listed), get_if_given<T>(a.grad_log_rest, n),
                               get_if_given<T>(a.grad_entropy, n), get_if_given<T>(a.grad_logsumexp, n)};
    bool is_used = warp_sum(used) != 0 || grads.rest != 0 || grads.entropy != 0 || grads.logsumexp != 0;
    int64_t saved = n * kSavedStatistics;
    SoftmaxState<double> named{get<T>(a.saved, saved), get<T>(a.saved, saved + 1), 0};
    SoftmaxState<double> rest{get<T>(a.saved, saved + 3), get<T>(a.saved, saved + 4), 0};
    if (rest.sum == 0) grads.rest = 0;  // log 0, a constant
    SoftmaxState<double> all = merge(rest, named);
    RowSoftmax<double> softmax{center_of(all.max), log(all.sum), get<T>(a.saved, saved + 2)};
    return {is_used, grads, softmax, all.sum,
            rounded<T>(rest_terms(grads, rest, softmax, all.sum, a.options.logit_scale))};
}

// Of a class that slots name, which get `own` together.
template <Mode MODE, class T>
__device__ __forceinline__ T gradient_of_listed(const RowPlan<T>& plan, double own, T x, const TransformTerms<T>& terms,
                                                double logit_scale) {
    Transformed<T> logit = transform<MODE>(x, terms);
    double value = listed_gradient(plan.grads, own, static_cast<double>(logit.z), plan.softmax, plan.sum);
    return T(value * logit_scale * static_cast<double>(logit.chain));
}

// Few slots: their logits are kept in shared memory while the row is overwritten. Equal indices all store the same
// number: no atomics, and every run gives the same bits.
template <Mode MODE, class Out, class T>
__device__ __forceinline__ void write_listed(Out* out, const SharedEntries<T>& slots, bool has_own,
                                             const RowPlan<T>& plan, const TransformTerms<T>& terms,
                                             double logit_scale) {
    int count = has_own ? slots.slots : 0;
#pragma unroll 1
    for (int s = threadIdx.x; s < slots.slots; s += blockDim.x) {
        int32_t index = slots.indices[s];
        if (index < 0) continue;
        double own = 0;
        for (int k = 0; k < count; ++k) {
            if (slots.indices[k] == index) own += static_cast<double>(slots.weights[k]);
        }
        T value = gradient_of_listed<MODE>(plan, own, slots.logits[s], terms, logit_scale);
        out[index] = Rounded<Out>::from(value);
    }
}

// Many slots: tile by tile of the classes, each with what comes back gathered before it is overwritten. No barrier at
// the end of a tile: a thread empties the places that it has read itself.
template <class T>
constexpr uint32_t kListedTile = static_cast<uint32_t>(kEntryBytes / (sizeof(T) + 1)) / 16 * 16;

template <Mode MODE, class Storage, class Out, class T>
__device__ __forceinline__ void write_by_tiles(const Storage* logits, Out* out, uint32_t classes,
                                               const Entries<T>& slots, const RowPlan<T>& plan,
                                               const TransformTerms<T>& terms, double logit_scale,
                                               unsigned char* memory) {
    T* own = reinterpret_cast<T*>(memory);
    unsigned char* is_listed = memory + kListedTile<T> * sizeof(T);
#pragma unroll 1
    for (uint32_t begin = 0; begin < classes; begin += kListedTile<T>) {
        uint32_t size = classes - begin < kListedTile<T> ? classes - begin : kListedTile<T>;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) is_listed[i] = 0;
        __syncthreads();
#pragma unroll 1
        for (int s = threadIdx.x; s < slots.slots; s += blockDim.x) {
            int32_t index = slots.index(s);
            uint32_t place = static_cast<uint32_t>(index) - begin;
            if (index < 0 || place >= size) continue;
            is_listed[place] = 1;
            own[place] = slots.weights ? slots.weight_of(index) : T(0);
        }
        __syncthreads();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            T x = to_accumulator(logits[begin + i]);
            T value = is_listed[i] ? gradient_of_listed<MODE>(plan, own[i], x, terms, logit_scale)
                                   : gradient_of<MODE>(x, plan.rest, terms, T(0));
            out[begin + i] = Rounded<Out>::from(value);
        }
    }
}

template <Mode MODE, class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>)
    statistics_backward_kernel(TokenStatisticsBackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Out>;
    __shared__ RowPlan<T> plan;
    int64_t n = blockIdx.x;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    const Storage* logits = logits_of<Storage>(a.logits, n);
    Out* out = out_of<Out>(a.out, n);
    Entries<T> slots = slots_of<T>(a, n, classes);
    RowLayout layout = layout_of<count>(logits, out, classes);
    RowContext<T> row{
        transform_terms<T>(a.options), true, {nullptr, nullptr, nullptr, 0, 0, classes}, 1, 0, nullptr, 0};
    if (warp_id() == 0) {
        RowPlan<T> own = row_plan<T>(a, n, slots);
        if (lane_id() == 0) plan = own;
    }
    bool is_small = slots.slots <= max_shared_entries<T>;
    SharedEntries<T> entries = shared_entries<T>(shared_memory<unsigned char>(), is_small ? slots.slots : 0);
    load_entries(entries, slots, logits);
    __syncthreads();
    if (!plan.is_used) return fill<count>(out, layout, T(0));
    if (!is_small) {
        return write_by_tiles<MODE>(logits, out, classes, slots, plan, row.transform, a.options.logit_scale,
                                    shared_memory<unsigned char>());
    }
    write_gradient<MODE, false, count>(logits, out, layout, plan.rest, row, nullptr);
    __syncthreads();
    write_listed<MODE>(out, entries, slots.weights != nullptr, plan, row.transform, a.options.logit_scale);
}

}  // namespace

int token_statistics_backward(const TokenStatisticsBackwardArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    Geometry geometry{a.logits.rows, threads_of_block(a.logits), entry_bytes(a.logits.type, a.targets.slots), 0};
    bool known = with_types(a.logits.type, a.out.type, [&](auto in, auto out) {
        using Storage = typename decltype(in)::Storage;
        using Out = typename decltype(out)::Storage;
        error = a.options.softcap != 0
                    ? launch(statistics_backward_kernel<Mode::softcap, Storage, Out>, a, geometry, stream)
                    : launch(statistics_backward_kernel<Mode::general, Storage, Out>, a, geometry, stream);
    });
    return known ? error : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace smoothloss
