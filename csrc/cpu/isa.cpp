#include "cpu/isa.h"

#include <stdexcept>

#include "cpu/processor.h"

namespace smoothloss {
namespace {

struct Candidate {
    const char* name;
    const RowKernels* rows;
    const DrawKernels* draws;
    const StatisticsKernels* statistics;
    const JensenShannonKernels* jensen_shannon;
    bool supported;
};

const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> all = {
#ifdef SMOOTHLOSS_HAS_AVX512BF16
        {"avx512bf16", &avx512bf16::row_kernels, &avx512bf16::draw_kernels, &avx512bf16::statistics_kernels,
         &avx512bf16::jensen_shannon_kernels, processor().avx512bf16},
#endif
#ifdef SMOOTHLOSS_HAS_AVX512
        {"avx512", &avx512::row_kernels, &avx512::draw_kernels, &avx512::statistics_kernels,
         &avx512::jensen_shannon_kernels, processor().avx512},
#endif
#ifdef SMOOTHLOSS_HAS_AVX2
        {"avx2", &avx2::row_kernels, &avx2::draw_kernels, &avx2::statistics_kernels, &avx2::jensen_shannon_kernels,
         processor().avx2},
#endif
        {"baseline", &baseline::row_kernels, &baseline::draw_kernels, &baseline::statistics_kernels,
         &baseline::jensen_shannon_kernels, true},
    };
    return all;
}

// Throws std::invalid_argument for a name that is not among available_isas().
const Candidate& candidate_for(const std::string& isa) {
    std::string choices;
    for (const Candidate& candidate : candidates()) {
        if (!candidate.supported) continue;
        if (isa.empty() || isa == candidate.name) return candidate;
        choices += std::string(choices.empty() ? "" : ", ") + candidate.name;
    }
    throw std::invalid_argument("isa: got '" + isa + "', expected one of " + choices);
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates()) {
        if (candidate.supported) names.push_back(candidate.name);
    }
    return names;
}

const RowKernels& row_kernels_for(const std::string& isa) {
    return *candidate_for(isa).rows;
}

const DrawKernels& draw_kernels_for(const std::string& isa) {
    return *candidate_for(isa).draws;
}

const StatisticsKernels& statistics_kernels_for(const std::string& isa) {
    return *candidate_for(isa).statistics;
}

const JensenShannonKernels& jensen_shannon_kernels_for(const std::string& isa) {
    return *candidate_for(isa).jensen_shannon;
}

}  // namespace smoothloss
