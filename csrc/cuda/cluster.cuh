// Thread-block clusters: what their blocks tell each other, and how many of them a device takes.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace smoothloss {
namespace cuda {

constexpr unsigned kPortableCluster = 8;  // every device with clusters grants it
constexpr unsigned kMaxCluster = 16;

// What block_merge returned in each block of the cluster, merged. __cluster_barrier_arrive() must have been called
// before, by all threads; once a kernel.
template <Mode MODE, class T>
__device__ __forceinline__ RowState<T> cluster_merge(const RowState<T>& state) {
    __shared__ RowState<T> of_blocks[kMaxCluster];
    unsigned lane = static_cast<unsigned>(lane_id());
    __cluster_barrier_wait();  // all blocks have started: their shared memory can be written
    if (warp_id() == 0 && lane < __clusterSizeInBlocks()) {
        RowState<T>* own_place = of_blocks + __clusterRelativeBlockRank();
        *static_cast<RowState<T>*>(__cluster_map_shared_rank(own_place, lane)) = state;
    }
    __cluster_barrier_arrive();
    __cluster_barrier_wait();  // all blocks have written: nobody touches another's shared memory from here on
    return warp_merge<MODE>(lane < __clusterSizeInBlocks() ? of_blocks[lane] : empty_row_state<T>());
}

struct DeviceLimits {
    bool has_clusters;
    int64_t multiprocessors;
    int64_t cache_bytes;            // L2
    int64_t shared_bytes;           // of a multiprocessor
    int64_t shared_bytes_of_block;  // at most
};

inline int64_t device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Asked for once a device.
inline DeviceLimits device_limits(int device) {
    static std::mutex mutex;
    static std::map<int, DeviceLimits> known;
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known.find(device);
    if (found != known.end()) return found->second;
    DeviceLimits limits{device_attribute(cudaDevAttrClusterLaunch, device) != 0,
                        device_attribute(cudaDevAttrMultiProcessorCount, device),
                        device_attribute(cudaDevAttrL2CacheSize, device),
                        device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
                        device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
    known[device] = limits;
    return limits;
}

// Whether the device runs clusters of this kernel, with this many blocks and this much shared memory each. Asked for
// once, which also sets the kernel's attributes for good; no error stays behind.
template <class Arguments>
bool runs_in_clusters(void (*kernel)(Arguments), const Geometry& geometry, int device, const DeviceLimits& limits) {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, unsigned, unsigned, size_t>, bool> known;
    const void* address = reinterpret_cast<const void*>(kernel);
    std::lock_guard<std::mutex> lock(mutex);
    auto key = std::make_tuple(address, device, geometry.cluster, geometry.threads, geometry.shared);
    auto found = known.find(key);
    if (found != known.end()) return found->second;
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = launch_config(geometry, nullptr, &attribute);
    cudaFuncAttributes attributes;
    int clusters = 0;
    bool runs = cudaFuncGetAttributes(&attributes, address) == cudaSuccess;
    int most = static_cast<int>(limits.shared_bytes_of_block - static_cast<int64_t>(attributes.sharedSizeBytes));
    auto set = [&](cudaFuncAttribute which, int value) {
        return cudaFuncSetAttribute(address, which, value) == cudaSuccess;
    };
    runs = runs && set(cudaFuncAttributeMaxDynamicSharedMemorySize, most) &&
           set(cudaFuncAttributePreferredSharedMemoryCarveout, 100) &&
           (geometry.cluster <= kPortableCluster || set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) &&
           cudaOccupancyMaxActiveClusters(&clusters, address, &config) == cudaSuccess && clusters > 0;
    if (!runs) cudaGetLastError();
    return known[key] = runs;
}

}  // namespace cuda
}  // namespace smoothloss
