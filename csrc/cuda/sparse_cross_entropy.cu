// One thread block per row. Tuning comes later; this is the plain form.
#include "cuda/sparse_cross_entropy.h"

#include <cuda_runtime.h>

#include "cuda/row.cuh"

namespace smoothloss {
namespace cuda {
namespace {

// Of a block. Double arithmetic takes more registers than 1024 threads leave to each.
template <class Storage>
constexpr int max_threads = sizeof(Storage) == 8 ? 512 : 1024;

constexpr int64_t kSharedBytes = 40 * 1024;  // of the 48 KiB that every device grants

template <class T>
struct Row {
    int64_t n;
    uint32_t classes;
    TransformTerms<T> transform;
    bool has_entropy;
};

template <class T>
__device__ __forceinline__ Row<T> this_row(const Logits& logits, const RowOptions& options) {
    return {static_cast<int64_t>(blockIdx.x),
            static_cast<uint32_t>(logits.classes),
            {static_cast<T>(options.logit_scale), static_cast<T>(options.softcap)},
            options.entropy != 0};
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
__device__ __forceinline__ RowTarget<T> target_of(const Targets& targets, const RowOptions& options, T weight_sum,
                                                  int64_t n) {
    T uniform = targets.uniform ? static_cast<const T*>(targets.uniform)[n] : T(0);
    return make_row_target<T>(weight_sum, uniform, static_cast<T>(options.label_smoothing));
}

template <class T>
__device__ __forceinline__ void put(void* results, int64_t n, T value) {
    if (results && threadIdx.x == 0) static_cast<T*>(results)[n] = value;
}

template <class T>
__device__ __forceinline__ T get(const void* values, int64_t n) {
    return static_cast<const T*>(values)[n];
}

template <bool GENERAL, class T>
__device__ __forceinline__ T row_loss(const SharedEntries<T>& entries, const RowTarget<T>& target,
                                      const RowSoftmax<T>& softmax, const RowOptions& options, const Row<T>& row) {
    T loss = 0;
    for (int s = threadIdx.x; s < entries.slots; s += blockDim.x) {
        T z = transform<GENERAL>(entries.logits[s], row.transform).z;
        loss += entry_loss(target.keep * entries.weights[s], z, softmax);
    }
    return block_sum(loss) +
           dense_loss(target, softmax, static_cast<T>(options.z_loss), static_cast<T>(options.entropy));
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

template <bool GENERAL, class Storage>
__global__ void __launch_bounds__(max_threads<Storage>, 1) forward_kernel(ForwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    Row<T> row = this_row<T>(a.logits, a.options);
    const Storage* logits = logits_of<Storage>(a.logits, row.n);
    SharedEntries<T> entries = shared_entries<T>(static_cast<int>(a.targets.slots));
    T weight_sum = load_entries(entries, a.targets, logits, row.n, row.classes);
    RowTarget<T> target = target_of(a.targets, a.options, weight_sum, row.n);
    RowSoftmax<T> softmax{0, 0, 0, 0};
    T loss = 0;
    double lse = 0;
    if (target.mass != 0) {
        SoftmaxState<T> state = softmax_state<GENERAL>(logits, row.classes, row.transform, row.has_entropy);
        softmax = finish(state, T(row.classes));
        loss = row_loss<GENERAL>(entries, target, softmax, a.options, row);
        if (threadIdx.x == 0)
            lse = lse_of(state);  // a logarithm in double is slow on small GPUs: one thread's is enough
    }
    put(a.loss, row.n, loss);
    put(a.lse, row.n, lse);
    put(a.entropy, row.n, softmax.entropy);
    put(a.mass, row.n, target.mass);
}

template <bool GENERAL, class Storage, class Out>
__global__ void __launch_bounds__(max_threads<Storage>, 1) backward_kernel(BackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    Row<T> row = this_row<T>(a.logits, a.options);
    const Storage* logits = logits_of<Storage>(a.logits, row.n);
    Out* out = out_of<Out>(a.out, row.n);
    SharedEntries<T> entries = shared_entries<T>(static_cast<int>(a.targets.slots));
    T weight_sum = load_entries(entries, a.targets, logits, row.n, row.classes);
    RowTarget<T> target = target_of(a.targets, a.options, weight_sum, row.n);
    T mass = a.mass ? get<T>(a.mass, row.n) : target.mass;
    bool has_softmax = mass != 0;
    if (!a.mass && !has_softmax) return fill(out, row.classes, T(0));

    RowSoftmax<T> softmax = softmax_of<T>(a.lse[row.n], row.has_entropy ? get<T>(a.entropy, row.n) : T(0));
    T grad = get<T>(a.grad, a.grad_is_scalar ? 0 : row.n);
    GradientTerms<T> terms = make_gradient_terms(gradient_inputs(a.options, grad, mass, row.classes), target, softmax);
    if (has_softmax) {
        write_gradient<GENERAL>(logits, out, row.classes, terms, row.transform);
    } else {
        fill(out, row.classes, -terms.shift);
    }
    __syncthreads();
    write_entries<GENERAL>(out, entries, terms, row.transform, has_softmax);
}

template <bool GENERAL, class Storage, class Out>
__global__ void __launch_bounds__(max_threads<Storage>, 1) forward_backward_kernel(ForwardBackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    Row<T> row = this_row<T>(a.logits, a.options);
    const Storage* logits = logits_of<Storage>(a.logits, row.n);
    Out* out = out_of<Out>(a.out, row.n);
    SharedEntries<T> entries = shared_entries<T>(static_cast<int>(a.targets.slots));
    T weight_sum = load_entries(entries, a.targets, logits, row.n, row.classes);
    RowTarget<T> target = target_of(a.targets, a.options, weight_sum, row.n);
    put(a.mass, row.n, target.mass);
    if (target.mass == 0) {
        put(a.loss, row.n, T(0));
        return fill(out, row.classes, T(0));
    }
    RowSoftmax<T> softmax =
        finish(softmax_state<GENERAL>(logits, row.classes, row.transform, row.has_entropy), T(row.classes));
    put(a.loss, row.n, row_loss<GENERAL>(entries, target, softmax, a.options, row));
    GradientTerms<T> terms =
        make_gradient_terms(gradient_inputs(a.options, T(1), target.mass, row.classes), target, softmax);
    write_gradient<GENERAL>(logits, out, row.classes, terms, row.transform);
    __syncthreads();
    write_entries<GENERAL>(out, entries, terms, row.transform, true);
}

template <class Storage>
__global__ void __launch_bounds__(max_threads<Storage>, 1) select_kernel(SelectArguments a) {
    using T = typename Accumulator<Storage>::Type;
    int64_t n = blockIdx.x;
    uint32_t classes = static_cast<uint32_t>(a.logits.classes);
    const Storage* logits = logits_of<Storage>(a.logits, n);
    TransformTerms<T> none{1, 0};
    SoftmaxState<T> state = softmax_state<false>(logits, classes, none, false);
    if (threadIdx.x == 0) a.lse[n] = lse_of(state);
    for (int64_t s = threadIdx.x; s < a.targets.slots; s += blockDim.x) {
        int32_t index = a.targets.indices[n * a.targets.slots + s];
        bool filled = static_cast<uint32_t>(index) < classes;
        static_cast<T*>(a.selected)[n * a.targets.slots + s] = filled ? to_accumulator(logits[index]) : T(0);
    }
}

// ---- launching

template <class StorageType>
struct TypeTag {
    using Storage = StorageType;
};

template <class Function>
void with_type(DataType type, Function function) {
    switch (type) {
        case DataType::float64:
            return function(TypeTag<double>());
        case DataType::bfloat16:
            return function(TypeTag<__nv_bfloat16>());
        case DataType::float16:
            return function(TypeTag<__half>());
        default:
            return function(TypeTag<float>());
    }
}

// float64 goes to float64; 16 bits to the same 16 bits or to float32; float32 to any but float64.
template <class Storage>
struct Outputs {
    template <class Function>
    static bool with_output(DataType in, DataType out, Function function) {
        if (out == in) return function(TypeTag<Storage>()), true;
        if (out == DataType::float32 && in != DataType::float64) return function(TypeTag<float>()), true;
        return false;
    }
};

template <>
struct Outputs<double> {
    template <class Function>
    static bool with_output(DataType, DataType out, Function function) {
        if (out != DataType::float64) return false;
        return function(TypeTag<double>()), true;
    }
};

template <>
struct Outputs<float> {
    template <class Function>
    static bool with_output(DataType, DataType out, Function function) {
        if (out == DataType::float64) return false;
        if (out == DataType::float32) return function(TypeTag<float>()), true;
        if (out == DataType::float16) return function(TypeTag<__half>()), true;
        return function(TypeTag<__nv_bfloat16>()), true;
    }
};

bool is_general(const RowOptions& o, const Targets& targets) {
    return targets.uniform || o.label_smoothing != 0 || o.entropy != 0 || o.logit_scale != 1 || o.softcap != 0;
}

int64_t entry_bytes(DataType type) {
    return 2 * (accumulates_in_double(type) ? 8 : 4) + 4;
}

struct Launch {
    dim3 grid;
    dim3 block;
    size_t shared;
    cudaStream_t stream;
    cudaError_t error;
};

Launch make_launch(const Logits& logits, int64_t slots, int device, void* stream) {
    unsigned threads = logits.classes <= 2048 ? 128 : logits.classes <= 16384 ? 256 : 512;
    if (logits.classes > 65536 && logits.type != DataType::float64) threads = 1024;
    cudaError_t error = cudaSetDevice(device);
    if (logits.rows > INT32_MAX) error = cudaErrorInvalidValue;
    return {dim3(static_cast<unsigned>(logits.rows)), dim3(threads),
            static_cast<size_t>(slots * entry_bytes(logits.type)), static_cast<cudaStream_t>(stream), error};
}

}  // namespace

int64_t max_slots(DataType type) {
    return kSharedBytes / entry_bytes(type);
}

int sparse_cross_entropy_forward(const ForwardArguments& a, int device, void* stream) {
    Launch l = make_launch(a.logits, a.targets.slots, device, stream);
    if (l.error != cudaSuccess || a.logits.rows == 0) return l.error;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        auto kernel = is_general(a.options, a.targets) ? forward_kernel<true, Storage> : forward_kernel<false, Storage>;
        kernel<<<l.grid, l.block, l.shared, l.stream>>>(a);
    });
    return cudaGetLastError();
}

int sparse_cross_entropy_backward(const BackwardArguments& a, int device, void* stream) {
    Launch l = make_launch(a.logits, a.targets.slots, device, stream);
    if (l.error != cudaSuccess || a.logits.rows == 0) return l.error;
    bool known = false;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        known = Outputs<Storage>::with_output(a.logits.type, a.out.type, [&](auto out) {
            using Out = typename decltype(out)::Storage;
            auto kernel = is_general(a.options, a.targets) ? backward_kernel<true, Storage, Out>
                                                           : backward_kernel<false, Storage, Out>;
            kernel<<<l.grid, l.block, l.shared, l.stream>>>(a);
        });
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

int sparse_cross_entropy_forward_backward(const ForwardBackwardArguments& a, int device, void* stream) {
    Launch l = make_launch(a.logits, a.targets.slots, device, stream);
    if (l.error != cudaSuccess || a.logits.rows == 0) return l.error;
    bool known = false;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        known = Outputs<Storage>::with_output(a.logits.type, a.out.type, [&](auto out) {
            using Out = typename decltype(out)::Storage;
            auto kernel = is_general(a.options, a.targets) ? forward_backward_kernel<true, Storage, Out>
                                                           : forward_backward_kernel<false, Storage, Out>;
            kernel<<<l.grid, l.block, l.shared, l.stream>>>(a);
        });
    });
    return known ? cudaGetLastError() : cudaErrorInvalidValue;
}

int logsumexp_and_select_forward(const SelectArguments& a, int device, void* stream) {
    Launch l = make_launch(a.logits, 0, device, stream);
    if (l.error != cudaSuccess || a.logits.rows == 0) return l.error;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        select_kernel<Storage><<<l.grid, l.block, 0, l.stream>>>(a);
    });
    return cudaGetLastError();
}

int status(int device) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, select_kernel<float>);
    if (error != cudaSuccess) cudaGetLastError();  // clears what is no business of the next call
    return error;
}

const char* error_string(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace cuda
}  // namespace smoothloss
