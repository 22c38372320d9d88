// One thread block per row: the normaliser in one pass, the divergences in a second that finds the row in the cache;
// the gradient in one. The threads run in T, the scalars of a row and the classes that slots name in double.
#include "cuda/jensen_shannon.h"

#include "common/divergence_terms.h"
#include "cuda/launch.cuh"

namespace smoothloss {
namespace cuda {
namespace {

// A tile of the classes: which of them slots name, and the teacher's log-probability of those. It serves any number of
// slots, and no logit is read after another thread may have overwritten it.
template <class T>
constexpr uint32_t kTile = static_cast<uint32_t>(kEntryBytes / (sizeof(T) + 1)) / 16 * 16;

template <class T>
struct Tile {
    T* log_a;
    unsigned char* is_listed;
    uint32_t begin;
    uint32_t size;
};

// By all threads, with barriers: no thread reads another tile any more, and all see this one.
template <class T>
__device__ __forceinline__ Tile<T> load_tile(uint32_t begin, uint32_t classes, const Entries<T>& slots) {
    unsigned char* memory = shared_memory<unsigned char>();
    uint32_t size = classes - begin < kTile<T> ? classes - begin : kTile<T>;
    Tile<T> tile{reinterpret_cast<T*>(memory), memory + kTile<T> * sizeof(T), begin, size};
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) tile.is_listed[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int s = threadIdx.x; s < slots.slots; s += blockDim.x) {
        int32_t index = slots.index(s);
        uint32_t place = static_cast<uint32_t>(index) - begin;
        if (index < 0 || place >= size) continue;
        tile.is_listed[place] = 1;
        tile.log_a[place] = slots.weight(s);
    }
    __syncthreads();
    return tile;
}

// The same in all threads.
template <class T>
__device__ __forceinline__ bool has_teacher(const Entries<T>& slots) {
    float filled = 0;
#pragma unroll 1
    for (int s = lane_id(); s < slots.slots; s += 32) filled += slots.filled(s) ? 1.0f : 0.0f;
    return warp_sum(filled) != 0;
}

template <Mode MODE, class Storage, class T>
__device__ __forceinline__ SoftmaxState<T> softmax_of(const Storage* logits, uint32_t classes,
                                                      const TransformTerms<T>& terms) {
    RowState<T> own = empty_row_state<T>();
    SoftmaxState<T>& state = own.softmax;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < classes; i += blockDim.x) {
        T z = transform<MODE>(to_accumulator(logits[i]), terms).z;
        if (z > state.max) state = rebase(state, z);
        state.sum += exponential(z - center_of(state.max));
    }
    return block_merge<Mode::plain>(own).softmax;
}

__device__ __forceinline__ Divergences block_sum(Divergences own) {
    __shared__ Divergences of_warps[32];
    own = {warp_sum(own.student), warp_sum(own.teacher)};
    if (lane_id() == 0) of_warps[warp_id()] = own;
    __syncthreads();
    bool exists = lane_id() < static_cast<int>(blockDim.x / 32);
    Divergences other = exists ? of_warps[lane_id()] : Divergences{0, 0};
    return {warp_sum(other.student), warp_sum(other.teacher)};
}

template <class T>
__device__ __forceinline__ UnlistedClass<T> unlisted_logs(T distance, T e, const UnlistedTerms<T>& terms) {
    return unlisted_class(distance + terms.offset, e * terms.scale, terms.beta, terms.rest, [](T x) { return log(x); });
}

template <Mode MODE, class Storage>
__global__ void __launch_bounds__(kMaxThreads, 1) jensen_shannon_kernel(JensenShannonArguments a) {
    using T = typename Accumulator<Storage>::Type;
    int64_t n = blockIdx.x, saved = n * kSavedJensenShannon;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    const Storage* logits = logits_of<Storage>(a.logits, n);
    Entries<T> slots = entries_of<T>(a.targets, n, classes);
    TransformTerms<T> transforms = transform_terms<T>(a.options);
    if (!has_teacher(slots)) {
        if (threadIdx.x < kSavedJensenShannon) put(a.saved, saved + threadIdx.x, T(0));
        if (threadIdx.x == 0) put(a.loss, n, T(0));
        return;
    }
    SoftmaxState<T> state = softmax_of<MODE>(logits, classes, transforms);
    double sum = static_cast<double>(state.sum);
    RowSoftmax<double> softmax{static_cast<double>(center_of(state.max)), log(sum), 0};
    double log_share = log_share_of(static_cast<double>(get<T>(a.targets.uniform, n)));
    UnlistedTerms<T> terms = unlisted_terms<T>(softmax.center, sum, log_share, a.beta);
    double share = exp(log_share);
    Divergences total{0, 0};
#pragma unroll 1
    for (uint32_t begin = 0; begin < classes; begin += kTile<T>) {
        Tile<T> tile = load_tile(begin, classes, slots);
        T student = 0, log_m = 0;
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < tile.size; i += blockDim.x) {
            T z = transform<MODE>(to_accumulator(logits[begin + i]), transforms).z;
            if (tile.is_listed[i]) {
                double log_a = static_cast<double>(tile.log_a[i]);
                ListedTerms listed = listed_terms(static_cast<double>(z), log_a, softmax, a.beta);
                total.student += listed.p * listed.from_student;
                total.teacher += exp(log_a) * listed.from_teacher;
                continue;
            }
            T distance = z - terms.center, e = exponential(distance);
            UnlistedClass<T> own = unlisted_logs(distance, e, terms);
            log_m += own.from_share;
            student += e != 0 ? e * own.from_student : T(0);
        }
        total.student += static_cast<double>(student) / sum;
        total.teacher -= share * static_cast<double>(log_m);
    }
    total = block_sum(total);
    if (threadIdx.x != 0) return;
    put(a.loss, n, T(a.beta * total.teacher + (1 - a.beta) * total.student));
    put(a.saved, saved, T(softmax.center));
    put(a.saved, saved + 1, state.sum);
    put(a.saved, saved + 2, T(total.student));
}

template <Mode MODE, class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads, 1) jensen_shannon_backward_kernel(JensenShannonBackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    int64_t n = blockIdx.x, saved = n * kSavedJensenShannon;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    const Storage* logits = logits_of<Storage>(a.logits, n);
    Out* out = out_of<Out>(a.out, n);
    Entries<T> slots = entries_of<T>(a.targets, n, classes);
    TransformTerms<T> transforms = transform_terms<T>(a.options);
    double grad = static_cast<double>(get<T>(a.grad, n));
    if (grad == 0 || !has_teacher(slots)) {
        for (uint32_t i = threadIdx.x; i < classes; i += blockDim.x) out[i] = Rounded<Out>::from(T(0));
        return;
    }
    double sum = static_cast<double>(get<T>(a.saved, saved + 1));
    double student = static_cast<double>(get<T>(a.saved, saved + 2));
    RowSoftmax<double> softmax{static_cast<double>(get<T>(a.saved, saved)), log(sum), 0};
    double log_share = log_share_of(static_cast<double>(get<T>(a.targets.uniform, n)));
    double factor = grad * (1 - a.beta) * a.options.logit_scale;
    UnlistedTerms<T> terms = unlisted_terms<T>(softmax.center, sum, log_share, a.beta);
    T p_scale = T(factor / sum), student_row = T(student);
#pragma unroll 1
    for (uint32_t begin = 0; begin < classes; begin += kTile<T>) {
        Tile<T> tile = load_tile(begin, classes, slots);
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < tile.size; i += blockDim.x) {
            Transformed<T> logit = transform<MODE>(to_accumulator(logits[begin + i]), transforms);
            T value;
            if (tile.is_listed[i]) {
                ListedTerms listed =
                    listed_terms(static_cast<double>(logit.z), static_cast<double>(tile.log_a[i]), softmax, a.beta);
                value = T(factor * listed.p * (listed.from_student - student));
            } else {
                T distance = logit.z - terms.center, e = exponential(distance);
                T from_student = unlisted_logs(distance, e, terms).from_student;
                value = e != 0 ? e * p_scale * (from_student - student_row) : T(0);
            }
            out[begin + i] = Rounded<Out>::from(value * logit.chain);
        }
    }
}

template <class Arguments>
Geometry geometry_of(const Arguments& a) {
    return {a.logits.rows, threads_of_block(a.logits), static_cast<size_t>(kEntryBytes), 0};
}

}  // namespace

int jensen_shannon_forward(const JensenShannonArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        error = a.options.softcap != 0
                    ? launch(jensen_shannon_kernel<Mode::softcap, Storage>, a, geometry_of(a), stream)
                    : launch(jensen_shannon_kernel<Mode::general, Storage>, a, geometry_of(a), stream);
    });
    return error;
}

int jensen_shannon_backward(const JensenShannonBackwardArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    bool known = with_types(a.logits.type, a.out.type, [&](auto in, auto out) {
        using Storage = typename decltype(in)::Storage;
        using Out = typename decltype(out)::Storage;
        error = a.options.softcap != 0
                    ? launch(jensen_shannon_backward_kernel<Mode::softcap, Storage, Out>, a, geometry_of(a), stream)
                    : launch(jensen_shannon_backward_kernel<Mode::general, Storage, Out>, a, geometry_of(a), stream);
    });
    return known ? error : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace smoothloss
