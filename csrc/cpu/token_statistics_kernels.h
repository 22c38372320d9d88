// What each instruction set offers for token statistics: kernels over the rows begin .. end - 1.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace smoothloss {

// The classes of a row are gone through in blocks that stay in L1.
constexpr int64_t kStatisticsBlock = 2048;

// Working memory of one thread. slot_of is -1 everywhere between two rows.
struct StatisticsScratch {
    int32_t* first;    // (blocks + 1,) where the classes of each block begin in `index`
    int32_t* index;    // (slots,) the listed classes: block by block, or the distinct ones in order of appearance
    double* z;         // (slots,) the logit of each distinct one
    double* gradient;  // (slots,) the sum of what comes back for its slots
    int32_t* slot_of;  // (classes,) where a class stands in the lists
    double* center;    // (blocks,) what the exponentials of each block are relative to
    void* e;           // (classes,) exponentials, in the type that passes run in
};

struct StatisticsKernels {
    void (*forward)(const TokenStatisticsArguments&, int64_t begin, int64_t end, const StatisticsScratch&);
    void (*backward)(const TokenStatisticsBackwardArguments&, int64_t begin, int64_t end, const StatisticsScratch&);
};

// Of jensen_shannon_kernels.cpp, which lists classes likewise.
struct JensenShannonKernels {
    void (*forward)(const JensenShannonArguments&, int64_t begin, int64_t end, const StatisticsScratch&);
    void (*backward)(const JensenShannonBackwardArguments&, int64_t begin, int64_t end, const StatisticsScratch&);
};

namespace baseline {
extern const StatisticsKernels statistics_kernels;
extern const JensenShannonKernels jensen_shannon_kernels;
}  // namespace baseline
namespace avx2 {
extern const StatisticsKernels statistics_kernels;
extern const JensenShannonKernels jensen_shannon_kernels;
}  // namespace avx2
namespace avx512 {
extern const StatisticsKernels statistics_kernels;
extern const JensenShannonKernels jensen_shannon_kernels;
}  // namespace avx512
namespace avx512bf16 {
extern const StatisticsKernels statistics_kernels;
extern const JensenShannonKernels jensen_shannon_kernels;
}  // namespace avx512bf16

}  // namespace smoothloss
