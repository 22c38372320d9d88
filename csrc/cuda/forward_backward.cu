// One thread block per row: the loss and its gradient. The second pass finds the row in the L2 cache, if all the rows
// that are under way fit into it; forward_backward_cluster.cu is for those that do not.
#include "cuda/forward_backward_cluster.h"
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

template <Mode MODE, class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>)
    forward_backward_kernel(ForwardBackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Out>;
    RowProblem<T> problem = row_problem<MODE, T>(a, blockIdx.x);
    const Storage* logits = logits_of<Storage>(a.logits, problem.n);
    Out* out = out_of<Out>(a.out, problem.n);
    RowLayout layout = layout_of<count>(logits, out, problem.classes);
    if (threadIdx.x == 0) put(a.mass, problem.n, problem.target.mass);
    if (problem.target.mass == 0) {
        if (threadIdx.x == 0) put(a.loss, problem.n, T(0));
        return fill<count>(out, layout, T(0));
    }
    bool many = MODE != Mode::plain && problem.entries.slots > max_shared_entries<T>;
    SharedEntries<T> entries = shared_entries<T>(shared_memory<unsigned char>(), many ? 0 : problem.entries.slots);
    load_entries(entries, problem.entries, logits);
    RowState<T> state = block_merge<MODE>(thread_state<MODE, false, count>(logits, layout, problem.row, nullptr));
    RowSoftmax<T> softmax = finish(state.softmax);
    if (warp_id() == 0) {
        T loss = warp_loss<MODE>(problem, softmax, state.dense, a.options,
                                 [&](int s) { return many ? entry_at(problem.entries, logits, s) : entries[s]; });
        if (lane_id() == 0) put(a.loss, problem.n, loss);
    }
    GradientTerms<T> terms = make_gradient_terms(gradient_inputs(a.options, T(1), problem.target.mass, problem),
                                                 problem.target, softmax, state.softmax.sum);
    // Its first barrier lies between the loss, which reads the logits of the entries, and what overwrites them.
    if (many) return write_gradient_by_tiles<MODE>(logits, out, problem, terms, true, shared_memory<T>());
    write_gradient<MODE, false, count>(logits, out, layout, terms, problem.row, nullptr);
    __syncthreads();
    write_entries<MODE>(out, layout, entries, terms, problem.row, true);
}

}  // namespace

int sparse_cross_entropy_forward_backward(const ForwardBackwardArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    if (forward_backward_in_clusters(a, device, stream, &error)) return error;
    Geometry geometry{a.logits.rows, threads_of_block(a.logits), entry_bytes(a.logits.type, a.targets.slots), 0};
    bool known = with_types(a.logits.type, a.out.type, [&](auto in, auto out) {
        error = with_mode(mode_of(a), [&](auto mode) {
            auto kernel = forward_backward_kernel<decltype(mode)::value, typename decltype(in)::Storage,
                                                  typename decltype(out)::Storage>;
            return launch(kernel, a, geometry, stream);
        });
    });
    return known ? error : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace smoothloss
