// One thread block per row: the gradient, from the saved statistics.
#include "cuda/launch.cuh"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace cuda {
namespace {

template <Mode MODE, class T>
__device__ __forceinline__ GradientTerms<T> gradient_terms(const BackwardArguments& a, const RowProblem<T>& problem,
                                                           T mass) {
    T sum = get<T>(a.statistics, problem.n * kStatistics + 1);
    RowSoftmax<T> softmax{get<T>(a.statistics, problem.n * kStatistics), T(log(sum)),
                          get<T>(a.statistics, problem.n * kStatistics + 2)};
    T grad = get<T>(a.grad, a.grad_is_scalar ? 0 : problem.n);
    if (a.scale) grad *= get<T>(a.scale, 0);
    return make_gradient_terms(gradient_inputs(a.options, grad, mass, problem), problem.target, softmax, sum);
}

template <Mode MODE, class Storage, class Out>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks<Storage>) backward_kernel(BackwardArguments a) {
    using T = typename Accumulator<Storage>::Type;
    constexpr int count = pack_count<Storage, Out>;
    RowProblem<T> problem = row_problem<MODE, T>(a, blockIdx.x);
    const Storage* logits = logits_of<Storage>(a.logits, problem.n);
    Out* out = out_of<Out>(a.out, problem.n);
    RowLayout layout = layout_of<count>(logits, out, problem.classes);
    T mass = a.mass ? get<T>(a.mass, problem.n) : problem.target.mass;
    bool has_softmax = mass != 0;
    if (!a.mass && !has_softmax) return fill<count>(out, layout, T(0));

    GradientTerms<T> terms = gradient_terms<MODE>(a, problem, mass);
    if (MODE != Mode::plain && problem.entries.slots > max_shared_entries<T>) {
        return write_gradient_by_tiles<MODE>(logits, out, problem, terms, has_softmax, shared_memory<T>());
    }
    SharedEntries<T> entries = shared_entries<T>(shared_memory<unsigned char>(), problem.entries.slots);
    load_entries(entries, problem.entries, logits);
    __syncthreads();
    if (has_softmax) {
        write_gradient<MODE, false, count>(logits, out, layout, terms, problem.row, nullptr);
    } else if (problem.row.prior) {
        for (uint32_t v = threadIdx.x; v < problem.classes; v += blockDim.x) {
            out[v] = Rounded<Out>::from(-prior_at<MODE>(problem.row, terms, v));
        }
    } else {
        fill<count>(out, layout, -terms.shift);
    }
    __syncthreads();
    write_entries<MODE>(out, layout, entries, terms, problem.row, has_softmax);
}

}  // namespace

int sparse_cross_entropy_backward(const BackwardArguments& a, int device, void* stream) {
    int error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    Geometry geometry{a.logits.rows, threads_of_block(a.logits), entry_bytes(a.logits.type, a.targets.slots), 0};
    bool known = with_types(a.logits.type, a.out.type, [&](auto in, auto out) {
        error = with_mode(mode_of(a), [&](auto mode) {
            auto kernel =
                backward_kernel<decltype(mode)::value, typename decltype(in)::Storage, typename decltype(out)::Storage>;
            return launch(kernel, a, geometry, stream);
        });
    });
    return known ? error : cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace smoothloss
