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

void words(const WordsTuple& arguments, int threads, const std::string&) {
    require(threads >= 1, "threads: got " + std::to_string(threads) + ", expected at least 1");
    WordArguments a = make_words(arguments);
    py::gil_scoped_release release;
    philox_words(a, threads);
}

}  // namespace

void bind_sampling(py::module_& m) {
    m.def("draw_hamming", &draw);
    m.def("philox_words", &words);
}

}  // namespace smoothloss
