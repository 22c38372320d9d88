#include "bindings_cpu_sampling.h"

#include "bindings_draws.h"
#include "cpu/isa.h"
#include "cpu/sampling.h"
#include "cpu/weights.h"

namespace smoothloss {
namespace {

void draw(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
          const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out, int threads,
          const std::string& isa) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    DrawArguments a = make_draw(sentences, excluded, pool, temperature, seed, out);
    const DrawKernels& kernels = draw_kernels_for(isa);
    py::gil_scoped_release release;
    draw_hamming(a, kernels, threads);
}

void draw_by_edits(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
                   const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out, const EditTuple& edit,
                   int threads, const std::string& isa) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    EditArguments a = make_edit(make_draw(sentences, excluded, pool, temperature, seed, out), edit);
    const DrawKernels& kernels = draw_kernels_for(isa);
    py::gil_scoped_release release;
    draw_edit(a, kernels, threads);
}

void weigh(const SampleNumbersTuple& scores, const SampleNumbersTuple& log_prob, int64_t samples, int64_t inputs,
           const WeightOptionsTuple& options, uintptr_t out, int threads, const std::string&) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    WeightArguments a = make_weights(scores, log_prob, samples, inputs, options, out);
    py::gil_scoped_release release;
    importance_weights(a);
}

}  // namespace

void bind_sampling(py::module_& m) {
    m.def("draw_hamming", &draw);
    m.def("draw_edit", &draw_by_edits);
    m.def("importance_weights", &weigh);
}

}  // namespace smoothloss
