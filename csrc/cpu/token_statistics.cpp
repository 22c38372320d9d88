#include "cpu/token_statistics.h"

#include "cpu/isa.h"
#include "cpu/row_chunks.h"
#include "cpu/statistics_scratch.h"

namespace smoothloss {
void token_statistics_forward(const TokenStatisticsArguments& a, const Execution& execution) {
    const StatisticsKernels& kernels = statistics_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    StatisticsScratchPool scratch(threads, a.logits.classes, a.targets.slots, Pass::statistics);
    for_row_chunks(a.logits.rows, threads,
                   [&](int64_t begin, int64_t end, int thread) { kernels.forward(a, begin, end, scratch.of(thread)); });
}

void token_statistics_backward(const TokenStatisticsBackwardArguments& a, const Execution& execution) {
    const StatisticsKernels& kernels = statistics_kernels_for(execution.isa);
    int threads = useful_threads(a.logits, execution.threads);
    StatisticsScratchPool scratch(threads, a.logits.classes, a.targets.slots, Pass::statistics_backward);
    advise_huge_pages(a.out, a.logits);
    for_row_chunks(a.logits.rows, threads, [&](int64_t begin, int64_t end, int thread) {
        kernels.backward(a, begin, end, scratch.of(thread));
    });
}

}  // namespace smoothloss
