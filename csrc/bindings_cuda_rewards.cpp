#include "bindings_cuda_rewards.h"

#include "bindings_cuda_common.h"
#include "bindings_rewards.h"
#include "cuda/rewards.h"

namespace smoothloss {
namespace {

using namespace ngram;

struct Cuda {
    static void score(const BleuArguments& a, int device, uintptr_t stream) {
        run(&cuda::sentence_bleu, "sentence_bleu", a, device, stream);
    }

    static void score(const CiderArguments& a, int device, uintptr_t stream) {
        require_scratch(a.scratch, a.candidates);
        run(&cuda::cider, "cider", a, device, stream);
    }

    static void score(const CiderNormArguments& a, int device, uintptr_t stream) {
        run(&cuda::cider_norms, "cider_norms", a, device, stream);
    }

    static void score(const AlignmentArguments& a, int device, uintptr_t stream) {
        require_scratch(a.scratch, a.candidates);
        run(&cuda::alignment, "alignment", a, device, stream);
    }

  private:
    static void require_scratch(const void* scratch, const Candidates& candidates) {
        require(scratch != nullptr || candidates.count == 0 || candidates.width == 0, "scratch: got a null pointer");
    }

    template <class Arguments>
    static void run(int (*kernel)(const Arguments&, int, void*), const char* name, const Arguments& a, int device,
                    uintptr_t stream) {
        py::gil_scoped_release release;
        check(kernel(a, device, pointer(stream)), name);
    }
};

}  // namespace

void bind_cuda_rewards(py::module_& m) {
    define_rewards<Cuda, int, uintptr_t>(m);
}

}  // namespace smoothloss
