#include "bindings_cuda_sampling.h"

#include "bindings_cuda_common.h"
#include "bindings_draws.h"
#include "cuda/sampling.h"

namespace smoothloss {
namespace {

void draw(const SentencesTuple& sentences, const ExcludedTuple& excluded, const PoolTuple& pool,
          const TemperatureTuple& temperature, uintptr_t seed, const SamplesTuple& out, uintptr_t scratch,
          int64_t words, int device, uintptr_t stream) {
    DrawArguments a = make_draw(sentences, excluded, pool, temperature, seed, out);
    int64_t needed = cuda::scratch_words(a);
    require(words >= needed && (needed == 0 || scratch != 0),
            "scratch: got " + std::to_string(words) + " words, expected " + std::to_string(needed));
    py::gil_scoped_release release;
    check(cuda::draw_hamming(a, static_cast<int64_t*>(pointer(scratch)), device, pointer(stream)), "draw_hamming");
}

void words(const WordsTuple& arguments, int device, uintptr_t stream) {
    WordArguments a = make_words(arguments);
    py::gil_scoped_release release;
    check(cuda::philox_words(a, device, pointer(stream)), "philox_words");
}

}  // namespace

void bind_cuda_sampling(py::module_& m) {
    m.def("draw_hamming", &draw);
    m.def("philox_words", &words);
}

}  // namespace smoothloss
