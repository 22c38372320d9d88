// One cluster of thread blocks per row: each block keeps its part of the row in shared memory between the two passes.
#include "cuda/forward_backward_cluster.h"

#include "cuda/cluster.cuh"

namespace smoothloss {
namespace cuda {
namespace {

template <Mode MODE, class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>)
    forward_backward_cluster_kernel(ForwardBackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Out>;
    unsigned rank = __clusterRelativeBlockRank(), blocks = __clusterSizeInBlocks();
    RowProblem<T> problem = row_problem<MODE, T>(a, blockIdx.x / blocks);
    const Storage* logits = logits_of<Storage>(a.logits, problem.n);
    Out* out = out_of<Out>(a.out, problem.n);
    RowLayout layout = share_of_block(layout_of<count>(logits, out, problem.classes), rank, blocks);
    bool reports = rank == 0 && threadIdx.x == 0;
    if (reports) put(a.mass, problem.n, problem.target.mass);
    if (problem.target.mass == 0) {  // for all blocks of the cluster alike
        if (reports) put(a.loss, problem.n, T(0));
        return fill<count>(out, layout, T(0));
    }
    __cluster_barrier_arrive();
    auto* kept = shared_memory<Pack<Storage, count>>();
    auto* memory = reinterpret_cast<unsigned char*>(kept + packs_per_block(layout.packs, blocks));
    SharedEntries<T> entries = shared_entries<T>(memory, problem.entries.slots);
    load_entries(entries, problem.entries, logits);
    RowState<T> state = block_merge<MODE>(thread_state<MODE, true, count>(logits, layout, problem.row, kept));
    state = cluster_merge<MODE>(state);  // from here on, no block reads logits that another overwrites
    RowSoftmax<T> softmax = finish(state.softmax);
    if (rank == 0 && warp_id() == 0) {
        T loss = warp_loss<MODE>(problem, softmax, state.dense, a.options, [&](int s) { return entries[s]; });
        if (reports) put(a.loss, problem.n, loss);
    }
    GradientTerms<T> terms = make_gradient_terms(gradient_inputs(a.options, T(1), problem.target.mass, problem),
                                                 problem.target, softmax, state.softmax.sum);
    write_gradient<MODE, true, count>(logits, out, layout, terms, problem.row, kept);
    __syncthreads();
    write_entries<MODE>(out, layout, entries, terms, problem.row, true);
}

// ---- launching

bool in_place(const ForwardBackwardArguments& a) {
    return a.logits.data == a.out.data;
}

// The plain kernel reads each row twice. Does the second time hit the cache? Half of it is counted on: the rows' halves
// may lie in the far partition, and others use it too.
bool exceeds_cache(const ForwardBackwardArguments& a, const DeviceLimits& limits) {
    int64_t threads = threads_of_block(a.logits);
    int64_t resident = limits.multiprocessors * kMinBlocks<float> * kMaxThreads / threads;
    if (a.logits.rows < resident) resident = a.logits.rows;
    int64_t bytes = element_bytes(a.logits.type) + (in_place(a) ? 0 : element_bytes(a.out.type));
    return resident * a.logits.classes * bytes > limits.cache_bytes / 2;
}

// Whether logits and gradient can be cut into packs alike, in every row.
bool aligned_alike(const ForwardBackwardArguments& a, int64_t count) {
    int64_t in = element_bytes(a.logits.type), out = element_bytes(a.out.type);
    auto offset = [&](const void* p, int64_t size) {
        return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p)) / size % count;
    };
    bool alike = offset(a.logits.data, in) == offset(a.out.data, out);
    return alike && (a.logits.rows == 1 || (a.logits.stride - a.out.stride) % count == 0);
}

int64_t shared_bytes(const ForwardBackwardArguments& a, unsigned cluster, int64_t count) {
    uint32_t packs = static_cast<uint32_t>(a.logits.classes / count);
    int64_t kept = packs_per_block(packs, cluster) * count * element_bytes(a.logits.type);
    return kept + static_cast<int64_t>(entry_bytes(a.logits.type, a.targets.slots));
}

// The smallest cluster that leaves room for several blocks a multiprocessor; its 0 blocks say that there is none.
template <class Kernel>
Geometry choose_geometry(Kernel kernel, const ForwardBackwardArguments& a, int64_t count, int device,
                         const DeviceLimits& limits) {
    constexpr int64_t reserved = 2560;  // in each block: a KiB by the system, the rest for the reductions
    for (int blocks = kMinBlocks<float>; blocks > 0; --blocks) {
        int64_t room = limits.shared_bytes / blocks - reserved;
        if (room > limits.shared_bytes_of_block - reserved) room = limits.shared_bytes_of_block - reserved;
        for (unsigned cluster = 1; cluster <= kMaxCluster; cluster *= 2) {
            int64_t shared = shared_bytes(a, cluster, count);
            if (shared > room || a.logits.rows > INT32_MAX / cluster) continue;
            Geometry geometry{a.logits.rows * cluster, kMaxThreads, static_cast<size_t>(shared), cluster};
            if (runs_in_clusters(kernel, geometry, device, limits)) return geometry;
        }
    }
    return {0, kMaxThreads, 0, 0};
}

template <Mode MODE, class Storage, class Out>
bool launch_in_clusters(const ForwardBackwardArguments& a, int device, const DeviceLimits& limits, void* stream,
                        int* error) {
    constexpr int count = pack_count<Storage, Out>;
    if (!aligned_alike(a, count)) return false;
    auto kernel = forward_backward_cluster_kernel<MODE, Storage, Out>;
    Geometry geometry = choose_geometry(kernel, a, count, device, limits);
    if (geometry.blocks == 0) return false;
    *error = launch(kernel, a, geometry, stream);
    return true;
}

}  // namespace

// float64 and dense rows are bound by other things than reading the logits.
bool forward_backward_in_clusters(const ForwardBackwardArguments& a, int device, void* stream, int* error) {
    Mode mode = mode_of(a);
    if (a.targets.slots > max_entries(a.logits.type) || a.logits.rows == 0) return false;
    DeviceLimits limits = device_limits(device);
    if (!limits.has_clusters || !exceeds_cache(a, limits)) return false;
    bool done = false;
    with_types(a.logits.type, a.out.type, [&](auto in, auto out) {
        using Storage = typename decltype(in)::Storage;
        using Out = typename decltype(out)::Storage;
        done = with_mode(mode, [&](auto tag) {
            constexpr Mode value = decltype(tag)::value;
            if constexpr (sizeof(Storage) == 8 || value == Mode::dense)
                return false;
            else
                return launch_in_clusters<value, Storage, Out>(a, device, limits, stream, error);
        });
    });
    return done;
}

}  // namespace cuda
}  // namespace smoothloss
