// One thread block per row: the loss and what the backward needs of it.
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

template <Mode MODE, class Storage>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>) forward_kernel(ForwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Storage>;
    RowProblem<T> problem = row_problem<MODE, T>(a, blockIdx.x);
    const Storage* logits = logits_of<Storage>(a.logits, problem.n);
    SoftmaxState<T> statistics{0, 1, 0};
    T loss = 0, entropy = 0;
    if (problem.target.mass != 0) {
        RowLayout layout = layout_of<count>(logits, problem.classes);
        RowState<T> state = block_merge<MODE>(thread_state<MODE, false, count>(logits, layout, problem.row, nullptr));
        if (warp_id() != 0) return;
        statistics = state.softmax;
        RowSoftmax<T> softmax = finish(state.softmax);
        if (problem.row.has_entropy) entropy = softmax.entropy;
        loss = warp_loss<MODE>(problem, softmax, state.dense, a.options,
                               [&](int s) { return entry_at(problem.entries, logits, s); });
    }
    if (threadIdx.x != 0) return;
    put(a.loss, problem.n, loss);
    put(a.mass, problem.n, problem.target.mass);
    put_statistics(a.statistics, problem.n, statistics, entropy);
}

Geometry geometry_of(const Logits& logits) {
    return {logits.rows, threads_of_block(logits), 0, 0};
}

}  // namespace

int sparse_cross_entropy_forward(const ForwardArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    with_type(a.logits.type, [&](auto in) {
        using Storage = typename decltype(in)::Storage;
        error = with_mode(mode_of(a), [&](auto mode) {
            return launch(forward_kernel<decltype(mode)::value, Storage>, a, geometry_of(a.logits), stream);
        });
    });
    return error;
}

int status(int device) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, forward_kernel<Mode::plain, float>);
    if (error != cudaSuccess) cudaGetLastError();  // clears what is no business of the next call
    return error;
}

const char* error_string(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace cuda
}  // namespace smoothloss
