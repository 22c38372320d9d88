#include "cpu/jensen_shannon.h"

#include "cpu/isa.h"
#include "cpu/row_chunks.h"
#include "cpu/statistics_scratch.h"

namespace smoothloss {

void jensen_shannon_forward(const JensenShannonArguments& a, const Execution& execution) {
    const JensenShannonKernels& kernels = jensen_shannon_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    StatisticsScratchPool scratch(threads, a.logits.classes, a.targets.slots, Pass::jensen_shannon);
    for_row_chunks(a.logits.rows, threads,
                   [&](int64_t begin, int64_t end, int thread) { kernels.forward(a, begin, end, scratch.of(thread)); });
}

void jensen_shannon_backward(const JensenShannonBackwardArguments& a, const Execution& execution) {
    const JensenShannonKernels& kernels = jensen_shannon_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    StatisticsScratchPool scratch(threads, a.logits.classes, a.targets.slots, Pass::jensen_shannon_backward);
    advise_huge_pages(a.out, a.logits);
    for_row_chunks(a.logits.rows, threads, [&](int64_t begin, int64_t end, int thread) {
        kernels.backward(a, begin, end, scratch.of(thread));
    });
}

}  // namespace smoothloss
