// Counting n-grams without naming them: the one at position i of a sentence equals the one at j of another exactly when
// the sentences agree for n tokens from there on. One scan serves all orders, and any vocabulary.
#pragma once

#include "ngram/arguments.h"

namespace smoothloss {
namespace ngram {

template <class Token>
struct Sentence {
    const Token* tokens;
    int64_t length;
};

SMOOTHLOSS_NGRAM_HD int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

SMOOTHLOSS_NGRAM_HD Sentence<int32_t> reference(const References& r, int64_t sentence) {
    return {r.tokens + r.offsets[sentence], r.offsets[sentence + 1] - r.offsets[sentence]};
}

// For how many tokens, at most `order`, `a` from i on and `b` from j on agree.
template <class A, class B>
SMOOTHLOSS_NGRAM_HD int agreement(const Sentence<A>& a, int64_t i, const Sentence<B>& b, int64_t j, int order) {
    int most = static_cast<int>(smaller(order, smaller(a.length - i, b.length - j)));
    int n = 0;
    while (n < most && a.tokens[i + n] == b.tokens[j + n]) ++n;
    return n;
}

// counts[n - 1]: how often the n-gram at position i of `a` occurs in `b`, n = 1 .. order.
template <class A, class B>
SMOOTHLOSS_NGRAM_HD void count_in(const Sentence<A>& a, int64_t i, const Sentence<B>& b, int order, int64_t* counts) {
    for (int n = 0; n < order; ++n) counts[n] = 0;
    A first = a.tokens[i];
    for (int64_t j = 0; j < b.length; ++j) {
        if (b.tokens[j] != first) continue;
        int agreed = agreement(a, i, b, j, order);
        for (int n = 0; n < agreed; ++n) ++counts[n];
    }
}

// How often the n-gram at position i occurs in its own sentence; 0 where it has occurred before i, or does not fit, so
// that a sum over positions is a sum over distinct n-grams.
template <class Token>
SMOOTHLOSS_NGRAM_HD void count_own(const Sentence<Token>& a, int64_t i, int order, int64_t* counts) {
    int repeated = 0;  // n-grams up to this order have occurred before
    for (int n = 0; n < order; ++n) counts[n] = i + n < a.length ? 1 : 0;
    Token first = a.tokens[i];
    for (int64_t j = 0; j < a.length; ++j) {
        if (a.tokens[j] != first || j == i) continue;
        int agreed = agreement(a, i, a, j, order);
        if (j < i && agreed > repeated) repeated = agreed;
        for (int n = 0; n < agreed; ++n) ++counts[n];
    }
    for (int n = 0; n < repeated; ++n) counts[n] = 0;
}

}  // namespace ngram
}  // namespace smoothloss
