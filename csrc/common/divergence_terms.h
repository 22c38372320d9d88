// The arithmetic of the Jensen-Shannon divergence of a row, shared by the CPU and the CUDA kernels.
//
// The teacher's probability is a_v where a slot names v and the same, r, everywhere else. With m = beta a + (1 - beta)
// p
//
//   loss = beta sum a (log a - log m) + (1 - beta) K,   K = KL(p || m) = sum p h,   h = log p - log m
//   dloss/dz_v = (1 - beta) p_v (h_v - K)
//
// With d = log p - log a: log m - log a = log(beta + (1 - beta) e^d), and h = d - that. Where a class is not listed
// log a is that of the row, so that one exponential and one logarithm do.
#pragma once

#include "common/row_terms.h"

namespace smoothloss {
namespace SMOOTHLOSS_ISA {

// Below it a class's share of the teacher's rest makes no difference in any dtype, and is still a normal number.
constexpr double kLowestLogShare = -80;

// Beyond it d makes no difference, in either direction.
constexpr double kLargestDistance = 700;

// What a pass over the classes that no slot names is to know. `T` runs over them.
template <class T>
struct UnlistedTerms {
    T center;
    T scale;       // 1 / (r sum): p / r = scale exp(z - center)
    T offset;      // log p - log r = z - center + offset
    T beta, rest;  // and 1 - beta
};

template <class T>
SMOOTHLOSS_HD UnlistedTerms<T> unlisted_terms(double center, double sum, double log_share, double beta) {
    constexpr double least = 1e-37;  // whose logarithm is finite in every dtype
    double rest = 1 - beta;
    return {static_cast<T>(center), static_cast<T>(exp(-log_share) / sum), static_cast<T>(-log(sum) - log_share),
            static_cast<T>(beta > least ? beta : least), static_cast<T>(rest > least ? rest : least)};
}

template <class V>
struct UnlistedClass {
    V from_student;  // log p - log m
    V from_share;    // log m - log r
};

// Of the larger one of p and r, m is a share between its weight and 1: the logarithm of that is the small number that
// is wanted where it counts, and no difference of two large ones. `ratio` is p / r and d its logarithm; `V` is a number
// or a vector, whose logarithm `log_of` is.
template <class V, class Log>
SMOOTHLOSS_HD UnlistedClass<V> unlisted_class(V d, V ratio, V beta, V rest, Log log_of) {
    V one = V{} + 1;
    auto is_larger = ratio > one;
    V smaller = is_larger ? one / ratio : ratio;
    V share = log_of((is_larger ? rest : beta) + (is_larger ? beta : rest) * smaller);
    return {is_larger ? -share : d - share, is_larger ? d + share : share};
}

// sum p (log p - log m) and sum a (log a - log m).
struct Divergences {
    double student;
    double teacher;
};

struct ListedTerms {
    double p;
    double from_student;  // log p - log m
    double from_teacher;  // log a - log m
};

// Of one class that a slot names; the CPU has the same in vectors.
SMOOTHLOSS_HD ListedTerms listed_terms(double z, double log_a, const RowSoftmax<double>& softmax, double beta) {
    double log_p = (z - softmax.center) - softmax.log_sum;
    double d = log_p - log_a;
    d = d > -kLargestDistance ? d : -kLargestDistance;  // of two that are -inf too; a NaN stays in p
    d = d < kLargestDistance ? d : kLargestDistance;
    double log_m = log(beta + (1 - beta) * exp(d));
    return {exp(log_p), d - log_m, -log_m};
}

SMOOTHLOSS_HD double log_share_of(double log_share) {
    return log_share > kLowestLogShare ? log_share : kLowestLogShare;
}

}  // namespace SMOOTHLOSS_ISA
}  // namespace smoothloss
