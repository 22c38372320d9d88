// loss = sum of the losses / number of rows with mass, scale = 1 / max(that number, 1): one block, in a fixed order.
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
__global__ void __launch_bounds__(kThreads) mean_kernel(MeanArguments a) {
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
    put(a.loss, 0, static_cast<T>(sums.loss / sums.count));
    put(a.scale, 0, static_cast<T>(1 / (sums.count > 1 ? sums.count : 1)));
}

}  // namespace

int mean(const MeanArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    auto kernel = accumulates_in_double(a.type) ? mean_kernel<double> : mean_kernel<float>;
    return launch(kernel, a, {1, kThreads, 0, 0}, stream);
}

}  // namespace cuda
}  // namespace smoothloss
