// Counting n-grams without naming them: the one at position i of a sentence equals the one at j of another exactly when
// the sentences agree for n tokens from there on. One scan serves all orders, and any vocabulary.
//
// ORDER is for how many orders there is room; loops over it are unrolled, so that a GPU keeps the counts in registers.
#pragma once

#include "ngram/arguments.h"

namespace smoothloss {
namespace ngram {

template <class Token>
struct Sentence {
    const Token* tokens;
    int length;
};

// Of sentences.
struct Span {
    int64_t first;
    int64_t last;  // one behind
};

SMOOTHLOSS_NGRAM_HD int smaller(int a, int b) {
    return a < b ? a : b;
}

SMOOTHLOSS_NGRAM_HD int larger(int a, int b) {
    return a > b ? a : b;
}

SMOOTHLOSS_NGRAM_HD int64_t given_length(const Candidates& c, int64_t number, int64_t input) {
    return c.lengths[c.are_of_inputs ? input : number];
}

template <class Token>
SMOOTHLOSS_NGRAM_HD Sentence<Token> candidate_sentence(const Candidates& c, int64_t number, int64_t input) {
    int64_t length = given_length(c, number, input);
    length = length < 0 ? 0 : length > c.width ? c.width : length;
    return {static_cast<const Token*>(c.tokens) + number * c.width, static_cast<int>(length)};
}

SMOOTHLOSS_NGRAM_HD Sentence<int32_t> reference(const References& r, int64_t sentence) {
    int64_t begin = r.offsets[sentence], end = r.offsets[sentence + 1];
    bool fits = 0 <= begin && begin <= end && end <= r.num_tokens && end - begin <= kMaxLength;
    if (!fits) return {r.tokens, 0};
    return {r.tokens + begin, static_cast<int>(end - begin)};
}

SMOOTHLOSS_NGRAM_HD Span span_of(const References& r, int64_t input) {
    int64_t first = r.spans[2 * input], last = r.spans[2 * input + 1];
    bool fits = 0 <= first && first <= last && last <= r.num_sentences;
    return {fits ? first : 0, fits ? last : 0};
}

// For how many tokens, at most `order`, `a` from i on and `b` from j on agree.
template <class A, class B>
SMOOTHLOSS_NGRAM_HD int agreement(const Sentence<A>& a, int i, const Sentence<B>& b, int j, int order) {
    int most = smaller(order, smaller(a.length - i, b.length - j));
    int n = 0;
    while (n < most && a.tokens[i + n] == b.tokens[j + n]) ++n;
    return n;
}

// The first position from j on that holds `token`, or the length. A loop of its own: inside a larger one, compilers keep
// its three values on the stack.
template <class A, class B>
SMOOTHLOSS_NGRAM_HD int next_position(A token, const Sentence<B>& b, int j) {
    while (j < b.length && b.tokens[j] != token) ++j;
    return j;
}

// counts[n - 1]: how often the n-gram at position i of `a` occurs in `b`, n = 1 .. order.
template <int ORDER, class A, class B>
SMOOTHLOSS_NGRAM_HD void count_in(const Sentence<A>& a, int i, const Sentence<B>& b, int order, int* counts) {
    for (int n = 0; n < ORDER; ++n) counts[n] = 0;
    A first = a.tokens[i];
    for (int j = next_position(first, b, 0); j < b.length; j = next_position(first, b, j + 1)) {
        int agreed = agreement(a, i, b, j, order);
        for (int n = 0; n < ORDER; ++n) counts[n] += n < agreed;
    }
}

// How often the n-gram at position i occurs in its own sentence; 0 where it has occurred before i, or does not fit, so
// that a sum over positions is a sum over distinct n-grams.
template <int ORDER, class Token>
SMOOTHLOSS_NGRAM_HD void count_own(const Sentence<Token>& a, int i, int order, int* counts) {
    int repeated = 0;  // n-grams up to this order have occurred before
    for (int n = 0; n < ORDER; ++n) counts[n] = i + n < a.length;
    Token first = a.tokens[i];
    for (int j = next_position(first, a, 0); j < a.length; j = next_position(first, a, j + 1)) {
        if (j == i) continue;
        int agreed = agreement(a, i, a, j, order);
        if (j < i) repeated = larger(repeated, agreed);
        for (int n = 0; n < ORDER; ++n) counts[n] += n < agreed;
    }
    for (int n = 0; n < ORDER; ++n) counts[n] = n < repeated ? 0 : counts[n];
}

}  // namespace ngram
}  // namespace smoothloss
