// _C: the CPU kernels for Python. The tensors behind the pointers are checked in smoothloss/backends/native.
#include <pybind11/stl.h>

#include "bindings_common.h"
#include "bindings_cpu_rewards.h"
#include "bindings_cpu_sampling.h"
#include "cpu/bfloat16_matmul.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/smoothed_target.h"
#include "cpu/sparse_cross_entropy.h"

namespace smoothloss {
namespace {

void require_cpu_type(DataType type, const char* name) {
    require(type != DataType::float16, std::string(name) + ": float16 is not supported on the CPU");
}

Logits make_cpu_logits(const LogitsTuple& t) {
    Logits logits = make_logits(t);
    require_cpu_type(logits.type, "logits");
    return logits;
}

Output make_cpu_output(const OutputTuple& t, const Logits& logits) {
    Output out = make_output(t, logits);
    require_cpu_type(out.type, "out");
    return out;
}

Execution make_execution(int threads, const std::string& isa) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    return {threads, isa};
}

void forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, const DenseTuple& dense,
             const OptionsTuple& options_tuple, uintptr_t loss, uintptr_t lse, uintptr_t entropy, uintptr_t mass,
             int threads, const std::string& isa) {
    Logits logits = make_cpu_logits(logits_tuple);
    RowOptions options = make_options(options_tuple);
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    ForwardArguments a{logits,
                       make_targets(targets_tuple, logits, true),
                       make_dense_targets(dense, logits),
                       options,
                       pointer(loss),
                       static_cast<double*>(pointer(lse)),
                       pointer(entropy),
                       pointer(mass)};
    Execution execution = make_execution(threads, isa);
    py::gil_scoped_release release;
    sparse_cross_entropy_forward(a, execution);
}

void backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, const DenseTuple& dense,
              const OptionsTuple& options_tuple, uintptr_t grad, bool grad_is_scalar, uintptr_t scale, uintptr_t lse,
              uintptr_t entropy, uintptr_t mass, const OutputTuple& out, int threads, const std::string& isa) {
    Logits logits = make_cpu_logits(logits_tuple);
    RowOptions options = make_options(options_tuple);
    if (mass) require_unsmoothed(options);
    require(logits.rows == 0 || (grad != 0 && lse != 0), "grad, lse: got a null pointer");
    require(options.entropy == 0 || entropy != 0 || logits.rows == 0, "entropy: got a null pointer");
    BackwardArguments a{logits,
                        make_targets(targets_tuple, logits, true),
                        make_dense_targets(dense, logits),
                        options,
                        pointer(grad),
                        grad_is_scalar,
                        pointer(scale),
                        static_cast<const double*>(pointer(lse)),
                        pointer(entropy),
                        pointer(mass),
                        make_cpu_output(out, logits)};
    Execution execution = make_execution(threads, isa);
    py::gil_scoped_release release;
    sparse_cross_entropy_backward(a, execution);
}

void forward_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, const DenseTuple& dense,
                      const OptionsTuple& options_tuple, uintptr_t loss, uintptr_t mass, const OutputTuple& out,
                      int threads, const std::string& isa) {
    Logits logits = make_cpu_logits(logits_tuple);
    ForwardBackwardArguments a{logits,
                               make_targets(targets_tuple, logits, true),
                               make_dense_targets(dense, logits),
                               make_options(options_tuple),
                               pointer(loss),
                               pointer(mass),
                               make_cpu_output(out, logits)};
    Execution execution = make_execution(threads, isa);
    py::gil_scoped_release release;
    sparse_cross_entropy_forward_backward(a, execution);
}

void select(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple, uintptr_t lse, uintptr_t selected,
            int threads, const std::string& isa) {
    Logits logits = make_cpu_logits(logits_tuple);
    SelectArguments a{logits, make_targets(targets_tuple, logits, false), static_cast<double*>(pointer(lse)),
                      pointer(selected)};
    Execution execution = make_execution(threads, isa);
    py::gil_scoped_release release;
    logsumexp_and_select_forward(a, execution);
}

void build_target(const CandidatesTuple& candidates, const TableTuple& table, uintptr_t indices, uintptr_t weights,
                  uintptr_t uniform, int threads, const std::string& isa) {
    SmoothedTargetArguments a = make_smoothed_target(candidates, table, indices, weights, uniform);
    Execution execution = make_execution(threads, isa);
    py::gil_scoped_release release;
    smoothed_target(a, execution.threads);
}

// (a_ptr, rows, inner, row_stride), (b_ptr, columns, inner, row_stride), (out_ptr, row_stride)
void matmul(const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& a,
            const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& b, const std::tuple<uintptr_t, int64_t>& out,
            int threads) {
    require(has_bfloat16_matmul(), "bfloat16_matmul: this machine or this build does not have it");
    require(std::get<2>(a) == std::get<2>(b) && std::get<1>(a) >= 0 && std::get<1>(b) >= 0 && std::get<2>(a) >= 0,
            "bfloat16_matmul: got sizes that do not fit");
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    MatmulArguments m{static_cast<const uint16_t*>(pointer(std::get<0>(a))),
                      static_cast<const uint16_t*>(pointer(std::get<0>(b))),
                      static_cast<float*>(pointer(std::get<0>(out))),
                      std::get<1>(a),
                      std::get<1>(b),
                      std::get<2>(a),
                      std::get<3>(a),
                      std::get<3>(b),
                      std::get<1>(out)};
    py::gil_scoped_release release;
    bfloat16_matmul(m, threads);
}

void reduce_to_mean(uintptr_t losses, uintptr_t mass, int type, int64_t rows, uintptr_t loss, uintptr_t scale,
                    int threads, const std::string& isa) {
    make_execution(threads, isa);
    mean(make_mean(losses, mass, type, rows, loss, scale));
}

}  // namespace
}  // namespace smoothloss

PYBIND11_MODULE(_C, m) {
    namespace s = smoothloss;
    m.doc() = "The CPU kernels of smoothloss: raw pointers in, results written through pointers.";
    m.def("available_isas", &s::available_isas, "Instruction sets that can run here, the best first.");
    m.def("sparse_cross_entropy_forward", &s::forward);
    m.def("sparse_cross_entropy_backward", &s::backward);
    m.def("sparse_cross_entropy_forward_backward", &s::forward_backward);
    m.def("logsumexp_and_select_forward", &s::select);
    m.def("smoothed_target", &s::build_target);
    m.def("mean", &s::reduce_to_mean);
    m.def("prefer_huge_pages", [](uintptr_t data, int64_t bytes) { s::prefer_huge_pages(s::pointer(data), bytes); });
    m.def("has_bfloat16_matmul", &s::has_bfloat16_matmul);
    m.def("bfloat16_matmul", &s::matmul);
    s::bind_rewards(m);
    s::bind_sampling(m);
#ifdef _OPENMP
    m.attr("has_openmp") = true;
#else
    m.attr("has_openmp") = false;
#endif
}
