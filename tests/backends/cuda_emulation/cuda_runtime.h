// The part of the CUDA runtime that the launchers use. A device's number says what kind of GPU it passes for.
#pragma once

#include <functional>

#include "device.h"

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidDevice, cudaErrorLaunchFailure };
enum cudaDeviceAttr {
    cudaDevAttrClusterLaunch,
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrL2CacheSize,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize,
    cudaFuncAttributePreferredSharedMemoryCarveout,
    cudaFuncAttributeNonPortableClusterSizeAllowed
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };

using cudaStream_t = struct Stream*;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned size = 1) : x(size), y(1), z(1) {}
};

struct cudaFuncAttributes {
    size_t sharedSizeBytes;
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        emulation::Index clusterDim;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

namespace emulation {

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);
int attribute_of(cudaDeviceAttr attribute, int device);

}  // namespace emulation

cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config);

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
    *attributes = {1024};
    return cudaSuccess;
}

template <class Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Arguments), const Arguments& a) {
    return emulation::run(*config, [&] { kernel(a); });
}
