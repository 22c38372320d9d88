#include "bindings_cuda_sampling.h"

#include "bindings_cuda_common.h"
#include "bindings_draws.h"
#include "cuda/sampling.h"
#include "cuda/weights.h"

namespace smoothloss {
namespace {

void require_scratch(uintptr_t scratch, int64_t words, int64_t needed) {
    require(words >= needed && (needed == 0 || scratch != 0),
            "scratch: got " + std::to_string(words) + " words, expected " + std::to_string(needed));
}

void draw(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
          const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out, uintptr_t scratch,
          int64_t words, int device, uintptr_t stream) {
    DrawArguments a = make_draw(sentences, excluded, pool, temperature, seed, out);
    require_scratch(scratch, words, cuda::scratch_words(a));
    py::gil_scoped_release release;
    check(cuda::draw_hamming(a, static_cast<int64_t*>(pointer(scratch)), device, pointer(stream)), "draw_hamming");
}

void draw_by_edits(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
                   const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out, const EditTuple& edit,
                   uintptr_t scratch, int64_t words, int device, uintptr_t stream) {
    EditArguments a = make_edit(make_draw(sentences, excluded, pool, temperature, seed, out), edit);
    require_scratch(scratch, words, cuda::scratch_words(a));
    py::gil_scoped_release release;
    check(cuda::draw_edit(a, static_cast<int64_t*>(pointer(scratch)), device, pointer(stream)), "draw_edit");
}

void weigh(const SampleNumbersTuple& scores, const SampleNumbersTuple& log_prob, int64_t samples, int64_t inputs,
           const WeightOptionsTuple& options, uintptr_t out, int device, uintptr_t stream) {
    WeightArguments a = make_weights(scores, log_prob, samples, inputs, options, out);
    py::gil_scoped_release release;
    check(cuda::importance_weights(a, device, pointer(stream)), "importance_weights");
}

}  // namespace

void bind_cuda_sampling(py::module_& m) {
    m.def("draw_hamming", &draw);
    m.def("draw_edit", &draw_by_edits);
    m.def("importance_weights", &weigh);
}

}  // namespace smoothloss
