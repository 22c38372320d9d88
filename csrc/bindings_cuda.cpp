// _C_cuda: the CUDA kernels for Python. The tensors behind the pointers are checked in smoothloss/backends/native,
// which also holds the device guard; nothing here waits for the device.
#include "bindings_cuda_common.h"
#include "bindings_cuda_rewards.h"
#include "bindings_cuda_sampling.h"
#include "cuda/jensen_shannon.h"
#include "cuda/token_statistics.h"

namespace smoothloss {
namespace {

// What follows the row kernel of a forward where its results are reduced: another launch.
void reduce_rows(const Logits& logits, const void* losses, const void* mass, int reduction_code, uintptr_t loss,
                 uintptr_t scale, int device, uintptr_t stream) {
    Reduction reduction = make_reduction(reduction_code);
    if (reduction == Reduction::none) return;
    require(loss != 0 && scale != 0, "loss, scale: got a null pointer");
    DataType type = accumulates_in_double(logits.type) ? DataType::float64 : DataType::float32;
    ReduceArguments a{losses, mass, type, reduction, logits.rows, pointer(loss), pointer(scale)};
    check(cuda::reduce(a, device, pointer(stream)), "reduce");
}

void forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, const std::optional<DenseTuple>& dense,
             const OptionsTuple& options, uintptr_t losses, uintptr_t mass, uintptr_t statistics, int reduction,
             uintptr_t loss, uintptr_t scale, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    require(logits.rows == 0 || (losses != 0 && mass != 0 && statistics != 0), "losses: got a null pointer");
    ForwardArguments a{logits,
                       make_weighted_targets(targets, logits),
                       make_dense_targets(dense, logits),
                       make_options(options),
                       pointer(losses),
                       pointer(mass),
                       pointer(statistics)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_forward(a, device, pointer(stream)), "sparse_cross_entropy_forward");
    reduce_rows(logits, a.loss, a.mass, reduction, loss, scale, device, stream);
}

void backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets,
              const std::optional<DenseTuple>& dense_tuple, const OptionsTuple& options_tuple, const ArrayTuple& grad,
              uintptr_t scale, const ArrayTuple& statistics, const ArrayTuple& mass, const OutputTuple& out, int device,
              uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    DenseTargets dense = make_dense_targets(dense_tuple, logits);
    RowOptions options = make_options(options_tuple);
    if (is_given(mass)) require_unsmoothed(options);
    require(!is_given(mass) || dense.slots == 0, "mass: got one together with dense rows");
    int type = accumulator_code(logits.type);
    bool grad_is_scalar = std::get<2>(grad) == 1;
    BackwardArguments a{logits,
                        make_weighted_targets(targets, logits),
                        dense,
                        options,
                        address(grad, "grad", type, grad_is_scalar ? 1 : logits.rows),
                        grad_is_scalar,
                        pointer(scale),
                        address(statistics, "statistics", type, logits.rows * kStatistics),
                        address_if_given(mass, "mass", type, logits.rows),
                        make_output(out, logits)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_backward(a, device, pointer(stream)), "sparse_cross_entropy_backward");
}

void forward_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets,
                      const std::optional<DenseTuple>& dense, const OptionsTuple& options, uintptr_t losses,
                      uintptr_t mass, const OutputTuple& out, int reduction, uintptr_t loss, uintptr_t scale,
                      int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    require(logits.rows == 0 || (losses != 0 && mass != 0), "losses: got a null pointer");
    ForwardBackwardArguments a{logits,
                               make_weighted_targets(targets, logits),
                               make_dense_targets(dense, logits),
                               make_options(options),
                               pointer(losses),
                               pointer(mass),
                               make_output(out, logits)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_forward_backward(a, device, pointer(stream)),
          "sparse_cross_entropy_forward_backward");
    reduce_rows(logits, a.loss, a.mass, reduction, loss, scale, device, stream);
}

void statistics_forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                        double softcap, const StatisticsTuple& results, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    TokenStatisticsArguments a = make_token_statistics(logits, targets, logit_scale, softcap, results);
    py::gil_scoped_release release;
    check(cuda::token_statistics_forward(a, device, pointer(stream)), "token_statistics_forward");
}

void statistics_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                         double softcap, const ArrayTuple& saved, const StatisticsGradientsTuple& grads,
                         const OutputTuple& out, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    TokenStatisticsBackwardArguments a =
        make_token_statistics_backward(logits, targets, logit_scale, softcap, saved, grads, make_output(out, logits));
    py::gil_scoped_release release;
    check(cuda::token_statistics_backward(a, device, pointer(stream)), "token_statistics_backward");
}

void divergence_forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                        double softcap, double beta, const ArrayTuple& loss, const ArrayTuple& saved, int device,
                        uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    JensenShannonArguments a = make_jensen_shannon(logits, targets, logit_scale, softcap, beta, loss, saved);
    py::gil_scoped_release release;
    check(cuda::jensen_shannon_forward(a, device, pointer(stream)), "jensen_shannon_forward");
}

void divergence_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                         double softcap, double beta, const ArrayTuple& saved, const ArrayTuple& grad,
                         const OutputTuple& out, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    JensenShannonBackwardArguments a = make_jensen_shannon_backward(logits, targets, logit_scale, softcap, beta, saved,
                                                                    grad, make_output(out, logits));
    py::gil_scoped_release release;
    check(cuda::jensen_shannon_backward(a, device, pointer(stream)), "jensen_shannon_backward");
}

void smoothed_target(const CandidatesTuple& candidates, const TableTuple& table, uintptr_t out_indices,
                     uintptr_t out_weights, uintptr_t out_uniform, int device, uintptr_t stream) {
    SmoothedTargetArguments a = make_smoothed_target(candidates, table, out_indices, out_weights, out_uniform);
    py::gil_scoped_release release;
    check(cuda::smoothed_target(a, device, pointer(stream)), "smoothed_target");
}

void reduce(const ArrayTuple& losses, const ArrayTuple& mass, int reduction, uintptr_t loss, uintptr_t scale,
            int device, uintptr_t stream) {
    ReduceArguments a = make_reduce(losses, mass, reduction, loss, scale);
    py::gil_scoped_release release;
    check(cuda::reduce(a, device, pointer(stream)), "reduce");
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
    m.def("token_statistics_forward", &s::statistics_forward);
    m.def("token_statistics_backward", &s::statistics_backward);
    m.def("jensen_shannon_forward", &s::divergence_forward);
    m.def("jensen_shannon_backward", &s::divergence_backward);
    m.def("smoothed_target", &s::smoothed_target);
    m.def("reduce", &s::reduce);
    m.def("scaled_copy", &s::scaled_copy);
    s::bind_cuda_rewards(m);
    s::bind_cuda_sampling(m);
}
