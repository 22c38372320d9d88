// out = values * factor, rounded once to the type of `out`: torch's product of two types converts element by element,
// at half the bandwidth of an H100.
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

constexpr int kPacks = 4;  // in flight

template <class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads) scaled_copy_kernel(ScaledCopyArguments a) {
    constexpr int count = pack_count<Storage, Out>;
    using In = Pack<Storage, count>;
    Storage factor = get<Storage>(a.factor, 0);
    const auto* values = static_cast<const In*>(a.values);
    auto* out = static_cast<Pack<Out, count>*>(a.out);
    int64_t packs = a.count / count;
    int64_t first = static_cast<int64_t>(blockIdx.x) * (kPacks * kMaxThreads) + threadIdx.x;
    In raw[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if (first + i * kMaxThreads < packs) raw[i] = values[first + i * kMaxThreads];
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        if (first + i * kMaxThreads >= packs) continue;
        Pack<Out, count> rounded;
#pragma unroll
        for (int j = 0; j < count; ++j) rounded.values[j] = Rounded<Out>::from(raw[i].values[j] * factor);
        out[first + i * kMaxThreads] = rounded;
    }
    int64_t rest = packs * count + threadIdx.x;
    if (blockIdx.x == 0 && rest < a.count) {
        static_cast<Out*>(a.out)[rest] = Rounded<Out>::from(get<Storage>(a.values, rest) * factor);
    }
}

}  // namespace

int scaled_copy(const ScaledCopyArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    bool known = with_types(a.type, a.out_type, [&](auto in, auto out) {
        using Storage = typename decltype(in)::Storage;
        using Out = typename decltype(out)::Storage;
        if constexpr (sizeof(Storage) >= 4) {
            int64_t size = static_cast<int64_t>(kPacks) * kMaxThreads * pack_count<Storage, Out>;
            error =
                launch(scaled_copy_kernel<Storage, Out>, a, {(a.count + size - 1) / size, kMaxThreads, 0, 0}, stream);
        }
    });
    return known ? error : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace smoothloss
