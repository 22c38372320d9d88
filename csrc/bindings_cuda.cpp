// _C_cuda: the CUDA kernels for Python. The tensors behind the pointers are checked in smoothloss/ops/native.py, which
// also holds the device guard; nothing here waits for the device.
#include "bindings_cuda_common.h"
#include "bindings_cuda_rewards.h"
#include "bindings_cuda_sampling.h"

namespace smoothloss {
namespace {

void forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, const DenseTuple& dense,
             const OptionsTuple& options_tuple, uintptr_t loss, uintptr_t lse, uintptr_t entropy, uintptr_t mass,
             int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    RowOptions options = make_options(options_tuple);
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    ForwardArguments a{logits,
                       make_targets(targets, logits, true),
                       make_dense_targets(dense, logits),
                       options,
                       pointer(loss),
                       static_cast<double*>(pointer(lse)),
                       pointer(entropy),
                       pointer(mass)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_forward(a, device, pointer(stream)), "sparse_cross_entropy_forward");
}

void backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, const DenseTuple& dense_tuple,
              const OptionsTuple& options_tuple, uintptr_t grad, bool grad_is_scalar, uintptr_t scale, uintptr_t lse,
              uintptr_t entropy, uintptr_t mass, const OutputTuple& out, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    DenseTargets dense = make_dense_targets(dense_tuple, logits);
    RowOptions options = make_options(options_tuple);
    if (mass) require_unsmoothed(options);
    require(mass == 0 || dense.slots == 0, "mass: got one together with dense rows");
    require(logits.rows == 0 || (grad != 0 && lse != 0), "grad, lse: got a null pointer");
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    BackwardArguments a{logits,
                        make_targets(targets, logits, true),
                        dense,
                        options,
                        pointer(grad),
                        grad_is_scalar,
                        pointer(scale),
                        static_cast<const double*>(pointer(lse)),
                        pointer(entropy),
                        pointer(mass),
                        make_output(out, logits)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_backward(a, device, pointer(stream)), "sparse_cross_entropy_backward");
}

void forward_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, const DenseTuple& dense,
                      const OptionsTuple& options, uintptr_t loss, uintptr_t mass, const OutputTuple& out, int device,
                      uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    ForwardBackwardArguments a{logits,
                               make_targets(targets, logits, true),
                               make_dense_targets(dense, logits),
                               make_options(options),
                               pointer(loss),
                               pointer(mass),
                               make_output(out, logits)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_forward_backward(a, device, pointer(stream)),
          "sparse_cross_entropy_forward_backward");
}

void select(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, uintptr_t lse, uintptr_t selected,
            int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    SelectArguments a{logits, make_targets(targets_tuple, logits, false), static_cast<double*>(pointer(lse)),
                      pointer(selected)};
    py::gil_scoped_release release;
    check(cuda::logsumexp_and_select_forward(a, device, pointer(stream)), "logsumexp_and_select_forward");
}

void smoothed_target(const CandidatesTuple& candidates, const TableTuple& table, uintptr_t out_indices,
                     uintptr_t out_weights, uintptr_t out_uniform, int device, uintptr_t stream) {
    SmoothedTargetArguments a = make_smoothed_target(candidates, table, out_indices, out_weights, out_uniform);
    py::gil_scoped_release release;
    check(cuda::smoothed_target(a, device, pointer(stream)), "smoothed_target");
}

void mean(uintptr_t losses, uintptr_t mass, int type, int64_t rows, uintptr_t loss, uintptr_t scale, int device,
          uintptr_t stream) {
    MeanArguments a = make_mean(losses, mass, type, rows, loss, scale);
    py::gil_scoped_release release;
    check(cuda::mean(a, device, pointer(stream)), "mean");
}

void scaled_copy(uintptr_t values, int type, int64_t count, uintptr_t factor, uintptr_t out, int out_type, int device,
                 uintptr_t stream) {
    ScaledCopyArguments a = make_scaled_copy(values, type, count, factor, out, out_type);
    py::gil_scoped_release release;
    check(cuda::scaled_copy(a, device, pointer(stream)), "scaled_copy");
}

std::string status(int device) {
    int error = cuda::status(device);
    return error == 0 ? "" : cuda::error_string(error);
}

}  // namespace
}  // namespace smoothloss

PYBIND11_MODULE(_C_cuda, m) {
    namespace s = smoothloss;
    m.doc() = "The CUDA kernels of smoothloss: raw device pointers in, results written through pointers.";
    m.def("status", &s::status, "Empty when the kernels can run on this device, else the error of the CUDA runtime.");
    m.def("sparse_cross_entropy_forward", &s::forward);
    m.def("sparse_cross_entropy_backward", &s::backward);
    m.def("sparse_cross_entropy_forward_backward", &s::forward_backward);
    m.def("logsumexp_and_select_forward", &s::select);
    m.def("smoothed_target", &s::smoothed_target);
    m.def("mean", &s::mean);
    m.def("scaled_copy", &s::scaled_copy);
    s::bind_cuda_rewards(m);
    s::bind_cuda_sampling(m);
}
