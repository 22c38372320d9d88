// One block weighs what is normalised together: the samples of an input, or all of a batch.
#include "cuda/weights.h"

#include <algorithm>

#include "cuda/launch.cuh"

namespace smoothloss {
namespace cuda {
namespace {

constexpr unsigned kWeightThreads = 1024;

// The values of all threads, combined in the same order by every one of them.
template <class T, class Combine>
__device__ __forceinline__ T of_block(T value, T none, T* of_warps, Combine combine) {
    for (int offset = 16; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
    }
    if (blockDim.x == 32) return value;
    __syncthreads();  // until everybody has read what was here before
    if (lane_id() == 0) of_warps[warp_id()] = value;
    __syncthreads();
    value = lane_id() < static_cast<int>(blockDim.x / 32) ? of_warps[lane_id()] : none;
    for (int offset = 16; offset > 0; offset /= 2) {
        value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
    }
    return value;
}

struct Larger {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return larger_or_nan(a, b);
    }
};

struct Sum {
    __device__ __forceinline__ double operator()(double a, double b) const { return a + b; }
};

// Calls function(sample, input) for what this thread has of its block's numbers. The division is in 32 bits, to which
// the launcher holds their count: in 64 it is a call.
template <class Function>
__device__ __forceinline__ void for_each_own(const WeightArguments& a, Function function) {
    uint32_t inputs = static_cast<uint32_t>(a.inputs), step = a.of_batch ? 1 : inputs;
    uint32_t count = static_cast<uint32_t>(a.samples * a.inputs);
    uint64_t first = static_cast<uint64_t>(threadIdx.x) * step + (a.of_batch ? 0 : blockIdx.x);
    for (uint64_t i = first; i < count; i += static_cast<uint64_t>(blockDim.x) * step) {
        uint32_t sample = static_cast<uint32_t>(i) / inputs;
        function(static_cast<int64_t>(sample), static_cast<int64_t>(static_cast<uint32_t>(i) - sample * inputs));
    }
}

template <class T>
__global__ void __launch_bounds__(kWeightThreads, 1) importance_weights_kernel(WeightArguments a) {
    __shared__ T largest_of_warps[kWeightThreads / 32];
    __shared__ double sum_of_warps[kWeightThreads / 32];
    T* out = static_cast<T*>(a.out);
    const T none = -static_cast<T>(INFINITY);
    T top = none, highest = none;
    for_each_own(a, [&](int64_t l, int64_t b) { top = larger_or_nan(top, clipped_score<T>(a, l, b)); });
    top = of_block(top, none, largest_of_warps, Larger());
    for_each_own(a, [&](int64_t l, int64_t b) {
        T value = log_weight<T>(a, l, b, top);
        out[l * a.inputs + b] = value;  // each thread reads its own again
        highest = larger_or_nan(highest, value);
    });
    highest = of_block(highest, none, largest_of_warps, Larger());
    double sum = 0;
    for_each_own(a, [&](int64_t l, int64_t b) {
        T value = ::exp(below(out[l * a.inputs + b], highest));
        out[l * a.inputs + b] = value;
        sum += static_cast<double>(value);
    });
    double scale = weight_scale(a, of_block(sum, 0.0, sum_of_warps, Sum()));
    for_each_own(a, [&](int64_t l, int64_t b) {
        T& value = out[l * a.inputs + b];
        value = static_cast<T>(static_cast<double>(value) * scale);
    });
}

}  // namespace

int importance_weights(const WeightArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    int64_t count = a.samples * a.inputs, together = a.of_batch ? count : a.samples;
    if (count > INT32_MAX) return cudaErrorInvalidValue;
    int64_t blocks = count == 0 ? 0 : a.of_batch ? 1 : a.inputs;
    unsigned threads = static_cast<unsigned>(std::min<int64_t>((together + 31) / 32 * 32, kWeightThreads));
    auto kernel = a.in_double ? importance_weights_kernel<double> : importance_weights_kernel<float>;
    return launch(kernel, a, {blocks, threads, 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
