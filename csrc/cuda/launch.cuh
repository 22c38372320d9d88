// How the row kernels are launched: which mode, how many threads, how much shared memory.
#pragma once

#include <cuda_runtime.h>

#include "cuda/entries.cuh"

namespace smoothloss {
namespace cuda {

// Three blocks a multiprocessor, two in double: one computes while others wait for memory. That leaves 80 (128)
// registers to a thread, and the packs of all threads in flight are more than the memory's latency asks for.
constexpr unsigned kMaxThreads = 256;
template <class Storage>
constexpr int kMinBlocks = sizeof(Storage) == 8 ? 2 : 3;

// At least 64 bytes of the row for each thread.
inline unsigned threads_of_block(int64_t row_bytes) {
    if (row_bytes <= 4096) return 64;
    return row_bytes <= 8192 ? 128 : kMaxThreads;
}

inline int64_t element_bytes(DataType type) {
    return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
}

inline unsigned threads_of_block(const Logits& logits) {
    return threads_of_block(logits.classes * element_bytes(logits.type));
}

inline int64_t max_entries(DataType type) {
    return accumulates_in_double(type) ? max_shared_entries<double> : max_shared_entries<float>;
}

// For the gradient: of the entries, or of a tile where there are too many. Whole pairs: the compiler loads the indices
// in pairs, also the one behind an odd last one.
inline size_t entry_bytes(DataType type, int64_t slots) {
    int64_t each = accumulates_in_double(type) ? shared_entry_bytes<double> : shared_entry_bytes<float>;
    return static_cast<size_t>(slots > max_entries(type) ? kEntryBytes : (slots + slots % 2) * each);
}

template <Mode VALUE>
struct ModeTag {
    static constexpr Mode value = VALUE;
};

template <class Arguments>
Mode mode_of(const Arguments& a) {
    const RowOptions& o = a.options;
    bool is_spread = a.targets.uniform || o.label_smoothing != 0;
    if (a.dense.slots > 0 || (a.targets.prior && is_spread)) return Mode::dense;
    Mode transform = mode_of_transform(o);
    if (transform == Mode::softcap) return transform;
    bool plain = transform == Mode::plain && !is_spread && o.entropy == 0;
    return plain && a.targets.slots <= max_entries(a.logits.type) ? Mode::plain : Mode::general;
}

template <class Function>
auto with_mode(Mode mode, Function function) {
    if (mode == Mode::dense) return function(ModeTag<Mode::dense>());
    if (mode == Mode::softcap) return function(ModeTag<Mode::softcap>());
    if (mode == Mode::general) return function(ModeTag<Mode::general>());
    return function(ModeTag<Mode::plain>());
}

struct Geometry {
    int64_t blocks;
    unsigned threads;
    size_t shared;
    unsigned cluster;  // blocks a cluster; 0: no clusters
};

// The launch's configuration; it refers to `attribute`.
inline cudaLaunchConfig_t launch_config(const Geometry& g, cudaStream_t stream, cudaLaunchAttribute* attribute) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(g.blocks));
    config.blockDim = dim3(g.threads);
    config.dynamicSmemBytes = g.shared;
    config.stream = stream;
    if (g.cluster) {
        attribute->id = cudaLaunchAttributeClusterDimension;
        attribute->val.clusterDim.x = g.cluster;
        attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
        config.attrs = attribute;
        config.numAttrs = 1;
    }
    return config;
}

// Nothing is launched for nothing.
template <class Arguments>
int launch(void (*kernel)(Arguments), const Arguments& a, const Geometry& g, void* stream) {
    if (g.blocks == 0) return cudaSuccess;
    if (g.blocks > INT32_MAX) return cudaErrorInvalidValue;
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config = launch_config(g, static_cast<cudaStream_t>(stream), &attribute);
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, a);
    cudaError_t last = cudaGetLastError();
    return error != cudaSuccess ? error : last;
}

}  // namespace cuda
}  // namespace smoothloss
