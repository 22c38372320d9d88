// _C: the CPU kernels for Python. The tensors behind the pointers are checked in smoothloss/backends/native.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "bindings_common.h"
#include "bindings_cpu_rewards.h"
#include "bindings_cpu_sampling.h"
#include "cpu/bfloat16_matmul.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/jensen_shannon.h"
#include "cpu/parallel.h"
#include "cpu/smoothed_target.h"
#include "cpu/sparse_cross_entropy.h"
#include "cpu/target_indices.h"
#include "cpu/token_statistics.h"

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

// The environment may force an instruction set.
Execution make_execution(int threads) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    const char* isa = std::getenv("SMOOTHLOSS_ISA");
    return {threads, isa ? isa : ""};
}

// Where the loss and the mass of each row go: to the caller, or to room of our own where it wants but their reduction.
class RowResults {
  public:
    RowResults(const Logits& logits, uintptr_t losses, uintptr_t mass)
        : losses_(pointer(losses)), mass_(pointer(mass)) {
        int64_t size = logits.rows * (accumulates_in_double(logits.type) ? 8 : 4);
        if (losses_ && mass_) return;
        memory_.reset(new unsigned char[2 * size + 1]);
        if (!losses_) losses_ = memory_.get();
        if (!mass_) mass_ = memory_.get() + size;
    }

    void* losses() const { return losses_; }
    void* mass() const { return mass_; }

  private:
    void* losses_;
    void* mass_;
    std::unique_ptr<unsigned char[]> memory_;
};

ReduceArguments reduction_of(const Logits& logits, Reduction reduction, const void* losses, const void* mass,
                             uintptr_t loss, uintptr_t scale) {
    DataType type = accumulates_in_double(logits.type) ? DataType::float64 : DataType::float32;
    return {losses, mass, type, reduction, logits.rows, pointer(loss), pointer(scale)};
}

// Every function on targets returns the place of the first index that is out of range, and computes nothing then; -1 if
// there is none. `losses` and `mass` are those of each row, and may be left out (0) where they are reduced: to `loss`,
// and to `scale`, which the gradient is multiplied by.
int64_t forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple,
                const std::optional<DenseTuple>& dense, const OptionsTuple& options, uintptr_t losses, uintptr_t mass,
                uintptr_t statistics, int reduction_code, uintptr_t loss, uintptr_t scale, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    Targets targets = make_weighted_targets(targets_tuple, logits);
    Reduction reduction = make_reduction(reduction_code);
    RowResults results(logits, losses, mass);
    ForwardArguments a{logits,
                       targets,
                       make_dense_targets(dense, logits),
                       make_options(options),
                       results.losses(),
                       results.mass(),
                       pointer(statistics)};
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(targets, logits.rows, logits.classes);
    if (indices.first_wrong() >= 0) return indices.first_wrong();
    a.targets = indices.targets();
    sparse_cross_entropy_forward(a, execution);
    if (reduction != Reduction::none) reduce(reduction_of(logits, reduction, a.loss, a.mass, loss, scale));
    return -1;
}

void backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple,
              const std::optional<DenseTuple>& dense, const OptionsTuple& options_tuple, const ArrayTuple& grad,
              uintptr_t scale, const ArrayTuple& statistics, const ArrayTuple& mass, const OutputTuple& out,
              int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    Targets targets = make_weighted_targets(targets_tuple, logits);
    RowOptions options = make_options(options_tuple);
    if (is_given(mass)) require_unsmoothed(options);
    int type = accumulator_code(logits.type);
    bool grad_is_scalar = std::get<2>(grad) == 1;
    BackwardArguments a{logits,
                        targets,
                        make_dense_targets(dense, logits),
                        options,
                        address(grad, "grad", type, grad_is_scalar ? 1 : logits.rows),
                        grad_is_scalar,
                        pointer(scale),
                        address(statistics, "statistics", type, logits.rows * kStatistics),
                        address_if_given(mass, "mass", type, logits.rows),
                        make_cpu_output(out, logits)};
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(targets, logits.rows, logits.classes);
    a.targets = indices.targets();
    sparse_cross_entropy_backward(a, execution);
}

// Returns beside the place how many rows are ignored.
std::pair<int64_t, int64_t> forward_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets_tuple,
                                             const std::optional<DenseTuple>& dense, const OptionsTuple& options,
                                             uintptr_t losses, uintptr_t mass, const OutputTuple& out,
                                             int reduction_code, uintptr_t loss, uintptr_t scale, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    Targets targets = make_weighted_targets(targets_tuple, logits);
    Reduction reduction = make_reduction(reduction_code);
    RowResults results(logits, losses, mass);
    ForwardBackwardArguments a{
        logits,           targets,        make_dense_targets(dense, logits), make_options(options),
        results.losses(), results.mass(), make_cpu_output(out, logits)};
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(targets, logits.rows, logits.classes);
    if (indices.first_wrong() >= 0) return {indices.first_wrong(), 0};
    a.targets = indices.targets();
    sparse_cross_entropy_forward_backward(a, execution);
    if (reduction != Reduction::none) reduce(reduction_of(logits, reduction, a.loss, a.mass, loss, scale));
    return {-1, count_zeros(logits.type, a.mass, logits.rows)};
}

int64_t statistics_forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                           double softcap, const StatisticsTuple& results, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    TokenStatisticsArguments a = make_token_statistics(logits, targets, logit_scale, softcap, results);
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(a.targets, logits.rows, logits.classes);
    if (indices.first_wrong() >= 0) return indices.first_wrong();
    a.targets = indices.targets();
    token_statistics_forward(a, execution);
    return -1;
}

void statistics_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                         double softcap, const ArrayTuple& saved, const StatisticsGradientsTuple& grads,
                         const OutputTuple& out, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    TokenStatisticsBackwardArguments a = make_token_statistics_backward(logits, targets, logit_scale, softcap, saved,
                                                                        grads, make_cpu_output(out, logits));
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(a.targets, logits.rows, logits.classes);
    a.targets = indices.targets();
    token_statistics_backward(a, execution);
}

int64_t divergence_forward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                           double softcap, double beta, const ArrayTuple& loss, const ArrayTuple& saved, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    JensenShannonArguments a = make_jensen_shannon(logits, targets, logit_scale, softcap, beta, loss, saved);
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(a.targets, logits.rows, logits.classes);
    if (indices.first_wrong() >= 0) return indices.first_wrong();
    a.targets = indices.targets();
    jensen_shannon_forward(a, execution);
    return -1;
}

void divergence_backward(const LogitsTuple& logits_tuple, const TargetsTuple& targets, double logit_scale,
                         double softcap, double beta, const ArrayTuple& saved, const ArrayTuple& grad,
                         const OutputTuple& out, int threads) {
    Logits logits = make_cpu_logits(logits_tuple);
    JensenShannonBackwardArguments a = make_jensen_shannon_backward(logits, targets, logit_scale, softcap, beta, saved,
                                                                    grad, make_cpu_output(out, logits));
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    TargetIndices indices(a.targets, logits.rows, logits.classes);
    a.targets = indices.targets();
    jensen_shannon_backward(a, execution);
}

void reduce_rows(const ArrayTuple& losses, const ArrayTuple& mass, int reduction, uintptr_t loss, uintptr_t scale) {
    reduce(make_reduce(losses, mass, reduction, loss, scale));
}

// False where a candidate is negative and not the one that is ignored; nothing is written then.
bool build_target(const CandidatesTuple& candidates, const TableTuple& table, uintptr_t indices, uintptr_t weights,
                  uintptr_t uniform, int threads) {
    SmoothedTargetArguments a = make_smoothed_target(candidates, table, indices, weights, uniform);
    Execution execution = make_execution(threads);
    py::gil_scoped_release release;
    if (has_wrong_candidate(a)) return false;
    smoothed_target(a, execution.threads);
    return true;
}

// (a_ptr, rows, inner, row_stride), (b_ptr, columns, inner, row_stride), (out_ptr, row_stride)
void matmul(const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& a,
            const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& b, uintptr_t bias,
            const std::tuple<uintptr_t, int64_t>& out, int threads, const std::string& isa) {
    require(std::get<2>(a) == std::get<2>(b) && std::get<1>(a) >= 0 && std::get<1>(b) >= 0 && std::get<2>(a) >= 0,
            "bfloat16_matmul: got sizes that do not fit");
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    MatmulArguments m{static_cast<const uint16_t*>(pointer(std::get<0>(a))),
                      static_cast<const uint16_t*>(pointer(std::get<0>(b))),
                      static_cast<const float*>(pointer(bias)),
                      static_cast<float*>(pointer(std::get<0>(out))),
                      std::get<1>(a),
                      std::get<1>(b),
                      std::get<2>(a),
                      std::get<3>(a),
                      std::get<3>(b),
                      std::get<1>(out)};
    py::gil_scoped_release release;
    bfloat16_matmul(m, threads, isa);
}

// a and b: data, rows, columns, stride; out: data, whether it is bfloat16; order: the rows of b, or 0.
void banded_matmul(const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& a,
                   const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& b, const std::tuple<uintptr_t, bool>& out,
                   uintptr_t order, const std::vector<int64_t>& ends, int threads, const std::string& isa) {
    int64_t inner = std::get<2>(a);
    require(std::get<1>(a) >= 0 && inner >= 0 && std::get<1>(b) >= 0 && std::get<2>(b) >= 0 &&
                (order != 0 || std::get<1>(b) >= inner),
            "bfloat16_banded_matmul: got sizes that do not fit");
    require(!ends.empty() && ends.front() >= 0 && ends.back() == inner && std::is_sorted(ends.begin(), ends.end()),
            "ends: got " + std::to_string(ends.size()) + " numbers, expected ascending ones up to the inner size");
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    BandedMatmulArguments m{static_cast<const uint16_t*>(pointer(std::get<0>(a))),
                            static_cast<const uint16_t*>(pointer(std::get<0>(b))),
                            static_cast<const int64_t*>(pointer(order)),
                            ends.data(),
                            pointer(std::get<0>(out)),
                            std::get<1>(out),
                            std::get<1>(a),
                            std::get<2>(b),
                            inner,
                            static_cast<int64_t>(ends.size()),
                            std::get<3>(a),
                            std::get<3>(b)};
    py::gil_scoped_release release;
    bfloat16_banded_matmul(m, threads, isa);
}

}  // namespace
}  // namespace smoothloss

PYBIND11_MODULE(_C, m) {
    namespace s = smoothloss;
    m.doc() = "The CPU kernels of smoothloss: raw pointers in, results written through pointers.";
    m.def("available_isas", &s::available_isas, "Instruction sets that can run here, the best first.");
    m.def("has_openmp", &s::has_openmp, "Whether the process has an OpenMP library to take threads from.");
    m.def("sparse_cross_entropy_forward", &s::forward);
    m.def("sparse_cross_entropy_backward", &s::backward);
    m.def("sparse_cross_entropy_forward_backward", &s::forward_backward);
    m.def("token_statistics_forward", &s::statistics_forward);
    m.def("token_statistics_backward", &s::statistics_backward);
    m.def("jensen_shannon_forward", &s::divergence_forward);
    m.def("jensen_shannon_backward", &s::divergence_backward);
    m.def("smoothed_target", &s::build_target);
    m.def("reduce", &s::reduce_rows);
    m.def("prefer_huge_pages", [](uintptr_t data, int64_t bytes) { s::prefer_huge_pages(s::pointer(data), bytes); });
    m.def("bfloat16_matmul_isas", &s::bfloat16_matmul_isas);
    m.def("bfloat16_matmul", &s::matmul);
    m.def("bfloat16_banded_matmul", &s::banded_matmul);
    s::bind_rewards(m);
    s::bind_sampling(m);
}
