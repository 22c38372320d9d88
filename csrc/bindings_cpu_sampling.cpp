#include "bindings_cpu_sampling.h"

#include "bindings_draws.h"
#include "cpu/isa.h"
#include "cpu/sampling.h"

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

}  // namespace

void bind_sampling(py::module_& m) {
    m.def("draw_hamming", &draw);
    m.def("draw_edit", &draw_by_edits);
}

}  // namespace smoothloss
