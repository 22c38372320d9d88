// _C_cuda: the CUDA kernels for Python. The tensors behind the pointers are checked in smoothloss/ops/native.py, which
// also holds the device guard; nothing here waits for the device.
#include "bindings_common.h"
#include "cuda/sparse_cross_entropy.h"

namespace smoothloss {
namespace {

void check(int error, const char* what) {
    if (error != 0) throw std::runtime_error(std::string(what) + ": " + cuda::error_string(error));
}

void require_slots(const Targets& targets, const Logits& logits) {
    int64_t most = cuda::max_slots(logits.type);
    require(targets.slots <= most, "indices: got " + std::to_string(targets.slots) +
                                       " entries a row, expected at most " + std::to_string(most) +
                                       "; merge equal indices first");
}

Targets make_weighted_targets(const TargetsTuple& t, const Logits& logits) {
    Targets targets = make_targets(t, logits, true);
    require_slots(targets, logits);
    return targets;
}

void forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, const OptionsTuple& options_tuple,
             uintptr_t loss, uintptr_t lse, uintptr_t entropy, uintptr_t mass, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    RowOptions options = make_options(options_tuple);
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    ForwardArguments a{logits,        make_weighted_targets(targets_tuple, logits), options,
                       pointer(loss), static_cast<double*>(pointer(lse)),           pointer(entropy),
                       pointer(mass)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_forward(a, device, pointer(stream)), "sparse_cross_entropy_forward");
}

void backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, const OptionsTuple& options_tuple,
              uintptr_t grad, bool grad_is_scalar, uintptr_t lse, uintptr_t entropy, uintptr_t mass,
              const OutputTuple& out, int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    RowOptions options = make_options(options_tuple);
    if (mass) require_plain(options);
    require(logits.rows == 0 || (grad != 0 && lse != 0), "grad, lse: got a null pointer");
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    BackwardArguments a{logits,
                        make_weighted_targets(targets_tuple, logits),
                        options,
                        pointer(grad),
                        grad_is_scalar,
                        static_cast<const double*>(pointer(lse)),
                        pointer(entropy),
                        pointer(mass),
                        make_output(out, logits)};
    py::gil_scoped_release release;
    check(cuda::sparse_cross_entropy_backward(a, device, pointer(stream)), "sparse_cross_entropy_backward");
}

void forward_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple,
                      const OptionsTuple& options_tuple, uintptr_t loss, uintptr_t mass, const OutputTuple& out,
                      int device, uintptr_t stream) {
    Logits logits = make_logits(logits_tuple);
    ForwardBackwardArguments a{logits,
                               make_weighted_targets(targets_tuple, logits),
                               make_options(options_tuple),
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
}
