// The sum of the losses, or their mean over the rows with mass, and the factor of its gradient: one block, in a fixed
// order.
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

constexpr unsigned kThreads = 1024;

// Both sums in double: a count in float32 would stop at 2^24.
struct Sums {
    double loss;
    double count;
};

__device__ __forceinline__ Sums warp_sums(Sums sums) {
    return {warp_sum(sums.loss), warp_sum(sums.count)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(ReduceArguments a) {
    __shared__ Sums of_warps[kThreads / 32];
    Sums sums{0, 0};
#pragma unroll 4
    for (int64_t n = threadIdx.x; n < a.rows; n += kThreads) {
        sums.loss += static_cast<double>(get<T>(a.losses, n));
        sums.count += get<T>(a.mass, n) != 0 ? 1 : 0;
    }
    sums = warp_sums(sums);
    if (lane_id() == 0) of_warps[warp_id()] = sums;
    __syncthreads();
    if (warp_id() != 0) return;
    sums = warp_sums(of_warps[lane_id()]);
    if (lane_id() != 0) return;
    bool is_mean = a.reduction == Reduction::mean;
    put(a.loss, 0, static_cast<T>(is_mean ? sums.loss / sums.count : sums.loss));
    put(a.scale, 0, static_cast<T>(is_mean && sums.count > 1 ? 1 / sums.count : 1));
}

}  // namespace

int reduce(const ReduceArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    auto kernel = accumulates_in_double(a.type) ? reduce_kernel<double> : reduce_kernel<float>;
    return launch(kernel, a, {1, kThreads, 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
